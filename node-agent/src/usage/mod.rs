//! What runs on the GPUs against what was promised: [`attribution`] finds the claim of a process,
//! [`overshoot`] decides which claim uses too much, [`view`] keeps the state of the node.

pub mod attribution;
pub mod overshoot;
pub mod view;

#[cfg(test)]
pub(crate) mod fixtures;
