//! The exchange with an engine and the answer on its way to the client.

pub mod account;
pub mod attempt;
pub mod stream;
pub mod usage;
