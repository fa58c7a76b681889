//! A simulator of one model's deployment, for judging autoscaling: replayed arrivals meet
//! iteration-level engines behind the gateway's queue, while a policy decides the number of replicas.
//!
//! In the order in which data flows: [`trace`] (arrivals from a file) → [`engine`] (one replica:
//! continuous batching by the cost model) → [`cluster`] (replicas that start, serve and drain, and the
//! queue with its gate in front of them) → [`policy`] (who decides the count: the planner's own rule,
//! or a published one) → [`run`] (one run and its figures).
//!
//! Deliberately absent: a second autoscaler. [`policy::Stowage`] calls the rule that the operator runs
//! ([`stowage_planner::demand::autoscale`]). Nothing here reads a clock or draws a random number.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cluster;
pub mod engine;
pub mod policy;
pub mod run;
pub mod trace;
