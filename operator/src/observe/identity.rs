//! Which replica a pod or a claim is: names and annotations, written here and read back here.
//!
//! A replica is (deployment UID, index, incarnation). The name follows from the three, so a crash
//! between deciding and writing leads to the same name again, and a replica's next life never has
//! the name of one that may still be terminating. The incarnation needs no counter of its own: it is
//! one more than the highest among all pods *and claims* of the slot that exist, terminating ones
//! included. When none exists, no name is taken and counting may begin anew.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};
use stowage_crds::names::{
    ANNOTATION_INCARNATION, ANNOTATION_PLACEMENT, ANNOTATION_REPLICA_INDEX, ANNOTATION_SPEC_HASH, LABEL_DEPLOYMENT,
    LABEL_MANAGED_BY, MANAGED_BY, claim_name, pod_name,
};
use stowage_planner::snapshot::{DeploymentId, Placement, ReplicaId};

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Names of a replica's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaNames {
    pub pod: String,
    pub claim: String,
}

/// The names that follow from the deployment's UID, the slot and its life.
pub fn names(uid: &str, replica: &ReplicaId) -> ReplicaNames {
    named(&replica.deployment.name, &format!("{uid}/{}/{}", replica.index, replica.incarnation))
}

/// Of the capacity pod of a slot and its claim, from what they ask for: one that asks for something else has another name.
pub fn capacity_names(uid: &str, deployment: &str, ask: &str) -> ReplicaNames {
    named(deployment, &format!("{uid}/capacity/{ask}"))
}

fn named(deployment: &str, from: &str) -> ReplicaNames {
    let id = short_id(from);
    ReplicaNames { pod: pod_name(deployment, &id), claim: claim_name(deployment, &id) }
}

/// Six characters of [a-z0-9]: 2 × 10⁹ values, among the few replicas of one deployment.
fn short_id(from: &str) -> String {
    let digest = Sha256::digest(from);
    digest.iter().take(6).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// What an object of ours says about the replica that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub replica: ReplicaId,
    pub spec_hash: String,
    /// `None`: missing or unreadable.
    pub placement: Option<Placement>,
}

/// Reads an object's identity; `None`: not a replica of ours.
pub fn identity(meta: &ObjectMeta) -> Option<Identity> {
    let (deployment, annotations) = (labelled(meta)?, meta.annotations.as_ref()?);
    let number = |key: &str| annotations.get(key).and_then(|text| text.parse::<u32>().ok());
    Some(Identity {
        replica: ReplicaId {
            deployment,
            index: number(ANNOTATION_REPLICA_INDEX)?,
            incarnation: number(ANNOTATION_INCARNATION)?,
        },
        spec_hash: annotations.get(ANNOTATION_SPEC_HASH).cloned().unwrap_or_default(),
        placement: annotations.get(ANNOTATION_PLACEMENT).and_then(|text| serde_json::from_str(text).ok()),
    })
}

/// Whose an object is, as one deployment sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belongs {
    /// Made for this deployment.
    Ours,
    /// Made for a deployment of this name that was deleted with `--cascade=orphan`: nobody owns it.
    Orphan,
    /// Made for another deployment of this name, which owns it still: the garbage collector is about to take it.
    Former,
    /// Anything else. It is never changed.
    Foreign,
}

/// Whose the object is: our labels and the controller among its owners decide, never its name.
pub fn belongs(meta: &ObjectMeta, deployment: &DeploymentId, uid: &str) -> Belongs {
    if !made_for(meta, deployment) {
        return Belongs::Foreign;
    }
    match controller(meta) {
        Some(owner) if owner.uid == uid => Belongs::Ours,
        Some(owner) if owner.kind == "InferenceDeployment" && owner.name == deployment.name => Belongs::Former,
        Some(_) => Belongs::Foreign,
        None => Belongs::Orphan,
    }
}

fn made_for(meta: &ObjectMeta, deployment: &DeploymentId) -> bool {
    let name = labelled_name(meta).is_some_and(|name| *name == deployment.name);
    name && meta.namespace.as_ref() == Some(&deployment.namespace)
}

/// The deployment that an object of ours was made for, by its labels; `None`: it is not ours.
pub fn labelled(meta: &ObjectMeta) -> Option<DeploymentId> {
    Some(DeploymentId::new(meta.namespace.clone()?, labelled_name(meta)?.clone()))
}

fn labelled_name(meta: &ObjectMeta) -> Option<&String> {
    let labels = meta.labels.as_ref()?;
    let ours = labels.get(LABEL_MANAGED_BY).is_some_and(|value| value == MANAGED_BY);
    labels.get(LABEL_DEPLOYMENT).filter(|_| ours)
}

/// The owner that manages the object.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The annotations that [`identity`] reads.
pub fn annotations(replica: &ReplicaId, spec_hash: &str, placement: &Placement) -> BTreeMap<String, String> {
    // A placement is strings and numbers: it is always JSON.
    let placement = serde_json::to_string(placement).unwrap_or_default();
    [
        (ANNOTATION_REPLICA_INDEX, replica.index.to_string()),
        (ANNOTATION_INCARNATION, replica.incarnation.to_string()),
        (ANNOTATION_SPEC_HASH, spec_hash.to_owned()),
        (ANNOTATION_PLACEMENT, placement),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(index: u32, incarnation: u32) -> ReplicaId {
        ReplicaId { deployment: DeploymentId::new("team-a", "chat"), index, incarnation }
    }

    #[test]
    fn names_are_the_same_after_a_crash_and_different_in_the_next_life() {
        let first = names("uid-1", &replica(0, 0));
        assert_eq!(first, names("uid-1", &replica(0, 0)));
        for other in [names("uid-1", &replica(0, 1)), names("uid-1", &replica(1, 0)), names("uid-2", &replica(0, 0))] {
            assert_ne!(first.pod, other.pod);
        }
        assert_eq!(first.claim, format!("stowage-{}", first.pod));
        assert_eq!(first.pod.len(), "chat-".len() + 6);
    }

    #[test]
    fn labels_and_controller_decide_whose_an_object_is() {
        let chat = DeploymentId::new("team-a", "chat");
        let owner = |kind: &str, uid: &str| {
            let (name, kind) = ("chat".to_owned(), kind.to_owned());
            vec![OwnerReference { kind, name, uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
        };
        let meta = |labels: &[(&str, &str)], owners: Vec<OwnerReference>| ObjectMeta {
            namespace: Some("team-a".into()),
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            owner_references: Some(owners),
            ..ObjectMeta::default()
        };
        let ours = [(LABEL_MANAGED_BY, MANAGED_BY), (LABEL_DEPLOYMENT, "chat")];
        let other = [(LABEL_MANAGED_BY, MANAGED_BY), (LABEL_DEPLOYMENT, "other")];
        for (labels, owners, expect) in [
            (&ours[..], owner("InferenceDeployment", "u"), Belongs::Ours),
            (&ours, vec![], Belongs::Orphan),
            (&ours, owner("InferenceDeployment", "v"), Belongs::Former),
            (&ours, owner("ReplicaSet", "v"), Belongs::Foreign),
            (&other, owner("InferenceDeployment", "u"), Belongs::Foreign),
            (&ours[..1], vec![], Belongs::Foreign),
            (&[], owner("InferenceDeployment", "u"), Belongs::Foreign),
        ] {
            assert_eq!(belongs(&meta(labels, owners.clone()), &chat, "u"), expect, "{labels:?} {owners:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let placement = Placement { node: "n1".into(), variant: "small".into(), gpus: Vec::new() };
        let meta = ObjectMeta {
            namespace: Some("team-a".into()),
            labels: Some(
                [(LABEL_MANAGED_BY, MANAGED_BY), (LABEL_DEPLOYMENT, "chat")]
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .into(),
            ),
            annotations: Some(annotations(&replica(2, 5), "h", &placement)),
            ..ObjectMeta::default()
        };
        let read = identity(&meta).unwrap();
        assert_eq!((read.replica, read.spec_hash.as_str(), read.placement), (replica(2, 5), "h", Some(placement)));
        assert_eq!(identity(&ObjectMeta::default()), None);
    }
}
