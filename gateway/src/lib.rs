//! The data plane of Stowage: between any OpenAI client and the engine pods.
//!
//! What is decided, and where, in the order of a request:
//! [`paths`] (which route) → [`auth`] (who asks) → [`request`] (the body, bounded) → [`world`] (which
//! deployment a model's name means to this tenant) → [`limits`] (may it) → [`pool`] (which replica, or
//! wait) → [`upstream`] (try, and again elsewhere before the first byte) → [`relay`] (pass it on).
//! [`gateway`] is only the order. Beside the path of requests: [`watch`]
//! and [`observe`] turn API objects into facts, [`directory`] makes worlds and pools of them,
//! [`monitor`] listens to each replica's heartbeat and [`breaker`] judges it.
//!
//! Deliberately absent: a database, state on disk, tokenising, and any write to the API server. With
//! the operator or the API server away it serves what it last knew.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod account;
pub mod admin;
pub mod auth;
pub mod breaker;
pub mod directory;
pub mod gateway;
pub mod limits;
pub mod load;
pub mod metrics;
pub mod monitor;
pub mod observe;
pub mod outcome;
pub mod paths;
pub mod pool;
pub mod relay;
pub mod replica;
pub mod request;
pub mod server;
pub mod static_world;
pub mod tenants;
pub mod upstream;
pub mod usage;
pub mod watch;
pub mod world;
