//! A simulator of one model's deployment, for judging autoscaling: replayed arrivals meet
//! iteration-level engines behind the gateway's queue, while a policy decides the number of replicas.
//!
//! In the order in which data flows: [`trace`] (arrivals from a file) → [`engine`] (one replica:
//! continuous batching by the cost model) → [`cluster`] (replicas that start, serve and drain, and the
//! queue with its gate in front of them) → [`policy`] (published rules) and [`planned`] (the product, on the
//! deployment and the nodes of [`site`]) → [`run`] (one run and its figures) → [`contender`] (policies by name) →
//! [`record`] (a run with what was decided on the way).
//!
//! Deliberately absent: a second autoscaler. [`planned::Stowage`] calls [`stowage_planner::plan`], the
//! function that the operator runs. Nothing here reads a clock or draws a random number.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cluster;
pub mod contender;
pub mod engine;
pub mod planned;
pub mod policy;
pub mod record;
pub mod run;
pub mod site;
pub mod trace;
