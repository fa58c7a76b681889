//! Stage three: where. `filter` says which nodes could take a replica and why the others cannot,
//! `choose` picks the best of those that can, `frag` and `expected` are what it picks by.

pub(crate) mod choose;
pub(crate) mod expected;
pub(crate) mod filter;
pub(crate) mod frag;
mod verdict;

pub use verdict::{
    Ask, Because, Candidate, IsolationRule, MAX_CANDIDATES, NodeRefusal, PlacementVerdict, Refusal, Score, Winner,
};
