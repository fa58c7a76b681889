//! What an accepted spec says about scaling, in the planner's types. For the operator, which plans with it, and for
//! `kubectl stowage simulate`, which plans the same on a trace.
//!
//! Pure. Not here: what needs another object (the operator's `translate`), and whether a spec is accepted
//! (`stowage_crds::validate`).
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::time::Duration;

use stowage_contracts::hold::default_hold;
use stowage_crds::inference_deployment::{ScalingMode, ScalingObjective};
use stowage_crds::validate::{AcceptedAccelerator, AcceptedScaling, AcceptedVariant};
use stowage_planner::snapshot::{
    Accelerator, Objective, Objectives, Partition, Room, Scaling, ScalingMode as Mode, Variant,
};

/// Bounds, objectives and mode. More than `most` replicas are not allowed, whatever the spec says. `start`: what a start
/// takes, once enough were measured.
pub fn scaling(accepted: &AcceptedScaling, most: u32, start: Option<Duration>) -> Scaling {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Scaling {
        mode: match accepted.mode {
            ScalingMode::Manual => Mode::Manual,
            ScalingMode::Advisory => Mode::Advisory,
            ScalingMode::Active => Mode::Active,
        },
        min_replicas: accepted.min_replicas.min(most),
        max_replicas: accepted.max_replicas.min(most),
        objectives: Some(Objectives {
            ttft_ms: accepted.ttft.as_secs_f64() * 1000.0,
            itl_ms: accepted.itl.as_secs_f64() * 1000.0,
        }),
        room: Room::Standard,
        idle_after_ms: accepted.idle_after.map(millis),
        cold_start_hold_ms: Some(millis(accepted.hold.unwrap_or_else(|| default_hold(start)))),
    }
}

/// What is preferred among variants and nodes.
pub fn objective(accepted: &AcceptedScaling) -> Objective {
    match accepted.objective {
        None => Objective::Packing,
        Some(ScalingObjective::Cost) => Objective::Cost,
        Some(ScalingObjective::Latency) => Objective::Latency,
    }
}

/// One shape of a replica.
pub fn variant(accepted: &AcceptedVariant) -> Variant {
    let accelerator = match accepted.accelerator.clone() {
        AcceptedAccelerator::Gpu { class, count, memory_bytes, sm_percent, estimated: _ } => {
            Accelerator::Gpu { class, count, partition: Partition::slice(memory_bytes, sm_percent) }
        }
        AcceptedAccelerator::Cpu { cpu_milli, memory_bytes } => Accelerator::Cpu { cpu_milli, memory_bytes },
    };
    Variant { name: accepted.name.clone(), accelerator, itl_us: None }
}
