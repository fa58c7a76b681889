//! What the operators cost while nothing happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use stowage_contracts::names::CACHE_KEY_SECRET;

use crate::tools::cluster::text;
use crate::tools::parts::leader;
use crate::tools::process::cpu_seconds;
use crate::tools::world::{SYSTEM, Wish, World};

/// Numbers inside sentences are written anew at most this often, and what was learned last may be among them.
const SETTLES: Duration = Duration::from_secs(40);
const WATCHED: Duration = Duration::from_secs(60);
/// Of one core. The programs of the local cluster are not optimised; `docs/measurements.md` has the figure of both.
const MOST_CPU: f64 = 0.05;
/// Kinds that the operator writes; what else writes them has nothing to do meanwhile.
const KINDS: [&str; 7] =
    ["InferenceDeployment", "ResourceClaim", "Service", "NetworkPolicy", "TenantQuota", "GpuClass", "InferenceRuntime"];

/// Versions of everything that an operator writes.
async fn versions(w: &World) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for kind in KINDS {
        for object in w.cluster().list(kind, "", "").await? {
            let key = format!("{kind} {}/{}", text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
            all.insert(key, text(&object, "/metadata/resourceVersion"));
        }
    }
    Ok(all)
}

pub async fn idle_operators_write_nothing(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "still", &Wish::default()).await?;
    let follows = json!({"replicas": null, "objectives": {"ttft": "10s", "itl": "2s"},
        "scaling": {"mode": "Active", "minReplicas": 1, "maxReplicas": 2}});
    w.deploy_ready(&tenant, "follows", &Wish::default().overlay(follows)).await?;
    w.answers(&tenant, "follows").await?;
    // The answer to a request, in a count that falls to what the load needs: not a wait for something.
    tokio::time::sleep(SETTLES).await;
    let (_, pid) = leader(&w).await?;
    let (before, cpu, began) = (versions(&w).await?, cpu_seconds(pid)?, Instant::now());
    tokio::time::sleep(WATCHED).await; // the time that is watched
    let (after, used) = (versions(&w).await?, (cpu_seconds(pid)? - cpu) / began.elapsed().as_secs_f64());
    w.note(&format!("the leader used {:.2} % of a core", used * 100.0));
    let changed: Vec<_> = after.iter().filter(|(key, version)| before.get(*key) != Some(version)).collect();
    ensure!(changed.is_empty() && before.len() == after.len(), "written while idle: {changed:?}");
    ensure!(used < MOST_CPU, "the leader used {:.2} % of a core", used * 100.0);
    Ok(())
}

/// A key of the salts that is deleted is there again soon: gateways say that they lack it.
pub async fn deleted_key_of_the_salts_is_made_anew(w: World) -> anyhow::Result<()> {
    let uid = |object: Option<serde_json::Value>| object.map(|o| text(&o, "/metadata/uid")).unwrap_or_default();
    let before = uid(w.cluster().get("Secret", SYSTEM, CACHE_KEY_SECRET).await?);
    ensure!(!before.is_empty(), "there is no Secret {CACHE_KEY_SECRET}");
    w.cluster().delete("Secret", SYSTEM, CACHE_KEY_SECRET).await?;
    crate::tools::cluster::wait_for("another key of the salts", Duration::from_secs(20), || async {
        let now = uid(w.cluster().get("Secret", SYSTEM, CACHE_KEY_SECRET).await?);
        Ok(if !now.is_empty() && now != before { Ok(()) } else { Err(now) })
    })
    .await
}
