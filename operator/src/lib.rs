//! The operator: observe → plan → check → publish → execute.
//!
//! The bird's-eye view is in `docs/operator.md`. In short: [`observe`] keeps the cluster in memory,
//! [`snapshot`] turns it into the planner's input, [`control`] plans, [`desk`] carries out what
//! [`reconcile`] prepared, [`write`] is the only way to change anything and asks [`leader::Fence`] each
//! time, [`journal`] remembers what was done and is not seen yet.
//!
//! Deliberately absent: decisions. How many replicas, whether they may, and where they go, is the
//! planner's; this crate translates, executes and tells.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod agents;
pub mod config;
pub mod control;
pub mod decisions;
pub mod desk;
pub mod identity;
pub mod journal;
pub mod leader;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod reconcile;
pub mod run;
pub mod snapshot;
pub mod startup;
pub mod takeover;
pub mod view;
pub mod write;
