//! A lender gets back what it lent: the borrower's replica drains, within the grace.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stowage_contracts::names::ANNOTATION_DRAINING;

use crate::reserved::on;
use crate::tests::serving::follow::none_lost;
use crate::tools::cluster::{text, wait_for};
use crate::tools::load::{Load, under_way};
use crate::tools::parts::leader;
use crate::tools::process;
use crate::tools::world::{Tenant, Wish, World};

const GRACE: Duration = Duration::from_secs(30);
/// What a new leader may need, and the start of a replica.
const TAKE_OVER: Duration = Duration::from_secs(12);
const START: Duration = Duration::from_secs(30);

/// Half of a node: four whole GPUs.
fn half(w: &World) -> anyhow::Result<Wish> {
    let mut spec = on(w.node()?);
    spec["variants"] = json!([{"name": "half", "class": "h100-80g", "count": 4}]);
    Ok(Wish::default().overlay(spec))
}

/// Half of the node is the tenant's, and it may borrow the other half.
async fn partner(w: &World, name: &str) -> anyhow::Result<Tenant> {
    let gpus = json!([{"class": "h100-80g", "nominalQuota": "4", "borrowingLimit": "4"}]);
    let quota = json!({"cohort": w.unique("cohort"), "gpus": gpus, "minRuntime": "1s",
        "reclaimGrace": format!("{}s", GRACE.as_secs())});
    w.tenant_with(name, quota).await
}

pub async fn lender_gets_its_gpus_back_within_the_grace_and_no_request_is_lost(w: World) -> anyhow::Result<()> {
    reclaim(&w, false).await
}

pub async fn leader_killed_in_the_middle_of_a_reclaim_loses_nothing(w: World) -> anyhow::Result<()> {
    reclaim(&w, true).await
}

async fn reclaim(w: &World, kill_the_leader: bool) -> anyhow::Result<()> {
    let (borrower, lender) = (partner(w, "borrower").await?, partner(w, "lender").await?);
    w.deploy_ready(&borrower, "borrows", &half(w)?.replicas(2)).await?;
    w.answers(&borrower, "borrows").await?;
    let load = Load::start(&borrower.caller, "borrows", 4, 64);
    under_way(&load, 4).await?;
    let claimed = Instant::now();
    w.deploy(&lender, "claims", &half(w)?).await?;
    let victim = wait_for("a borrowed replica to drain", Duration::from_secs(20), || async {
        let pods = w.pods(&borrower, "borrows").await?;
        let drains = |pod: &&Value| pod["metadata"]["annotations"].get(ANNOTATION_DRAINING).is_some();
        Ok(pods
            .iter()
            .find(drains)
            .map(|pod| text(pod, "/metadata/name"))
            .ok_or_else(|| format!("{} pods", pods.len())))
    })
    .await?;
    if kill_the_leader {
        let (name, pid) = leader(w).await?;
        process::signal(pid, "KILL").with_context(|| format!("kill {name}"))?;
    }
    let limit = GRACE + START + if kill_the_leader { TAKE_OVER } else { Duration::ZERO };
    w.until(&lender, "claims", "Ready on what it lent", limit, |o| text(o, "/status/readyReplicas") == "1").await?;
    w.note(&format!(
        "{victim} gave its place back; the lender's replica took requests {:.1} s after the claim",
        claimed.elapsed().as_secs_f64()
    ));
    let left = w.pods(&borrower, "borrows").await?;
    let outcome = load.finish().await;
    ensure!(left.len() == 1, "{} replicas of the borrower are left", left.len());
    w.answers(&lender, "claims").await?;
    none_lost(&outcome)
}
