//! What a test owns: tenants with their namespaces, quotas and keys, and the deployments in them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stowage_contracts::names;

use super::cluster::{Cluster, condition, text, wait_for};
use super::http::Caller;
use crate::Options;

pub use stowage_contracts::names::{NODE_NAMESPACE as NODES, SYSTEM_NAMESPACE as SYSTEM};

/// The image volume that `cargo xtask model` writes, and its file.
pub const MODEL_IMAGE: &str = "localhost/models/smollm2:q4";

/// One run's surroundings.
#[derive(Clone)]
pub struct Env {
    pub cluster: Cluster,
    pub url: String,
    pub bin: Option<std::path::PathBuf>,
    pub state: Option<std::path::PathBuf>,
    pub python: Option<std::path::PathBuf>,
    pub python_long: Option<std::path::PathBuf>,
    pub clients: Option<std::path::PathBuf>,
    pub xtask: Option<std::path::PathBuf>,
    pub root: std::path::PathBuf,
    /// The file in [`MODEL_IMAGE`].
    pub model: Option<std::path::PathBuf>,
    /// Nodes that are reserved for tests that need one for themselves.
    pub reserved: Vec<String>,
}

/// A tenant of the test: its TenantQuota, its namespace, and a caller with its key. All three share one name.
#[derive(Clone)]
pub struct Tenant {
    pub name: String,
    pub caller: Caller,
}

/// What a test wants of a deployment; the rest is the quickstart's.
#[derive(Clone)]
pub struct Wish {
    pub replicas: u32,
    pub memory: String,
    pub compute: u32,
    /// Merged over the generated spec (JSON merge patch).
    pub overlay: Value,
}

// === impl Env ===

impl Env {
    pub async fn connect(options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            cluster: Cluster::connect().await?,
            url: options.url.clone(),
            bin: options.bin.clone(),
            state: options.state.clone(),
            python: options.python.clone(),
            python_long: options.python_long.clone(),
            clients: options.clients.clone(),
            xtask: options.xtask.clone(),
            root: options.root.clone(),
            model: options.model.clone(),
            reserved: Vec::new(),
        })
    }

    /// `cargo xtask cluster …`: ends and starts parts of the local cluster.
    pub async fn cluster_command(&self, args: &[&str]) -> anyhow::Result<String> {
        let xtask = self.xtask.as_ref().context("parts of the local cluster only can be ended (STOWAGE_XTASK)")?;
        let output = tokio::process::Command::new(xtask)
            .arg("cluster")
            .args(args)
            .output()
            .await
            .with_context(|| format!("run {}", xtask.display()))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "cluster {} failed: {stderr}", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts what is missing of the local cluster.
    pub async fn cluster_up(&self) -> anyhow::Result<()> {
        self.cluster_command(&["up", "--nodes", "2"]).await.map(drop)
    }

    /// Whether a node is reserved for tests that need one for themselves.
    pub fn is_reserved(&self, node: &str) -> bool {
        self.reserved.iter().any(|reserved| reserved == node)
    }

    /// One of our own programs, built beside this one.
    pub fn built(name: &str) -> anyhow::Result<std::path::PathBuf> {
        Ok(std::env::current_exe().context("find this program")?.with_file_name(name))
    }

    /// A program of the cluster's, run to its end: (exit code, stdout, stderr).
    pub async fn program(&self, name: &str, args: &[&str]) -> anyhow::Result<(i32, String, String)> {
        let path = self.bin.as_ref().map_or_else(|| name.into(), |b| b.join(name));
        let output = tokio::process::Command::new(&path)
            .args(args)
            .output()
            .await
            .with_context(|| format!("run {}", path.display()))?;
        Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

// === impl Wish ===

impl Default for Wish {
    fn default() -> Self {
        Self { replicas: 1, memory: "1Gi".into(), compute: 5, overlay: json!({}) }
    }
}

impl Wish {
    pub fn replicas(mut self, n: u32) -> Self {
        self.replicas = n;
        self
    }

    pub fn slice(mut self, memory: &str, compute: u32) -> Self {
        self.memory = memory.into();
        self.compute = compute;
        self
    }

    pub fn overlay(mut self, spec: Value) -> Self {
        self.overlay = spec;
        self
    }

    /// With this part of a spec beside what was wished before.
    pub fn and(mut self, spec: &Value) -> Self {
        merge(&mut self.overlay, spec);
        self
    }

    /// The object as a user would write it.
    pub fn object(&self, namespace: &str, name: &str) -> Value {
        let mut spec = json!({
            "model": {"name": name, "source": {"image": {"reference": MODEL_IMAGE, "path": "/model.gguf"}}},
            "runtime": {"ref": "stowage-engine"},
            "variants": [{"name": "slice", "class": "h100-80g", "count": 1, "memory": self.memory, "compute": self.compute}],
            "replicas": self.replicas,
            "scaling": {"mode": "Manual"},
        });
        merge(&mut spec, &self.overlay);
        json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    }
}

/// RFC 7386 merge.
pub fn merge(into: &mut Value, patch: &Value) {
    let (Some(target), Some(fields)) = (into.as_object_mut(), patch.as_object()) else {
        *into = patch.clone();
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A test's world. Cheap to clone; all clones are one world.
#[derive(Clone)]
pub struct World {
    pub env: Env,
    /// The test's name.
    pub test: &'static str,
    id: String,
    node: Option<String>,
    labels: Arc<Mutex<Vec<String>>>,
    made: Arc<Mutex<Vec<String>>>,
    objects: Arc<Mutex<Vec<(String, String, String)>>>,
    /// The cluster's operators were scaled to zero.
    scaled_down: Arc<AtomicBool>,
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

// === impl World ===

impl World {
    /// Names carry the process id and a serial number, so that runs and tests do not share any.
    pub fn new(env: Env, test: &'static str, node: Option<String>) -> Self {
        let id = format!("e2e-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        Self {
            env,
            test,
            id,
            node,
            labels: Arc::default(),
            made: Arc::default(),
            objects: Arc::default(),
            scaled_down: Arc::default(),
        }
    }

    /// The node that this test has to itself; deployments reach it with `reserved::on`.
    pub fn node(&self) -> anyhow::Result<&str> {
        self.node.as_deref().context("this test needs a node for itself: start a cluster of three nodes or more")
    }

    /// A measurement or a remark that is printed whether or not the test passes.
    pub fn note(&self, text: &str) {
        println!("  {}: {text}", self.test);
    }

    /// The label key that only this test uses.
    pub fn label(&self) -> String {
        format!("e2e.stowage.dev/{}", self.id)
    }

    /// Gives a node this test's label until the test ends.
    pub async fn label_node(&self, node: &str) -> anyhow::Result<()> {
        if let Ok(mut labels) = self.labels.lock() {
            labels.push(node.to_owned());
        }
        self.cluster().merge("Node", "", node, &json!({"metadata": {"labels": {self.label(): "yes"}}})).await
    }

    pub fn cluster(&self) -> &Cluster {
        &self.env.cluster
    }

    pub fn note_operators(&self, replicas: u32) {
        self.scaled_down.store(replicas == 0, Ordering::Relaxed);
    }

    /// Whether the test left the cluster without an operator.
    pub fn left_without_operators(&self) -> bool {
        self.scaled_down.load(Ordering::Relaxed)
    }

    /// A name that no other test uses.
    pub fn unique(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.id)
    }

    /// An object outside the tenants' namespaces that must go when the test ends.
    pub fn also_remove(&self, kind: &str, namespace: &str, name: &str) {
        if let Ok(mut objects) = self.objects.lock() {
            objects.push((kind.into(), namespace.into(), name.into()));
        }
    }

    /// A tenant with 4 GPUs of nominal quota.
    pub async fn tenant(&self, suffix: &str) -> anyhow::Result<Tenant> {
        self.tenant_with(suffix, json!({"gpus": [{"class": "h100-80g", "nominalQuota": "4"}]})).await
    }

    pub async fn tenant_with(&self, suffix: &str, quota: Value) -> anyhow::Result<Tenant> {
        let name = self.unique(suffix);
        if let Ok(mut made) = self.made.lock() {
            made.push(name.clone());
        }
        let key = format!("sk-{name}-{:016x}", u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        self.namespace(&name).await?;
        self.keys(&name, &[("test", &key)]).await?;
        let mut spec = json!({"namespaces": [name], "credentials": {"apiKeys": [{"secretName": name}]}});
        merge(&mut spec, &quota);
        let object = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "TenantQuota", "metadata": {"name": name}, "spec": spec});
        self.cluster().apply_value("", &object).await?;
        Ok(Tenant { caller: Caller::new(&self.env.url, &key)?, name })
    }

    /// A namespace under the `restricted` Pod Security standard, usable (its default account exists).
    async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.cluster().apply_value("", &object).await?;
        wait_for("the namespace's default account", Duration::from_secs(20), || async {
            Ok(self.cluster().get("ServiceAccount", name, "default").await?.ok_or_else(|| "none".to_owned()))
        })
        .await?;
        Ok(())
    }

    /// The tenant's key Secret: name of each key and the key itself (stored hashed).
    pub async fn keys(&self, tenant: &str, keys: &[(&str, &str)]) -> anyhow::Result<()> {
        let data: serde_json::Map<String, Value> =
            keys.iter().map(|(name, key)| ((*name).to_owned(), json!(hex(&Sha256::digest(key.as_bytes()))))).collect();
        let object = json!({"apiVersion": "v1", "kind": "Secret", "type": names::API_KEYS_SECRET_TYPE,
            "metadata": {"name": tenant, "namespace": SYSTEM}, "stringData": data});
        self.cluster().apply_value(SYSTEM, &object).await?;
        Ok(())
    }

    pub async fn deploy(&self, tenant: &Tenant, name: &str, wish: &Wish) -> anyhow::Result<()> {
        self.cluster().apply_value(&tenant.name, &wish.object(&tenant.name, name)).await?;
        Ok(())
    }

    /// Applies and waits until all replicas are ready.
    pub async fn deploy_ready(&self, tenant: &Tenant, name: &str, wish: &Wish) -> anyhow::Result<()> {
        self.deploy(tenant, name, wish).await?;
        self.ready(tenant, name, wish.replicas).await
    }

    pub async fn ready(&self, tenant: &Tenant, name: &str, replicas: u32) -> anyhow::Result<()> {
        self.until(tenant, name, &format!("{replicas} ready"), Duration::from_secs(180), |o| {
            let ready = o.pointer("/status/readyReplicas").and_then(Value::as_u64).unwrap_or(0);
            let current = text(o, "/status/observedGeneration") == text(o, "/metadata/generation");
            current && ready == u64::from(replicas) && condition(o, "Ready").is_some_and(|c| c.0 == "True")
        })
        .await?;
        Ok(())
    }

    /// Waits until the deployment satisfies `test`; the last status is in the error.
    pub async fn until(
        &self,
        tenant: &Tenant,
        name: &str,
        what: &str,
        limit: Duration,
        test: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        wait_for(&format!("{}/{name}: {what}", tenant.name), limit, || async {
            let Some(object) = self.cluster().get("InferenceDeployment", &tenant.name, name).await? else {
                return Ok(Err("no such deployment".to_owned()));
            };
            if test(&object) { Ok(Ok(object)) } else { Ok(Err(object["status"].to_string())) }
        })
        .await
    }

    pub async fn pods(&self, tenant: &Tenant, deployment: &str) -> anyhow::Result<Vec<Value>> {
        self.cluster().list("Pod", &tenant.name, &format!("{}={deployment}", names::LABEL_DEPLOYMENT)).await
    }

    pub async fn claims(&self, tenant: &Tenant, deployment: &str) -> anyhow::Result<Vec<Value>> {
        self.cluster().list("ResourceClaim", &tenant.name, &format!("{}={deployment}", names::LABEL_DEPLOYMENT)).await
    }

    /// Waits until neither the deployment nor a pod or claim of it is left.
    pub async fn gone(&self, tenant: &Tenant, name: &str, limit: Duration) -> anyhow::Result<()> {
        wait_for(&format!("{}/{name} to be gone", tenant.name), limit, || async {
            let object = self.cluster().get("InferenceDeployment", &tenant.name, name).await?.is_some();
            let (pods, claims) = (self.pods(tenant, name).await?.len(), self.claims(tenant, name).await?.len());
            Ok(if !object && pods == 0 && claims == 0 {
                Ok(())
            } else {
                Err(format!("object {object}, {pods} pods, {claims} claims"))
            })
        })
        .await
    }

    /// Where each claim of a deployment is: (uuid of the device, consumed memory, consumed SM).
    pub async fn slices(&self, tenant: &Tenant, deployment: &str) -> anyhow::Result<Vec<(String, String, String)>> {
        let mut out = Vec::new();
        for claim in self.claims(tenant, deployment).await? {
            for result in
                claim.pointer("/status/allocation/devices/results").and_then(Value::as_array).into_iter().flatten()
            {
                let device = self.device(&text(result, "/pool"), &text(result, "/device")).await?;
                out.push((device, text(result, "/consumedCapacity/memory"), text(result, "/consumedCapacity/sm")));
            }
        }
        Ok(out)
    }

    /// The uuid behind a pool's device, from the published ResourceSlices.
    async fn device(&self, pool: &str, device: &str) -> anyhow::Result<String> {
        for slice in self.cluster().list("ResourceSlice", "", "").await? {
            if text(&slice, "/spec/driver") != names::DRIVER || text(&slice, "/spec/pool/name") != pool {
                continue;
            }
            let devices = slice.pointer("/spec/devices").and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(found) = devices.iter().find(|d| text(d, "/name") == device) {
                return Ok(text(found, "/attributes/uuid/string"));
            }
        }
        anyhow::bail!("no ResourceSlice publishes device {device} of pool {pool}")
    }

    /// Asks until the model answers 200: `Ready` and the gateways' own watch are a moment apart.
    pub async fn answers(&self, tenant: &Tenant, model: &str) -> anyhow::Result<String> {
        wait_for(&format!("{model} to answer"), Duration::from_secs(30), || async {
            let answer = tenant.caller.chat(model, "What is the capital of France?", 16).await?;
            Ok(if answer.status == 200 { Ok(answer.text()) } else { Err(format!("{} {}", answer.status, answer.body)) })
        })
        .await
    }

    /// What one looks at when a test has failed.
    pub async fn print_evidence(&self) {
        let tenants = self.made.lock().map(|m| m.clone()).unwrap_or_default();
        for tenant in tenants {
            for kind in ["InferenceDeployment", "Pod", "ResourceClaim", "Event"] {
                for object in self.cluster().list(kind, &tenant, "").await.unwrap_or_default() {
                    let status = if kind == "Event" {
                        format!("{}: {}", text(&object, "/reason"), text(&object, "/message"))
                    } else {
                        object["status"].to_string()
                    };
                    println!(
                        "  | {kind} {tenant}/{}: {}",
                        text(&object, "/metadata/name"),
                        status.chars().take(1500).collect::<String>()
                    );
                }
            }
        }
    }

    /// Removes everything the test made and waits until it is gone.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let tenants = self.made.lock().map(|m| m.clone()).unwrap_or_default();
        let objects = self.objects.lock().map(|o| o.clone()).unwrap_or_default();
        let labelled = self.labels.lock().map(|l| l.clone()).unwrap_or_default();
        for (kind, namespace, name) in objects {
            self.cluster().delete(&kind, &namespace, &name).await?;
        }
        for node in labelled {
            self.cluster().merge("Node", "", &node, &json!({"metadata": {"labels": {self.label(): null}}})).await?;
        }
        for tenant in &tenants {
            for object in self.cluster().list("InferenceDeployment", tenant, "").await? {
                self.cluster().delete("InferenceDeployment", tenant, &text(&object, "/metadata/name")).await?;
            }
        }
        for tenant in &tenants {
            wait_for(&format!("the deployments of {tenant} to be gone"), Duration::from_secs(150), || async {
                let left = self.cluster().list("InferenceDeployment", tenant, "").await?;
                Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} left: {}", left.len(), left[0]["status"])) })
            })
            .await?;
            self.cluster().delete("TenantQuota", "", tenant).await?;
            self.cluster().delete("Secret", SYSTEM, tenant).await?;
            self.cluster().delete("Namespace", "", tenant).await?;
        }
        Ok(())
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
