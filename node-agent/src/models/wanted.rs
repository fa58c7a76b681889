//! Which models are wanted here: by the node's claims, from the checkpoint, and ahead of need.

use std::collections::{BTreeMap, BTreeSet};

use stowage_contracts::model::{ClaimModel, ModelKey};

use crate::dra::checkpoint::Checkpoint;

/// Commits to which revisions were resolved, by the claim's uid.
pub type Commits = BTreeMap<String, String>;

/// A model and the claims that read it.
pub struct Wanted {
    pub model: ClaimModel,
    /// Empty: it is wanted ahead of need.
    pub claims: Vec<String>,
    /// Uids of the claims' pods, in the same order.
    pub pods: Vec<String>,
    /// Of the claims, or of those who want it ahead.
    pub tenants: BTreeSet<String>,
}

impl Wanted {
    /// Whether no claim needs it yet.
    pub fn is_ahead(&self) -> bool {
        self.claims.is_empty()
    }
}

/// Whether a claim needs the model.
pub fn is_claimed(wanted: &BTreeMap<ModelKey, Wanted>, key: &ModelKey) -> bool {
    wanted.get(key).is_some_and(|wanted| !wanted.is_ahead())
}

/// Whether the model is wanted ahead of need and by no claim.
pub fn is_ahead(wanted: &BTreeMap<ModelKey, Wanted>, key: &ModelKey) -> bool {
    wanted.get(key).is_some_and(Wanted::is_ahead)
}

pub fn wanted(
    checkpoint: &Checkpoint,
    commits: &Commits,
    ahead: &[(ModelKey, ClaimModel, String)],
) -> BTreeMap<ModelKey, Wanted> {
    let mut wanted: BTreeMap<ModelKey, Wanted> = BTreeMap::new();
    for (uid, entry) in &checkpoint.claims {
        let Some(model) = &entry.model else { continue };
        let model = match (model, commits.get(uid)) {
            (ClaimModel::Hub(hub), Some(commit)) if hub.commit().is_none() => ClaimModel::Hub(hub.at(commit)),
            (model, _) => model.clone(),
        };
        let of_model = wanted.entry(model.key()).or_insert_with(|| Wanted {
            model,
            claims: Vec::new(),
            pods: Vec::new(),
            tenants: BTreeSet::new(),
        });
        of_model.claims.push(uid.clone());
        of_model.pods.push(entry.pod_uid.clone());
        of_model.tenants.insert(entry.tenant.clone());
    }
    for (key, model, tenant) in ahead {
        let none = || Wanted { model: model.clone(), claims: Vec::new(), pods: Vec::new(), tenants: BTreeSet::new() };
        let of_model = wanted.entry(key.clone()).or_insert_with(none);
        if of_model.is_ahead() {
            of_model.tenants.insert(tenant.clone());
        }
    }
    wanted
}
