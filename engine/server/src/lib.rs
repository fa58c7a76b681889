//! The engine behind an OpenAI-compatible HTTP API.
//!
//! [`engine_thread`] owns the engine core; everything else is tokio. A request is parsed and
//! tokenized on tokio, goes to the engine thread through a bounded channel, and its tokens come
//! back through a channel of its own, which is at the same time its lease: dropping the
//! receiving end cancels the request. [`text`] turns text into tokens and back, [`api`] serves HTTP,
//! [`process`] starts and ends all of it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod args;
pub mod budget;
pub mod engine_thread;
pub mod http;
pub mod load;
pub mod metrics;
pub mod process;
pub mod report;
pub mod startup;
pub mod text;
