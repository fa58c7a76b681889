//! Failures of GPUs, processes, nodes, operators and the API server.

pub mod faults;
pub mod gpus;
pub mod nodes;
pub mod operators;
pub mod refusals;
