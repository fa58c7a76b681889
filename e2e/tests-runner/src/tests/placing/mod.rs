//! What is accepted and where it goes.

pub mod objects;
pub mod placement;
