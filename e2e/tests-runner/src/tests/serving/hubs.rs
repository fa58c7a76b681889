//! Models on a hub: resolved once, fetched with a token by the nodes, and served.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::clockwork::{Clockwork, Directory};
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::world::{Env, MODEL_IMAGE, Tenant, Wish, World};

/// Where the local cluster's node agents look for repositories: see `install` in xtask.
const NAMESPACE: &str = "stowage-e2e-hub";
const TOKEN: &str = "hf_e2e";
const FILES: [&str; 4] = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

/// An image with a model in safetensors that answers `Hello world!`; its reference.
async fn image(w: &World, folder: &Path) -> anyhow::Result<String> {
    let hello = Clockwork::hello();
    Directory::new(&hello).write(&folder.join("hello"));
    let (reference, archive) = (format!("localhost/models/{}:1", w.unique("hello")), folder.join("hello.tar"));
    let packed = tokio::process::Command::new(Env::built("kubectl-stowage")?)
        .args(["model", "pack", "--name", "hello", "--image", &reference, "-o"])
        .args([&archive, &folder.join("hello")])
        .output()
        .await?;
    ensure!(packed.status.success(), "pack: {}", String::from_utf8_lossy(&packed.stderr));
    w.env.cluster_command(&["load", &archive.display().to_string()]).await?;
    Ok(reference)
}

/// The hub, with the model in safetensors and the demo's GGUF file.
async fn hub(w: &World, image: &str) -> anyhow::Result<()> {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    w.cluster().apply_value("", &namespace).await?;
    w.also_remove("Namespace", "", NAMESPACE);
    wait_for("the namespace's default account", Duration::from_secs(20), || async {
        Ok(w.cluster().get("ServiceAccount", NAMESPACE, "default").await?.ok_or_else(|| "none".to_owned()))
    })
    .await?;
    let files = FILES.map(|name| format!("/hello/model/{name}"));
    let command = ["/bin/probe", "hub", "0.0.0.0:8000", "0.0.0.0:8001", "o/n", TOKEN, "/demo/model.gguf"];
    let command: Vec<&str> = command.into_iter().chain(files.iter().map(String::as_str)).collect();
    let security = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
    let volume = |name: &str, reference: &str| json!({"name": name, "image": {"reference": reference, "pullPolicy": "IfNotPresent"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hub", "namespace": NAMESPACE, "labels": {"app": "hub"}},
        "spec": {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "localhost/stowage/probe:dev", "imagePullPolicy": "IfNotPresent",
                "command": command, "securityContext": security,
                "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                "volumeMounts": [{"name": "hello", "mountPath": "/hello"}, {"name": "demo", "mountPath": "/demo"}]}],
            "volumes": [volume("hello", image), volume("demo", MODEL_IMAGE)]}});
    w.cluster().apply_value(NAMESPACE, &pod).await?;
    let ports = [8000, 8001].map(|port| json!({"name": format!("p{port}"), "port": port}));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hub", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "hub"}, "ports": ports}});
    w.cluster().apply_value(NAMESPACE, &service).await?;
    wait_for("the hub to run", Duration::from_secs(60), || async {
        let pod = w.cluster().get("Pod", NAMESPACE, "hub").await?.context("no pod")?;
        let ready = pod.pointer("/status/containerStatuses/0/ready").and_then(Value::as_bool).unwrap_or(false);
        Ok(if ready { Ok(()) } else { Err(text(&pod, "/status/phase")) })
    })
    .await
}

fn on_hub(replicas: u32, source: &Value) -> Wish {
    let source = json!({"image": null, "huggingFace": source});
    Wish::default().replicas(replicas).overlay(json!({"model": {"source": source}}))
}

async fn commit(w: &World, tenant: &Tenant, name: &str) -> anyhow::Result<String> {
    let object = w.cluster().get("InferenceDeployment", &tenant.name, name).await?.context("no deployment")?;
    Ok(text(&object, "/status/model/commit"))
}

pub async fn a_model_on_a_hub_is_fetched_at_one_commit_with_its_token_and_served(w: World) -> anyhow::Result<()> {
    let (tenant, folder) = (w.tenant("a").await?, std::env::temp_dir().join(w.unique("hub")));
    std::fs::create_dir_all(&folder)?;
    let image = image(&w, &folder).await?;
    accepted_by_its_own_client(&w, &folder).await?;
    std::fs::remove_dir_all(&folder)?;
    hub(&w, &image).await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub", "namespace": tenant.name}, "stringData": {"token": TOKEN}});
    w.cluster().apply_value(&tenant.name, &secret).await?;
    let with_token = |more: Value| {
        let mut source = json!({"repo": "o/n", "tokenSecretRef": {"name": "hub"}});
        source
            .as_object_mut()
            .into_iter()
            .for_each(|fields| fields.extend(more.as_object().cloned().unwrap_or_default()));
        source
    };

    // Two replicas at once: one resolves the branch, both get its commit, and later ones too although it has moved.
    w.deploy_ready(&tenant, "hello", &on_hub(2, &with_token(json!({})))).await?;
    let answer = w.answers(&tenant, "hello").await?;
    ensure!(answer == "Hello world!", "{answer}");
    let first = "a".repeat(40);
    ensure!(commit(&w, &tenant, "hello").await? == first, "{}", commit(&w, &tenant, "hello").await?);
    let moved = format!("http://127.0.0.1:8000/move-main/{}", "b".repeat(40));
    let (code, _, err) =
        w.env.program("kubectl", &["exec", "-n", NAMESPACE, "hub", "--", "probe", "get", &moved]).await?;
    ensure!(code == 0, "move main: {err}");
    w.deploy_ready(&tenant, "hello", &on_hub(3, &with_token(json!({})))).await?;
    ensure!(commit(&w, &tenant, "hello").await? == first, "the commit moved with the branch");
    token_is_for_the_waiting_container_alone(&w, &tenant).await?;

    w.deploy_ready(&tenant, "file", &on_hub(1, &with_token(json!({"path": "model.gguf"})))).await?;
    w.answers(&tenant, "file").await?;
    ensure!(commit(&w, &tenant, "file").await? == "b".repeat(40), "a new deployment did not resolve main anew");

    let cases = [
        ("open", json!({"repo": "o/n"}), "is private"),
        ("nosecret", with_token(json!({"tokenSecretRef": {"name": "nothing"}})), "Secret nothing has no key token"),
        ("norepo", with_token(json!({"repo": "o/other"})), "to the token"),
        ("nofile", with_token(json!({"path": "other.gguf"})), "its GGUF files: model.gguf"),
    ];
    for (name, source, _) in &cases {
        w.deploy(&tenant, name, &on_hub(1, source)).await?;
    }
    for (name, _, part) in &cases {
        let found = w.until(&tenant, name, "the failure to be reported", Duration::from_secs(90), |object| {
            condition(object, "Ready").is_some_and(|(_, reason, _)| reason == "ModelFetchFailed")
        });
        let (_, _, message) = condition(&found.await?, "Ready").context("no condition")?;
        ensure!(
            message.contains(part) || (*name == "norepo" && message.contains("no such repository")),
            "{name}: {message}"
        );
    }
    Ok(())
}

/// No object and no engine has the token.
async fn token_is_for_the_waiting_container_alone(w: &World, tenant: &Tenant) -> anyhow::Result<()> {
    for pod in w.pods(tenant, "hello").await? {
        let engine = pod.pointer("/spec/containers/0").cloned().unwrap_or_default().to_string();
        ensure!(!engine.contains("source-token") && !engine.contains("secretKeyRef"), "the engine has it: {engine}");
        ensure!(!pod.to_string().contains(TOKEN), "the pod shows it");
    }
    for kind in ["InferenceDeployment", "ResourceClaim", "Event"] {
        for object in w.cluster().list(kind, &tenant.name, "").await? {
            ensure!(!object.to_string().contains(TOKEN), "{kind} shows the token");
        }
    }
    Ok(())
}

/// The same server on loopback, read by huggingface_hub.
async fn accepted_by_its_own_client(w: &World, folder: &Path) -> anyhow::Result<()> {
    let probe = w.env.bin.as_ref().context("no programs of the cluster given (STOWAGE_BIN)")?.join("probe");
    let scripts = w.env.clients.clone().context("no folder with the clients given (STOWAGE_CLIENTS)")?;
    let python = w.env.python.clone().context("no Python with the clients given (STOWAGE_PYTHON)")?;
    let free = || Ok::<_, anyhow::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
    let (address, store) = (free()?, free()?);
    let files: Vec<String> = FILES.map(|name| folder.join("hello").join(name).display().to_string()).into();
    let mut server = tokio::process::Command::new(probe)
        .args(["hub", &address, &store, "o/n", TOKEN])
        .args(&files)
        .kill_on_drop(true)
        .spawn()?;
    wait_for("the hub on loopback", Duration::from_secs(10), || async {
        Ok(tokio::net::TcpStream::connect(&address).await.map(drop).map_err(|e| e.to_string()))
    })
    .await?;
    let run = tokio::process::Command::new(python)
        .arg("hub_client.py")
        .current_dir(scripts)
        .env("HF_ENDPOINT", format!("http://{address}"))
        .env("HF_HOME", folder.join("hf"))
        .env("HUB_TOKEN", TOKEN)
        .env("HUB_FILES", files.join(":"))
        .env("STOWAGE_URL", &w.env.url)
        .env("STOWAGE_KEY", "none")
        .env("STOWAGE_MODEL", "none")
        .output()
        .await?;
    server.kill().await?;
    let (output, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let last = output.lines().last().unwrap_or_default();
    ensure!(run.status.success() && last.ends_with("checks passed"), "huggingface_hub: {output}{errors}");
    Ok(())
}
