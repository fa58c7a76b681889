//! Carries out what was prepared: [`Prepared`] in, [`Applied`] out. The only step that changes the
//! cluster besides the status.
//!
//! Each write is idempotent by itself, so a crash after any of them leaves work that the next plan
//! finds: names are deterministic, "exists already" is success when it is the same object, deletions
//! name a UID. A claim is made before its pod, so that no pod of ours ever waits for a claim that
//! nobody will make, and a claim without a pod is an orphan that the next round releases.

use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use stowage_crds::InferenceDeployment;
use stowage_crds::names::{ANNOTATION_DRAINING, ANNOTATION_WOKEN, DRAIN_FINALIZER};
use stowage_planner::snapshot::DeploymentId;

use super::build::{Finalizer, Prepared, PreparedReplica, Target};
use crate::execute::write::{WriteError, Writer};
use crate::observe::identity::identity;
use crate::observe::journal::Journals;
use crate::observe::view::StoredDeployment;

/// What became of the prepared writes.
#[derive(Debug, Default)]
pub struct Applied {
    pub writes: u32,
    pub failures: Vec<Failure>,
}

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {error}")]
pub struct Failure {
    /// The operation, as `create pod chat-x1y2z3`.
    pub what: String,
    #[source]
    pub error: WriteError,
}

/// Applies one deployment's writes.
pub struct Applier<'a> {
    pub writer: &'a Writer,
    pub journals: &'a Journals,
    pub id: &'a DeploymentId,
    pub stored: &'a StoredDeployment,
    applied: Applied,
}

impl<'a> Applier<'a> {
    pub fn new(writer: &'a Writer, journals: &'a Journals, id: &'a DeploymentId, stored: &'a StoredDeployment) -> Self {
        Self { writer, journals, id, stored, applied: Applied::default() }
    }

    /// In this order: the finalizer guards what follows, the policy stands before there is anything to
    /// protect, room is given back before more is taken.
    pub async fn run(mut self, prepared: Prepared) -> Applied {
        let Prepared { finalizer, policy, service, drain, wake, remove, create, release } = prepared;
        if finalizer == Finalizer::Add && !self.add_finalizer().await {
            return self.applied;
        }
        if let Some(policy) = policy
            && !self.network_policy(policy).await
        {
            // An engine is never started where its neighbours could reach it.
            return self.applied;
        }
        if let Some(service) = service {
            self.service(service).await;
        }
        for target in drain {
            self.stamp(&target, ANNOTATION_DRAINING, "mark as draining").await;
        }
        for target in wake {
            self.stamp(&target, ANNOTATION_WOKEN, "wake the kubelet for").await;
        }
        for (target, grace) in remove {
            self.delete_pod(&target, grace).await;
        }
        for target in release {
            self.delete_claim(&target).await;
        }
        for replica in create {
            self.create(replica).await;
        }
        if finalizer == Finalizer::Remove {
            self.remove_finalizer().await;
        }
        self.applied
    }

    async fn add_finalizer(&mut self) -> bool {
        let mut finalizers = self.stored.meta.finalizers.clone().unwrap_or_default();
        finalizers.push(DRAIN_FINALIZER.into());
        self.finalizers(finalizers, "add the drain finalizer").await
    }

    async fn remove_finalizer(&mut self) {
        let mut finalizers = self.stored.meta.finalizers.clone().unwrap_or_default();
        finalizers.retain(|name| name != DRAIN_FINALIZER);
        self.finalizers(finalizers, "remove the drain finalizer").await;
    }

    /// The list is replaced as a whole, so the resource version is a precondition.
    async fn finalizers(&mut self, finalizers: Vec<String>, what: &str) -> bool {
        let resource = ApiResource::erase::<InferenceDeployment>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.writer.client(), &self.id.namespace, &resource);
        let patch =
            json!({"metadata": {"finalizers": finalizers, "resourceVersion": self.stored.meta.resource_version}});
        let done = self.writer.merge(&api, &self.id.name, patch).await;
        self.note(what.to_owned(), done.map(|_| ())).is_some()
    }

    async fn network_policy(&mut self, policy: NetworkPolicy) -> bool {
        let api: Api<NetworkPolicy> = self.api();
        let done = self.writer.apply(&api, &self.id.name, &policy, true).await;
        self.note(format!("apply network policy {}", self.id.name), done).is_some()
    }

    async fn service(&mut self, service: Service) {
        let api: Api<Service> = self.api();
        let done = self.writer.apply(&api, &self.id.name, &service, true).await;
        self.note(format!("apply service {}", self.id.name), done);
    }

    async fn create(&mut self, replica: PreparedReplica) {
        let pod_key = key(&replica.pod.metadata);
        let claim_key = replica.claim.as_ref().map(|claim| key(&claim.metadata));
        if self.create_claim_and_pod(replica).await.is_none() {
            self.journals.pods().forget_assumed(&pod_key);
            claim_key.iter().for_each(|key| self.journals.claims().forget_assumed(key));
        }
    }

    async fn create_claim_and_pod(&mut self, replica: PreparedReplica) -> Option<()> {
        if let Some(claim) = replica.claim {
            let done = self.create_once(&claim).await;
            let claim = self.note(format!("create claim {}", name(&claim.metadata)), done)?;
            self.journals.claims().written(claim, Instant::now());
        }
        let done = self.create_once(&replica.pod).await;
        let pod = self.note(format!("create pod {}", name(&replica.pod.metadata)), done)?;
        self.journals.pods().written(pod, Instant::now());
        Some(())
    }

    /// Creates the object, or finds that it was created before (by us, before a crash or in a request
    /// whose answer got lost).
    async fn create_once<K>(&self, object: &K) -> Result<K, WriteError>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        let api: Api<K> = self.api();
        match self.writer.create(&api, object).await {
            Err(WriteError::AlreadyExists) => {}
            other => return other,
        }
        let found = api.get_opt(name(object.meta())).await.map_err(|err| WriteError::Unavailable(err.to_string()))?;
        let same = |found: &K| {
            let (found, wanted) = (found.meta(), object.meta());
            found.deletion_timestamp.is_none()
                && found
                    .owner_references
                    .as_ref()
                    .map(|owners| owners.iter().map(|owner| &owner.uid).collect::<Vec<_>>())
                    == wanted.owner_references.as_ref().map(|owners| owners.iter().map(|owner| &owner.uid).collect())
                && identity(found) == identity(wanted)
        };
        match found {
            Some(found) if same(&found) => Ok(found),
            Some(_) => Err(WriteError::AlreadyExists),
            None => Err(WriteError::Unavailable("it existed a moment ago and is gone now".into())),
        }
    }

    /// Writes the present time into an annotation of a pod.
    async fn stamp(&mut self, target: &Target, annotation: &str, what: &str) {
        let api: Api<Pod> = self.api();
        let patch = json!({"metadata": {
            "uid": target.uid,
            "annotations": {annotation: Timestamp::now().to_string()},
        }});
        let done = self.writer.merge(&api, &target.name, patch).await;
        if let Some(pod) = self.note(format!("{what} pod {}", target.name), done) {
            self.journals.pods().written(pod, Instant::now());
        }
    }

    async fn delete_pod(&mut self, target: &Target, grace: Option<u32>) {
        let api: Api<Pod> = self.api();
        let done = self.writer.delete(&api, &target.name, &target.uid, grace).await;
        match self.note(format!("delete pod {}", target.name), done) {
            Some(Some(pod)) => self.journals.pods().written(pod, Instant::now()),
            Some(None) => self.journals.pods().gone(self.key(&target.name), target.uid.clone(), Instant::now()),
            None => {}
        }
    }

    async fn delete_claim(&mut self, target: &Target) {
        let api: Api<ResourceClaim> = self.api();
        let done = self.writer.delete(&api, &target.name, &target.uid, None).await;
        match self.note(format!("delete claim {}", target.name), done) {
            Some(Some(claim)) => self.journals.claims().written(claim, Instant::now()),
            Some(None) => self.journals.claims().gone(self.key(&target.name), target.uid.clone(), Instant::now()),
            None => {}
        }
    }

    fn api<K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.writer.client(), &self.id.namespace)
    }

    fn key(&self, name: &str) -> (String, String) {
        (self.id.namespace.clone(), name.to_owned())
    }

    fn note<T>(&mut self, what: String, done: Result<T, WriteError>) -> Option<T> {
        match done {
            Ok(value) => {
                tracing::info!(deployment = %self.id, "{what}");
                self.applied.writes += 1;
                Some(value)
            }
            Err(error) => {
                let failure = Failure { what, error };
                tracing::warn!(deployment = %self.id, "{failure}");
                self.applied.failures.push(failure);
                None
            }
        }
    }
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

fn key(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), name(meta).to_owned())
}
