//! What every command uses: paths, private files, other programs, waiting, progress, Python environments. Knows nothing of
//! Stowage or of Kubernetes.

pub mod paths;
pub mod private;
pub mod progress;
pub mod python;
pub mod sh;
pub mod wait;
