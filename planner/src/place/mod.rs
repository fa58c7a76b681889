//! Stage three: where. `filter` decides which nodes could take a replica and why the others cannot,
//! `choose` scores one of those that can, `ranking` keeps them in order, `placer` compares all variants, `spread` counts the replicas of domains, `preload` decides which nodes hold weights ahead of need, `refuse` groups the reasons of
//! the others; `frag` and `expected` are what the score is made of.

pub(crate) mod choose;
pub(crate) mod expected;
pub(crate) mod filter;
pub(crate) mod frag;
pub(crate) mod placer;
pub(crate) mod preload;
pub(crate) mod ranking;
pub(crate) mod refuse;
pub(crate) mod spread;
mod verdict;

pub use verdict::{
    Ask, Because, Candidate, IsolationRule, MAX_CANDIDATES, MAX_EXAMPLES, NodeRefusal, PlacementVerdict, Refusal,
    RefusalGroup, Score, Winner,
};
