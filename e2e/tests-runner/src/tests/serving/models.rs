//! Models from where they are: fetched by the nodes, kept, and refused with the reason.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::world::{Env, MODEL_IMAGE, Tenant, Wish, World};

/// Serves the demo's model over HTTP, with ranges, from a pod of the tenant; its address.
async fn source(w: &World, tenant: &Tenant) -> anyhow::Result<String> {
    let security = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "source", "namespace": tenant.name},
        "spec": {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "localhost/stowage/probe:dev", "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/busybox", "httpd", "-f", "-p", "8000", "-h", "/models"], "securityContext": security,
                "volumeMounts": [{"name": "model", "mountPath": "/models"}]}],
            "volumes": [{"name": "model", "image": {"reference": MODEL_IMAGE, "pullPolicy": "IfNotPresent"}}]}});
    w.cluster().apply_value(&tenant.name, &pod).await?;
    let ip = wait_for("the source to run", Duration::from_secs(60), || async {
        let pod = w.cluster().get("Pod", &tenant.name, "source").await?.context("no pod")?;
        let ready = pod.pointer("/status/containerStatuses/0/ready").and_then(Value::as_bool).unwrap_or(false);
        let ip = text(&pod, "/status/podIP");
        Ok(if ready && !ip.is_empty() { Ok(ip) } else { Err(text(&pod, "/status/phase")) })
    })
    .await?;
    Ok(format!("http://{ip}:8000/model.gguf"))
}

fn fetched(url: &str, sha256: &str) -> Wish {
    Wish::default().overlay(json!({"model": {"source": {"image": null, "http": {"url": url, "sha256": sha256}}}}))
}

fn model(w: &World) -> anyhow::Result<&Path> {
    w.env.model.as_deref().context("no model given (STOWAGE_MODEL_FILE)")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lines of README's section, run as they stand, with this test's names in the place of the reader's.
pub async fn readme_serves_a_model_of_the_readers_own_in_three_lines(w: World) -> anyhow::Result<()> {
    let readme = std::fs::read_to_string(w.env.root.join("README.md")).context("read README.md")?;
    let section = readme.split("\n## Serve your own model\n").nth(1).context("README has no such section")?;
    let block = section.split("```\n").nth(1).context("the section has no commands")?;
    // The demo's addresses, which are this test's world already.
    let block =
        block.strip_prefix(". target/demo.env\n").context("the block does not begin with the demo's environment")?;
    ensure!(block.lines().count() == 3, "not three lines: {block}");
    let (tenant, folder) = (w.tenant("a").await?, std::env::temp_dir().join(w.unique("own")));
    let bin = w.env.bin.clone().context("no programs of the cluster given (STOWAGE_BIN)")?;
    let xtask = w.env.xtask.clone().context("no xtask given (STOWAGE_XTASK)")?;
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(model(&w)?, folder.join("my-model.gguf"))?;
    let script = format!(
        "set -e\ncargo() {{ shift; '{}' \"$@\"; }}\n{}",
        xtask.display(),
        block.replace("team-a", &tenant.name)
    );
    let own = Env::built("kubectl-stowage")?;
    let path =
        [own.parent(), Some(bin.as_path())].into_iter().flatten().map(|p| p.display().to_string()).collect::<Vec<_>>();
    let path = format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap_or_default());
    let run = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(&folder)
        .env("PATH", path)
        .output()
        .await?;
    let written = std::fs::read_to_string(folder.join("my-model.yaml")).unwrap_or_default();
    std::fs::remove_dir_all(&folder)?;
    ensure!(run.status.success(), "{block}{}{}", String::from_utf8_lossy(&run.stderr), written);
    w.ready(&tenant, "my-model", 1).await?;
    w.answers(&tenant, "my-model").await.map(drop)
}

/// The node of the first replica.
async fn node_of(w: &World, tenant: &Tenant, name: &str) -> anyhow::Result<String> {
    Ok(text(w.pods(tenant, name).await?.first().context("no pod")?, "/spec/nodeName"))
}

pub async fn a_model_behind_a_url_is_fetched_once_and_started_from_the_cache_after_that(
    w: World,
) -> anyhow::Result<()> {
    let sha256 = sha256(&std::fs::read(model(&w)?).context("read the model")?);
    let tenant = w.tenant("a").await?;
    let url = source(&w, &tenant).await?;
    let start = Instant::now();
    w.deploy_ready(&tenant, "cold", &fetched(&url, &sha256)).await?;
    w.note(&format!("Cold to Ready {:.1} s, with a transfer of 98 MB", start.elapsed().as_secs_f64()));
    w.answers(&tenant, "cold").await?;
    let node = node_of(&w, &tenant, "cold").await?;
    let cached = wait_for("the GpuNode to name the model", Duration::from_secs(10), || async {
        let found = w.cluster().get("GpuNode", "", &node).await?.context("no GpuNode")?;
        let models = found.pointer("/status/cachedModels").and_then(Value::as_array).cloned().unwrap_or_default();
        let ours = models.into_iter().find(|model| text(model, "/source").ends_with(&sha256));
        Ok(ours.ok_or_else(|| found["status"].to_string()))
    })
    .await?;
    ensure!(!text(&cached, "/source").contains("http://"), "the URL is shown: {cached}");

    // The source is gone: what is cached needs it no more, and placement goes where it is.
    w.cluster().delete("Pod", &tenant.name, "source").await?;
    let start = Instant::now();
    w.deploy_ready(&tenant, "warm", &fetched(&url, &sha256)).await?;
    w.note(&format!("Cached to Ready {:.1} s", start.elapsed().as_secs_f64()));
    w.answers(&tenant, "warm").await?;
    ensure!(node_of(&w, &tenant, "warm").await? == node, "the second replica is not where the model is");
    Ok(())
}

/// At rest nothing needs the model, and two nodes have it all the same; the first replica starts there without its source.
pub async fn a_preloaded_model_is_on_nodes_before_a_replica_and_its_source_is_not_needed_then(
    w: World,
) -> anyhow::Result<()> {
    let sha256 = sha256(&std::fs::read(model(&w)?).context("read the model")?);
    let tenant = w.tenant("a").await?;
    let url = source(&w, &tenant).await?;
    let wish = fetched(&url, &sha256).and(&json!({"model": {"preload": {"nodes": 2}}}));
    let start = Instant::now();
    w.deploy(&tenant, "ahead", &wish.clone().replicas(0)).await?;
    w.until(&tenant, "ahead", "on two nodes", Duration::from_secs(90), |o| {
        let count = |field: &str| o.pointer(&format!("/status/preload/{field}")).and_then(Value::as_u64);
        (count("nodes"), count("cached")) == (Some(2), Some(2))
    })
    .await?;
    w.note(&format!("on two nodes after {:.1} s", start.elapsed().as_secs_f64()));
    w.cluster().delete("Pod", &tenant.name, "source").await?;
    let start = Instant::now();
    w.deploy_ready(&tenant, "ahead", &wish.replicas(1)).await?;
    w.note(&format!("preloaded to Ready {:.1} s", start.elapsed().as_secs_f64()));
    w.answers(&tenant, "ahead").await.map(drop)
}

pub async fn memory_auto_is_what_the_engine_takes_and_its_parts_are_in_the_status(w: World) -> anyhow::Result<()> {
    let sha256 = sha256(&std::fs::read(model(&w)?).context("read the model")?);
    let tenant = w.tenant("a").await?;
    let url = source(&w, &tenant).await?;
    let auto = json!({"variants": [{"name": "auto", "class": "h100-80g", "memory": "Auto", "compute": 5}],
        "runtime": {"options": {"maxModelLen": 2048}}});
    let mut wish = fetched(&url, &sha256);
    wish.overlay
        .as_object_mut()
        .into_iter()
        .for_each(|fields| fields.extend(auto.as_object().cloned().unwrap_or_default()));
    let start = Instant::now();
    w.deploy_ready(&tenant, "auto", &wish).await?;
    w.answers(&tenant, "auto").await?;
    let object = w.cluster().get("InferenceDeployment", &tenant.name, "auto").await?.context("no deployment")?;
    let estimate = object.pointer("/status/memoryEstimate").cloned().context("no estimate in the status")?;
    w.note(&format!("memory: Auto to Ready {:.1} s: {estimate}", start.elapsed().as_secs_f64()));
    let bytes = |field: &str| {
        let quantity = text(&estimate, &format!("/{field}"));
        let units = [("Gi", 30), ("Mi", 20), ("Ki", 10), ("", 0)];
        let (unit, shift) = units.into_iter().find(|(unit, _)| quantity.ends_with(unit)).context("no unit")?;
        let number: u64 = quantity.trim_end_matches(unit).parse().with_context(|| format!("{field}: {quantity}"))?;
        Ok::<u64, anyhow::Error>(number << shift)
    };
    let promised = bytes("weights")? + bytes("kvCache")? + bytes("scratch")?;
    ensure!(bytes("memory")? >= promised && bytes("memory")? < promised + (256 << 20), "the slice is not their sum");

    // What cannot be estimated is refused with what to write, and what fails says why.
    let image = Wish::default().overlay(auto.clone());
    let refused = w.deploy(&tenant, "image", &image).await.err().context("memory: Auto of an image was accepted")?;
    ensure!(format!("{refused:#}").contains("kubectl stowage model inspect"), "{refused:#}");
    let mut missing = fetched(&url.replace("model.gguf", "other.gguf"), &sha256);
    missing
        .overlay
        .as_object_mut()
        .into_iter()
        .for_each(|fields| fields.extend(auto.as_object().cloned().unwrap_or_default()));
    w.deploy(&tenant, "missing", &missing).await?;
    let found = w.until(&tenant, "missing", "the failure to be reported", Duration::from_secs(60), |object| {
        condition(object, "Accepted").is_some_and(|(_, reason, _)| reason == "EstimateFailed")
    });
    let (_, _, message) = condition(&found.await?, "Accepted").context("no condition")?;
    ensure!(message.contains("answers 404"), "{message}");
    Ok(())
}

pub async fn a_model_that_cannot_be_fetched_is_reported_and_harms_nobody(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let url = source(&w, &tenant).await?;
    let wrong = "0".repeat(64);
    let cases = [
        ("digest", url.clone(), "the file has the digest"),
        ("missing", url.replace("model.gguf", "other.gguf"), "answers 404"),
        ("metadata", "http://169.254.169.254/latest/meta-data".to_owned(), "a link-local address"),
        ("loopback", "http://127.0.0.1:8082/metrics".to_owned(), "a loopback address"),
        ("apiserver", "https://kubernetes.default.svc/version".to_owned(), "an address that the platform refuses"),
    ];
    for (name, url, _) in &cases {
        w.deploy(&tenant, name, &fetched(url, &wrong)).await?;
    }
    for (name, _, part) in &cases {
        let found = w.until(&tenant, name, "the failure to be reported", Duration::from_secs(90), |object| {
            condition(object, "Ready").is_some_and(|(_, reason, _)| reason == "ModelFetchFailed")
        });
        let (_, _, message) = condition(&found.await?, "Ready").context("no condition")?;
        ensure!(message.contains(part), "{name}: {message}");
    }
    w.deploy_ready(&tenant, "other", &Wish::default()).await?;
    w.answers(&tenant, "other").await.map(drop)
}
