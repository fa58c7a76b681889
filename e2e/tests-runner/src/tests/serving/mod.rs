//! Requests from apply to delete: a first answer, ends and losses, many at once.

pub mod clients;
pub mod lifecycle;
pub mod models;
pub mod quickstart;
pub mod scale;
