//! `InferenceDeployment`, narrow.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stowage_contracts::model::{FETCHED_DIRECTORY, FileModel};
use stowage_contracts::{hub, s3};

use super::pod::{self, AcceptedPod};
use super::{Refusal, Refusals, unique};
use crate::inference_deployment::{
    Accelerator, Access, ColdStart, HttpSource, HuggingFaceSource, Idle, ImageSource, Isolation, IsolationLevel, Model,
    ModelSource, Nodes, Objectives, Rollout, Runtime, RuntimeOptions, S3Source, Scaling, ScalingMode, ScalingObjective,
    SecretName, SecretRef, Variant, VolumeSource,
};
use crate::names::MAX_DEPLOYMENT_NAME;
use crate::quantity::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, ParseError, parse_bytes, parse_duration, parse_milli};
use crate::rules::{Reason, deployment as rules};
use crate::syntax::{is_dns_subdomain, is_endpoint, is_http_url, is_image_reference, is_model_name};
use crate::{InferenceDeploymentSpec, support};

/// Longest drain: a pod that drains keeps its GPUs.
const MAX_DRAIN: Duration = Duration::from_secs(24 * 3600);
/// 10,000 cores.
const MAX_CPU_MILLI: u64 = 10_000_000;

/// An accepted InferenceDeployment: everything parsed, every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedDeployment {
    /// As clients send it.
    pub model_name: String,
    /// The weights.
    pub source: AcceptedSource,
    /// Tenants beside the owner that may call it.
    pub access: Vec<String>,
    /// Nodes that are to hold the weights ahead of need.
    pub preload_nodes: u32,
    /// Name of an InferenceRuntime.
    pub runtime: String,
    /// Engine options.
    pub options: AcceptedOptions,
    /// Each begins with `--`; whether the runtime allows it is asked when the container is built.
    pub extra_args: Vec<String>,
    /// At least one; names are unique.
    pub variants: Vec<AcceptedVariant>,
    /// With whom replicas share.
    pub isolation: IsolationLevel,
    /// Wanted in mode Manual; 0 runs none.
    pub replicas: u32,
    /// Who decides the number of replicas.
    pub scaling: AcceptedScaling,
    /// At most 24 h.
    pub drain_timeout: Duration,
    /// What the pods carry beyond what the operator sets.
    pub pod: AcceptedPod,
}

/// Who decides the number of replicas, and by what. The bounds and objectives are for modes Active and Advisory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedScaling {
    /// Who decides.
    pub mode: ScalingMode,
    /// Fewest replicas; 0 allows scale to zero.
    pub min_replicas: u32,
    /// Most replicas, at least as many.
    pub max_replicas: u32,
    /// What is preferred among variants; `None`: what packs best.
    pub objective: Option<ScalingObjective>,
    /// Time without requests after which the last replica ends; `None`: learned.
    pub idle_after: Option<Duration>,
    /// How long a request may wait for a first replica; `None`: the gateway's default.
    pub hold: Option<Duration>,
    /// Time to first token.
    pub ttft: Duration,
    /// Mean time between two tokens.
    pub itl: Duration,
}

impl Default for AcceptedScaling {
    /// Of a spec that says nothing of it.
    fn default() -> Self {
        Self {
            mode: ScalingMode::default(),
            min_replicas: 1,
            max_replicas: DEFAULT_MAX_REPLICAS,
            objective: None,
            idle_after: None,
            hold: None,
            ttft: DEFAULT_TTFT,
            itl: DEFAULT_ITL,
        }
    }
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptedSource {
    /// Mounted by the kubelet.
    Image(AcceptedImage),
    /// Fetched by the node agent and mounted through the claim.
    Http(FileModel),
    /// Fetched by the node agent and mounted through the claim.
    S3(AcceptedS3),
    /// Fetched by the node agent and mounted through the claim.
    Hub(AcceptedHub),
    /// Mounted by the kubelet.
    Volume(AcceptedVolume),
}

impl AcceptedSource {
    /// The model below the directory where it is mounted; begins with `/`.
    pub fn path(&self) -> String {
        match self {
            Self::Image(image) => image.path.clone(),
            Self::Http(file) | Self::S3(AcceptedS3 { file, .. }) => file.path(),
            Self::Hub(AcceptedHub { path: None, .. }) => format!("/{FETCHED_DIRECTORY}"),
            Self::Hub(AcceptedHub { path: Some(path), .. }) => {
                format!("/{FETCHED_DIRECTORY}/{}", path.rsplit('/').next().unwrap_or_default())
            }
            Self::Volume(volume) => volume.path.clone(),
        }
    }
}

/// Weights in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedS3 {
    /// As everybody may read it.
    pub file: FileModel,
    /// Of the bucket.
    pub region: String,
    /// Name of a Secret of the namespace.
    pub secret: Option<String>,
}

/// Weights on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedHub {
    /// `owner/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// A GGUF file; `None`: the model in safetensors.
    pub path: Option<String>,
    /// Name of a Secret of the namespace, and a key in it.
    pub token: Option<(String, String)>,
}

/// Most replicas where the spec names none and no higher minimum.
const DEFAULT_MAX_REPLICAS: u32 = 10;
/// Objectives where the spec names none: what a reader of a chat waits for without noticing much.
const DEFAULT_TTFT: Duration = Duration::from_secs(1);
const DEFAULT_ITL: Duration = Duration::from_millis(100);

/// Weights on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedVolume {
    /// A PersistentVolumeClaim of the namespace.
    pub claim_name: String,
    /// Begins with `/`, without `..`.
    pub path: String,
}

/// Weights in an OCI image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedImage {
    /// A valid image reference.
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
    /// `None`: on where the runtime can.
    pub prefix_caching: Option<bool>,
}

/// One shape of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedVariant {
    /// Unique in the deployment.
    pub name: String,
    /// What it computes on.
    pub accelerator: AcceptedAccelerator,
}

/// What a replica needs to compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptedAccelerator {
    /// GPUs, or the same slice of each.
    Gpu {
        /// Name of a GpuClass.
        class: String,
        /// At least 1.
        count: u32,
        /// On each GPU, above 0; `None`: the whole GPU, or to be estimated.
        memory_bytes: Option<u64>,
        /// The memory is estimated from the model.
        estimated: bool,
        /// Per cent of each GPU's SMs, 1 to 100; `None`: all.
        sm_percent: Option<u32>,
    },
    /// CPU cores only.
    Cpu {
        /// Thousandths of a core, above 0.
        cpu_milli: u64,
        /// Of the container, above 0.
        memory_bytes: u64,
    },
}

/// Parses and checks an InferenceDeployment of this name.
pub fn validate_deployment(name: &str, spec: &InferenceDeploymentSpec) -> Result<AcceptedDeployment, Vec<Refusal>> {
    let InferenceDeploymentSpec {
        model,
        runtime,
        service_class: _,
        objectives,
        variants,
        isolation,
        replicas,
        scaling,
        pod_template,
        rollout,
        disaggregation: _,
        nodes,
    } = spec;
    let mut refusals = Refusals::default();
    object_name(&mut refusals, name);
    refusals.unsupported(spec, support::DEPLOYMENT);
    // Refused by the table, but for the one value that asks for nothing.
    let (None | Some(Rollout { strategy: _, canary: _ })) = rollout;
    let (None | Some(Nodes { count: _ })) = nodes;

    let served = served(&mut refusals, name, model);
    let engine = engine(&mut refusals, runtime);
    let Isolation { level, sharing: _ } = isolation;
    let accepted_variants = shapes(&mut refusals, variants);
    let drain_timeout = drain(&mut refusals, scaling);
    let decided = scaled(&mut refusals, scaling, objectives.as_ref(), *replicas);
    let pod = pod_template.as_ref().map(|template| pod::accepted(&mut refusals, template)).unwrap_or_default();

    let on_cpu = variants.iter().any(|variant| variant.accelerator == Accelerator::CPU);
    let ModelSource { http, hugging_face, s3, image: _, persistent_volume_claim: _ } = &model.source;
    let fetched = http.is_some() || hugging_face.is_some() || s3.is_some();
    refusals.require(!(on_cpu && fetched), "spec", &rules::FETCHED_NEEDS_GPU);

    let readable = http.is_some()
        || hugging_face.as_ref().is_some_and(|hub| hub.token_secret_ref.is_none())
        || s3.as_ref().is_some_and(|s3| s3.secret_ref.is_none());
    refusals.require(readable || !variants.iter().any(is_estimated), "spec", &rules::AUTO_SOURCE);
    refusals.require(readable || model.preload.is_none(), "spec.model", &rules::PRELOAD_SOURCE);

    let (model_name, source, access) = served;
    let accepted =
        source.zip(drain_timeout).zip(decided).map(|((source, drain_timeout), scaling)| AcceptedDeployment {
            model_name,
            source,
            access,
            preload_nodes: model.preload.as_ref().map_or(0, |preload| preload.nodes),
            runtime: runtime.r#ref.clone(),
            options: engine,
            extra_args: runtime.extra_args.clone(),
            variants: accepted_variants,
            isolation: *level,
            replicas: *replicas,
            scaling,
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

fn served(refusals: &mut Refusals, object: &str, model: &Model) -> (String, Option<AcceptedSource>, Vec<String>) {
    let Model { name, source, adapters: _, access, preload: _ } = model;
    let source = source_of(refusals, "spec.model.source", source);
    let access = access.as_ref().map(|Access { tenants }| tenants.clone()).unwrap_or_default();
    let tenants_sound = access.iter().all(|tenant| is_dns_subdomain(tenant));
    refusals.require(tenants_sound, "spec.model.access.tenants", &rules::TENANTS);
    let sendable = name.as_ref().is_none_or(|name| is_model_name(name));
    refusals.require(sendable, "spec.model.name", &rules::MODEL_NAME);
    (name.clone().unwrap_or_else(|| object.to_owned()), source, access)
}

fn source_of(refusals: &mut Refusals, field: &str, source: &ModelSource) -> Option<AcceptedSource> {
    let ModelSource { image, hugging_face, http, s3, persistent_volume_claim } = source;
    let given =
        [image.is_some(), hugging_face.is_some(), http.is_some(), s3.is_some(), persistent_volume_claim.is_some()];
    refusals.require(given.iter().filter(|given| **given).count() == 1, field, &rules::ONE_SOURCE);
    let absolute = |path: &str| path.starts_with('/') && !path.contains("..") && path.len() > 1;
    if let Some(ImageSource { reference, path }) = image {
        refusals.require(absolute(path), format!("{field}.image.path"), &rules::IMAGE_PATH);
        refusals.require(is_image_reference(reference), format!("{field}.image.reference"), &rules::IMAGE_REFERENCE);
        return Some(AcceptedSource::Image(AcceptedImage { reference: reference.clone(), path: path.clone() }));
    }
    if let Some(HttpSource { url, sha256 }) = http {
        refusals.require(is_http_url(url), format!("{field}.http.url"), &rules::HTTP_URL);
        let model = FileModel::open(url, sha256);
        refusals.require(is_sha256(sha256), format!("{field}.http.sha256"), &rules::SHA256);
        return Some(AcceptedSource::Http(model));
    }
    if let Some(source) = hugging_face {
        return Some(AcceptedSource::Hub(on_hub(refusals, field, source)));
    }
    if let Some(source) = s3 {
        return Some(AcceptedSource::S3(in_store(refusals, field, source)));
    }
    let VolumeSource { claim_name, path } = persistent_volume_claim.as_ref()?;
    refusals.require(
        is_dns_subdomain(claim_name),
        format!("{field}.persistentVolumeClaim.claimName"),
        &rules::CLAIM_NAME,
    );
    refusals.require(absolute(path), format!("{field}.persistentVolumeClaim.path"), &rules::VOLUME_PATH);
    Some(AcceptedSource::Volume(AcceptedVolume { claim_name: claim_name.clone(), path: path.clone() }))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn in_store(refusals: &mut Refusals, field: &str, source: &S3Source) -> AcceptedS3 {
    let S3Source { bucket, key, sha256, endpoint, region, secret_ref } = source;
    let at = |name: &str| format!("{field}.s3.{name}");
    let region = region.clone().unwrap_or_else(|| s3::DEFAULT_REGION.to_owned());
    refusals.require(s3::is_bucket(bucket), at("bucket"), &rules::S3_BUCKET);
    refusals.require(s3::is_key(key), at("key"), &rules::S3_KEY);
    refusals.require(is_sha256(sha256), at("sha256"), &rules::SHA256);
    refusals.require(endpoint.as_deref().is_none_or(is_endpoint), at("endpoint"), &rules::S3_ENDPOINT);
    refusals.require(s3::is_region(&region), at("region"), &rules::S3_REGION);
    let secret = secret_ref.as_ref().map(|SecretName { name }| name.clone());
    refusals.require(secret.as_deref().is_none_or(is_dns_subdomain), at("secretRef"), &rules::S3_SECRET);
    let file = FileModel::open(s3::url(endpoint.as_deref(), &region, bucket, key), sha256);
    AcceptedS3 { file, region, secret }
}

fn on_hub(refusals: &mut Refusals, field: &str, source: &HuggingFaceSource) -> AcceptedHub {
    let HuggingFaceSource { repo, revision, path, token_secret_ref } = source;
    let at = |name: &str| format!("{field}.huggingFace.{name}");
    let revision = revision.clone().unwrap_or_else(|| hub::DEFAULT_REVISION.to_owned());
    refusals.require(hub::is_repo(repo), at("repo"), &rules::HUB_REPO);
    refusals.require(hub::is_revision(&revision), at("revision"), &rules::HUB_REVISION);
    refusals.require(path.as_deref().is_none_or(hub::is_gguf_path), at("path"), &rules::HUB_PATH);
    let token = token_secret_ref.as_ref().map(|SecretRef { name, key }| {
        let key = key.clone().unwrap_or_else(|| hub::DEFAULT_TOKEN_KEY.to_owned());
        let sound = is_dns_subdomain(name) && hub::is_secret_key(&key);
        refusals.require(sound, at("tokenSecretRef"), &rules::TOKEN_SECRET);
        (name.clone(), key)
    });
    AcceptedHub { repo: repo.clone(), revision, path: path.clone(), token }
}

fn engine(refusals: &mut Refusals, runtime: &Runtime) -> AcceptedOptions {
    let Runtime { r#ref, options, extra_args } = runtime;
    refusals.require(is_dns_subdomain(r#ref), "spec.runtime.ref", &rules::OBJECT_NAME);
    let flags = extra_args.iter().all(|arg| arg.starts_with("--"));
    refusals.require(flags, "spec.runtime.extraArgs", &rules::EXTRA_ARGS);
    let Some(RuntimeOptions { max_model_len, quantization, kv_cache_type, prefix_caching, speculative: _ }) = options
    else {
        return AcceptedOptions::default();
    };
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
    let Variant { name: _, accelerator: _, class, count, memory, compute, mig_profile: _, cpu } = variant;
    refusals.require(class.is_some(), format!("{at}.class"), &rules::GPU_CLASS);
    let class_sound = class.as_ref().is_none_or(|class| is_dns_subdomain(class));
    refusals.require(class_sound, format!("{at}.class"), &rules::OBJECT_NAME);
    refusals.require(cpu.is_none(), format!("{at}.cpu"), &rules::GPU_HAS_NO_CPU);
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
        None => None,
        Some(text) if text.0 == "Auto" => None,
        Some(quantity) => Some(bytes(refusals, at, quantity)?),
    };
    Some(AcceptedAccelerator::Gpu {
        class: class.clone()?,
        count: count.unwrap_or(1),
        memory_bytes,
        estimated: is_estimated(variant),
        sm_percent: *compute,
    })
}

/// Whether the operator has to estimate the variant's memory.
fn is_estimated(variant: &Variant) -> bool {
    let auto = variant.memory.as_ref().map_or(variant.compute.is_some(), |memory| memory.0 == "Auto");
    auto && variant.accelerator == Accelerator::GPU
}

fn cpu(refusals: &mut Refusals, at: &str, variant: &Variant) -> Option<AcceptedAccelerator> {
    let Variant { name: _, accelerator: _, class, count, memory, compute, mig_profile, cpu } = variant;
    let plain = class.is_none() && count.is_none() && compute.is_none() && mig_profile.is_none();
    let sized = memory.as_ref().is_some_and(|memory| memory.0 != "Auto");
    refusals.require(plain && cpu.is_some() && sized, at, &rules::CPU_FIELDS);
    if !sized {
        return None;
    }
    let cores = format!("{at}.cpu");
    let cpu_milli = positive(refusals, cores.clone(), parse_milli(cpu.as_ref()?), &rules::CPU);
    refusals.require(cpu_milli.is_none_or(|milli| milli <= MAX_CPU_MILLI), cores, &rules::CPU_RANGE);
    let memory_bytes = bytes(refusals, at, memory.as_ref()?);
    Some(AcceptedAccelerator::Cpu { cpu_milli: cpu_milli?, memory_bytes: memory_bytes? })
}

/// A variant's memory.
fn bytes(refusals: &mut Refusals, at: &str, memory: &Quantity) -> Option<u64> {
    let field = format!("{at}.memory");
    let bytes = positive(refusals, field.clone(), parse_bytes(memory), &rules::MEMORY)?;
    refusals.require((MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes), field, &rules::MEMORY_RANGE);
    Some(bytes)
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

fn scaled(
    refusals: &mut Refusals,
    scaling: &Scaling,
    objectives: Option<&Objectives>,
    replicas: u32,
) -> Option<AcceptedScaling> {
    let Scaling { mode, min_replicas, max_replicas, objective, idle, cold_start, drain_timeout: _ } = scaling;
    let manual = *mode == ScalingMode::Manual;
    refusals.require(manual || replicas == 1, "spec.replicas", &rules::REPLICAS_OUTSIDE_MANUAL);
    let for_the_rule = min_replicas.is_some() || max_replicas.is_some() || idle.is_some() || objectives.is_some();
    refusals.require(!manual || !for_the_rule, "spec.scaling", &rules::MANUAL_HAS_NO_RULE);
    let ordered = min_replicas.zip(*max_replicas).is_none_or(|(least, most)| least <= most);
    refusals.require(ordered, "spec.scaling", &rules::MIN_MAX);
    let idle = idle.as_ref().and_then(|Idle { after, tier: _ }| after.as_ref());
    let hold = cold_start.as_ref().and_then(|ColdStart { hold, max_held: _ }| hold.as_ref());
    let objective_of = |of: fn(&Objectives) -> &Option<String>| objectives.and_then(|o| of(o).as_ref());
    let ttft = positive_time(refusals, "spec.objectives.ttft", objective_of(|o| &o.ttft))?;
    let itl = positive_time(refusals, "spec.objectives.itl", objective_of(|o| &o.itl))?;
    let min_replicas = min_replicas.unwrap_or_else(|| max_replicas.unwrap_or(1).min(1));
    Some(AcceptedScaling {
        mode: *mode,
        min_replicas,
        max_replicas: max_replicas.unwrap_or(DEFAULT_MAX_REPLICAS.max(min_replicas)),
        objective: *objective,
        idle_after: positive_time(refusals, "spec.scaling.idle.after", idle)?,
        hold: positive_time(refusals, "spec.scaling.coldStart.hold", hold)?,
        ttft: ttft.unwrap_or(DEFAULT_TTFT),
        itl: itl.unwrap_or(DEFAULT_ITL),
    })
}

/// Time to first token and mean time between two tokens that a spec promises. `None`: nothing is promised in mode
/// Manual, and a time that cannot be read is no promise.
pub fn objectives(spec: &InferenceDeploymentSpec) -> Option<(Duration, Duration)> {
    if spec.scaling.mode == ScalingMode::Manual {
        return None;
    }
    let objectives = spec.objectives.clone().unwrap_or_default();
    let time = |text: Option<String>, default| match text {
        Some(text) => parse_duration(&text).ok().filter(|time| !time.is_zero()),
        None => Some(default),
    };
    Some((time(objectives.ttft, DEFAULT_TTFT)?, time(objectives.itl, DEFAULT_ITL)?))
}

/// A time above zero, if one is given. `None`: it was refused.
fn positive_time(refusals: &mut Refusals, field: &str, text: Option<&String>) -> Option<Option<Duration>> {
    let Some(text) = text else { return Some(None) };
    let time = refusals.parsed(field, parse_duration(text))?;
    if time.is_zero() {
        refusals.push(field, Reason::Invalid, "a time of zero can never be kept; write for example 800ms");
        return None;
    }
    Some(Some(time))
}

fn drain(refusals: &mut Refusals, scaling: &Scaling) -> Option<Duration> {
    let field = "spec.scaling.drainTimeout";
    let timeout = match parse_duration(&scaling.drain_timeout) {
        Err(ParseError::TooLong(_)) => None,
        parsed => Some(refusals.parsed(field, parsed)?),
    };
    refusals.require(timeout.is_some_and(|timeout| timeout <= MAX_DRAIN), field, &rules::DRAIN_TIMEOUT_LONG);
    timeout
}
