//! The operator: [`observe`] the cluster, [`translate`] it for the planner, plan and check
//! ([`control`]), [`execute`] the plan; beside them [`lead`] (who may write) and [`serve`] (what
//! others read). Data flows in this order, and no room uses a later one. [`cache_key`] stands alone.
//!
//! [`run`] puts the parts together; the bird's-eye view is in `docs/operator.md`.
//!
//! Deliberately absent: decisions. How many replicas, whether they may run, and where, is decided
//! by the planner; this crate translates, executes and reports.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache_key;
pub mod config;
pub mod control;
pub mod execute;
pub mod lead;
pub mod observe;
pub mod run;
pub mod serve;
pub mod translate;

/// A turn makes and drops very many small values; with glibc's allocator it takes nearly twice as long
/// (docs/measurements.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
