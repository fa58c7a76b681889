//! The node's cache of fetched models, and how each claim gets its own.
//!
//! The checkpoint says which claims read which model; the task compares that with the disk and makes them agree: what
//! is missing is fetched, what is there is linked into the claim's directory, what nobody needs is removed when room is
//! needed. Nothing else is remembered, so a restart goes on where it was.
//!
//! On disk, below the state directory's `models/`:
//!
//! - `cached/<key>/model.gguf`, or `model/` with the files of a repository or directory: complete and verified; the key's name appears by
//!   a rename
//! - `partial/<key>.partial` and `.journal`, or `<key>.files/` with such a pair per file: being fetched
//! - `claims/<uid>/`: mounted into the claim's containers, read-only; hard links to the cached files, and `.complete` last.
//!   A file whose link count is above one is in use.

pub mod estimate;
pub mod evict;
pub mod figures;
pub mod headers;
mod job;
mod login;
pub mod preloads;
pub mod store;
pub mod task;
mod turns;
mod wanted;

use std::collections::BTreeMap;

use stowage_contracts::model::ModelKey;
use stowage_contracts::summary::ModelFetch;

/// What is cached and what is on its way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelsState {
    /// Bytes of each complete model.
    pub cached: BTreeMap<ModelKey, u64>,
    /// Models that claims wait for.
    pub fetches: Vec<ModelFetch>,
    /// Commits to which revisions were resolved, by the claim's uid.
    pub commits: BTreeMap<String, String>,
}
