//! Writes this node's GpuNode: at once when something changed, otherwise once a minute as a sign of
//! life. Its content is decided in [`crate::device::inventory`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use stowage_contracts::model::ModelKey;
use stowage_contracts::names::{API_VERSION, GPU_NODE_WRITTEN_EVERY_MS};
use stowage_crds::conditions::types;
use stowage_crds::gpu_node::CachedModel;
use stowage_crds::quantity::bytes_quantity;
use stowage_crds::{GpuNode, GpuNodeStatus};
use tokio::sync::watch;

use crate::device::inventory;
use crate::dra::slices::{FIELD_MANAGER, owner};
use crate::usage::view::{NodeView, Trouble};

/// As the type's documentation promises: at most so long without a write.
const QUIET: Duration = Duration::from_millis(GPU_NODE_WRITTEN_EVERY_MS);
const RETRY: Duration = Duration::from_secs(2);
/// For one write, which is one or three requests. A verdict must not wait for a dead connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes until the process ends.
pub async fn run(client: Client, node: String, mut views: watch::Receiver<Arc<NodeView>>) {
    let mut written: Option<(GpuNodeStatus, Instant)> = None;
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        // Nothing known yet: an empty status would say that there are no GPUs.
        if !view.facts.is_empty() {
            let devices =
                inventory::node_status(&view.facts, &view.verdicts, view.driver_version.clone(), view.simulated);
            let cached_models = view.models.cached.iter().map(cached).collect();
            let status = GpuNodeStatus { conditions: degraded(&view.troubles), cached_models, ..devices };
            let due = written.as_ref().is_none_or(|(last, at)| *last != status || at.elapsed() >= QUIET);
            if due {
                let writing = tokio::time::timeout(PATIENCE, write(&client, &node, &status, written.is_none()));
                match writing.await.unwrap_or_else(|_| Err(kube::Error::Service("no answer".into()))) {
                    Ok(()) => written = Some((status, Instant::now())),
                    Err(err) => {
                        tracing::warn!(%err, "cannot write the GpuNode");
                        // It may be deleted: create it again.
                        written = None;
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

fn cached((key, bytes): (&ModelKey, &u64)) -> CachedModel {
    CachedModel { source: key.as_str().to_owned(), size: bytes_quantity(*bytes) }
}

/// The agent's troubles as one condition, the gravest first; none while there are none.
fn degraded(troubles: &BTreeMap<Trouble, (Timestamp, String)>) -> Vec<Condition> {
    let Some((gravest, _)) = troubles.first_key_value() else { return Vec::new() };
    let since = troubles.values().map(|(since, _)| *since).min().unwrap_or_default();
    vec![Condition {
        type_: types::DEGRADED.to_owned(),
        status: "True".to_owned(),
        reason: gravest.name().to_owned(),
        message: troubles.values().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; "),
        last_transition_time: Time(since),
        observed_generation: None,
    }]
}

async fn write(client: &Client, node: &str, status: &GpuNodeStatus, create: bool) -> Result<(), kube::Error> {
    let api: Api<GpuNode> = Api::all(client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    if create {
        let found = Api::<Node>::all(client.clone()).get(node).await?;
        let object = json!({
            "apiVersion": API_VERSION, "kind": "GpuNode",
            "metadata": {"name": node, "ownerReferences": owner(&found).into_iter().collect::<Vec<_>>()},
            "spec": {},
        });
        api.patch(node, &params, &Patch::Apply(&object)).await?;
    }
    let status = GpuNodeStatus { observed_time: Some(Time(jiff::Timestamp::now())), ..status.clone() };
    let object = json!({"apiVersion": API_VERSION, "kind": "GpuNode", "metadata": {"name": node}, "status": status});
    api.patch_status(node, &params, &Patch::Apply(&object)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_become_one_condition_and_without_any_there_is_none() {
        assert!(degraded(&BTreeMap::new()).is_empty());
        let at = |second| Timestamp::from_second(second).unwrap();
        let troubles = BTreeMap::from([
            (Trouble::CheckpointRebuilt, (at(5), "rebuilt".to_owned())),
            (Trouble::ScenarioInvalid, (at(9), "not JSON".to_owned())),
        ]);
        let condition = degraded(&troubles).remove(0);
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("ScenarioInvalid", "not JSON; rebuilt"));
        assert_eq!(condition.last_transition_time, Time(at(5)));
    }
}
