//! Where replicas and weights go, beside the scenarios.
#![allow(clippy::unwrap_used)]

mod capacity;
#[path = "../common/mod.rs"]
mod common;
mod preload;
mod spreading;
