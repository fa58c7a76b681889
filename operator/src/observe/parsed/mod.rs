//! A pod or claim as it is kept: without what nothing is decided by, and with what is read of it in every plan.

pub mod gpus;
pub mod needs;
pub mod slice;
pub mod trim;

use std::ops::Deref;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Resource;
use stowage_planner::snapshot::{DeploymentId, Placement};

use crate::observe::identity::{Identity, identity, labelled};
use crate::observe::source::Kept;
use gpus::Allocated;
use needs::Taken;

/// A kind of which something is read when an object is taken in and not with each plan.
pub trait Parse: Resource + Kept {
    /// What is read besides the identity.
    type Facts: Clone + PartialEq + std::fmt::Debug;

    fn facts(&self) -> Self::Facts;
}

impl Parse for Pod {
    /// What it takes of its node; `None`: nothing any more.
    type Facts = Option<Taken>;

    fn facts(&self) -> Option<Taken> {
        needs::taken(self)
    }
}

impl Parse for ResourceClaim {
    /// What the allocator gave of our GPUs; `None`: it is not allocated.
    type Facts = Option<Vec<Allocated>>;

    fn facts(&self) -> Option<Vec<Allocated>> {
        gpus::allocated(self)
    }
}

/// A pod or claim as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<K: Parse> {
    object: K,
    /// The deployment that it was made for, by its labels; `None`: it is not ours.
    deployment: Option<DeploymentId>,
    identity: Option<Identity>,
    facts: K::Facts,
}

impl<K: Parse> From<K> for Parsed<K> {
    fn from(object: K) -> Self {
        let (facts, object) = (object.facts(), object.trimmed());
        let (deployment, identity) = (labelled(object.meta()), identity(object.meta()));
        Self { object, deployment, identity, facts }
    }
}

impl<K: Parse> Deref for Parsed<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.object
    }
}

impl<K: Parse> Parsed<K> {
    /// As [`identity`] reads it.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The deployment that it was made for, by its labels; `None`: it is not ours.
    pub fn deployment(&self) -> Option<&DeploymentId> {
        self.deployment.as_ref()
    }

    /// What was read of it when it was taken in.
    pub fn facts(&self) -> &K::Facts {
        &self.facts
    }

    pub fn placement(&self) -> Option<&Placement> {
        self.identity.as_ref()?.placement.as_ref()
    }
}

impl<K: Parse> Kept for Parsed<K> {
    fn trimmed(self) -> Self {
        self
    }

    fn still(&self) -> Self {
        Self {
            object: self.object.still(),
            deployment: self.deployment.clone(),
            identity: self.identity.clone(),
            facts: self.facts.clone(),
        }
    }
}

impl Parsed<Pod> {
    /// Where the pod runs: where it is bound, whatever its annotations say; until then, where it is to go.
    pub fn node(&self) -> Option<&str> {
        let bound = self.object.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        bound.or_else(|| Some(self.placement()?.node.as_str()))
    }
}
