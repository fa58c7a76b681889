//! `InferenceDeployment`, narrow.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Refusal, Refusals, unique};
use crate::InferenceDeploymentSpec;
use crate::inference_deployment::{
    Accelerator, Access, Adapter, EnvVar, ImageSource, Isolation, IsolationLevel, Model, ModelSource, Nodes,
    PodTemplate, PullSecret, Resources, Rollout, RolloutStrategy, Runtime, RuntimeOptions, Scaling, ScalingMode,
    ServiceClass, Sharing, Toleration, TolerationOperator, Variant,
};
use crate::names::{LABEL_MANAGED_BY, MAX_DEPLOYMENT_NAME, RESERVED_ENV_PREFIX, RESERVED_KEY_PREFIX};
use crate::quantity::{ParseError, parse_bytes, parse_duration, parse_milli};
use crate::rules::{Reason, deployment as rules};

/// An accepted InferenceDeployment: everything parsed, every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedDeployment {
    /// As clients send it.
    pub model_name: String,
    pub image: AcceptedImage,
    /// Tenants beside the owner that may call it.
    pub access: Vec<String>,
    /// Name of an InferenceRuntime.
    pub runtime: String,
    pub options: AcceptedOptions,
    /// Each begins with `--`; whether the runtime allows it is asked when the container is built.
    pub extra_args: Vec<String>,
    /// At least one; names are unique.
    pub variants: Vec<AcceptedVariant>,
    pub isolation: IsolationLevel,
    pub replicas: u32,
    pub drain_timeout: Duration,
    pub pod: AcceptedPod,
}

/// Weights in an OCI image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedImage {
    pub reference: String,
    /// Begins with `/`, without `..`.
    pub path: String,
}

/// Engine options; `None` leaves them to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptedOptions {
    /// Tokens, at least 1.
    pub max_model_len: Option<u32>,
    /// `None`: Auto.
    pub quantization: Option<String>,
    /// `None`: Auto.
    pub kv_cache_type: Option<String>,
    pub prefix_caching: Option<bool>,
}

/// One shape of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedVariant {
    pub name: String,
    pub accelerator: AcceptedAccelerator,
}

/// What a replica needs to compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptedAccelerator {
    Gpu {
        class: String,
        /// At least 1.
        count: u32,
        /// On each GPU, above 0; `None`: the whole GPU.
        memory_bytes: Option<u64>,
        /// Per cent of each GPU's SMs, 1 to 100; `None`: all.
        sm_percent: Option<u32>,
    },
    Cpu {
        cpu_milli: u64,
        memory_bytes: u64,
    },
}

/// What the pod carries beyond what the operator sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AcceptedPod {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    pub priority_class_name: Option<String>,
    pub image_pull_secrets: Vec<String>,
    pub service_account_name: Option<String>,
    pub resources: AcceptedResources,
    pub env: Vec<EnvVar>,
}

/// A container's resources; keys are `cpu`, `memory` and `ephemeral-storage`, values parse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AcceptedResources {
    pub requests: BTreeMap<String, Quantity>,
    pub limits: BTreeMap<String, Quantity>,
}

impl AcceptedResources {
    /// Requested milli-CPU, 0 when nothing is said. A limit without a request is the request, as in Kubernetes.
    pub fn cpu_milli(&self) -> u64 {
        self.requested("cpu").and_then(|quantity| parse_milli(quantity).ok()).unwrap_or(0)
    }

    /// Requested bytes of host memory, 0 when nothing is said.
    pub fn memory_bytes(&self) -> u64 {
        self.requested("memory").and_then(|quantity| parse_bytes(quantity).ok()).unwrap_or(0)
    }

    fn requested(&self, key: &str) -> Option<&Quantity> {
        self.requests.get(key).or_else(|| self.limits.get(key))
    }
}

/// Judges an InferenceDeployment of this name.
pub fn validate_deployment(name: &str, spec: &InferenceDeploymentSpec) -> Result<AcceptedDeployment, Vec<Refusal>> {
    let InferenceDeploymentSpec {
        model,
        runtime,
        service_class,
        objectives,
        variants,
        isolation,
        replicas,
        scaling,
        pod_template,
        rollout,
        disaggregation,
        nodes,
    } = spec;
    let mut refusals = Refusals::default();
    object_name(&mut refusals, name);
    refusals.require(*service_class == ServiceClass::Interactive, "spec.serviceClass", &rules::SERVICE_CLASS);
    refusals.require(objectives.is_none(), "spec.objectives", &rules::OBJECTIVES);
    refusals.require(disaggregation.is_none(), "spec.disaggregation", &rules::DISAGGREGATION);
    let single = nodes.as_ref().is_none_or(|Nodes { count }| *count == 1);
    refusals.require(single, "spec.nodes.count", &rules::NODES);
    rolled_out(&mut refusals, rollout.as_ref());

    let served = served(&mut refusals, name, model);
    let engine = engine(&mut refusals, runtime);
    let Isolation { level, sharing } = isolation;
    refusals.require(
        matches!(sharing, Sharing::Auto | Sharing::EngineBudget),
        "spec.isolation.sharing",
        &rules::SHARING,
    );
    let accepted_variants = shapes(&mut refusals, variants);
    let drain_timeout = scaled(&mut refusals, scaling, *replicas);
    let pod = pod_template.as_ref().map(|template| pod(&mut refusals, template)).unwrap_or_default();

    let (model_name, image, access) = served;
    let accepted = image.zip(drain_timeout).map(|(image, drain_timeout)| AcceptedDeployment {
        model_name,
        image,
        access,
        runtime: runtime.r#ref.clone(),
        options: engine,
        extra_args: runtime.extra_args.clone(),
        variants: accepted_variants,
        isolation: *level,
        replicas: *replicas,
        drain_timeout,
        pod,
    });
    match accepted {
        Some(accepted) => refusals.into_result(accepted),
        None => Err(refusals.0),
    }
}

fn object_name(refusals: &mut Refusals, name: &str) {
    refusals.require(name.len() <= MAX_DEPLOYMENT_NAME, "metadata.name", &rules::NAME_LENGTH);
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let shaped =
        name.bytes().all(label) && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase) && !name.ends_with('-');
    refusals.require(shaped, "metadata.name", &rules::NAME_SHAPE);
}

fn rolled_out(refusals: &mut Refusals, rollout: Option<&Rollout>) {
    let Some(Rollout { strategy, canary }) = rollout else { return };
    refusals.require(*strategy == RolloutStrategy::Auto, "spec.rollout.strategy", &rules::CANARY);
    refusals.require(canary.is_none(), "spec.rollout.canary", &rules::CANARY);
}

fn served(refusals: &mut Refusals, object: &str, model: &Model) -> (String, Option<AcceptedImage>, Vec<String>) {
    let Model { name, source, adapters, access } = model;
    refusals.require(adapters.is_empty(), "spec.model.adapters", &rules::ADAPTERS);
    for (index, Adapter { name: _, source }) in adapters.iter().enumerate() {
        source_of(refusals, &format!("spec.model.adapters[{index}].source"), source);
    }
    let image = source_of(refusals, "spec.model.source", source);
    let access = access.as_ref().map(|Access { tenants }| tenants.clone()).unwrap_or_default();
    (name.clone().unwrap_or_else(|| object.to_owned()), image, access)
}

fn source_of(refusals: &mut Refusals, field: &str, source: &ModelSource) -> Option<AcceptedImage> {
    let ModelSource { image, hugging_face, http, s3, persistent_volume_claim } = source;
    let others = [
        ("huggingFace", hugging_face.is_some()),
        ("http", http.is_some()),
        ("s3", s3.is_some()),
        ("persistentVolumeClaim", persistent_volume_claim.is_some()),
    ];
    let given = others.iter().filter(|(_, given)| *given);
    refusals.require(usize::from(image.is_some()) + given.clone().count() == 1, field, &rules::ONE_SOURCE);
    for (kind, _) in given {
        refusals.rule(format!("{field}.{kind}"), &rules::ONLY_IMAGES);
    }
    let ImageSource { reference, path } = image.as_ref()?;
    let absolute = path.starts_with('/') && !path.contains("..") && path.len() > 1;
    refusals.require(absolute, format!("{field}.image.path"), &rules::IMAGE_PATH);
    Some(AcceptedImage { reference: reference.clone(), path: path.clone() })
}

fn engine(refusals: &mut Refusals, runtime: &Runtime) -> AcceptedOptions {
    let Runtime { r#ref: _, options, extra_args } = runtime;
    let flags = extra_args.iter().all(|arg| arg.starts_with("--"));
    refusals.require(flags, "spec.runtime.extraArgs", &rules::EXTRA_ARGS);
    let Some(RuntimeOptions { max_model_len, quantization, kv_cache_type, prefix_caching, speculative }) = options
    else {
        return AcceptedOptions::default();
    };
    refusals.require(speculative.is_none(), "spec.runtime.options.speculative", &rules::SPECULATIVE);
    if *max_model_len == Some(0) {
        let message =
            "0 tokens leave no room for a prompt; write at least 1, or leave it out for the model's own limit";
        refusals.push("spec.runtime.options.maxModelLen", Reason::Invalid, message);
    }
    let chosen = |option: &Option<String>| option.clone().filter(|value| value != "Auto");
    AcceptedOptions {
        max_model_len: *max_model_len,
        quantization: chosen(quantization),
        kv_cache_type: chosen(kv_cache_type),
        prefix_caching: *prefix_caching,
    }
}

fn shapes(refusals: &mut Refusals, variants: &[Variant]) -> Vec<AcceptedVariant> {
    if variants.is_empty() {
        let message = "at least one variant is needed; write for example {name: small, class: h100-80g, memory: 2Gi, compute: 10}";
        refusals.push("spec.variants", Reason::Invalid, message);
    }
    unique(refusals, "spec.variants", variants.iter().map(|variant| variant.name.as_str()));
    variants
        .iter()
        .enumerate()
        .filter_map(|(index, variant)| {
            let at = format!("spec.variants[{index}]");
            let accelerator = match variant.accelerator {
                Accelerator::GPU => gpu(refusals, &at, variant),
                Accelerator::CPU => cpu(refusals, &at, variant),
            };
            Some(AcceptedVariant { name: variant.name.clone(), accelerator: accelerator? })
        })
        .collect()
}

fn gpu(refusals: &mut Refusals, at: &str, variant: &Variant) -> Option<AcceptedAccelerator> {
    let Variant { name: _, accelerator: _, class, count, memory, compute, mig_profile, cpu } = variant;
    refusals.require(class.is_some(), format!("{at}.class"), &rules::GPU_CLASS);
    refusals.require(cpu.is_none(), format!("{at}.cpu"), &rules::GPU_HAS_NO_CPU);
    refusals.require(mig_profile.is_none(), format!("{at}.migProfile"), &rules::MIG_PROFILE);
    if *count == Some(0) {
        refusals.push(format!("{at}.count"), Reason::Invalid, "a replica needs at least one GPU; write count: 1");
    }
    if compute.is_some_and(|percent| !(1..=100).contains(&percent)) {
        refusals.push(
            format!("{at}.compute"),
            Reason::Invalid,
            "compute is 1 to 100 per cent; write for example compute: 40",
        );
    }
    let memory_bytes = match memory {
        None => {
            refusals.require(compute.is_none(), format!("{at}.memory"), &rules::MEMORY_ABSENT);
            None
        }
        Some(text) if text.0 == "Auto" => {
            refusals.rule(format!("{at}.memory"), &rules::MEMORY_AUTO);
            None
        }
        Some(quantity) => Some(positive(refusals, format!("{at}.memory"), parse_bytes(quantity), &rules::MEMORY)?),
    };
    Some(AcceptedAccelerator::Gpu {
        class: class.clone()?,
        count: count.unwrap_or(1),
        memory_bytes,
        sm_percent: *compute,
    })
}

fn cpu(refusals: &mut Refusals, at: &str, variant: &Variant) -> Option<AcceptedAccelerator> {
    let Variant { name: _, accelerator: _, class, count, memory, compute, mig_profile, cpu } = variant;
    let plain = class.is_none() && count.is_none() && compute.is_none() && mig_profile.is_none();
    refusals.require(plain && cpu.is_some() && memory.is_some(), at, &rules::CPU_FIELDS);
    let cpu_milli = positive(refusals, format!("{at}.cpu"), parse_milli(cpu.as_ref()?), &rules::CPU);
    let memory_bytes = positive(refusals, format!("{at}.memory"), parse_bytes(memory.as_ref()?), &rules::MEMORY);
    Some(AcceptedAccelerator::Cpu { cpu_milli: cpu_milli?, memory_bytes: memory_bytes? })
}

/// The number when it is above zero.
fn positive(
    refusals: &mut Refusals,
    field: String,
    parsed: Result<u64, ParseError>,
    rule: &crate::rules::CelRule,
) -> Option<u64> {
    let number = refusals.parsed(field.clone(), parsed)?;
    refusals.require(number > 0, field, rule);
    (number > 0).then_some(number)
}

fn scaled(refusals: &mut Refusals, scaling: &Scaling, replicas: u32) -> Option<Duration> {
    let Scaling { mode, min_replicas, max_replicas, objective, idle, cold_start, drain_timeout } = scaling;
    let manual = *mode == ScalingMode::Manual;
    refusals.require(manual, "spec.scaling.mode", &rules::SCALING_MODE);
    refusals.require(manual || replicas == 0, "spec.replicas", &rules::REPLICAS_OUTSIDE_MANUAL);
    for (field, given) in [
        ("minReplicas", min_replicas.is_some()),
        ("maxReplicas", max_replicas.is_some()),
        ("objective", objective.is_some()),
        ("idle", idle.is_some()),
        ("coldStart", cold_start.is_some()),
    ] {
        refusals.require(!given, format!("spec.scaling.{field}"), &rules::SCALING_FIELDS);
    }
    let ordered = min_replicas.zip(*max_replicas).is_none_or(|(least, most)| least <= most);
    refusals.require(ordered, "spec.scaling", &rules::MIN_MAX);
    refusals.parsed("spec.scaling.drainTimeout", parse_duration(drain_timeout))
}

fn pod(refusals: &mut Refusals, template: &PodTemplate) -> AcceptedPod {
    let PodTemplate {
        labels,
        annotations,
        node_selector,
        tolerations,
        topology_spread_constraints,
        priority_class_name,
        image_pull_secrets,
        service_account_name,
        resources: wanted,
        env,
    } = template;
    let at = |field: &str| format!("spec.podTemplate.{field}");
    let ours = |key: &String| key.starts_with(RESERVED_KEY_PREFIX);
    refusals.require(!labels.keys().any(|key| ours(key) || key == LABEL_MANAGED_BY), at("labels"), &rules::LABELS);
    refusals.require(!annotations.keys().any(ours), at("annotations"), &rules::ANNOTATIONS);
    let spread = !topology_spread_constraints.is_empty();
    refusals.require(!spread, at("topologySpreadConstraints"), &rules::TOPOLOGY_SPREAD);
    let reserved = env.iter().any(|entry| entry.name.starts_with(RESERVED_ENV_PREFIX));
    refusals.require(!reserved, at("env"), &rules::ENV);
    unique(refusals, &at("env"), env.iter().map(|entry| entry.name.as_str()));
    for (index, toleration) in tolerations.iter().enumerate() {
        let Toleration { key, operator, value, effect: _ } = toleration;
        let exists = *operator == Some(TolerationOperator::Exists);
        let sound = !(exists && value.is_some()) && (key.is_some() || exists);
        refusals.require(sound, at(&format!("tolerations[{index}]")), &rules::TOLERATION);
    }
    AcceptedPod {
        labels: labels.clone(),
        annotations: annotations.clone(),
        node_selector: node_selector.clone(),
        tolerations: tolerations.clone(),
        priority_class_name: priority_class_name.clone(),
        image_pull_secrets: image_pull_secrets.iter().map(|PullSecret { name }| name.clone()).collect(),
        service_account_name: service_account_name.clone(),
        resources: resources(refusals, "spec.podTemplate.resources", wanted.as_ref()),
        env: env.clone(),
    }
}

/// Resources of a container: known keys, values that parse.
pub(super) fn resources(refusals: &mut Refusals, at: &str, wanted: Option<&Resources>) -> AcceptedResources {
    let Some(Resources { requests, limits }) = wanted else { return AcceptedResources::default() };
    for (kind, map) in [("requests", requests), ("limits", limits)] {
        for (key, quantity) in map {
            let known = matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage");
            refusals.require(known, format!("{at}.{kind}"), &rules::RESOURCES);
            refusals.parsed(format!("{at}.{kind}.{key}"), parse_milli(quantity));
        }
    }
    AcceptedResources { requests: requests.clone(), limits: limits.clone() }
}
