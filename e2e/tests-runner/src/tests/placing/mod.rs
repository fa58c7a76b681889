//! What is accepted and where it goes.

pub mod capacity;
pub mod moves;
pub mod objects;
pub mod placement;
pub mod plans;
pub mod reclaim;
