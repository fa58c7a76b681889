//! Stage one: how many replicas.
//!
//! Today `spec.replicas` decides (`scaling.mode: Manual`). The autoscaler becomes another arm of [`how_many`];
//! quota and placement do not change with it. Not here: whether the replicas may be had, and where.

pub mod autoscale;

use serde::{Deserialize, Serialize};

use crate::snapshot::Deployment;

/// Stage one: how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum ScaleVerdict {
    Manual { replicas: u32 },
    Deleting,
}

/// The verdict and the number it stands for.
pub(crate) fn how_many(d: &Deployment) -> (ScaleVerdict, u32) {
    if d.deleting {
        return (ScaleVerdict::Deleting, 0);
    }
    (ScaleVerdict::Manual { replicas: d.wanted }, d.wanted)
}
