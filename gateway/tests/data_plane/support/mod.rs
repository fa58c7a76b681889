//! Mock engines on one side, a gateway over a world that the test writes on the other.

pub mod engine;
pub mod harness;
pub mod process;
