//! Bad objects: each rule refuses with a message that names what to write instead, and other objects are not affected.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::tools::cluster::{condition, wait_for};
use crate::tools::world::{Tenant, Wish, World};

/// Stored, but `Accepted=False`: what only the operator can see.
fn not_accepted() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("a runtime that does not exist", json!({"runtime": {"ref": "no-such-runtime"}}), "no-such-runtime"),
        (
            "a class that does not exist",
            json!({"variants": [{"name": "v", "class": "no-such-class", "count": 1}]}),
            "no-such-class",
        ),
        (
            "more memory than any GPU of the class",
            json!({"variants": [{"name": "v", "class": "h100-80g", "count": 1, "memory": "90Gi"}]}),
            "90 GiB",
        ),
        (
            "an argument that the runtime does not allow",
            json!({"runtime": {"extraArgs": ["--model=/etc/passwd"]}}),
            "--model",
        ),
    ]
}

/// The manifests of the crate that defines the kinds; its tests see to it that each rule has one.
pub async fn a_bad_object_of_each_rule_is_refused_with_its_message(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let folder = w.env.root.join("crds/tests/bad");
    let mut tried = 0;
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let yaml = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let wanted = yaml.lines().next().and_then(|line| line.strip_prefix("# refused: ")).context("no message")?;
        for mut object in documents(&yaml).with_context(|| path.display().to_string())? {
            if object["metadata"]["namespace"].is_string() {
                object["metadata"]["namespace"] = json!(tenant.name);
            }
            match w.cluster().create(&tenant.name, &object).await {
                Ok(_) => bail!("{} is admitted", path.display()),
                Err(e) => ensure!(e.to_string().contains(wanted), "{}: not \"{wanted}\" but: {e}", path.display()),
            }
            tried += 1;
        }
    }
    ensure!(tried > 40, "only {tried} bad objects were tried");
    Ok(())
}

/// The documents of a YAML file.
pub fn documents(yaml: &str) -> anyhow::Result<Vec<Value>> {
    serde_yaml::Deserializer::from_str(yaml).map(|document| Ok(Value::deserialize(document)?)).collect()
}

pub async fn what_cannot_be_honoured_is_not_accepted_and_other_deployments_start(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    for (i, (what, overlay, word)) in not_accepted().into_iter().enumerate() {
        let name = format!("bad-{i}");
        w.deploy(&tenant, &name, &Wish::default().overlay(overlay)).await?;
        refused(&w, &tenant, &name, what, word).await?;
    }
    // As long as a name may be.
    w.deploy_ready(&tenant, &"g".repeat(40), &Wish::default()).await
}

/// Waits for a refusal, in whichever condition it stands, that mentions `word`.
async fn refused(w: &World, tenant: &Tenant, name: &str, what: &str, word: &str) -> anyhow::Result<()> {
    let refused = |o: &Value| {
        ["Accepted", "Placed", "QuotaReserved"]
            .iter()
            .any(|c| condition(o, c).is_some_and(|(s, _, m)| s == "False" && m.contains(word)))
    };
    w.until(tenant, name, &format!("{what}: refused with {word}"), Duration::from_secs(15), refused).await?;
    Ok(())
}

pub async fn two_quotas_that_claim_one_namespace_leave_it_to_the_older(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let newer = w.unique("newer");
    w.also_remove("TenantQuota", "", &newer);
    let quota = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "TenantQuota", "metadata": {"name": newer},
        "spec": {"namespaces": [tenant.name], "gpus": [{"class": "h100-80g", "nominalQuota": "1"}]}});
    w.cluster().apply_value("", &quota).await?;
    wait_for("the newer quota to be refused", Duration::from_secs(15), || async {
        let object = w.cluster().get("TenantQuota", "", &newer).await?.unwrap_or_default();
        let accepted = condition(&object, "Accepted");
        let refused = accepted.as_ref().is_some_and(|(s, _, m)| s == "False" && m.contains(&tenant.name));
        Ok(if refused { Ok(()) } else { Err(format!("{accepted:?}")) })
    })
    .await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await
}

pub async fn a_tenant_over_its_limit_waits_while_others_are_placed(w: World) -> anyhow::Result<()> {
    let small = w.tenant_with("small", json!({"gpus": [{"class": "h100-80g", "nominalQuota": "110m"}]})).await?;
    let other = w.tenant("other").await?;
    w.deploy(&small, "greedy", &Wish::default().replicas(3).slice("4Gi", 5)).await?;
    // 4 of 79.5 GiB are 51 milli-GPU: two fit into 110, the third waits.
    w.until(&small, "greedy", "two ready, the third over quota", Duration::from_secs(60), |o| {
        o.pointer("/status/readyReplicas").and_then(Value::as_u64) == Some(2)
            && condition(o, "QuotaReserved").is_some_and(|(s, _, m)| s == "False" && !m.is_empty())
    })
    .await?;
    w.deploy_ready(&other, "chat", &Wish::default()).await?;
    ensure!(w.pods(&small, "greedy").await?.len() == 2, "a pod for a replica over quota");
    // The change that the counterfactual names does help.
    w.cluster()
        .merge(
            "TenantQuota",
            "",
            &small.name,
            &json!({"spec": {"gpus": [{"class": "h100-80g", "nominalQuota": "160m"}]}}),
        )
        .await?;
    w.ready(&small, "greedy", 3).await
}

/// Name, image, file, and what its refusal must contain.
const BAD_MODELS: [(&str, &str, &str, &str); 3] = [
    ("missing", crate::tools::world::MODEL_IMAGE, "/not-there.gguf", "not-there.gguf"),
    ("garbage", "localhost/stowage/probe:dev", "/models/garbage.gguf", "no GGUF file"),
    ("truncated", "localhost/stowage/probe:dev", "/models/truncated.gguf", "truncated"),
];

/// Models that cannot be loaded: the reason stands in the condition, `status` names the next step, and the pod
/// does not loop hot.
pub async fn a_model_that_cannot_be_loaded_is_reported_and_its_restarts_are_bounded(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    for (name, image, path, _) in BAD_MODELS {
        let source = json!({"model": {"source": {"image": {"reference": image, "path": path}}}});
        w.deploy(&tenant, name, &Wish::default().overlay(source)).await?;
    }
    for (name, _, path, word) in BAD_MODELS {
        let wanted = format!("Ready=False with {path} and {word}");
        w.until(&tenant, name, &wanted, Duration::from_secs(60), |o| {
            condition(o, "Ready").is_some_and(|(s, _, m)| s == "False" && m.contains(path) && m.contains(word))
        })
        .await?;
        let shown = tokio::process::Command::new(crate::tools::world::Env::built("kubectl-stowage")?)
            .args(["status", name, "-n", &tenant.name])
            .output()
            .await?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.contains("Check") || shown.contains("Correct"), "`status` names no next step:\n{shown}");
    }
    // The kubelet's back-off: ten seconds after the first end, twenty after the second.
    let hot = wait_for("a fourth restart", Duration::from_secs(15), || async {
        let pods = w.pods(&tenant, "garbage").await?;
        let restarts =
            pods.iter().filter_map(|p| p.pointer("/status/containerStatuses/0/restartCount")?.as_u64()).max();
        Ok(if restarts > Some(3) || pods.len() > 1 { Ok(()) } else { Err(format!("{restarts:?} restarts")) })
    })
    .await;
    ensure!(hot.is_err(), "more than three restarts, or a second pod, within half a minute: a hot loop");
    Ok(())
}
