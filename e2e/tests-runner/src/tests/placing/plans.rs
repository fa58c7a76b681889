//! `kubectl stowage plan -f`: what it says comes true, for those who may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stowage_contracts::names;
use tokio::io::AsyncWriteExt;

use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::world::{Env, SYSTEM, Tenant, Wish, World};

/// A run of the command line: exit code, answer, errors.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

/// `kubectl stowage plan -f - ARGS` with these manifests, perhaps with another kubeconfig.
async fn plan(manifests: &[Value], args: &[&str], kubeconfig: Option<&std::path::Path>) -> anyhow::Result<Run> {
    let mut command = tokio::process::Command::new(Env::built("kubectl-stowage")?);
    command.args(["plan", "-f", "-"]).args(args);
    if let Some(path) = kubeconfig {
        command.arg("--kubeconfig").arg(path);
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("plan")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    for manifest in manifests {
        stdin.write_all(format!("---\n{manifest}\n").as_bytes()).await?;
    }
    drop(stdin);
    let output = child.wait_with_output().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) })
}

/// What was said of one deployment: by slot where its new replicas go, and which pods end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    created: BTreeMap<u64, Value>,
    ended: BTreeSet<String>,
}

fn said(answer: &Value, name: &str) -> Said {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut deployments = list(&answer["difference"]["deployments"]).into_iter();
    let Some(found) = deployments.find(|d| text(d, "/deployment/name") == name) else { return Said::default() };
    Said {
        created: list(&found["created"])
            .into_iter()
            .filter_map(|c| Some((c["index"].as_u64()?, c["placement"].clone())))
            .collect(),
        ended: list(&found["ended"]).iter().map(|e| text(e, "/pod")).collect(),
    }
}

/// The deployment's pods: name, slot, placement as the operator wrote it, and whether it ends.
async fn pods(w: &World, tenant: &Tenant, name: &str) -> anyhow::Result<Vec<(String, u64, Value, bool)>> {
    let mut found = Vec::new();
    for pod in w.pods(tenant, name).await? {
        let annotation = |key: &str| {
            let annotations = pod.pointer("/metadata/annotations");
            annotations.and_then(|a| a.get(key)).and_then(Value::as_str).map(str::to_owned)
        };
        let index = annotation(names::ANNOTATION_REPLICA_INDEX).context("no index")?.parse()?;
        let placement: Value = serde_json::from_str(&annotation(names::ANNOTATION_PLACEMENT).context("no placement")?)?;
        let ends =
            annotation(names::ANNOTATION_DRAINING).is_some() || !text(&pod, "/metadata/deletionTimestamp").is_empty();
        found.push((text(&pod, "/metadata/name"), index, placement, ends));
    }
    Ok(found)
}

/// How often the same plan must be given in a row: for longer than the gateways take to report the load of a new replica,
/// on which depends which one ends first.
const SETTLED: u32 = 20;

/// What the plan says of the object, once it no longer changes, and how long the last answer took.
async fn settled_plan(what: &str, object: &Value, args: &[&str], fits: bool) -> anyhow::Result<(Said, Duration)> {
    let name = text(object, "/metadata/name");
    let before = std::cell::RefCell::new((Said::default(), 0));
    wait_for(&format!("{what}: a plan that no longer changes"), Duration::from_secs(30), || async {
        let started = std::time::Instant::now();
        let run = plan(std::slice::from_ref(object), args, None).await?;
        let took = started.elapsed();
        // Until the operator has heard of what ended just before, it may say that nothing fits.
        if run.code != i32::from(!fits) {
            before.take();
            return Ok(Err(format!("exit code {}\n{}{}", run.code, run.stdout, run.stderr)));
        }
        let answer: Value = serde_json::from_str(&run.stdout).with_context(|| run.stdout.clone())?;
        ensure!(answer["leading"] == json!(true), "{what}: not the leader's answer");
        let now = said(&answer, &name);
        let (last, same) = before.take();
        let same = if now == last { same + 1 } else { 1 };
        // What only creates does not depend on any load.
        if now.ended.is_empty() || same >= SETTLED {
            return Ok(Ok((now, took)));
        }
        let seen = format!("{now:?}, {same} times");
        before.replace((now, same));
        Ok(Err(seen))
    })
    .await
}

/// Plans the change, makes it, and waits until what was said has happened: no other replica is created, and no other ends.
async fn comes_true(
    w: &World,
    tenant: &Tenant,
    what: &str,
    object: &Value,
    delete: bool,
    fits: bool,
) -> anyhow::Result<()> {
    let name = text(object, "/metadata/name");
    let before: BTreeSet<String> = pods(w, tenant, &name).await?.into_iter().map(|p| p.0).collect();
    let args: &[&str] = if delete { &["-o", "json", "--delete"] } else { &["-o", "json"] };
    let (said, took) = settled_plan(what, object, args, fits).await?;
    if delete {
        w.cluster().delete("InferenceDeployment", &tenant.name, &name).await?;
    } else {
        w.cluster().apply_value(&tenant.name, object).await?;
    }
    wait_for(&format!("{what}: what was said"), Duration::from_secs(30), || async {
        let now = pods(w, tenant, &name).await?;
        let created: BTreeMap<u64, Value> =
            now.iter().filter(|p| !before.contains(&p.0)).map(|p| (p.1, p.2.clone())).collect();
        let alive: BTreeSet<&String> = now.iter().filter(|p| !p.3).map(|p| &p.0).collect();
        let ended = before.iter().filter(|name| !alive.contains(name)).cloned().collect();
        let happened = Said { created, ended };
        Ok(if happened == said { Ok(()) } else { Err(format!("said {said:?}, happened {happened:?}")) })
    })
    .await?;
    if !delete && fits {
        let replicas = object.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
        w.ready(tenant, &name, u32::try_from(replicas)?).await?;
    }
    w.note(&format!(
        "{what}: {} created, {} ended as said, answered in {} ms",
        said.created.len(),
        said.ended.len(),
        took.as_millis()
    ));
    Ok(())
}

/// Waits until what drains has ended, and its quota is free again.
async fn none_leaves(w: &World, tenant: &Tenant) -> anyhow::Result<()> {
    wait_for("no replica to be on its way out", Duration::from_secs(60), || async {
        let pods = w.cluster().list("Pod", &tenant.name, "").await?;
        let leaves = |pod: &&Value| {
            let meta = &pod["metadata"];
            !meta["deletionTimestamp"].is_null() || !meta["annotations"]["stowage.dev/draining"].is_null()
        };
        let count = pods.iter().filter(leaves).count();
        Ok(if count == 0 { Ok(()) } else { Err(format!("{count} leave")) })
    })
    .await
}

pub async fn ten_changes_do_what_plan_said(w: World) -> anyhow::Result<()> {
    let quota = json!({"gpus": [{"class": "h100-80g", "nominalQuota": "1250m"}]});
    let tenant = w.tenant_with("a", quota).await?;
    wait_for("the operator to know the tenant", Duration::from_secs(30), || async {
        let quota = w.cluster().get("TenantQuota", "", &tenant.name).await?.unwrap_or_default();
        let accepted = condition(&quota, "Accepted").is_some_and(|c| c.0 == "True");
        Ok(if accepted { Ok(()) } else { Err(quota["status"].to_string()) })
    })
    .await?;
    let of = |wish: Wish, name: &str| wish.object(&tenant.name, name);
    let small = || Wish::default().slice("4Gi", 10);
    let dedicated = || Wish::default().slice("2Gi", 5).overlay(json!({"isolation": {"level": "DedicatedGPU"}}));
    let changes = [
        ("one replica", of(small(), "one"), false, true),
        ("two larger ones", of(Wish::default().replicas(2).slice("30Gi", 40), "two"), false, true),
        ("scale out", of(small().replicas(3), "one"), false, true),
        ("scale in", of(small().replicas(1), "one"), false, true),
        ("a GPU for itself", of(dedicated(), "alone"), false, true),
        ("more than the quota", of(small().replicas(20), "many"), false, false),
        ("fewer of them", of(small().replicas(1), "many"), false, true),
        (
            "a class that does not exist",
            of(small().overlay(json!({"variants": [{"name": "v", "class": "none", "count": 1}]})), "bad"),
            false,
            false,
        ),
        ("another slice", of(Wish::default().slice("6Gi", 15), "one"), false, true),
        ("deletion", of(Wish::default(), "two"), true, true),
    ];
    for (what, object, delete, fits) in changes {
        // A rollout goes step by step; only the first one is decided now.
        if what == "another slice" {
            none_leaves(&w, &tenant).await?;
            // The operator hears a moment later that the last one has gone, and its quota is free again.
            wait_for("a plan that renews", Duration::from_secs(20), || async {
                let run = plan(std::slice::from_ref(&object), &[], None).await?;
                let renews = run.code == 0 && run.stdout.contains("renews     replica ");
                Ok(if renews { Ok(()) } else { Err(format!("{}{}", run.stdout, run.stderr)) })
            })
            .await?;
        }
        comes_true(&w, &tenant, what, &object, delete, fits).await?;
    }
    let refused = w.cluster().get("InferenceDeployment", &tenant.name, "bad").await?.unwrap_or_default();
    ensure!(condition(&refused, "Accepted").is_some_and(|c| c.0 == "False"), "{refused}");
    Ok(())
}

pub async fn plan_says_which_right_is_missing_and_changes_nothing(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let ns = tenant.name.as_str();
    let object = Wish::default().object(ns, "chat");
    // The stock role in the namespace, and nothing else.
    let bind = |name: &str, namespace: &str, kind: &str, role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": format!("{ns}-eve")}]})
    };
    w.cluster().apply_value(ns, &bind("eve", ns, "ClusterRole", "edit")).await?;
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(std::env::var("KUBECONFIG")?)?)?;
    config["users"][0]["user"]["as"] = json!(format!("{ns}-eve"));
    let eve = std::env::temp_dir().join(format!("{ns}-eve.json"));
    std::fs::write(&eve, config.to_string())?;

    let run = plan(std::slice::from_ref(&object), &[], Some(&eve)).await?;
    let named = run.stderr.contains("create on services/proxy");
    ensure!(run.code == 1 && named, "exit code {}: {}{}", run.code, run.stdout, run.stderr);
    let binding = w.unique("ask");
    w.also_remove("RoleBinding", SYSTEM, &binding);
    w.cluster().apply_value(SYSTEM, &bind(&binding, SYSTEM, "Role", "stowage-ask")).await?;
    // The Service leads to either operator, and one that does not lead looks less often.
    wait_for("a plan for who may ask", Duration::from_secs(20), || async {
        let run = plan(std::slice::from_ref(&object), &[], Some(&eve)).await?;
        let fits = run.code == 0 && run.stdout.contains("creates    replica 0 on");
        Ok(if fits { Ok(()) } else { Err(format!("{}{}", run.stdout, run.stderr)) })
    })
    .await?;
    // What it may not change it may ask about, and hears so.
    let quota = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "TenantQuota", "metadata": {"name": ns}, "spec": {"namespaces": [ns], "weight": 2}});
    let run = plan(&[quota], &[], Some(&eve)).await?;
    ensure!(run.code == 0 && run.stdout.contains("patch on tenantquotas.stowage.dev"), "{}{}", run.stdout, run.stderr);
    // The API server's own rules.
    let mut typo = object.clone();
    typo["spec"]["replica"] = json!(2);
    let run = plan(&[typo], &[], Some(&eve)).await?;
    ensure!(run.code == 1 && run.stdout.contains("spec.replica"), "{}{}", run.stdout, run.stderr);
    let run = plan(&[object, json!({"apiVersion": "v1", "kind": "ConfigMap"})], &[], Some(&eve)).await?;
    ensure!(run.code == 2 && run.stderr.contains("document 2 is a ConfigMap"), "{}{}", run.stdout, run.stderr);
    std::fs::remove_file(&eve)?;
    let left = w.cluster().list("InferenceDeployment", ns, "").await?;
    ensure!(left.is_empty(), "a plan left objects: {left:?}");
    Ok(())
}
