//! Where replicas and weights go, beside the scenarios.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod preload;
mod spreading;
