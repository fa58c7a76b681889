//! Names of tenants, deployments and replicas.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A tenant's name: the name of its TenantQuota.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub String);

/// A deployment by name. The UID stands in `Deployment`; a re-created one is another deployment
/// with the same id and other replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct DeploymentId {
    pub namespace: String,
    pub name: String,
}

/// One life of one replica slot. The pod's name follows from it and the deployment's UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct ReplicaId {
    pub deployment: DeploymentId,
    /// Slot, from 0; stable over incarnations.
    pub index: u32,
    /// Grows by one each time the slot's pod is made anew; never reused while the old one may exist.
    pub incarnation: u32,
}

// === impl ids ===

impl DeploymentId {
    /// From namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        DeploymentId { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ReplicaId {
    /// The slot and its life, for logs: the pod's name is the operator's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}.{}", self.deployment, self.index, self.incarnation)
    }
}
