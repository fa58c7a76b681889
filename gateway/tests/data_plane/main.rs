//! The gateway's library over real sockets: mock engines on one side, clients on the other.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod engine;
mod faults;
mod harness;
mod lifecycle;
mod serving;
