//! The API server as the tests use it: objects are JSON values, named by kind.
//!
//! Untyped on purpose: a test sends and reads what a user would write, so a field that our own
//! types would drop or default is seen as the API server stores it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::Value;

/// A kind the tests touch: group, version, kind, plural, namespaced.
const KINDS: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "Namespace", "namespaces", false),
    ("", "v1", "Node", "nodes", false),
    ("", "v1", "Pod", "pods", true),
    ("", "v1", "Secret", "secrets", true),
    ("", "v1", "Service", "services", true),
    ("", "v1", "ServiceAccount", "serviceaccounts", true),
    ("", "v1", "Event", "events", true),
    ("apps", "v1", "Deployment", "deployments", true),
    ("apps", "v1", "DaemonSet", "daemonsets", true),
    ("coordination.k8s.io", "v1", "Lease", "leases", true),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true),
    ("apiregistration.k8s.io", "v1", "APIService", "apiservices", false),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true),
    ("", "v1", "ResourceQuota", "resourcequotas", true),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", false),
    ("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", true),
    ("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates", true),
    ("resource.k8s.io", "v1", "ResourceSlice", "resourceslices", false),
    ("stowage.dev", "v1alpha1", "InferenceDeployment", "inferencedeployments", true),
    ("stowage.dev", "v1alpha1", "InferenceBatch", "inferencebatches", true),
    ("stowage.dev", "v1alpha1", "InferenceRuntime", "inferenceruntimes", false),
    ("stowage.dev", "v1alpha1", "TenantQuota", "tenantquotas", false),
    ("stowage.dev", "v1alpha1", "GpuClass", "gpuclasses", false),
    ("stowage.dev", "v1alpha1", "GpuNode", "gpunodes", false),
];

/// A client to one API server, perhaps as another user.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
}

// === impl Cluster ===

impl Cluster {
    pub async fn connect() -> anyhow::Result<Self> {
        let config = kube::Config::infer().await.context("read the kubeconfig")?;
        let client = kube::Client::try_from(config).context("build the API client")?;
        client.apiserver_version().await.context("ask the API server for its version")?;
        Ok(Self { client })
    }

    /// The same server, seen with the rights of `user` (and its groups).
    pub async fn impersonate(&self, user: &str, groups: &[&str]) -> anyhow::Result<Self> {
        let mut config = kube::Config::infer().await.context("read the kubeconfig")?;
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|g| (*g).to_owned()).collect());
        Ok(Self { client: kube::Client::try_from(config)? })
    }

    /// The same server with a bearer token and nothing else.
    pub async fn with_token(token: &str) -> anyhow::Result<Self> {
        let mut config = kube::Config::infer().await.context("read the kubeconfig")?;
        config.auth_info = kube::config::AuthInfo { token: Some(token.to_owned().into()), ..Default::default() };
        Ok(Self { client: kube::Client::try_from(config)? })
    }

    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    fn api(&self, kind: &str, namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
        let Some((group, version, kind, plural, namespaced)) = KINDS.iter().find(|k| k.2 == kind) else {
            bail!("the tests do not know kind {kind}; add it to KINDS");
        };
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Ok(if *namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        })
    }

    /// Server-side apply; the object's own namespace wins over `namespace`.
    pub async fn apply_value(&self, namespace: &str, object: &Value) -> anyhow::Result<Value> {
        let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(namespace);
        let applied = self
            .api(&kind, namespace)?
            .patch(&name, &PatchParams::apply("stowage-e2e").force(), &Patch::Apply(object))
            .await
            .with_context(|| format!("apply {kind} {namespace}/{name}"))?;
        Ok(serde_json::to_value(applied)?)
    }

    /// Plain create, as a user who may not patch would do it.
    pub async fn create(&self, namespace: &str, object: &Value) -> Result<Value, kube::Error> {
        let kind = text(object, "/kind");
        let api = self.api(&kind, namespace).map_err(|e| kube::Error::Service(e.into()))?;
        let object: DynamicObject = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
        let made = api.create(&PostParams::default(), &object).await?;
        serde_json::to_value(made).map_err(kube::Error::SerdeError)
    }

    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
        let found =
            self.api(kind, namespace)?.get_opt(name).await.with_context(|| format!("get {kind} {namespace}/{name}"))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    pub async fn list(&self, kind: &str, namespace: &str, labels: &str) -> anyhow::Result<Vec<Value>> {
        let params = ListParams::default().labels(labels);
        let found =
            self.api(kind, namespace)?.list(&params).await.with_context(|| format!("list {kind} in {namespace}"))?;
        found.items.into_iter().map(|o| Ok(serde_json::to_value(o)?)).collect()
    }

    /// Asks for deletion and returns; an object that is already gone is fine.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        match self.api(kind, namespace)?.delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(e) => Err(e).with_context(|| format!("delete {kind} {namespace}/{name}")),
        }
    }

    pub async fn merge(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
        self.api(kind, namespace)?
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch {kind} {namespace}/{name}"))?;
        Ok(())
    }

    /// A merge patch of the object or, with a name, of its subresource; the API server's own refusal.
    pub async fn patch_part(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Value,
    ) -> Result<Value, kube::Error> {
        let api = self.api(kind, namespace).map_err(|e| kube::Error::Service(e.into()))?;
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched = match subresource {
            "" => api.patch(name, &params, &patch).await?,
            sub => api.patch_subresource(sub, name, &params, &patch).await?,
        };
        serde_json::to_value(patched).map_err(kube::Error::SerdeError)
    }
}

/// Asks `probe` until it answers `Some`, for at most `limit`; the last thing it complained of is
/// the error. `probe` returns `Err(text)` for "not yet, and this is what I see".
pub async fn wait_for<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<Result<T, String>>>,
{
    let started = Instant::now();
    loop {
        let seen = match probe().await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => seen,
            Err(e) => format!("{e:#}"),
        };
        if started.elapsed() > limit {
            bail!("waited {:.0} s for {what}; last seen: {seen}", limit.as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The string at a JSON pointer, or "".
pub fn text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(s)) => s.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A condition of an object as (status, reason, message).
pub fn condition(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let found = object.pointer("/status/conditions")?.as_array()?.iter().find(|c| text(c, "/type") == kind)?;
    Some((text(found, "/status"), text(found, "/reason"), text(found, "/message")))
}
