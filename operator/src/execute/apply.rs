//! Carries out what was prepared: [`Prepared`] in, [`Applied`] out. The only step that changes the
//! cluster besides the status.
//!
//! Each write is idempotent by itself, so a crash after any of them leaves work that the next plan
//! finds: names are deterministic, "exists already" is success when it is the same object, deletions
//! name a UID. What is shared by all replicas stands before the first pod. A claim is made before its
//! pod, so that no pod of ours ever waits for a claim that nobody will make, and not before the API
//! server has accepted the pod in a dry run. A claim without a pod is an orphan that the
//! next round releases.
//!
//! Nothing that is not ours is changed: what is missing is created, never applied over what is there.

use std::collections::BTreeSet;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, NamespaceResourceScope};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use stowage_crds::InferenceDeployment;
use stowage_crds::names::{
    ANNOTATION_DRAIN_REASON, ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING, ANNOTATION_WOKEN, DRAIN_FINALIZER,
};
use stowage_planner::plan::Action;
use stowage_planner::snapshot::{ReplicaId, TimeMs};

use super::backoff::Part;
use super::build::{End, Make, Prepared, PreparedReplica, Shared, Target};
use super::case::Case;
use super::refusal::{Failure, Obstacle};
use super::write::{WriteError, Writer};
use crate::observe::identity::{Belongs, belongs, identity};
use crate::observe::journal::Journals;

/// What became of the prepared writes. The status and the memory are made from this, never from what
/// was prepared.
#[derive(Debug, Default)]
pub struct Applied {
    pub writes: u32,
    /// Replicas whose pod was created.
    pub created: BTreeSet<ReplicaId>,
    /// Pods whose drain was cancelled.
    pub resumed: BTreeSet<String>,
    /// Pods that were marked as draining or deleted.
    pub ended: BTreeSet<String>,
    pub failures: Vec<Failure>,
    /// Failures of an earlier attempt in the parts that were not tried.
    held: Vec<Obstacle>,
}

/// A namespaced object that the operator writes.
pub trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug
{
}

/// Applies one deployment's writes.
pub struct Applier<'a> {
    writer: &'a Writer,
    journals: &'a Journals,
    case: &'a Case,
    part: Part,
    applied: Applied,
}

impl<'a> Applier<'a> {
    /// `held`: what stands from an earlier attempt in the parts that are not tried now.
    pub fn new(writer: &'a Writer, journals: &'a Journals, case: &'a Case, held: Vec<Obstacle>) -> Self {
        Self { writer, journals, case, part: Part::End, applied: Applied { held, ..Applied::default() } }
    }

    /// In this order: room is given back before more is taken; the finalizer goes last, when nothing is left.
    pub async fn run(mut self, prepared: Prepared) -> Applied {
        let Prepared { end, make } = prepared;
        let unguard = end.unguard;
        self.end(end).await;
        self.part = Part::Make;
        self.make(make).await;
        self.part = Part::End;
        if unguard {
            self.remove_finalizer().await;
        }
        self.applied
    }

    async fn end(&mut self, end: End) {
        let End { resume, drain, hasten, wake, remove, displace, release, retire, unguard: _ } = end;
        for target in resume {
            let annotations = json!({
                ANNOTATION_DRAINING: null,
                ANNOTATION_DRAIN_UNTIL: null,
                ANNOTATION_DRAIN_REASON: null,
            });
            if self.stamp(&target, annotations, "cancel the drain of the pod").await {
                self.applied.resumed.insert(target.name);
            }
        }
        for (target, deadline_ms, reason) in drain {
            let annotations = json!({
                ANNOTATION_DRAINING: Timestamp::now().to_string(),
                ANNOTATION_DRAIN_UNTIL: written(deadline_ms),
                ANNOTATION_DRAIN_REASON: reason.name(),
            });
            if self.stamp(&target, annotations, "mark as draining the pod").await {
                self.applied.ended.insert(target.name);
            }
        }
        for (target, deadline_ms) in hasten {
            // Why it drains stays: what was wrong with the pod is not cured by a reclaim.
            let annotations = json!({ANNOTATION_DRAIN_UNTIL: written(deadline_ms)});
            if self.stamp(&target, annotations, "shorten the drain of the pod").await {
                self.applied.ended.insert(target.name);
            }
        }
        for target in wake {
            let annotations = json!({ANNOTATION_WOKEN: Timestamp::now().to_string()});
            self.stamp(&target, annotations, "wake the kubelet for the pod").await;
        }
        for (target, grace) in remove {
            self.delete_pod(target, grace).await;
        }
        if !displace.is_empty() && self.is_not_deleted().await.is_some() {
            for target in displace {
                self.delete_pod(target, None).await;
            }
        }
        for target in release {
            self.delete_claim(&target).await;
        }
        if let Some(target) = retire {
            let api: Api<PodDisruptionBudget> = self.api();
            let done = self.writer.delete(&api, &target.name, &target.uid, None).await;
            self.note("delete the PodDisruptionBudget", &target.name, done);
        }
    }

    /// Stops at the first write that the next one needs: an engine is never started where its
    /// neighbours could reach it, and what was refused for one replica is refused for the others.
    async fn make(&mut self, make: Make) -> Option<()> {
        let Make { guard, adopt_pods, adopt_claims, takes_over, policy, service, budget, create } = make;
        if let Some(first) = create.first() {
            self.try_pod(&first.pod).await?;
        }
        if guard {
            self.add_finalizer().await?;
        }
        if takes_over {
            self.is_not_deleted().await?;
        }
        for target in adopt_pods {
            self.adopt::<Pod>(&target).await;
        }
        for target in adopt_claims {
            self.adopt::<ResourceClaim>(&target).await;
        }
        if let Some(policy) = policy {
            self.shared(policy, "create the NetworkPolicy").await?;
        }
        if let Some(service) = service {
            self.shared(service, "create the Service").await;
        }
        if let Some(budget) = budget {
            self.shared(budget, "create the PodDisruptionBudget").await;
        }
        for (position, replica) in create.into_iter().enumerate() {
            self.create(replica, position > 0).await?;
        }
        Some(())
    }

    async fn add_finalizer(&mut self) -> Option<()> {
        self.finalizers("add the drain finalizer to", |all| {
            if !all.iter().any(|name| name == DRAIN_FINALIZER) {
                all.push(DRAIN_FINALIZER.into());
            }
        })
        .await
    }

    async fn remove_finalizer(&mut self) {
        let remove = |all: &mut Vec<String>| all.retain(|name| name != DRAIN_FINALIZER);
        self.finalizers("remove the drain finalizer from", remove).await;
    }

    async fn finalizers(&mut self, what: &'static str, change: impl FnOnce(&mut Vec<String>)) -> Option<()> {
        match self.change_finalizers(change).await {
            Ok(false) => Some(()),
            changed => self.note(what, &self.case.id.name.clone(), changed.map(drop)),
        }
    }

    /// The list is replaced as a whole, so it is read first (of others' finalizers nothing is kept), and its version is a
    /// precondition. Whether it was replaced.
    async fn change_finalizers(&self, change: impl FnOnce(&mut Vec<String>)) -> Result<bool, WriteError> {
        let (api, found) = self.deployment().await?;
        let id = &self.case.id;
        let mut finalizers = found.finalizers.clone().unwrap_or_default();
        change(&mut finalizers);
        if Some(&finalizers) == found.finalizers.as_ref() {
            return Ok(false);
        }
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": found.resource_version}});
        self.writer.merge(&api, &id.name, patch).await.map(|_| true)
    }

    /// Before orphans are taken over or ended: `--cascade=orphan` takes the owner off what the deployment has, and the watch
    /// may show that sooner than the deletion. What were taken over again would be deleted with the deployment.
    async fn is_not_deleted(&mut self) -> Option<()> {
        let error = match self.deployment().await {
            Ok((_, found)) if found.deletion_timestamp.is_none() => return Some(()),
            Ok(_) => WriteError::Conflict("it is being deleted".into()),
            Err(error) => error,
        };
        self.note("take over orphans of", &self.case.id.name.clone(), Err(error))
    }

    /// The deployment as the API server has it now.
    async fn deployment(&self) -> Result<(Api<DynamicObject>, ObjectMeta), WriteError> {
        let resource = ApiResource::erase::<InferenceDeployment>(&());
        let id = &self.case.id;
        let api: Api<DynamicObject> = Api::namespaced_with(self.writer.client(), &id.namespace, &resource);
        let found = self.writer.find(&api, &id.name).await?.metadata;
        if found.uid.as_deref() == Some(self.case.stored.uid()) {
            return Ok((api, found));
        }
        Err(WriteError::Conflict("it is another object of that name by now".into()))
    }

    /// Creates the object, or brings ours up to date. Another owner's object of that name is left alone.
    async fn shared<K: Object>(&mut self, shared: Shared<K>, what: &'static str) -> Option<()> {
        let Shared { object, stored, orphan: _ } = shared;
        let (api, name) = (self.api::<K>(), name(object.meta()).to_owned());
        let done = match stored {
            Some(target) => self.bring_up_to_date(&api, object, &target).await,
            None => match self.writer.create(&api, &object).await {
                Err(WriteError::AlreadyExists) => match self.ours(&api, &name).await {
                    Ok(target) => self.bring_up_to_date(&api, object, &target).await,
                    Err(err) => Err(err),
                },
                other => other,
            },
        };
        self.note(what, &name, done.map(|_| ()))
    }

    /// The UID is a precondition: never an object of that name that another one made since.
    async fn bring_up_to_date<K: Object>(&self, api: &Api<K>, mut object: K, target: &Target) -> Result<K, WriteError> {
        object.meta_mut().uid = Some(target.uid.clone());
        self.writer.apply(api, &target.name, &object).await
    }

    /// The object of this name, if it is ours.
    async fn ours<K: Object>(&self, api: &Api<K>, name: &str) -> Result<Target, WriteError> {
        let found = self.writer.find(api, name).await?;
        match belongs(found.meta(), &self.case.id, self.case.stored.uid()) {
            Belongs::Ours | Belongs::Orphan => Target::of(found.meta())
                .filter(|_| found.meta().deletion_timestamp.is_none())
                .ok_or_else(|| WriteError::Conflict("it is being deleted".into())),
            Belongs::Former => Err(WriteError::Conflict("one of an earlier deployment is not gone yet".into())),
            Belongs::Foreign => Err(foreign::<K>(name)),
        }
    }

    /// Makes the deployment the owner of an orphan of ours.
    async fn adopt<K: Object>(&mut self, target: &Target) {
        let api = self.api::<K>();
        let owners = [self.case.owner().reference()];
        let patch = json!({"metadata": {"uid": target.uid, "ownerReferences": owners}});
        let done = self.writer.merge::<K>(&api, &target.name, patch).await;
        self.note("adopt", &target.name, done);
    }

    /// Asks the API server whether it would take the pod. Nothing is stored.
    async fn try_pod(&mut self, pod: &Pod) -> Option<()> {
        match self.writer.try_create(&self.api(), pod).await {
            // The real request meets the same, and looks at the object.
            Ok(()) | Err(WriteError::AlreadyExists) => Some(()),
            Err(err) => self.note("create pod", name(&pod.metadata), Err(err)),
        }
    }

    async fn create(&mut self, replica: PreparedReplica, try_first: bool) -> Option<()> {
        let PreparedReplica { id, claim, pod } = replica;
        let (pod_key, claim_key) = (key(&pod.metadata), claim.as_ref().map(|claim| key(&claim.metadata)));
        let done = self.create_claim_and_pod(claim, pod, try_first).await;
        if done.is_some() {
            self.applied.created.insert(id);
        } else {
            self.journals.pods().forget_assumed(&pod_key);
            claim_key.iter().for_each(|key| self.journals.claims().forget_assumed(key));
        }
        done
    }

    async fn create_claim_and_pod(&mut self, claim: Option<ResourceClaim>, pod: Pod, try_first: bool) -> Option<()> {
        if try_first {
            self.try_pod(&pod).await?;
        }
        if let Some(claim) = claim {
            let done = self.create_once(&claim).await;
            let claim = self.note("create claim", name(&claim.metadata), done)?;
            self.journals.claims().written(claim, Instant::now());
        }
        let done = self.create_once(&pod).await;
        let pod = self.note("create pod", name(&pod.metadata), done)?;
        self.journals.pods().written(pod, Instant::now());
        Some(())
    }

    /// Creates the object, or finds that it was created before (by us, before a crash or in a request
    /// whose answer got lost).
    async fn create_once<K: Object>(&self, object: &K) -> Result<K, WriteError> {
        let (api, name) = (self.api::<K>(), name(object.meta()));
        match self.writer.create(&api, object).await {
            Err(WriteError::AlreadyExists) => {}
            other => return other,
        }
        let found = self.writer.find(&api, name).await?;
        match belongs(found.meta(), &self.case.id, self.case.stored.uid()) {
            Belongs::Foreign => Err(foreign::<K>(name)),
            Belongs::Ours
                if found.meta().deletion_timestamp.is_none() && identity(found.meta()) == identity(object.meta()) =>
            {
                Ok(found)
            }
            _ => Err(WriteError::Conflict("another life of it is not gone yet".into())),
        }
    }

    /// Writes annotations of a pod; `null` takes one away.
    async fn stamp(&mut self, target: &Target, annotations: serde_json::Value, what: &'static str) -> bool {
        let api: Api<Pod> = self.api();
        let patch = json!({"metadata": {"uid": target.uid, "annotations": annotations}});
        let done = self.writer.merge(&api, &target.name, patch).await;
        let pod = self.note(what, &target.name, done);
        pod.map(|pod| self.journals.pods().written(pod, Instant::now())).is_some()
    }

    async fn delete_pod(&mut self, target: Target, grace: Option<u32>) {
        let api: Api<Pod> = self.api();
        let done = self.writer.delete(&api, &target.name, &target.uid, grace).await;
        let Some(left) = self.note("delete pod", &target.name, done) else { return };
        match left {
            Some(pod) => self.journals.pods().written(pod, Instant::now()),
            None => self.journals.pods().gone(self.key(&target.name), target.uid, Instant::now()),
        }
        self.applied.ended.insert(target.name);
    }

    async fn delete_claim(&mut self, target: &Target) {
        let api: Api<ResourceClaim> = self.api();
        let done = self.writer.delete(&api, &target.name, &target.uid, None).await;
        match self.note("delete claim", &target.name, done) {
            Some(Some(claim)) => self.journals.claims().written(claim, Instant::now()),
            Some(None) => self.journals.claims().gone(self.key(&target.name), target.uid.clone(), Instant::now()),
            None => {}
        }
    }

    fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.writer.client(), &self.case.id.namespace)
    }

    fn key(&self, name: &str) -> (String, String) {
        (self.case.id.namespace.clone(), name.to_owned())
    }

    fn note<T>(&mut self, what: &'static str, name: &str, done: Result<T, WriteError>) -> Option<T> {
        match done {
            Ok(value) => {
                tracing::info!(deployment = %self.case.id, "{what} {name}");
                self.applied.writes += 1;
                Some(value)
            }
            Err(error) => {
                let failure = Failure { part: self.part, what, name: name.to_owned(), error };
                tracing::warn!(deployment = %self.case.id, "{failure}");
                self.applied.failures.push(failure);
                None
            }
        }
    }
}

// === impl Applied ===

impl Applied {
    /// Nothing had to be written, or nothing may be at present.
    pub fn nothing(held: Vec<Obstacle>) -> Self {
        Self { held, ..Self::default() }
    }

    /// What stands in the way, of this attempt and of earlier ones.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let mut all: Vec<Obstacle> = self.failures.iter().filter_map(Obstacle::of).collect();
        all.extend(self.held.iter().filter(|held| !all.contains(held)).cloned().collect::<Vec<_>>());
        all
    }

    /// Those of the planned actions that were carried out.
    pub fn carried_out(&self, planned: &[Action]) -> Vec<Action> {
        let done = |action: &&Action| match action {
            Action::Create { replica, .. } => self.created.contains(replica),
            Action::Resume { pod, .. } => self.resumed.contains(pod),
            Action::Drain { pod, .. } | Action::Remove { pod, .. } => self.ended.contains(pod),
        };
        planned.iter().filter(done).cloned().collect()
    }
}

fn foreign<K: Object>(name: &str) -> WriteError {
    WriteError::Foreign(format!("{} {name}", K::kind(&())))
}

/// A time as in an annotation; `None`: beyond all calendars.
fn written(at_ms: TimeMs) -> Option<String> {
    let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map(|at| at.to_string())
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

fn key(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), name(meta).to_owned())
}
