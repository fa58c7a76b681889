//! Failures of the operator and of the API server: crashes after any write, a paused leader, no operator at all, an
//! API server that is slow, failing, restarted or wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::tools::cluster::{text, wait_for};
use crate::tools::history::History;
use crate::tools::load::Load;
use crate::tools::operator::{LEASE, Operator, SHORT_LEASE, between};
use crate::tools::parts::{operators, without_operators};
use crate::tools::proxy::Fault;
use crate::tools::world::{SYSTEM, Tenant, Wish, World};

const H100: i64 = 80 << 30;
/// Longer than two leases.
const PAUSE: Duration = Duration::from_secs(20);
/// Kinds that an operator watches.
const WATCHED: usize = 11;
/// In the arguments of an engine with [`other_model`].
const OTHER_LENGTH: &str = "4096";
/// Requests that a failing API server refuses.
const ERRORS: usize = 30;

/// An operator that runs here cannot ask the gateways for what is in flight, so its drains end at their deadline.
fn wish() -> Wish {
    Wish::default().overlay(json!({"scaling": {"drainTimeout": "2s"}}))
}

/// What a scenario of writes does to the deployment `chat`.
async fn act(w: &World, tenant: &Tenant, stage: Stage) -> anyhow::Result<()> {
    match stage {
        Stage::Create => w.deploy(tenant, "chat", &wish()).await,
        Stage::Grow => w.deploy(tenant, "chat", &wish().replicas(3)).await,
        Stage::Rollout => w.deploy(tenant, "chat", &wish().replicas(3).and(&other_model())).await,
        Stage::Shrink => w.deploy(tenant, "chat", &wish()).await,
        Stage::Delete => w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await,
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Create,
    Grow,
    /// Another model: every replica is made anew.
    Rollout,
    Shrink,
    Delete,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Create, Self::Grow, Self::Rollout, Self::Shrink, Self::Delete];

    fn replicas(self) -> u32 {
        match self {
            Self::Create | Self::Shrink => 1,
            Self::Grow | Self::Rollout => 3,
            Self::Delete => 0,
        }
    }
}

/// The same file under another length limit: what a change of model means for the pods.
fn other_model() -> Value {
    json!({"runtime": {"options": {"maxModelLen": 4096}}})
}

/// Waits for the end state of a stage and checks that nothing is doubled or orphaned.
async fn settled(w: &World, tenant: &Tenant, stage: Stage) -> anyhow::Result<()> {
    let wanted = stage.replicas() as usize;
    if stage == Stage::Delete {
        w.gone(tenant, "chat", Duration::from_secs(150)).await?;
        for kind in ["Pod", "ResourceClaim", "NetworkPolicy", "Service"] {
            let left = w.cluster().list(kind, &tenant.name, "app.kubernetes.io/managed-by=stowage").await?;
            ensure!(left.is_empty(), "{} {kind}s are orphaned", left.len());
        }
        return Ok(());
    }
    w.ready(tenant, "chat", stage.replicas()).await?;
    wait_for("exactly the wanted objects", Duration::from_secs(60), || async {
        let (pods, claims) = (w.pods(tenant, "chat").await?, w.claims(tenant, "chat").await?.len());
        let renewed = pods.iter().filter(|p| p["spec"].to_string().contains(OTHER_LENGTH)).count();
        let right = if stage == Stage::Rollout { renewed == wanted } else { true };
        Ok(if pods.len() == wanted && claims == wanted && right {
            Ok(())
        } else {
            Err(format!("{} pods ({renewed} renewed), {claims} claims, want {wanted}", pods.len()))
        })
    })
    .await
}

/// Cuts an operator off after its n-th write of a stage, kills it, and lets a second one finish.
async fn crash_after(w: &World, tenant: &Tenant, stage: Stage, n: usize) -> anyhow::Result<bool> {
    let proxy = between(w, Fault::CutAfterWrite(n)).await?;
    let first = Operator::start(w, &proxy, SHORT_LEASE)?;
    act(w, tenant, stage).await?;
    let cut = wait_for("the cut", Duration::from_secs(60), || async {
        if proxy.is_cut() {
            return Ok(Ok(true));
        }
        // A stage of fewer than n writes ends without a cut.
        Ok(if settled_now(w, tenant, stage).await? { Ok(false) } else { Err(format!("{} writes", proxy.writes())) })
    })
    .await
    .with_context(|| format!("{stage:?}, write {n}"))?;
    first.kill().await?;
    let whole = between(w, Fault::None).await?;
    let second = Operator::start(w, &whole, SHORT_LEASE)?;
    let outcome = settled(w, tenant, stage).await.with_context(|| format!("{stage:?}, killed after write {n}"));
    second.kill().await?;
    outcome?;
    Ok(cut)
}

async fn settled_now(w: &World, tenant: &Tenant, stage: Stage) -> anyhow::Result<bool> {
    let Some(object) = w.cluster().get("InferenceDeployment", &tenant.name, "chat").await? else {
        return Ok(stage == Stage::Delete);
    };
    let ready = object.pointer("/status/readyReplicas").and_then(Value::as_u64) == Some(u64::from(stage.replicas()));
    let current = text(&object, "/status/observedGeneration") == text(&object, "/metadata/generation");
    let pods = w.pods(tenant, "chat").await?;
    let renewed = |p: &Value| stage != Stage::Rollout || p["spec"].to_string().contains(OTHER_LENGTH);
    let whole = pods.len() == stage.replicas() as usize && pods.iter().all(renewed);
    Ok(stage != Stage::Delete && ready && current && whole)
}

async fn crashes(w: &World, points: impl Fn(Stage) -> Vec<usize>) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let history = History::watch(w.cluster().client(), &tenant.name);
    for stage in Stage::ALL {
        for n in points(stage) {
            // Each point starts from the state before its stage.
            if stage == Stage::Create {
                reset(w, &tenant, None).await?
            } else {
                reset(w, &tenant, Some(if stage == Stage::Grow { 1 } else { 3 })).await?
            }
            if !crash_after(w, &tenant, stage, n).await? {
                break; // the stage has fewer writes than n
            }
        }
    }
    history.check(H100)
}

/// Brings `chat` to so many replicas (`None`: gone) with an operator that is not disturbed.
async fn reset(w: &World, tenant: &Tenant, replicas: Option<u32>) -> anyhow::Result<()> {
    let proxy = between(w, Fault::None).await?;
    let operator = Operator::start(w, &proxy, SHORT_LEASE)?;
    let done = match replicas {
        Some(n) => w.deploy_ready(tenant, "chat", &wish().replicas(n)).await,
        None => {
            w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
            w.gone(tenant, "chat", Duration::from_secs(150)).await
        }
    };
    operator.kill().await?;
    done
}

pub async fn an_operator_killed_after_a_write_is_replaced_and_nothing_is_doubled(w: World) -> anyhow::Result<()> {
    // Every other write of every stage: the test below, and, with a simulated API server, the operator's own tests.
    let points = |stage| match stage {
        Stage::Create => vec![3],
        Stage::Rollout => vec![5],
        Stage::Delete => vec![2],
        Stage::Grow | Stage::Shrink => Vec::new(),
    };
    without_operators(&w, crashes(&w, points)).await
}

pub async fn an_operator_killed_after_every_write_is_replaced_and_nothing_is_doubled(w: World) -> anyhow::Result<()> {
    without_operators(&w, crashes(&w, |_| (1..=30).collect())).await
}

pub async fn a_slow_and_failing_api_server_is_survived_with_bounded_requests(w: World) -> anyhow::Result<()> {
    without_operators(&w, failing_api_server(&w)).await
}

async fn failing_api_server(w: &World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let proxy = between(w, Fault::None).await?;
    let operator = Operator::start(w, &proxy, LEASE)?;
    w.deploy_ready(&tenant, "chat", &wish()).await?;
    proxy.set(Fault::Errors(vec![409, 410, 429, 500], ERRORS));
    let (requests, started) = (proxy.requests(), Instant::now());
    w.deploy(&tenant, "chat", &wish().replicas(2)).await?;
    w.ready(&tenant, "chat", 2).await?;
    // A quick recovery is a burst of requests in few seconds, a slow one must not go on at that rate.
    let (sent, allowed) = (proxy.requests() - requests, 250.0 + 25.0 * started.elapsed().as_secs_f64());
    ensure!(proxy.faulted() >= 20, "only {} requests met an error: the test proves nothing", proxy.faulted());
    ensure!((sent as f64) < allowed, "{sent} requests while every second one failed, {allowed:.0} are allowed");
    proxy.set(Fault::Slow(Duration::from_secs(2)));
    w.deploy(&tenant, "chat", &wish().replicas(1)).await?;
    settled(w, &tenant, Stage::Shrink).await?;
    operator.kill().await
}

/// Two operators of the test's own, so that every write of the paused one would be seen.
pub async fn a_paused_leader_is_replaced_and_writes_nothing_when_it_wakes(w: World) -> anyhow::Result<()> {
    without_operators(&w, paused_leader(&w)).await
}

async fn paused_leader(w: &World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let (before, after) = (between(w, Fault::None).await?, between(w, Fault::None).await?);
    let first = Operator::start(w, &before, LEASE)?;
    w.deploy_ready(&tenant, "chat", &wish()).await?;
    let second = Operator::start(w, &after, LEASE)?;
    let old = holder(w).await?;
    let stopped = Instant::now();
    first.signal("STOP")?;
    wait_for("another leader", Duration::from_secs(10), || async {
        let now = holder(w).await?;
        Ok(if now != old && !now.is_empty() { Ok(()) } else { Err(now) })
    })
    .await?;
    w.note(&format!("taken over {:.1} s after the pause began", stopped.elapsed().as_secs_f64()));
    // The cluster changes while the first one is paused: what it knows is out of date and would make it write.
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    w.gone(&tenant, "chat", Duration::from_secs(60)).await?;
    w.deploy_ready(&tenant, "next", &wish().replicas(2)).await?;
    tokio::time::sleep(PAUSE.saturating_sub(stopped.elapsed())).await; // a lease that is long over is what is tested
    let (writes, new) = (before.writes(), holder(w).await?);
    first.signal("CONT")?;
    // There is something to do as soon as it runs again, and it sees that as well as the new one.
    w.deploy_ready(&tenant, "next", &wish().replicas(3)).await?;
    let (wrote, now) = (before.writes() - writes, holder(w).await?);
    first.kill().await?;
    second.kill().await?;
    ensure!(wrote == 0 && now == new, "the old leader ran again and wrote {wrote} times; the lease is {now}'s");
    ensure!(before.requests() > 0, "the old leader sent nothing through its proxy: the test proves nothing");
    Ok(())
}

/// Lists that are complete and empty, and watches that are over (410): nothing is deleted for that.
pub async fn an_empty_list_deletes_nothing(w: World) -> anyhow::Result<()> {
    without_operators(&w, empty_lists(&w)).await
}

async fn empty_lists(w: &World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let proxy = between(w, Fault::None).await?;
    let operator = Operator::start(w, &proxy, LEASE)?;
    w.deploy_ready(&tenant, "chat", &wish()).await?;
    let ids = async || -> anyhow::Result<Vec<String>> {
        let (pods, claims) = (w.pods(&tenant, "chat").await?, w.claims(&tenant, "chat").await?);
        Ok(pods.iter().chain(&claims).map(|o| text(o, "/metadata/uid")).collect())
    };
    let before = ids().await?;
    // Pods alone: what is wanted seems to be missing. Then everything.
    for (kind, lists) in [("/pods", 3), ("", 2 * WATCHED)] {
        let (writes, emptied) = (proxy.writes(), proxy.emptied());
        proxy.set(Fault::EmptyLists(kind));
        wait_for("the kinds to be listed again and again, empty", Duration::from_secs(30), || async {
            let lately = proxy.emptied() - emptied;
            Ok(if lately >= lists { Ok(()) } else { Err(format!("{lately} empty lists")) })
        })
        .await?;
        let (now, wrote) = (ids().await?, proxy.writes() - writes);
        ensure!(now == before, "pods and claims were {before:?}, after empty lists they are {now:?}");
        ensure!(wrote == 0, "{wrote} writes because of empty lists of {kind:?}");
        proxy.set(Fault::None);
    }
    w.deploy(&tenant, "chat", &wish().replicas(2)).await?;
    w.ready(&tenant, "chat", 2).await?;
    ensure!(before.iter().all(|uid| !uid.is_empty()) && ids().await?.len() == 4, "the first replica did not stay");
    operator.kill().await
}

pub async fn an_api_server_that_restarts_loses_nothing(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &wish()).await?;
    w.answers(&tenant, "chat").await?;
    let before = text(w.pods(&tenant, "chat").await?.first().context("no pod")?, "/metadata/uid");
    let load = Load::start(&tenant.caller, "chat", 4, 32);
    w.env.cluster_command(&["kill", "kube-apiserver"]).await?;
    let at = load.succeeded();
    let enough = wait_for("12 answers without an API server", Duration::from_secs(60), || async {
        Ok(if load.succeeded() >= at + 12 { Ok(()) } else { Err(load.succeeded().to_string()) })
    })
    .await;
    w.env.cluster_up().await.context("start the API server again")?;
    enough?;
    w.deploy(&tenant, "chat", &wish().replicas(2)).await?;
    w.ready(&tenant, "chat", 2).await?;
    let outcome = load.finish().await;
    ensure!(outcome.failures.is_empty(), "{} failed: {:?}", outcome.failures.len(), outcome.failures.first());
    let after = w.pods(&tenant, "chat").await?;
    ensure!(after.iter().any(|p| text(p, "/metadata/uid") == before), "the pod from before is gone");
    Ok(())
}

async fn holder(w: &World) -> anyhow::Result<String> {
    let lease = w.cluster().get("Lease", SYSTEM, "stowage-operator").await?.context("no Lease")?;
    Ok(text(&lease, "/spec/holderIdentity"))
}

pub async fn without_an_operator_requests_go_on(w: World) -> anyhow::Result<()> {
    absent(&w, Duration::ZERO).await
}

pub async fn without_an_operator_for_five_minutes_no_stream_is_lost(w: World) -> anyhow::Result<()> {
    absent(&w, Duration::from_secs(300)).await
}

/// Four clients, two of them streaming, while there is no operator: for 40 answers, and for so long.
async fn absent(w: &World, at_least: Duration) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &wish()).await?;
    w.answers(&tenant, "chat").await?;
    operators(w, 0).await?;
    let (load, since) = (Load::start(&tenant.caller, "chat", 4, 32), Instant::now());
    let enough = wait_for("40 answers", at_least + Duration::from_secs(120), || async {
        let (done, gone) = (load.succeeded(), since.elapsed());
        Ok(if done >= 40 && gone >= at_least { Ok(()) } else { Err(format!("{done} in {gone:.0?}")) })
    })
    .await;
    let outcome = load.finish().await;
    operators(w, 2).await?;
    enough?;
    ensure!(outcome.failures.is_empty(), "{} failed: {:?}", outcome.failures.len(), outcome.failures.first());
    Ok(())
}
