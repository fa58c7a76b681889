//! The exchange with an engine and the answer on its way to the client.

pub mod account;
pub mod answers;
pub mod attempt;
pub mod attempts;
pub mod exchange;
pub mod outgoing;
pub mod refusals;
pub mod spans;
pub mod stream;
pub mod usage;
