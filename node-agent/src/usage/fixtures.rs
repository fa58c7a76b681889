//! A node for tests: one GPU of 8 GiB, claims with promises, processes by pid.

use std::sync::Arc;

use crate::device::model::GpuFacts;
use crate::dra::checkpoint::{Checkpoint, Entry, GrantedDevice, Stage};
use crate::usage::view::Attribution;

pub const GIB: u64 = 1 << 30;

/// Pid n belongs to claim `c<n>`, pids from 100 on to nobody.
pub struct ByPid;

impl Attribution for ByPid {
    fn claim_of(&self, pid: u32, _: &Checkpoint) -> Option<String> {
        (pid < 100).then(|| format!("c{pid}"))
    }
}

pub fn gpu() -> GpuFacts {
    GpuFacts {
        index: 0,
        uuid: "g".to_owned(),
        product: "NVIDIA L4".to_owned(),
        memory_bytes: 8 * GIB,
        reserved_bytes: 0,
        sm_count: 58,
        architecture: None,
        numa_node: None,
        pci_bus_id: None,
        nvlink_bus_ids: Vec::new(),
        minor: None,
        mig_enabled: None,
        mig_profiles: Vec::new(),
    }
}

/// Claims c1, c2, … with these promises in GiB.
pub fn promised(gib: &[u64]) -> Arc<Checkpoint> {
    let mut checkpoint = Checkpoint::default();
    for (index, gib) in gib.iter().enumerate() {
        let device = GrantedDevice {
            request: "gpu".to_owned(),
            pool: "n".to_owned(),
            device: "gpu-0".to_owned(),
            uuid: "g".to_owned(),
            memory_bytes: gib * GIB,
            sm_percent: 10,
            share_id: None,
        };
        let entry = Entry {
            model: None,
            namespace: "a".to_owned(),
            name: format!("stowage-{index}"),
            pod: format!("pod-{index}"),
            pod_uid: String::new(),
            tenant: String::new(),
            stage: Stage::Completed,
            devices: vec![device],
        };
        checkpoint.claims.insert(format!("c{}", index + 1), entry);
    }
    Arc::new(checkpoint)
}
