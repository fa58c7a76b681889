//! What others read of the operator: the administrative port, the metrics, the decision log.

pub mod admin;
pub mod decisions;
pub mod dry_run;
pub mod metrics;
pub mod overview;
pub mod published;
