//! The data plane of Stowage: between any OpenAI client and the engine pods.
//!
//! A request is read and its sender identified in [`listen`], its model is looked up in [`world`], it
//! waits for a replica in [`queue`], and [`relay`] exchanges it with the engine and passes the answer on.
//! [`gateway`] is only this order; [`admin`] is the other port, with the [`gauges`] of each deployment, and
//! [`outcome`] and [`metrics`] are the closed sets that every room counts by.
//!
//! Deliberately absent: a database, state on disk, tokenising, and any write to the API server. With
//! the operator or the API server away it serves what it last knew.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod gateway;
pub mod gauges;
pub mod listen;
pub mod metrics;
pub mod outcome;
pub mod queue;
pub mod relay;
pub mod world;
