//! Writes an OCI image layout as one tar, the form that `ctr images import`, kind, podman and skopeo
//! read. The same input gives the same bytes: no clock, no owner names, entries in the order given.
//!
//! Files are read twice, once for the digest that names their layer and once for its bytes, and are never held in
//! memory: a model may be larger than the machine's memory. A file that changes in between is an error.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod layer;
pub mod model;
mod write;

use std::path::PathBuf;

pub use layer::{Entry, Layer};
pub use write::{Config, read_name, write};

/// Why an archive was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file that goes into the image.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The archive itself.
    #[error("cannot write {}", path.display())]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Read twice with different bytes.
    #[error("{} changed while it was packed; pack it again when nothing writes to it", path.display())]
    Changed {
        /// The file, or the archive's when it is not known which file changed.
        path: PathBuf,
    },
    /// A folder without weights.
    #[error("{} holds no weights: it needs *.safetensors or *.gguf", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// Read as an archive.
    #[error("{} is not an OCI archive", path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// Why, where it is known.
        source: Option<std::io::Error>,
    },
}
