//! What a cohort lends: who gets it, who gives it back, and which drains are cancelled.
#![allow(clippy::unwrap_used)]

mod claims;
#[path = "../common/mod.rs"]
mod common;
mod fairness;
mod late;
mod reclaim;
mod resume;
