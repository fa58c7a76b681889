//! The agent's summary for the operator and engineers, from a [`NodeView`]. Its form is a contract:
//! [`stowage_contracts::summary`].

use jiff::Timestamp;
use stowage_contracts::summary::{Claim, ClaimDevice, Device, Overshooting, Refused, Sample, Summary, Troubled};

use crate::device::inventory;
use crate::device::model::{GpuFacts, Health};
use crate::dra::checkpoint::Entry;
use crate::dra::prepare::Unprepared;
use crate::usage::view::{NodeView, Used};

/// Where the evidence of an overshoot comes from. One value so far: engines that share a GPU under MPS,
/// where NVML charges the server, would report themselves.
const SOURCE: &str = "NVML";

/// The summary of the node at this time.
pub fn of(node: &str, view: &NodeView, now: Timestamp) -> Summary {
    let troubled = |(kind, (since, message)): (&crate::usage::view::Trouble, &(Timestamp, String))| Troubled {
        kind: kind.name().to_owned(),
        message: message.clone(),
        since: *since,
    };
    Summary {
        node: node.to_owned(),
        simulated: view.simulated,
        driver_version: view.driver_version.clone(),
        at: now,
        devices: devices(view, now),
        claims: claims(view),
        overshoots: overshoots(view),
        refusals: refusals(view),
        fetches: view.models.fetches.clone(),
        troubles: view.troubles.iter().map(troubled).collect(),
    }
}

fn refusals(view: &NodeView) -> Vec<Refused> {
    let refused = |(uid, refused): (&String, &Unprepared)| Refused {
        namespace: refused.namespace.clone(),
        claim: refused.name.clone(),
        claim_uid: uid.clone(),
        since: refused.since,
        message: refused.message.clone(),
    };
    view.refusals.iter().map(refused).collect()
}

fn devices(view: &NodeView, now: Timestamp) -> Vec<Device> {
    let promisable = inventory::promisable(&view.facts);
    let device = |facts: &GpuFacts| {
        let promised = view.checkpoint.promised(&facts.uuid, None);
        let verdict = view.verdicts.get(&facts.uuid);
        let reading = view.readings.get(&facts.uuid);
        let read = reading.map(|(_, reading)| reading);
        Device {
            uuid: facts.uuid.clone(),
            name: inventory::device_name(facts),
            product: facts.product.clone(),
            health: verdict.map_or(Health::Healthy, |verdict| verdict.health),
            reason: verdict.map_or_else(String::new, |verdict| verdict.reason.to_owned()),
            message: verdict.map_or_else(String::new, |verdict| verdict.message.clone()),
            memory_bytes: promisable.iter().find(|gpu| gpu.uuid == facts.uuid).map_or(0, |gpu| gpu.memory_bytes),
            promised_bytes: promised.memory_bytes,
            promised_sm_percent: promised.sm_percent,
            used_bytes: read.and_then(|reading| reading.used_bytes),
            used_sm_percent: read.and_then(|reading| reading.sm_percent),
            unclaimed_bytes: view.unattributed.get(&facts.uuid).copied().unwrap_or(0),
            temperature_celsius: read.and_then(|reading| reading.temperature_celsius),
            power_milliwatts: read.and_then(|reading| reading.power_milliwatts),
            slowed_down: read.is_some_and(|reading| reading.slowed_down),
            age_seconds: reading.map(|(at, _)| now.duration_since(*at).as_secs_f64().max(0.0)),
        }
    };
    view.facts.iter().map(device).collect()
}

fn claims(view: &NodeView) -> Vec<Claim> {
    let used = |uid: &str, gpu: &str| -> Option<Used> {
        view.uses.iter().find(|held| held.claim_uid == uid && held.gpu == gpu).and_then(|held| held.used)
    };
    let claim = |(uid, entry): (&String, &Entry)| Claim {
        uid: uid.clone(),
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        pod: entry.pod.clone(),
        stage: entry.stage,
        model_commit: view.models.commits.get(uid).cloned(),
        devices: entry
            .devices
            .iter()
            .map(|device| {
                let used = used(uid, &device.uuid);
                ClaimDevice {
                    gpu: device.uuid.clone(),
                    promised_bytes: device.memory_bytes,
                    promised_sm_percent: device.sm_percent,
                    used_bytes: used.map(|used| used.bytes),
                    used_sm_percent: used.map(|used| used.sm_percent),
                }
            })
            .collect(),
    };
    view.checkpoint.claims.iter().map(claim).collect()
}

fn overshoots(view: &NodeView) -> Vec<Overshooting> {
    let overshoots = view.overshoots.iter().filter_map(|found| {
        let entry = view.checkpoint.claims.get(&found.claim_uid)?;
        Some(Overshooting {
            namespace: entry.namespace.clone(),
            claim: entry.name.clone(),
            claim_uid: found.claim_uid.clone(),
            pod: entry.pod.clone(),
            pod_uid: entry.pod_uid.clone(),
            gpu: found.gpu.clone(),
            promised_bytes: found.promised_bytes,
            margin_bytes: found.margin_bytes,
            used_bytes: found.samples.last().map_or(0, |(_, bytes)| *bytes),
            samples: found.in_a_row,
            source: SOURCE.to_owned(),
            headroom: headroom(view, &found.gpu),
            since: found.since,
            evidence: found.samples.iter().map(|(at, bytes)| Sample { at: *at, used_bytes: *bytes }).collect(),
        })
    });
    overshoots.collect()
}

/// Whether everybody else on the GPU could still use all that they were promised.
fn headroom(view: &NodeView, gpu: &str) -> bool {
    let total = inventory::promisable(&view.facts).iter().find(|g| g.uuid == gpu).map_or(0, |g| g.memory_bytes);
    // Each claim takes what it was promised or what it uses, whichever is more.
    let needed = view.uses.iter().filter(|held| held.gpu == gpu).fold(0u64, |sum, held| {
        let devices = view.checkpoint.claims.get(&held.claim_uid).map(|e| e.devices.as_slice()).unwrap_or_default();
        let promised: u64 = devices.iter().filter(|d| d.uuid == gpu).map(|d| d.memory_bytes).sum();
        sum.saturating_add(promised.max(held.used.map_or(0, |used| used.bytes)))
    });
    needed <= total
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::SignedDuration;

    use super::*;
    use crate::device::model::{GpuReading, ProcessUse, Reach};
    use crate::dra::checkpoint::Checkpoint;
    use crate::usage::fixtures::{ByPid, GIB, gpu, promised};
    use crate::usage::view::NodeState;

    /// Processes (pid, GiB) for five seconds; `None`: the list cannot be read.
    fn after_five_seconds(checkpoint: &Arc<Checkpoint>, processes: Option<&[(u32, u64)]>) -> Summary {
        let mut now = Timestamp::UNIX_EPOCH;
        let mut state = NodeState::new(false, now);
        state.facts(vec![gpu()], None);
        for _ in 0..5 {
            now += SignedDuration::from_secs(1);
            let mut reading = GpuReading::unreachable("g", Reach::Ok);
            reading.processes = processes.map(|all| {
                all.iter().map(|(pid, gib)| ProcessUse { pid: *pid, bytes: gib * GIB, sm_percent: 60 }).collect()
            });
            state.readings(vec![reading], Arc::clone(checkpoint), &ByPid, now);
        }
        of("n", &state.view, now)
    }

    #[test]
    fn processes_of_one_claim_add_up_and_unattributed_ones_are_reported_separately() {
        let summary = after_five_seconds(&promised(&[4, 1]), Some(&[(1, 1), (1, 2), (100, 3)]));
        let used: Vec<_> =
            summary.claims.iter().map(|c| (c.devices[0].used_bytes, c.devices[0].used_sm_percent)).collect();
        assert_eq!(used, [(Some(3 * GIB), Some(100)), (Some(0), Some(0))]);
        assert_eq!(summary.devices[0].unclaimed_bytes, 3 * GIB);
        assert!(summary.overshoots.is_empty());
    }

    #[test]
    fn list_that_cannot_be_read_is_unknown_use_and_no_overshoot() {
        let summary = after_five_seconds(&promised(&[1]), None);
        assert_eq!(summary.claims[0].devices[0].used_bytes, None);
        assert!(summary.overshoots.is_empty());
    }

    #[test]
    fn headroom_is_what_the_others_leave_of_their_promises() {
        let check = |promises: &[u64], expect: bool| {
            let summary = after_five_seconds(&promised(promises), Some(&[(1, 3)]));
            assert_eq!((summary.overshoots.len(), summary.overshoots[0].headroom), (1, expect), "{promises:?}");
        };
        check(&[1, 5], true);
        check(&[1, 6], false);
    }
}
