//! Which replica a request gets and when: tenants' limits, pools, and what is known of each replica.

pub mod arrivals;
pub mod ask;
pub mod breaker;
pub mod client;
pub mod directory;
pub mod limits;
pub mod load;
pub mod monitor;
pub mod pool;
pub mod replica;
pub mod tenants;
