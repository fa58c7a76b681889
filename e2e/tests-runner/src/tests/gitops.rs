//! GitOps: a manifest that is applied again changes nothing, and tools that wait for health read our conditions as a
//! person would.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::placing::objects::documents;
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::world::{self, Env, Tenant, Wish, World};

/// Kinds that a user writes; a GpuNode is the agent's, an InferenceBatch is refused.
const KINDS: [&str; 4] = ["InferenceDeployment", "TenantQuota", "GpuClass", "InferenceRuntime"];

/// Each example and each kind, with every field that is honoured, through both ways of applying.
pub async fn manifest_applied_twice_is_unchanged(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant_with("gitops", json!({"gpus": []})).await?;
    let mut tried = 0;
    for (place, object) in manifests(&w, &tenant)? {
        let file = manifest(&w, &object)?;
        let path = file.to_str().context("a path that is text")?;
        let (kind, name) = (text(&object, "/kind"), text(&object, "/metadata/name"));
        kubectl(&w, &["apply", "-f", path]).await.with_context(|| place.clone())?;
        let again = kubectl(&w, &["apply", "-f", path]).await.with_context(|| place.clone())?;
        ensure!(again.trim_end().ends_with(" unchanged"), "{place}, applied again: {again}");
        let (code, diff, error) = w.env.program("kubectl", &["diff", "-f", path]).await?;
        ensure!(code == 0, "{place}, kubectl diff: {diff}{error}");

        let server_side = ["apply", "--server-side", "--force-conflicts", "--field-manager=gitops", "-f", path];
        kubectl(&w, &server_side).await.with_context(|| place.clone())?;
        let before = applied(&w, &tenant, &kind, &name).await?;
        kubectl(&w, &server_side).await.with_context(|| place.clone())?;
        let after = applied(&w, &tenant, &kind, &name).await?;
        ensure!(before == after, "{place}, applied again on the server: {before} and then {after}");
        w.cluster().delete(&kind, &tenant.name, &name).await?;
        tried += 1;
    }
    ensure!(tried > 12, "only {tried} objects were tried");
    Ok(())
}

/// The same with the libraries of the tools themselves.
pub async fn argo_and_flux_see_no_difference_after_a_sync(w: World) -> anyhow::Result<()> {
    let (argo, flux) = (build(&w, "argo").await?, build(&w, "flux").await?);
    let tenant = w.tenant_with("gitops", json!({"gpus": []})).await?;
    for (place, object) in manifests(&w, &tenant)? {
        let file = manifest(&w, &object)?;
        let (kind, name) = (text(&object, "/kind"), text(&object, "/metadata/name"));
        kubectl(&w, &["apply", "-f", file.to_str().context("a path that is text")?]).await.context(place.clone())?;
        let stored = w.cluster().get(&kind, &tenant.name, &name).await?.context("the applied object")?;
        let seen = ask(&argo, &[&object, &stored]).await.with_context(|| place.clone())?;
        ensure!(seen == "synced", "{place}, Argo CD: {seen}");
        ask(&flux, &[&object]).await.with_context(|| place.clone())?;
        let again = ask(&flux, &[&object]).await.with_context(|| place.clone())?;
        ensure!(again == "unchanged", "{place}, Flux: {again}");
        w.cluster().delete(&kind, &tenant.name, &name).await?;
    }
    Ok(())
}

/// A count that nobody writes is 1, may be changed by `kubectl scale`, and is not taken back by another apply.
pub async fn omitted_replicas_are_one_and_scaling_is_kept(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant_with("gitops", json!({"gpus": []})).await?;
    let mut object = Wish::default().object(&tenant.name, "chat");
    object["spec"].as_object_mut().context("a spec")?.remove("replicas");
    let without = manifest(&w, &object)?;
    object["spec"]["replicas"] = json!(3);
    let with = manifest(&w, &object)?;
    let (without, with) = (without.to_str().context("text")?, with.to_str().context("text")?);
    let replicas = || async {
        let object = w.cluster().get("InferenceDeployment", &tenant.name, "chat").await?.context("the deployment")?;
        anyhow::Ok(object["spec"]["replicas"].clone())
    };

    kubectl(&w, &["apply", "-f", without]).await?;
    ensure!(replicas().await? == json!(1), "left out: {}", replicas().await?);
    kubectl(&w, &["scale", "--replicas=2", "-n", &tenant.name, "infd/chat"]).await?;
    let again = kubectl(&w, &["apply", "-f", without]).await?;
    ensure!(again.trim_end().ends_with(" unchanged") && replicas().await? == json!(2), "{again}");
    // Written and then removed from the file: as with a Deployment, the default and not zero.
    kubectl(&w, &["apply", "-f", with]).await?;
    kubectl(&w, &["apply", "-f", without]).await?;
    ensure!(replicas().await? == json!(1), "removed: {}", replicas().await?);
    Ok(())
}

/// What Flux, `kubectl wait`-like tools and pipelines act on.
pub async fn kstatus_is_current_in_progress_or_failed(w: World) -> anyhow::Result<()> {
    let kstatus = build(&w, "kstatus").await?;
    let tenant = w.tenant("a").await?;
    let poor = w.tenant_with("poor", json!({"gpus": [{"class": "h100-80g", "nominalQuota": "0"}]})).await?;
    let stopped = Wish::default().replicas(0);
    let refused = Wish::default().overlay(json!({"runtime": {"ref": "no-such-runtime"}}));
    for (tenant, name, wish, wanted) in [
        (&tenant, "serves", Wish::default(), "Current"),
        (&tenant, "stopped", stopped, "Current"),
        (&tenant, "refused", refused, "Failed"),
        (&poor, "waits", Wish::default(), "InProgress"),
    ] {
        w.deploy(tenant, name, &wish).await?;
        wait_for(&format!("{name} to be {wanted} to kstatus"), Duration::from_secs(90), || async {
            let found = w.cluster().get("InferenceDeployment", &tenant.name, name).await?.unwrap_or_default();
            // The first status is written after the object; until then it is InProgress to anybody.
            let settled = text(&found, "/status/observedGeneration") == text(&found, "/metadata/generation")
                && condition(&found, "Ready").is_some();
            let status = ask(&kstatus, &[&found]).await?;
            let (word, _) = status.split_once(' ').unwrap_or((&status, ""));
            Ok(if settled && word == wanted { Ok(()) } else { Err(format!("{status}: {}", found["status"])) })
        })
        .await?;
    }
    Ok(())
}

/// Where each manifest comes from, and the object under a name and in a namespace of this test.
fn manifests(w: &World, tenant: &Tenant) -> anyhow::Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for folder in
        ["examples/quickstart", "examples/dedicated", "examples/over-quota", "examples/shared-gpu", "crds/tests/good"]
    {
        let folder = w.env.root.join(folder);
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let yaml = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            for object in documents(&yaml).with_context(|| path.display().to_string())? {
                if KINDS.iter().any(|kind| object["kind"] == *kind) {
                    let place = format!("{} {} {}", path.display(), object["kind"], object["metadata"]["name"]);
                    found.push((place, own(w, tenant, object)));
                }
            }
        }
    }
    Ok(found)
}

fn own(w: &World, tenant: &Tenant, mut object: Value) -> Value {
    if object["kind"] == "InferenceDeployment" {
        object["metadata"]["namespace"] = json!(tenant.name);
        return object;
    }
    // Behind the real classes by name, so that no GPU changes its class.
    let name = format!("z-{}", w.unique(&text(&object, "/metadata/name")));
    w.also_remove(&text(&object, "/kind"), "", &name);
    object["metadata"]["name"] = json!(name);
    for namespace in object.pointer_mut("/spec/namespaces").and_then(Value::as_array_mut).into_iter().flatten() {
        *namespace = json!(format!("{}-{}", tenant.name, namespace.as_str().unwrap_or_default()));
    }
    object
}

/// The object in a file of its own.
fn manifest(w: &World, object: &Value) -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::temp_dir().join(format!("{}.json", w.unique(&hash(object))));
    std::fs::write(&path, object.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn hash(object: &Value) -> String {
    use sha2::Digest;
    world::hex(&sha2::Sha256::digest(object.to_string().as_bytes())[..8])
}

async fn kubectl(w: &World, args: &[&str]) -> anyhow::Result<String> {
    let (code, output, error) = w.env.program("kubectl", args).await?;
    ensure!(code == 0, "kubectl {}: {error}", args.join(" "));
    Ok(output)
}

/// Generation and spec, and when the manager last changed something.
async fn applied(w: &World, tenant: &Tenant, kind: &str, name: &str) -> anyhow::Result<Value> {
    let object = w.cluster().get(kind, &tenant.name, name).await?.context("the applied object")?;
    let managed = object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
    let ours: Vec<Value> = managed.into_iter().filter(|entry| entry["manager"] == "gitops").collect();
    Ok(json!([object["metadata"]["generation"], object["spec"], ours]))
}

/// A program of `e2e/gitops`; Go's cache keeps what it was built from.
async fn build(w: &World, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let program = Env::built(&format!("gitops-{name}"))?;
    let output = tokio::process::Command::new("go")
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(w.env.root.join("e2e/gitops").join(name))
        .output()
        .await
        .context("run go")?;
    ensure!(output.status.success(), "go build of e2e/gitops/{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

/// What the program prints for the objects.
async fn ask(program: &std::path::Path, objects: &[&Value]) -> anyhow::Result<String> {
    let mut child = tokio::process::Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", program.display()))?;
    let mut input = child.stdin.take().context("its standard input")?;
    for object in objects {
        input.write_all(object.to_string().as_bytes()).await.context("give it the object")?;
    }
    drop(input);
    let output = child.wait_with_output().await.context("wait for it")?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
