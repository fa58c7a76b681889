//! Validate: from a stored object to [`Wanted`], the narrow form that the rest works with, or to a
//! refusal that becomes `Accepted=False`. No client. What one object says by itself is judged by
//! `stowage_crds::validate`, the same for CLI and operator; here are the questions that need others:
//! does the class exist, is the model's name free, does the runtime allow the flag. An invalid object
//! is not tried again and again: it is judged anew when it, or what it refers to, changes.

pub mod classes;
pub mod models;
pub mod tenants;

use sha2::{Digest, Sha256};
use stowage_crds::InferenceDeploymentSpec;
use stowage_crds::conditions::reasons;
use stowage_crds::inference_deployment::{
    IsolationLevel, TaintEffect as Effect, Toleration as WideToleration, TolerationOperator,
};
use stowage_crds::inference_runtime::AdapterName;
use stowage_crds::validate::{
    AcceptedAccelerator, AcceptedDeployment, AcceptedRuntime, AcceptedVariant, Refusal as FieldRefusal, message,
    reason, validate_deployment, validate_runtime,
};
use stowage_planner::snapshot::{Accelerator, Isolation, Needs, TaintEffect, Toleration, Variant};

use crate::observe::view::{StoredDeployment, View};
use crate::translate::validate::classes::Classes;
use crate::translate::validate::models::Models;

/// Whether a deployment may be planned for.
#[derive(Debug, Clone)]
pub enum Verdict {
    Accepted(Box<Wanted>),
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
    pub isolation: Isolation,
    /// Over everything that needs new pods when it changes.
    pub spec_hash: String,
}

impl Verdict {
    pub fn wanted(&self) -> Option<&Wanted> {
        match self {
            Self::Accepted(wanted) => Some(wanted),
            Self::Refused { .. } => None,
        }
    }

    fn refused((reason, message): Refusal) -> Self {
        Self::Refused { reason, message }
    }

    /// For a deployment that appeared after the snapshot was made.
    pub fn unknown() -> Self {
        Self::refused((reasons::INVALID, "not looked at yet".into()))
    }
}

type Refusal = (&'static str, String);

/// What a deployment may refer to or collide with.
pub struct References<'a> {
    pub view: &'a View,
    pub classes: &'a Classes,
    pub models: &'a Models<'a>,
}

/// Judges one stored deployment.
pub fn validate(stored: &StoredDeployment, references: &References<'_>) -> Verdict {
    match read(stored, references) {
        Ok(wanted) => Verdict::Accepted(Box::new(wanted)),
        Err(refusal) => Verdict::refused(refusal),
    }
}

fn read(stored: &StoredDeployment, references: &References<'_>) -> Result<Wanted, Refusal> {
    let References { view, classes, models } = references;
    let spec = stored.spec.as_ref().map_err(|err| (reasons::MALFORMED, err.to_string()))?;
    let deployment = validate_deployment(stored.name(), spec).map_err(|refusals| told(&refusals))?;
    let runtime = runtime(view, &deployment.runtime)?;
    for variant in &deployment.variants {
        fits_a_class(variant, classes)?;
    }
    name_is_free(stored, &deployment.model_name, models)?;
    let wanted = Wanted {
        variants: deployment.variants.iter().map(variant).collect(),
        needs: needs(&deployment, &runtime),
        tolerations: deployment.pod.tolerations.iter().map(toleration).collect(),
        isolation: isolation(spec),
        spec_hash: spec_hash(spec, &runtime),
        deployment,
        runtime,
    };
    crate::execute::build::engine::allowed(&wanted)?;
    Ok(wanted)
}

/// All refusals of one object in one sentence.
pub fn told(refusals: &[FieldRefusal]) -> Refusal {
    (reason(refusals).as_str(), message(refusals))
}

fn runtime(view: &View, name: &str) -> Result<AcceptedRuntime, Refusal> {
    let known: Vec<&str> = view.runtimes.values().map(|runtime| runtime.name()).collect();
    let Some(stored) = view.runtimes.get(&(String::new(), name.to_owned())) else {
        let message = format!("spec.runtime.ref names no InferenceRuntime \"{name}\"; known are: {}", known.join(", "));
        return Err((reasons::RUNTIME_NOT_FOUND, message));
    };
    let refused = |why: String| (reasons::RUNTIME_NOT_FOUND, format!("InferenceRuntime {name} cannot be used: {why}"));
    let spec = stored.spec.as_ref().map_err(|err| refused(err.to_string()))?;
    validate_runtime(spec).map_err(|refusals| refused(message(&refusals)))
}

fn fits_a_class(variant: &AcceptedVariant, classes: &Classes) -> Result<(), Refusal> {
    let AcceptedAccelerator::Gpu { class, .. } = &variant.accelerator else { return Ok(()) };
    classes
        .exists(class)
        .map_err(|message| (reasons::CLASS_NOT_FOUND, format!("spec.variants[{}].class: {message}", variant.name)))
}

fn name_is_free(stored: &StoredDeployment, model: &str, models: &Models) -> Result<(), Refusal> {
    let Some((tenant, namespace, name)) = models.older(stored, model) else { return Ok(()) };
    let message = format!(
        "{namespace}/{name} of tenant {tenant} serves model \"{model}\" already; choose another spec.model.name"
    );
    Err((reasons::MODEL_NAME_TAKEN, message))
}

fn variant(accepted: &AcceptedVariant) -> Variant {
    let accelerator = match accepted.accelerator.clone() {
        AcceptedAccelerator::Gpu { class, count, memory_bytes, sm_percent } => {
            Accelerator::Gpu { class, count, memory_bytes, sm_percent }
        }
        AcceptedAccelerator::Cpu { cpu_milli, memory_bytes } => Accelerator::Cpu { cpu_milli, memory_bytes },
    };
    Variant { name: accepted.name.clone(), accelerator, itl_us: None }
}

/// What the engine container requests where neither deployment nor runtime says.
const DEFAULT_CPU_MILLI: u64 = 100;
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

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

/// Who may stand beside the deployment.
pub fn isolation(spec: &InferenceDeploymentSpec) -> Isolation {
    match spec.isolation.level {
        IsolationLevel::Shared => Isolation::Shared,
        IsolationLevel::DedicatedGPU => Isolation::DedicatedGpu,
        IsolationLevel::DedicatedNode => Isolation::DedicatedNode,
    }
}

/// Hash of the inputs, not of the built pod: a new version of the operator must not roll out all
/// engines because a default moved. What only planning and routing read is left out.
fn spec_hash(spec: &InferenceDeploymentSpec, runtime: &AcceptedRuntime) -> String {
    let InferenceDeploymentSpec {
        model,
        runtime: engine,
        variants,
        isolation,
        pod_template,
        service_class: _,
        objectives: _,
        replicas: _,
        scaling: _,
        rollout: _,
        disaggregation: _,
        nodes: _,
    } = spec;
    let AcceptedRuntime {
        adapter,
        version,
        image,
        image_pull_policy: _,
        command,
        args,
        env,
        port,
        probes,
        resources,
        allowed_args: _,
        allowed_env: _,
        capabilities: _,
    } = runtime;
    let adapter: &AdapterName = adapter;
    let model = (&model.name, &model.source, &model.adapters);
    let engine_image =
        (adapter, version, image, command, args, env, port, probes, &resources.requests, &resources.limits);
    let text =
        serde_json::to_string(&(model, engine, variants, isolation, pod_template, engine_image)).unwrap_or_default();
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

// === impl Wanted ===

impl Wanted {
    /// How the agent keeps this deployment's slices apart from their neighbours. The engine's own byte
    /// budget needs nothing of driver or hardware; the other ways are refused by this release.
    pub fn sharing(&self) -> &'static str {
        "EngineBudget"
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
