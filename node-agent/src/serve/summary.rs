//! What the operator and people read: one JSON object about the node, from a [`View`].
//!
//! Every reading carries its age. Two summaries that differ in ages and times only are the same
//! news ([`Summary::same_news`]).

use jiff::Timestamp;
use serde::Serialize;

use crate::device::inventory;
use crate::device::model::Health;
use crate::usage::view::{Used, View};

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub node: String,
    pub simulated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    pub at: Timestamp,
    pub devices: Vec<Device>,
    pub claims: Vec<Claim>,
    pub overshoots: Vec<Overshooting>,
    pub refusals: Vec<Refused>,
    pub troubles: Vec<Troubled>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub uuid: String,
    pub name: String,
    pub product: String,
    pub health: Health,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What can be promised.
    pub memory_bytes: u64,
    pub promised_bytes: u64,
    pub promised_sm_percent: u32,
    /// Absent as long as it was never read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_sm_percent: Option<u32>,
    /// Held by processes of no claim.
    pub unclaimed_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_milliwatts: Option<u32>,
    pub slowed_down: bool,
    /// Age of the reading; absent: none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub pod: String,
    pub stage: crate::dra::checkpoint::Stage,
    pub devices: Vec<ClaimDevice>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimDevice {
    pub gpu: String,
    pub promised_bytes: u64,
    pub promised_sm_percent: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_sm_percent: Option<u32>,
}

/// A claim that uses more than was promised, with the evidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overshooting {
    pub namespace: String,
    pub claim: String,
    pub claim_uid: String,
    pub pod: String,
    pub pod_uid: String,
    pub gpu: String,
    pub promised_bytes: u64,
    pub margin_bytes: u64,
    pub used_bytes: u64,
    /// In a row above promise + margin.
    pub samples: u32,
    /// `NVML` or `engine report`.
    pub source: &'static str,
    /// The device has room for it although it is more than was promised.
    pub headroom: bool,
    pub since: Timestamp,
    /// The last samples in time order.
    pub evidence: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    pub at: Timestamp,
    pub used_bytes: u64,
}

/// A claim that the kubelet wants prepared and this agent cannot prepare.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    pub namespace: String,
    pub claim: String,
    pub claim_uid: String,
    pub since: Timestamp,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Troubled {
    pub kind: &'static str,
    pub message: String,
    pub since: Timestamp,
}

impl Summary {
    pub fn of(node: &str, view: &View, now: Timestamp) -> Self {
        Self {
            node: node.to_owned(),
            simulated: view.simulated,
            driver_version: view.driver_version.clone(),
            at: now,
            devices: devices(view, now),
            claims: claims(view),
            overshoots: overshoots(view),
            refusals: refusals(view),
            troubles: view
                .troubles
                .iter()
                .map(|(kind, (since, message))| Troubled { kind: kind.name(), message: message.clone(), since: *since })
                .collect(),
        }
    }

    pub fn same_news(&self, other: &Self) -> bool {
        self.timeless() == other.timeless()
    }

    fn timeless(&self) -> Self {
        let mut copy = self.clone();
        copy.at = Timestamp::UNIX_EPOCH;
        copy.devices.iter_mut().for_each(|device| device.age_seconds = None);
        for overshoot in &mut copy.overshoots {
            overshoot.evidence.clear();
            overshoot.samples = 0;
        }
        copy
    }
}

fn refusals(view: &View) -> Vec<Refused> {
    let refused = |(uid, refused): (&String, &crate::dra::prepare::Unprepared)| Refused {
        namespace: refused.namespace.clone(),
        claim: refused.name.clone(),
        claim_uid: uid.clone(),
        since: refused.since,
        message: refused.message.clone(),
    };
    view.refusals.iter().map(refused).collect()
}

fn devices(view: &View, now: Timestamp) -> Vec<Device> {
    let promisable = inventory::promisable(&view.facts);
    let device = |facts: &crate::device::model::GpuFacts| {
        let promised = view.checkpoint.promised(&facts.uuid, None);
        let verdict = view.verdicts.get(&facts.uuid);
        let reading = view.readings.get(&facts.uuid);
        let read = reading.map(|(_, reading)| reading);
        Device {
            uuid: facts.uuid.clone(),
            name: inventory::device_name(facts),
            product: facts.product.clone(),
            health: verdict.map_or(Health::Healthy, |verdict| verdict.health),
            reason: verdict.map_or("", |verdict| verdict.reason),
            message: verdict.map_or_else(String::new, |verdict| verdict.message.clone()),
            memory_bytes: promisable.iter().find(|gpu| gpu.uuid == facts.uuid).map_or(0, |gpu| gpu.memory_bytes),
            promised_bytes: promised.memory_bytes,
            promised_sm_percent: promised.sm_percent,
            used_bytes: read.and_then(|reading| reading.used_bytes),
            used_sm_percent: read.and_then(|reading| reading.sm_percent),
            unclaimed_bytes: view.strangers.get(&facts.uuid).copied().unwrap_or(0),
            temperature_celsius: read.and_then(|reading| reading.temperature_celsius),
            power_milliwatts: read.and_then(|reading| reading.power_milliwatts),
            slowed_down: read.is_some_and(|reading| reading.slowed_down),
            age_seconds: reading.map(|(at, _)| now.duration_since(*at).as_secs_f64().max(0.0)),
        }
    };
    view.facts.iter().map(device).collect()
}

fn claims(view: &View) -> Vec<Claim> {
    let used = |uid: &str, gpu: &str| -> Option<Used> {
        view.uses.iter().find(|held| held.claim_uid == uid && held.gpu == gpu).and_then(|held| held.used)
    };
    let claim = |(uid, entry): (&String, &crate::dra::checkpoint::Entry)| Claim {
        uid: uid.clone(),
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        pod: entry.pod.clone(),
        stage: entry.stage,
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

fn overshoots(view: &View) -> Vec<Overshooting> {
    let told = view.overshoots.iter().filter_map(|(found, source)| {
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
            source: source.name(),
            headroom: headroom(view, &found.gpu),
            since: found.since,
            evidence: found.samples.iter().map(|(at, bytes)| Sample { at: *at, used_bytes: *bytes }).collect(),
        })
    });
    told.collect()
}

/// Whether everybody else on the GPU could still use all that they were promised.
fn headroom(view: &View, gpu: &str) -> bool {
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
    use crate::usage::view::Picture;

    /// Processes (pid, GiB) for five seconds; `None`: the list cannot be read.
    fn after_five_seconds(checkpoint: &Arc<Checkpoint>, processes: Option<&[(u32, u64)]>) -> Summary {
        let mut now = Timestamp::UNIX_EPOCH;
        let mut picture = Picture::new(false, now);
        picture.facts(vec![gpu()], None);
        for _ in 0..5 {
            now += SignedDuration::from_secs(1);
            let mut reading = GpuReading::unreachable("g", Reach::Ok);
            reading.processes = processes.map(|all| {
                all.iter().map(|(pid, gib)| ProcessUse { pid: *pid, bytes: gib * GIB, sm_percent: 60 }).collect()
            });
            picture.readings(vec![reading], Arc::clone(checkpoint), &ByPid, now);
        }
        Summary::of("n", &picture.view, now)
    }

    #[test]
    fn processes_of_one_claim_add_up_and_strangers_are_shown_apart() {
        let summary = after_five_seconds(&promised(&[4, 1]), Some(&[(1, 1), (1, 2), (100, 3)]));
        let used: Vec<_> =
            summary.claims.iter().map(|c| (c.devices[0].used_bytes, c.devices[0].used_sm_percent)).collect();
        assert_eq!(used, [(Some(3 * GIB), Some(100)), (Some(0), Some(0))]);
        assert_eq!(summary.devices[0].unclaimed_bytes, 3 * GIB);
        assert!(summary.overshoots.is_empty());
    }

    #[test]
    fn a_list_that_cannot_be_read_is_unknown_use_and_no_overshoot() {
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
