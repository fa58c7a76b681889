//! Requests from apply to delete: a first answer, ends and losses, many at once.

pub mod clients;
// The small model that the engine's own tests use.
#[allow(clippy::unwrap_used)]
#[path = "../../../../../engine/server/tests/support/clockwork.rs"]
mod clockwork;
pub mod follow;
pub mod hubs;
pub mod lifecycle;
pub mod models;
pub mod quickstart;
pub mod quiet;
pub mod scale;
