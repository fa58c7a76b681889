//! `stowage-e2e scale`: what the operator does on many nodes. API server, scheduler and controllers are real; nodes and
//! kubelets are simulated ([`nodes`], [`kubelet`]), the operator is a process of its own, optimised.
//!
//! Twice the same pods: first the operator makes them for deployments that are applied at once, then they are created
//! again as they were, pinned and with their claims, as fast as the API server takes them. The ratio of the two times
//! until all are bound is what planning costs over what the scheduler needs alone.

pub mod kubelet;
pub mod nodes;
mod pods;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use stowage_contracts::names::{self, SYSTEM_NAMESPACE};

use crate::scale::kubelet::Kubelets;
use crate::scale::pods::Bound;
use crate::scale::usage::Usage;
use crate::tools::cluster::{Cluster, text, wait_for};
use crate::tools::proxy::{Fault, Proxy};
use crate::tools::world::Wish;

const COMMAND: &str = "scale";
/// In the query of a request that stores nothing.
const TRIED: &str = "dryRun";
/// Requests at once, of whoever creates objects.
const AT_ONCE: usize = 32;
/// Label of everything that is made here.
const LABEL: &str = "scale.stowage.dev/run";
/// Memory and per cent of the SMs, in turn: what deployments ask for.
const ASKS: [(&str, u32); 5] = [("2Gi", 10), ("8Gi", 15), ("16Gi", 25), ("24Gi", 30), ("40Gi", 50)];

/// Of the operator's account, so that rights and policies are the real ones.
const GROUPS: [&str; 3] = ["system:serviceaccounts", "system:serviceaccounts:stowage-system", "system:authenticated"];

/// What `cargo xtask bench scale` passes on.
#[derive(Debug, Parser)]
pub struct Request {
    /// Simulated nodes, eight H100 80GB each.
    #[arg(long, default_value_t = 500)]
    nodes: u32,
    /// Deployments that are applied at once.
    #[arg(long, default_value_t = 1000)]
    deployments: u32,
    /// Replicas of each.
    #[arg(long, default_value_t = 4)]
    replicas: u32,
    /// Tenants, a namespace each.
    #[arg(long, default_value_t = 20)]
    tenants: u32,
    /// Milliseconds from a pod's binding until the simulated kubelet reports it Ready.
    #[arg(long, default_value_t = 1000)]
    start_ms: u64,
    /// The operator's program.
    #[arg(long)]
    operator: PathBuf,
    /// Only the operator's part, through a proxy that counts its writes: slower, so its times are not compared.
    #[arg(long)]
    count_writes: bool,
    /// The longest wait for all pods of one part.
    #[arg(long, default_value_t = 900)]
    limit_s: u64,
}

impl Request {
    /// The arguments, if they ask for this.
    pub fn of(args: std::env::Args) -> Option<Self> {
        let mut args = args.skip(1).peekable();
        args.peek().is_some_and(|first| first == COMMAND).then(|| Self::parse_from(args))
    }

    fn pods(&self) -> usize {
        (self.deployments * self.replicas) as usize
    }

    fn namespace(&self, deployment: u32) -> String {
        format!("scale-{}", deployment % self.tenants.max(1))
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit_s)
    }

    /// The `n`-th deployment, as its user would write it.
    fn deployment(&self, n: u32) -> Value {
        let (memory, compute) = ASKS[n as usize % ASKS.len()];
        let wish = Wish::default().replicas(self.replicas).slice(memory, compute);
        let mut object = wish.object(&self.namespace(n), &format!("model-{n}"));
        object["metadata"]["labels"] = json!({LABEL: "yes"});
        object
    }

    pub async fn carry_out(self) -> anyhow::Result<()> {
        let cluster = Cluster::connect().await?;
        let simulator =
            cluster.impersonate("stowage-node-simulator", &["system:masters", "system:nodes", "system:authenticated"]);
        let simulator = simulator.await?;
        let started = Instant::now();
        nodes::join(&simulator, self.nodes).await.context("let the simulated nodes join")?;
        eprintln!("{} nodes joined in {:.1} s", self.nodes, started.elapsed().as_secs_f64());
        let _heartbeats = nodes::keep_alive(&simulator, self.nodes);
        let kubelets = Kubelets::start(&simulator, Duration::from_millis(self.start_ms));
        self.tenants(&cluster).await?;
        let (planned, objects) = self.planned(&cluster).await?;
        let mut summary = json!({"bench": "scale", "summary": true, "nodes": self.nodes, "deployments": self.deployments,
            "pods": self.pods(), "operator": planned});
        if !self.count_writes {
            let alone = self.alone(&cluster, objects).await?;
            let ratio = number(&planned, "bound_s") / number(&alone, "bound_s");
            summary["scheduler_alone"] = alone;
            summary["ratio"] = json!((ratio * 100.0).round() / 100.0);
        }
        summary["simulated_kubelets"] =
            json!({"pods_started": kubelets.started(), "failed_requests": kubelets.failed()});
        println!("{summary}");
        Ok(())
    }

    async fn tenants(&self, cluster: &Cluster) -> anyhow::Result<()> {
        for tenant in 0..self.tenants {
            let name = self.namespace(tenant);
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            cluster.apply_value("", &namespace).await?;
            let quota = json!({"gpus": [{"class": "h100-80g", "nominalQuota": (self.nodes * 8).to_string()}], "namespaces": [name]});
            let quota = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "TenantQuota", "metadata": {"name": name}, "spec": quota});
            cluster.apply_value("", &quota).await?;
        }
        Ok(())
    }

    /// Applies the deployments and waits until all their pods are bound and Ready. The figures, and pods and claims as
    /// they were made.
    async fn planned(&self, cluster: &Cluster) -> anyhow::Result<(Value, Vec<Value>)> {
        let operator = cluster.impersonate(&names::operator_username(), &GROUPS).await?;
        let proxy = match self.count_writes {
            true => Some(Proxy::start(operator.client().clone(), Fault::None).await?),
            false => None,
        };
        let mut operator = self.start_operator(cluster, proxy.as_ref()).await?;
        let pid = operator.id().context("the operator has ended")?;
        let idle = Usage::of(pid)?;
        let bound = Bound::watch(cluster);
        let started = Instant::now();
        self.each(self.deployments, |n| {
            let object = self.deployment(n);
            async move { cluster.apply_value("", &object).await.map(drop) }
        })
        .await
        .context("apply the deployments")?;
        let applied_s = started.elapsed().as_secs_f64();
        let times = bound.all(self.pods(), self.limit(), started).await?;
        self.all_ready(cluster).await?;
        let ready_s = started.elapsed().as_secs_f64();
        eprintln!("all pods bound after {:.1} s, Ready after {ready_s:.1} s", times.last_s);
        let usage = Usage::of(pid)?;
        let objects = self.objects(cluster).await?;
        let events = cluster.list("Event", "", "").await?.len();
        let mut figures = json!({"applied_s": tenth(applied_s), "first_bound_s": tenth(times.first_s), "bound_s": tenth(times.last_s),
            "ready_s": tenth(ready_s), "cpu_s": tenth(usage.cpu_s - idle.cpu_s), "peak_rss_mib": usage.peak_rss_mib, "events": events});
        if let Some(proxy) = &proxy {
            let written = proxy.written();
            // What is only tried is stored nowhere.
            let stored = written.iter().filter(|write| !write.contains(TRIED)).count();
            figures["writes"] = json!(stored);
            figures["dry_runs"] = json!(written.len() - stored);
            figures["writes_per_pod"] = json!((stored as f64 / self.pods() as f64 * 100.0).round() / 100.0);
            figures["by_kind"] = json!(by_kind(&written));
        }
        if !self.count_writes {
            let removing = Instant::now();
            self.remove(cluster).await?;
            eprintln!("all removed after {:.1} s", removing.elapsed().as_secs_f64());
        }
        operator.kill().await.context("end the operator")?;
        Ok((figures, objects))
    }

    /// The operator, leading. Nothing else plans on this cluster: the chart's operators were scaled to zero.
    async fn start_operator(&self, cluster: &Cluster, proxy: Option<&Proxy>) -> anyhow::Result<tokio::process::Child> {
        let mut command = tokio::process::Command::new(&self.operator);
        let config = match proxy {
            Some(proxy) => proxy.kubeconfig(&std::env::temp_dir())?,
            None => as_operator(&std::env::temp_dir().join("stowage-scale.kubeconfig"))?,
        };
        command.env("KUBECONFIG", config);
        let log = std::fs::File::create(std::env::temp_dir().join("stowage-scale-operator.log"))?;
        let child = command
            .args(["--admin-address", "127.0.0.1:0", "--identity", "scale", "--quiet-decisions"])
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.operator.display()))?;
        wait_for("the operator to lead", Duration::from_secs(60), || async {
            let lease = cluster.get("Lease", SYSTEM_NAMESPACE, names::LEASE).await?.unwrap_or_default();
            let holder = text(&lease, "/spec/holderIdentity");
            Ok(if holder.starts_with("scale") { Ok(()) } else { Err(format!("{holder:?} leads")) })
        })
        .await?;
        Ok(child)
    }

    async fn all_ready(&self, cluster: &Cluster) -> anyhow::Result<()> {
        wait_for("all deployments to be Ready", self.limit(), || async {
            let all = cluster.list("InferenceDeployment", "", LABEL).await?;
            let ready =
                |d: &&Value| d.pointer("/status/readyReplicas").and_then(Value::as_u64) == Some(self.replicas.into());
            let count = all.iter().filter(ready).count();
            Ok(if count == self.deployments as usize { Ok(()) } else { Err(format!("{count} of {}", all.len())) })
        })
        .await
    }

    /// Claims and pods as they could be created again.
    async fn objects(&self, cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
        let label = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY);
        let mut all = Vec::new();
        for (version, kind) in [("resource.k8s.io/v1", "ResourceClaim"), ("v1", "Pod")] {
            // The items of a list do not say what they are.
            let named = |mut object: Value| {
                (object["apiVersion"], object["kind"]) = (json!(version), json!(kind));
                object
            };
            all.extend(cluster.list(kind, "", &label).await?.into_iter().map(named));
        }
        Ok(all.into_iter().map(again).collect())
    }

    async fn remove(&self, cluster: &Cluster) -> anyhow::Result<()> {
        self.each(self.deployments, |n| async move {
            cluster.delete("InferenceDeployment", &self.namespace(n), &format!("model-{n}")).await
        })
        .await
        .context("delete the deployments")?;
        self.nothing_left(cluster).await
    }

    async fn nothing_left(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let label = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY);
        wait_for("pods and claims to be gone", self.limit(), || async {
            let left =
                cluster.list("Pod", "", &label).await?.len() + cluster.list("ResourceClaim", "", &label).await?.len();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} left")) })
        })
        .await
    }

    /// The same objects without an operator.
    async fn alone(&self, cluster: &Cluster, objects: Vec<Value>) -> anyhow::Result<Value> {
        let operator = &cluster.impersonate(&names::operator_username(), &GROUPS).await?;
        let (claims, pods): (Vec<Value>, Vec<Value>) =
            objects.into_iter().partition(|o| text(o, "/kind") == "ResourceClaim");
        ensure!(
            claims.len() == self.pods() && pods.len() == self.pods(),
            "{} claims, {} pods",
            claims.len(),
            pods.len()
        );
        let claims: BTreeMap<String, Value> = claims.into_iter().map(|c| (named(&c), c)).collect();
        let bound = Bound::watch(cluster);
        let started = Instant::now();
        let claims = &claims;
        stream::iter(pods.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |pod| async move {
                for claim in pod.pointer("/spec/resourceClaims").and_then(Value::as_array).into_iter().flatten() {
                    let key = format!("{}/{}", text(pod, "/metadata/namespace"), text(claim, "/resourceClaimName"));
                    let claim = claims.get(&key).with_context(|| format!("no claim {key}"))?;
                    operator.create(&text(claim, "/metadata/namespace"), claim).await?;
                }
                operator.create(&text(pod, "/metadata/namespace"), pod).await?;
                anyhow::Ok(())
            })
            .await
            .context("create the pods again")?;
        let created_s = started.elapsed().as_secs_f64();
        let times = bound.all(self.pods(), self.limit(), started).await?;
        Ok(
            json!({"created_s": tenth(created_s), "first_bound_s": tenth(times.first_s), "bound_s": tenth(times.last_s)}),
        )
    }

    /// `act` for each number below `count`, many at once.
    async fn each<F: Future<Output = anyhow::Result<()>>>(
        &self,
        count: u32,
        act: impl Fn(u32) -> F,
    ) -> anyhow::Result<()> {
        stream::iter(0..count).map(Ok).try_for_each_concurrent(AT_ONCE, act).await
    }
}

/// The present kubeconfig with the operator's account in the place of its user.
fn as_operator(path: &std::path::Path) -> anyhow::Result<PathBuf> {
    let given = std::env::var("KUBECONFIG").context("no KUBECONFIG is set")?;
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(&given).context("read the kubeconfig")?)?;
    config["users"][0]["user"]["as"] = json!(names::operator_username());
    config["users"][0]["user"]["as-groups"] = json!(GROUPS);
    std::fs::write(path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path.to_owned())
}

fn named(object: &Value) -> String {
    format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

/// The object as it was first created: without what the API server and others have added.
fn again(mut object: Value) -> Value {
    object.as_object_mut().map(|fields| fields.remove("status"));
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    }
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    object
}

/// How many writes of which kind: `METHOD path` with names and namespaces left out.
fn by_kind(written: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for write in written {
        *counts.entry(kind(write)).or_default() += 1;
    }
    counts
}

fn kind(write: &str) -> String {
    let (method, path) = write.split_once(' ').unwrap_or((write, ""));
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let tried = if query.contains(TRIED) { " (tried)" } else { "" };
    let parts: Vec<&str> = path.split('/').collect();
    let after = |word: &str| parts.iter().position(|part| *part == word).and_then(|at| parts.get(at + 2..));
    // Of a kind without a namespace the plural stands after the version.
    let version = if parts.get(1) == Some(&"apis") { 3 } else { 2 };
    let without = parts.get(version + 1..).unwrap_or_default();
    let rest = after("namespaces").filter(|rest| !rest.is_empty()).unwrap_or(without);
    let status = if rest.last() == Some(&"status") { "/status" } else { "" };
    format!("{method} {}{status}{tried}", rest.first().copied().unwrap_or(path))
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_kind() {
        let check = |write: &str, want: &str| assert_eq!(kind(write), want, "{write}");
        check("POST /api/v1/namespaces/a/pods?dryRun=All", "POST pods (tried)");
        check("POST /api/v1/namespaces/a/pods?", "POST pods");
        check(
            "PATCH /apis/stowage.dev/v1alpha1/namespaces/a/inferencedeployments/x/status?x=1",
            "PATCH inferencedeployments/status",
        );
        check("PATCH /apis/stowage.dev/v1alpha1/tenantquotas/a/status", "PATCH tenantquotas/status");
    }

    #[test]
    fn object_is_created_again_without_what_others_added() {
        let stored = json!({"kind": "Pod", "metadata": {"name": "a", "uid": "1", "labels": {"x": "y"}, "ownerReferences": []},
            "spec": {"nodeName": "n", "affinity": {}}, "status": {"phase": "Running"}});
        assert_eq!(
            again(stored),
            json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"affinity": {}}})
        );
    }
}
