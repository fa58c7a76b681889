//! What the tests act and look with: the API server, the gateway, processes, disks, simulated GPUs, our own parts, a terminal.

pub mod cluster;
pub mod disk;
pub mod history;
pub mod http;
pub mod load;
pub mod operator;
pub mod parts;
pub mod process;
pub mod proxy;
pub mod scenario;
pub mod world;
