//! Where claims and pods are looked up. A trait, because the tests of the plugin have no cluster.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client};

/// The API server could not be asked. The kubelet asks again.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from the API server: {why}")]
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
        api.get_opt(name).await.map_err(|err| failed("claim", namespace, name, &err))
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, LookupError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        api.get_opt(name).await.map_err(|err| failed("pod", namespace, name, &err))
    }
}

fn failed(kind: &str, namespace: &str, name: &str, err: &kube::Error) -> LookupError {
    LookupError { what: format!("{kind} {namespace}/{name}"), why: err.to_string() }
}
