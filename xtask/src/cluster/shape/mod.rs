//! What a cluster is, in values: its names, addresses and paths, its record, its configuration files.

pub mod layout;
pub mod state;
pub mod template;
