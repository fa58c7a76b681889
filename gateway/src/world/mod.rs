//! What is known of tenants, keys, models and replicas, and from where.

pub mod facts;
pub mod observe;
pub mod salt;
pub mod snapshot;
pub mod static_file;
pub mod watch;
