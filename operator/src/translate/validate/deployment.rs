//! One InferenceDeployment: what it says by itself ([`Alone`]), then what it refers to ([`related`]).

use stowage_contracts::estimate::EstimateRequest;
use stowage_contracts::hub::{HubModel, TokenRef, is_commit};
use stowage_contracts::model::{ClaimModel, FileModel};
use stowage_contracts::s3::S3Login;
use stowage_crds::InferenceDeploymentSpec;
use stowage_crds::conditions::reasons;
use stowage_crds::inference_deployment::{
    IsolationLevel, TaintEffect as Effect, Toleration as WideToleration, TolerationOperator,
};
use stowage_crds::quantity::parse_duration;
use stowage_crds::validate::{
    AcceptedAccelerator, AcceptedDeployment, AcceptedHub, AcceptedRuntime, AcceptedS3, AcceptedSource, AcceptedVariant,
    validate_deployment,
};
use stowage_planner::snapshot::{Isolation, Needs, TaintEffect, Toleration};
use stowage_translate::variant;

use super::classes::Classes;
use super::estimate;
use super::hash::{inputs, spec_hash};
use super::models::Models;
use super::{Judged, References, Refusal, Standing, Wanted, refusal};
use crate::observe::view::StoredDeployment;

/// What the engine container requests where neither deployment nor runtime says.
const DEFAULT_CPU_MILLI: u64 = 100;
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

/// One deployment, read without looking at any other object.
pub struct Alone {
    pub standing: Standing,
    accepted: Result<Parsed, Refusal>,
}

struct Parsed {
    deployment: AcceptedDeployment,
    /// The part of the spec that needs new pods when it changes, as JSON.
    inputs: String,
}

impl Alone {
    /// What must be asked about the model before it can be placed.
    pub fn question(&self) -> Option<EstimateRequest> {
        estimate::request(&self.accepted.as_ref().ok()?.deployment)
    }

    pub fn read(stored: &StoredDeployment) -> Self {
        match &stored.spec {
            Ok(spec) => Self { standing: standing(stored.name(), spec), accepted: parsed(stored.name(), spec) },
            Err(err) => Self { standing: Standing::default(), accepted: Err((reasons::MALFORMED, err.to_string())) },
        }
    }
}

fn standing(name: &str, spec: &InferenceDeploymentSpec) -> Standing {
    let drain_timeout = parse_duration(&spec.scaling.drain_timeout);
    Standing {
        drain_timeout: drain_timeout.unwrap_or(Standing::default().drain_timeout),
        isolation: isolation(spec.isolation.level),
        model_name: Some(spec.model.name.clone().unwrap_or_else(|| name.to_owned())),
    }
}

fn parsed(name: &str, spec: &InferenceDeploymentSpec) -> Result<Parsed, Refusal> {
    let deployment = validate_deployment(name, spec).map_err(|refusals| refusal(&refusals))?;
    Ok(Parsed { deployment, inputs: inputs(spec) })
}

/// What an accepted deployment asks for, or why it cannot be accepted beside the other objects.
pub fn related(
    stored: &StoredDeployment,
    alone: &Alone,
    references: &References<'_>,
    models: &Models<'_>,
) -> Result<Wanted, Refusal> {
    let References { tenants: _, classes, runtimes, estimates } = references;
    let Parsed { deployment, inputs } = alone.accepted.as_ref().map_err(Clone::clone)?;
    let runtime = runtimes.get(&deployment.runtime)?;
    for variant in &deployment.variants {
        fits_a_class(variant, classes)?;
    }
    name_taken(stored, &deployment.model_name, models)?;
    let (deployment, memory_estimate) = estimate::filled(stored, deployment, runtime, estimates)?;
    runnable(runtime, &deployment)?;
    Ok(Wanted {
        variants: deployment.variants.iter().map(variant).collect(),
        needs: needs(&deployment, runtime),
        memory_estimate,
        tolerations: deployment.pod.tolerations.iter().map(toleration).collect(),
        fetched: fetched(stored, &deployment.source),
        spec_hash: spec_hash(inputs, runtime),
        deployment,
        runtime: runtime.clone(),
    })
}

/// What node agents fetch. A revision that was resolved is its commit from then on.
fn fetched(stored: &StoredDeployment, source: &AcceptedSource) -> Option<ClaimModel> {
    let namespace = stored.namespace().to_owned();
    let AcceptedHub { repo, revision, path, token } = match source {
        AcceptedSource::Http(file) => return Some(ClaimModel::File(file.clone())),
        AcceptedSource::S3(AcceptedS3 { file, region, secret }) => {
            let login = |secret| S3Login { region: region.clone(), namespace, secret };
            return Some(ClaimModel::File(FileModel { s3: secret.clone().map(login), ..file.clone() }));
        }
        AcceptedSource::Hub(hub) => hub,
        AcceptedSource::Image(_) | AcceptedSource::Volume(_) => return None,
    };
    let resolved = stored.status.as_ref().and_then(|status| status.model.as_ref());
    let commit =
        resolved.filter(|found| found.repo == *repo && found.revision == *revision && is_commit(&found.commit));
    let token = token.clone().map(|(secret, key)| TokenRef { namespace, secret, key });
    let revision = commit.map_or(revision, |found| &found.commit).clone();
    Some(ClaimModel::Hub(HubModel { repo: repo.clone(), revision, path: path.clone(), token }))
}

/// Whether the runtime can do what the deployment asks of it: every variant is built once on paper.
fn runnable(runtime: &AcceptedRuntime, deployment: &AcceptedDeployment) -> Result<(), Refusal> {
    let Err(refusals) = stowage_runtimes::check(runtime, deployment) else { return Ok(()) };
    let reason = refusals.first().map_or(reasons::INVALID, |refusal| refusal.reason);
    Err((reason, refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join(" · ")))
}

fn fits_a_class(variant: &AcceptedVariant, classes: &Classes) -> Result<(), Refusal> {
    let AcceptedAccelerator::Gpu { class, .. } = &variant.accelerator else { return Ok(()) };
    classes
        .exists(class)
        .map_err(|message| (reasons::CLASS_NOT_FOUND, format!("spec.variants[{}].class: {message}", variant.name)))
}

/// Whether no older deployment serves the model under the name that this one was accepted with.
pub fn name_is_free(stored: &StoredDeployment, judged: &Judged, models: &Models<'_>) -> bool {
    judged.wanted().is_some_and(|wanted| models.older(stored, &wanted.deployment.model_name).is_none())
}

fn name_taken(stored: &StoredDeployment, model: &str, models: &Models<'_>) -> Result<(), Refusal> {
    let Some((tenant, namespace, name)) = models.older(stored, model) else { return Ok(()) };
    let message = format!(
        "{namespace}/{name} of tenant {tenant} serves model \"{model}\" already; choose another spec.model.name"
    );
    Err((reasons::MODEL_NAME_TAKEN, message))
}

fn needs(deployment: &AcceptedDeployment, runtime: &AcceptedRuntime) -> Needs {
    let first = |a: u64, b: u64, default: u64| [a, b, default].into_iter().find(|value| *value > 0).unwrap_or(0);
    let (own, theirs) = (&deployment.pod.resources, &runtime.resources);
    Needs {
        cpu_milli: first(own.cpu_milli(), theirs.cpu_milli(), DEFAULT_CPU_MILLI),
        memory_bytes: first(own.memory_bytes(), theirs.memory_bytes(), DEFAULT_MEMORY_BYTES),
        host_ports: Vec::new(),
    }
}

fn toleration(wide: &WideToleration) -> Toleration {
    Toleration {
        key: wide.key.clone(),
        value: if wide.operator == Some(TolerationOperator::Exists) {
            None
        } else {
            Some(wide.value.clone().unwrap_or_default())
        },
        effect: wide.effect.map(|effect| match effect {
            Effect::NoSchedule => TaintEffect::NoSchedule,
            Effect::PreferNoSchedule => TaintEffect::PreferNoSchedule,
            Effect::NoExecute => TaintEffect::NoExecute,
        }),
    }
}

fn isolation(level: IsolationLevel) -> Isolation {
    match level {
        IsolationLevel::Shared => Isolation::Shared,
        IsolationLevel::DedicatedGPU => Isolation::DedicatedGpu,
        IsolationLevel::DedicatedNode => Isolation::DedicatedNode,
    }
}
