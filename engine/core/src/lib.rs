//! What to compute next, and what is known about what was computed: requests, blocks, scheduling,
//! sampling. No I/O, no clock, no threads; kernels are behind [`executor::Executor`].
//!
//! Read [`engine`] first: one step of it touches everything. [`scheduler`] decides, [`blocks`] keeps
//! the cache, [`sampling`] turns logits into tokens, [`sim`] is an executor without a model.
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod blocks;
pub mod engine;
pub mod executor;
pub mod fit;
pub mod request;
pub mod sampling;
pub mod scheduler;
pub mod sim;
