//! From stored objects to the narrow types that everything after this step works with, or to refusals
//! that become `Accepted=False`. No client. A wide spec is read here and nowhere later.
//!
//! What one object says by itself is judged by `stowage_crds::validate`, the same for CLI and
//! operator; here are the questions that need others: does the class exist, is the model's name free,
//! does the runtime allow the flag. An invalid object is not tried again and again: it is judged anew
//! when it, or what it refers to, changes.

pub mod classes;
pub mod deployment;
pub mod estimate;
pub mod hash;
pub mod models;
pub mod runtimes;
pub mod tenants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stowage_contracts::estimate::EstimateRequest;
use stowage_contracts::hub::HubModel;
use stowage_contracts::model::{ClaimModel, ModelKey};
use stowage_contracts::names::DEFAULT_DRAIN_SECONDS;
use stowage_crds::conditions::reasons;
use stowage_crds::deployment_status::MemoryEstimate;
use stowage_crds::validate::{
    AcceptedDeployment, AcceptedRuntime, AcceptedSource, Refusal as FieldRefusal, message as words, reason as worst,
};
use stowage_planner::snapshot::{Accelerator, DeploymentId, Isolation, Needs, Toleration, Variant};

use crate::observe::agents::estimates::Question;
use crate::observe::view::{StoredDeployment, View};
use crate::translate::known::Known;
use classes::Classes;
use deployment::Alone;
use models::Models;
use runtimes::Runtimes;
use tenants::Tenants;

/// Why an object is not accepted: the condition's reason and its message.
pub type Refusal = (&'static str, String);

/// All that later steps know of a deployment's spec.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Holds for what runs already, whether or not the spec is accepted as it is now.
    pub standing: Standing,
    pub verdict: Verdict,
}

/// What must be known of a deployment even if its spec was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How long a replica may take to finish its requests.
    pub drain_timeout: Duration,
    /// Who may run beside the replicas.
    pub isolation: Isolation,
    /// The name under which clients know the model; `None`: the spec cannot be read.
    pub model_name: Option<String>,
}

/// Whether a deployment may be planned for.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// With all that it asks for.
    Accepted(Box<Wanted>),
    /// The condition's reason and message.
    Refused { reason: &'static str, message: String },
}

/// What an accepted deployment asks for, with everything that it refers to.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub deployment: AcceptedDeployment,
    pub runtime: AcceptedRuntime,
    pub variants: Vec<Variant>,
    /// What the engine container requests besides a CPU variant's own.
    pub needs: Needs,
    pub tolerations: Vec<Toleration>,
    /// The model that node agents fetch, at the commit that was resolved; `None`: the kubelet mounts it.
    pub fetched: Option<ClaimModel>,
    /// What `memory: Auto` became; `None`: no variant asks for that.
    pub memory_estimate: Option<MemoryEstimate>,
    /// Over everything that needs new pods when it changes.
    pub spec_hash: String,
}

/// What a deployment may refer to.
pub struct References<'a> {
    pub tenants: &'a Tenants,
    pub classes: &'a Classes,
    pub runtimes: &'a Runtimes,
    /// How much memory models need.
    pub estimates: &'a estimate::Answers,
}

/// Judges all stored deployments: each alone first, then against what it refers to and collides with. One that was
/// accepted is so again while it and all that it refers to are the same and its model's name is still free.
pub fn deployments(view: &View, references: &References<'_>, known: &Known) -> BTreeMap<DeploymentId, Arc<Judged>> {
    let same_references = known.refers_to_the_same(view);
    let mut known = known.deployments();
    let read = |(key, stored)| {
        let accepted = known.judged(key, stored).filter(|judged| same_references && judged.wanted().is_some());
        (stored, accepted.map_or_else(|| Reading::Alone(Box::new(Alone::read(stored))), Reading::Accepted))
    };
    let read: Vec<(&Arc<StoredDeployment>, Reading<'_>)> = view.deployments.iter().map(read).collect();
    let named =
        read.iter().filter_map(|(stored, read)| Some((stored.as_ref(), read.standing().model_name.as_deref()?)));
    let models = Models::read(named, references.tenants);
    let judge = |(stored, read): &(&Arc<StoredDeployment>, Reading<'_>)| {
        let judged = match read {
            Reading::Alone(alone) => Arc::new(judge(stored, alone, references, &models)),
            Reading::Accepted(judged) if deployment::name_is_free(stored, judged, &models) => Arc::clone(judged),
            Reading::Accepted(_) => Arc::new(judge(stored, &Alone::read(stored), references, &models)),
        };
        (DeploymentId::new(stored.namespace(), stored.name()), judged)
    };
    read.iter().map(judge).collect()
}

/// What is known of a deployment before it is compared with others.
enum Reading<'a> {
    Alone(Box<Alone>),
    /// As it was judged with the last snapshot.
    Accepted(&'a Arc<Judged>),
}

impl Reading<'_> {
    fn standing(&self) -> &Standing {
        match self {
            Reading::Alone(alone) => &alone.standing,
            Reading::Accepted(judged) => &judged.standing,
        }
    }
}

fn judge(stored: &StoredDeployment, alone: &Alone, references: &References<'_>, models: &Models<'_>) -> Judged {
    let verdict = match deployment::related(stored, alone, references, models) {
        Ok(wanted) => Verdict::Accepted(Box::new(wanted)),
        Err((reason, message)) => Verdict::Refused { reason, message },
    };
    Judged { standing: alone.standing.clone(), verdict }
}

/// What must be asked of node agents about models before they can be placed. What a status has is not asked again.
pub fn questions(view: &View) -> BTreeMap<Question, EstimateRequest> {
    let question = |stored: &Arc<StoredDeployment>| {
        let request = Alone::read(stored).question()?;
        estimate::remembered(stored, &request).is_none().then(|| (stored.namespace().to_owned(), request))
    };
    let open = view.deployments.values().filter(|stored| estimate::may_ask(stored));
    let open: Vec<(String, EstimateRequest)> = open.filter_map(question).collect();
    if open.is_empty() {
        return BTreeMap::new();
    }
    let tenants = Tenants::read(&view.quotas);
    let of_tenant = |(namespace, request): (String, EstimateRequest)| {
        let tenant = tenants.of(&namespace).unwrap_or_default().to_owned();
        ((request.key(), tenant.clone()), EstimateRequest { tenant, ..request })
    };
    open.into_iter().map(of_tenant).collect()
}

/// All refusals of one object's fields as one.
pub fn refusal(refusals: &[FieldRefusal]) -> Refusal {
    (worst(refusals).as_str(), words(refusals))
}

// === impl Judged, Standing, Wanted ===

impl Judged {
    /// What is asked for; `None`: the spec was refused.
    pub fn wanted(&self) -> Option<&Wanted> {
        match &self.verdict {
            Verdict::Accepted(wanted) => Some(wanted),
            Verdict::Refused { .. } => None,
        }
    }

    /// For a deployment that appeared after the snapshot was made.
    pub fn unknown() -> Self {
        let verdict = Verdict::Refused { reason: reasons::INVALID, message: "not looked at yet".into() };
        Self { standing: Standing::default(), verdict }
    }
}

impl Default for Standing {
    /// Where the spec cannot be read: what the API defaults to.
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(DEFAULT_DRAIN_SECONDS),
            isolation: Isolation::Shared,
            model_name: None,
        }
    }
}

impl Wanted {
    /// How the agent keeps this deployment's slices apart from their neighbours. The engine's own byte
    /// budget needs nothing of driver or hardware; the other ways are refused by this release.
    pub fn sharing(&self) -> &'static str {
        "EngineBudget"
    }

    /// The repository whose revision no agent has resolved yet.
    pub fn unresolved(&self) -> Option<&HubModel> {
        match &self.fetched {
            Some(ClaimModel::Hub(hub)) => Some(hub).filter(|hub| hub.commit().is_none()),
            _ => None,
        }
    }

    /// What identifies the weights; unknown for a volume, whose content anyone may change.
    pub fn model_key(&self) -> ModelKey {
        match (&self.fetched, &self.deployment.source) {
            (Some(model), _) => model.key(),
            (None, AcceptedSource::Image(image)) => ModelKey::image(&image.reference),
            (None, _) => ModelKey::default(),
        }
    }

    /// GpuClasses that the variants name.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        self.variants.iter().filter_map(|variant| match &variant.accelerator {
            Accelerator::Gpu { class, .. } => Some(class.as_str()),
            Accelerator::Cpu { .. } => None,
        })
    }

    /// The variant of this name.
    pub fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
}
