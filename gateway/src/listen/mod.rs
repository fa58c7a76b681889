//! The side of the clients: connections and their limits, routes, credentials, bodies.

pub mod body;
pub mod credentials;
pub mod paths;
pub mod server;
