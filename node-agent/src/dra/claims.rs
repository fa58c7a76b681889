//! Where claims and pods are looked up. A trait, because the tests of the plugin have no cluster.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client};
use std::time::Duration;

/// The API server could not be asked. The kubelet asks again.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from the API server: {why}; the kubelet asks again")]
pub struct LookupError {
    pub what: String,
    pub why: String,
}

/// Reads claims and pods as they are now.
#[tonic::async_trait]
pub trait ClaimSource: Send + Sync + 'static {
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<ResourceClaim>, LookupError>;
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, LookupError>;
}

/// The API server.
pub struct KubeClaims(pub Client);

#[tonic::async_trait]
impl ClaimSource for KubeClaims {
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<ResourceClaim>, LookupError> {
        let api: Api<ResourceClaim> = Api::namespaced(self.0.clone(), namespace);
        answered("claim", namespace, name, api.get_opt(name)).await
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, LookupError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        answered("pod", namespace, name, api.get_opt(name)).await
    }
}

/// A look-up holds the node's lock: an API server that does not answer must not hold it for ever.
const PATIENCE: Duration = Duration::from_secs(5);

async fn answered<T>(
    kind: &str,
    namespace: &str,
    name: &str,
    found: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, LookupError> {
    let failed = |why: String| LookupError { what: format!("{kind} {namespace}/{name}"), why };
    match tokio::time::timeout(PATIENCE, found).await {
        Ok(found) => found.map_err(|err| failed(err.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}
