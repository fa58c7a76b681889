//! Which stage of a request limits a deployment: queue, prefill, KV cache, decode or the health of its GPUs.
//!
//! Little's law says how long requests spend in a stage: the number that is there, divided by the rate at which they
//! go through. Gateways count those that wait and those that engines have, engines the prompt tokens that are not
//! computed; the cost model divides an iteration between prompts and answers. [`Means`] holds the last half minute of
//! those counts, [`Means::verdict`] names the stage.
//!
//! A stage limits only where an objective is missed. Those who wait for a replica wait for what the replicas lack: room
//! in the KV cache, time for prompts, or otherwise more replicas. A GPU is named where it slows its replica down and
//! replicas without such a fault would carry the load; where they would not either, the load is the reason.
//!
//! Not here: the network between gateway and engine, which nothing measures.

mod flow;
mod means;
mod verdict;

pub use means::Means;
pub use verdict::{Bottleneck, Expected, FaultyGpu, RequestStage, ServedLoad, Shares, Suggestion, Verdict};

use std::collections::BTreeMap;

use crate::snapshot::{Deployment, GpuShare, Health, Node, Placement, Replica, Shared};

/// GPUs that are not healthy, with the reason, by node and UUID.
#[derive(Clone, Debug, Default)]
pub struct FaultyGpus(BTreeMap<(String, String), String>);

impl FaultyGpus {
    /// Those of these nodes.
    pub fn of(nodes: &[Shared<Node>]) -> Self {
        let mut faulty = BTreeMap::new();
        for node in nodes {
            for gpu in &node.gpus {
                if let Health::Degraded { reason } | Health::Unhealthy { reason } = &gpu.health {
                    faulty.insert((node.name.clone(), gpu.uuid.clone()), reason.clone());
                }
            }
        }
        Self(faulty)
    }

    /// The first one that this replica has a part of.
    fn under(&self, replica: &Replica) -> Option<FaultyGpu> {
        let Placement { node, gpus, .. } = replica.placement.as_ref()?;
        if self.0.is_empty() {
            return None;
        }
        let found = |GpuShare { uuid, .. }: &GpuShare| {
            let reason = self.0.get(&(node.clone(), uuid.clone()))?;
            Some(FaultyGpu { node: node.clone(), uuid: uuid.clone(), reason: reason.clone() })
        };
        gpus.iter().find_map(found)
    }

    /// Of all replicas that exist.
    fn under_any(&self, d: &Deployment) -> Vec<FaultyGpu> {
        let mut all: Vec<FaultyGpu> = d.replicas.iter().filter_map(|replica| self.under(replica)).collect();
        all.sort();
        all.dedup();
        all
    }
}
