//! Processes of ours die, hang or pause; the line holds.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::{text, wait_for};
use crate::history::History;
use crate::load::Load;
use crate::process;
use crate::proxy::{Mischief, Proxy};
use crate::scenario::OUT_OF_ROUTING;
use crate::world::{NODES, OPERATOR, SYSTEM, Tenant, Wish, World};

const H100: i64 = 80 << 30;
/// Milliseconds after which the next operator of a crash test takes over.
const SHORT_LEASE: u32 = 3000;
/// Requests that an API server in trouble refuses.
const TROUBLES: usize = 30;

/// The operators of the cluster are asked to rest while a test brings its own; `Drop` cannot wait, so
/// every test that calls this calls `operators(…, 2)` on all its paths.
async fn operators(w: &World, replicas: u32) -> anyhow::Result<()> {
    w.cluster().merge("Deployment", SYSTEM, "stowage-operator", &json!({"spec": {"replicas": replicas}})).await?;
    wait_for(&format!("{replicas} operators"), Duration::from_secs(60), || async {
        let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-operator").await?;
        let ready =
            pods.iter().filter(|p| crate::cluster::condition(p, "Ready").is_some_and(|c| c.0 == "True")).count();
        Ok(if pods.len() == replicas as usize && ready == pods.len() {
            Ok(())
        } else {
            Err(format!("{ready} of {} ready", pods.len()))
        })
    })
    .await
}

/// An operator of this test's own: the same program, as a process here, through the proxy.
struct Operator(tokio::process::Child);

impl Operator {
    fn start(w: &World, proxy: &Proxy, lease_ms: u32) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("stowage-operator");
        let config = proxy.kubeconfig(&std::env::temp_dir())?;
        let child = tokio::process::Command::new(&program)
            .env("KUBECONFIG", config)
            .args(["--admin-address", "127.0.0.1:0", "--identity", &w.unique("operator")])
            .args(["--lease-ms", &lease_ms.to_string(), "--renew-ms", &(lease_ms / 4).to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self(child))
    }

    async fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill().await.context("kill the operator")
    }
}

/// A proxy that speaks to the API server as the operator's own account, so that policies and rights are the real ones.
async fn between(w: &World, mischief: Mischief) -> anyhow::Result<Proxy> {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:stowage-system", "system:authenticated"];
    let operator = w.cluster().impersonate(OPERATOR, &groups).await?;
    Proxy::start(operator.client().clone(), mischief).await
}

/// What a scenario of writes does to the deployment `chat`.
async fn act(w: &World, tenant: &Tenant, stage: Stage) -> anyhow::Result<()> {
    match stage {
        Stage::Create => w.deploy(tenant, "chat", &Wish::default()).await,
        Stage::Grow => w.deploy(tenant, "chat", &Wish::default().replicas(3)).await,
        Stage::Shrink => w.deploy(tenant, "chat", &Wish::default()).await,
        Stage::Delete => w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await,
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Create,
    Grow,
    Shrink,
    Delete,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Create, Self::Grow, Self::Shrink, Self::Delete];

    fn replicas(self) -> u32 {
        match self {
            Self::Create | Self::Shrink => 1,
            Self::Grow => 3,
            Self::Delete => 0,
        }
    }
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
        let (pods, claims) = (w.pods(tenant, "chat").await?.len(), w.claims(tenant, "chat").await?.len());
        Ok(if pods == wanted && claims == wanted {
            Ok(())
        } else {
            Err(format!("{pods} pods, {claims} claims, want {wanted}"))
        })
    })
    .await
}

/// Cuts an operator off after its n-th write of a stage, kills it, and lets a second one finish.
async fn crash_after(w: &World, tenant: &Tenant, stage: Stage, n: usize) -> anyhow::Result<bool> {
    let proxy = between(w, Mischief::CutAfterWrite(n)).await?;
    let first = Operator::start(w, &proxy, SHORT_LEASE)?;
    act(w, tenant, stage).await?;
    let cut = wait_for("the cut", Duration::from_secs(30), || async {
        if proxy.is_cut() {
            return Ok(Ok(true));
        }
        // A stage of fewer than n writes ends without a cut.
        Ok(if settled_now(w, tenant, stage).await? { Ok(false) } else { Err(format!("{} writes", proxy.writes())) })
    })
    .await
    .with_context(|| format!("{stage:?}, write {n}"))?;
    first.kill().await?;
    let whole = between(w, Mischief::None).await?;
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
    Ok(stage != Stage::Delete && ready && current && w.pods(tenant, "chat").await?.len() == stage.replicas() as usize)
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

/// Brings `chat` to so many replicas (`None`: gone) with an operator that is left alone.
async fn reset(w: &World, tenant: &Tenant, replicas: Option<u32>) -> anyhow::Result<()> {
    let proxy = between(w, Mischief::None).await?;
    let operator = Operator::start(w, &proxy, SHORT_LEASE)?;
    let done = match replicas {
        Some(n) => w.deploy_ready(tenant, "chat", &Wish::default().replicas(n)).await,
        None => {
            w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
            w.gone(tenant, "chat", Duration::from_secs(150)).await
        }
    };
    operator.kill().await?;
    done
}

pub async fn an_operator_killed_after_a_write_is_taken_over_without_a_trace(w: World) -> anyhow::Result<()> {
    operators(&w, 0).await?;
    let result = crashes(&w, |stage| match stage {
        Stage::Create => vec![3],
        Stage::Grow => vec![2],
        Stage::Shrink => vec![],
        Stage::Delete => vec![2],
    })
    .await;
    operators(&w, 2).await?;
    result
}

pub async fn an_operator_killed_after_every_write_is_taken_over_without_a_trace(w: World) -> anyhow::Result<()> {
    operators(&w, 0).await?;
    let result = crashes(&w, |_| (1..=30).collect()).await;
    operators(&w, 2).await?;
    result
}

pub async fn a_slow_and_failing_api_server_is_survived_with_bounded_requests(w: World) -> anyhow::Result<()> {
    operators(&w, 0).await?;
    let result = failing_api_server(&w).await;
    operators(&w, 2).await?;
    result
}

async fn failing_api_server(w: &World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let proxy = between(w, Mischief::None).await?;
    let operator = Operator::start(w, &proxy, 8000)?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    proxy.set(Mischief::Errors(vec![409, 410, 429, 500], TROUBLES));
    let (requests, started) = (proxy.requests(), Instant::now());
    w.deploy(&tenant, "chat", &Wish::default().replicas(2)).await?;
    w.ready(&tenant, "chat", 2).await?;
    let per_minute = (proxy.requests() - requests) as f64 / started.elapsed().as_secs_f64() * 60.0;
    ensure!(proxy.troubled() >= 20, "only {} requests met trouble: the test proves nothing", proxy.troubled());
    ensure!(per_minute < 1500.0, "{per_minute:.0} requests a minute while every second one failed");
    proxy.set(Mischief::Slow(Duration::from_secs(2)));
    w.deploy(&tenant, "chat", &Wish::default().replicas(1)).await?;
    settled(w, &tenant, Stage::Shrink).await?;
    operator.kill().await
}

pub async fn a_paused_leader_is_replaced_and_writes_nothing_when_it_wakes(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let holder = holder(&w).await?;
    let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-operator").await?;
    ensure!(pods.len() == 2, "{} operators", pods.len());
    let leader = pods
        .iter()
        .find(|p| holder.starts_with(&text(p, "/metadata/name")))
        .with_context(|| format!("no pod of the holder {holder}"))?;
    let pid = *process::of_pod(&text(leader, "/metadata/uid"), "stowage-operator")
        .first()
        .context("the leader's process was not found")?;
    process::signal(pid, "STOP")?;
    let taken = wait_for("another leader", Duration::from_secs(10), || async {
        let now = self::holder(&w).await?;
        Ok(if now != holder { Ok(now) } else { Err(now) })
    })
    .await;
    let served = match &taken {
        Ok(_) => w.deploy_ready(&tenant, "chat", &Wish::default()).await,
        Err(_) => Ok(()),
    };
    process::signal(pid, "CONT")?;
    let new = taken?;
    served?;
    // The old one wakes, sees, and stays a follower: the lease does not change hands again.
    let back = wait_for("the lease to change hands", Duration::from_secs(12), || async {
        let now = self::holder(&w).await?;
        Ok(if now != new { Ok(now) } else { Err(now) })
    })
    .await;
    ensure!(back.is_err(), "the lease went from {new} to {back:?}");
    Ok(())
}

async fn holder(w: &World) -> anyhow::Result<String> {
    let lease = w.cluster().get("Lease", SYSTEM, "stowage-operator").await?.context("no Lease")?;
    Ok(text(&lease, "/spec/holderIdentity"))
}

pub async fn without_an_operator_requests_go_on(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    operators(&w, 0).await?;
    let load = Load::start(&tenant.caller, "chat", 4, 32);
    let enough = wait_for("40 answers", Duration::from_secs(120), || async {
        Ok(if load.succeeded() >= 40 { Ok(()) } else { Err(load.succeeded().to_string()) })
    })
    .await;
    let outcome = load.finish().await;
    operators(&w, 2).await?;
    enough?;
    ensure!(outcome.failures.is_empty(), "{} failed: {:?}", outcome.failures.len(), outcome.failures.first());
    Ok(())
}

pub async fn a_hung_engine_leaves_routing_and_its_neighbour_serves(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "pair", &Wish::default().replicas(2)).await?;
    w.answers(&tenant, "pair").await?;
    let pod = w.pods(&tenant, "pair").await?.first().cloned().context("no pod")?;
    let pid = *process::of_pod(&text(&pod, "/metadata/uid"), "stowage-engine").first().context("no engine process")?;
    process::signal(pid, "STOP")?;
    let stopped = Instant::now();
    let result = async {
        tokio::time::sleep(OUT_OF_ROUTING).await; // what is promised is a time: after it, nobody waits on the hung one
        for turn in 0..8 {
            let started = Instant::now();
            let answer = tenant.caller.chat("pair", &format!("Question {turn}: name a colour."), 8).await?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
            ensure!(
                started.elapsed() < Duration::from_secs(5),
                "request {turn} took {:.1} s, {:.1} s after the hang",
                started.elapsed().as_secs_f64(),
                stopped.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }
    .await;
    process::signal(pid, "CONT").ok(); // the liveness probe may have ended it already
    result
}

pub async fn a_killed_gateway_ends_only_its_own_streams(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    let gateways = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-gateway").await?;
    ensure!(gateways.len() == 2, "{} gateways", gateways.len());
    let pid = *process::of_pod(&text(&gateways[0], "/metadata/uid"), "stowage-gateway")
        .first()
        .context("no gateway process")?;
    let load = Load::start(&tenant.caller, "chat", 4, 32);
    wait_for("the load to be under way", Duration::from_secs(60), || async {
        Ok(if load.succeeded() >= 4 { Ok(()) } else { Err(load.succeeded().to_string()) })
    })
    .await?;
    process::signal(pid, "KILL")?;
    let at = load.succeeded();
    wait_for("service after the death", Duration::from_secs(60), || async {
        Ok(if load.succeeded() >= at + 12 { Ok(()) } else { Err(load.succeeded().to_string()) })
    })
    .await?;
    let outcome = load.finish().await;
    // Each client had at most one request on the dead one, and may have met its closed port once before kube-proxy knew.
    ensure!(outcome.failures.len() <= 8, "{} failed: {:?}", outcome.failures.len(), outcome.failures.last());
    Ok(())
}

pub async fn deleted_resource_slices_come_back_and_pods_stay(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let before = text(w.pods(&tenant, "chat").await?.first().context("no pod")?, "/metadata/uid");
    let ours = |slices: Vec<Value>| {
        slices.into_iter().filter(|s| text(s, "/spec/driver") == "gpu.stowage.dev").collect::<Vec<_>>()
    };
    let slices = ours(w.cluster().list("ResourceSlice", "", "").await?);
    for slice in &slices {
        w.cluster().delete("ResourceSlice", "", &text(slice, "/metadata/name")).await?;
    }
    wait_for("the slices to be back", Duration::from_secs(20), || async {
        let now = ours(w.cluster().list("ResourceSlice", "", "").await?).len();
        Ok(if now == slices.len() { Ok(()) } else { Err(format!("{now} of {}", slices.len())) })
    })
    .await?;
    let after = w.pods(&tenant, "chat").await?;
    ensure!(after.len() == 1 && text(&after[0], "/metadata/uid") == before, "the pod was disturbed");
    Ok(())
}

pub async fn a_killed_agent_resumes_and_running_pods_stay(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let before = text(w.pods(&tenant, "chat").await?.first().context("no pod")?, "/metadata/uid");
    for agent in w.cluster().list("Pod", NODES, "app.kubernetes.io/name=stowage-node-agent").await? {
        for pid in process::of_pod(&text(&agent, "/metadata/uid"), "stowage-node-agent") {
            process::signal(pid, "KILL")?;
        }
    }
    // A new replica needs a prepare by the agents' next life, a deletion an unprepare of what the last one prepared.
    w.deploy_ready(&tenant, "second", &Wish::default()).await?;
    let after = w.pods(&tenant, "chat").await?;
    ensure!(after.len() == 1 && text(&after[0], "/metadata/uid") == before, "the running pod was disturbed");
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    w.gone(&tenant, "chat", Duration::from_secs(150)).await
}
