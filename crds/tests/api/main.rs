//! The API as a whole: what is generated, what is honoured, what is refused.
#![allow(clippy::unwrap_used)]

mod chart;
mod fixtures;
mod leaves;
mod manifests;
mod nasty;
mod refusals;
mod schema;
mod words;
