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

/// A plan makes and drops a hundred thousand small values. With glibc's allocator a turn takes nearly twice as long, and
/// what the largest plan needed is kept for good.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
