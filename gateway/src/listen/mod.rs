//! The side of the clients: connections and their limits, routes, credentials, bodies.

pub mod body;
pub mod connection;
pub mod cors;
pub mod credentials;
mod encoding;
mod guarded;
pub mod paths;
mod patience;
pub mod peers;
pub mod server;
mod streams;
