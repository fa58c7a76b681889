//! The node's cache of fetched models, and how each claim gets its own.
//!
//! The checkpoint says which claims read which model; the task compares that with the disk and makes them agree: what
//! is missing is fetched, what is there is linked into the claim's directory, what nobody needs is removed when room is
//! needed. Nothing else is remembered, so a restart goes on where it was.
//!
//! On disk, below the state directory's `models/`:
//!
//! - `cached/<key>/model.gguf`: complete and verified; the name appears by a rename
//! - `partial/<key>.partial` and `.journal`: being fetched
//! - `claims/<uid>/`: mounted into the claim's containers, read-only; hard links to the cached files, and `.complete` last.
//!   A file whose link count is above one is in use.

pub mod evict;
pub mod store;
pub mod task;

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
}
