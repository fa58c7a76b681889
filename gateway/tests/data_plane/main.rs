//! The gateway's library over real sockets: mock engines on one side, clients on the other.
#![allow(clippy::unwrap_used)]

mod attack;
mod bad_input;
mod faults;
mod kills;
mod lifecycle;
mod serving;
mod slow_clients;
mod support;
mod traces;
