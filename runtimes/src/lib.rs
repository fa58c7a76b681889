//! How each engine is started: from a runtime, an accepted deployment and the slice it was granted to
//! the image, arguments, environment, port and probes of one container.
//!
//! Pure, one file per engine in [`adapters`]. An adapter renders only what it knows to be true of its
//! engine; what it cannot render is refused with what to write instead, never left out. Not here: where
//! the container runs, its volumes, its security context and its resources; those are the operator's.
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adapters;
mod container;
mod env;
mod extra_args;
mod placeholders;

use std::fmt;

use stowage_crds::conditions::reasons;
use stowage_crds::inference_runtime::{HttpProbe, Probes, PullPolicy};
use stowage_crds::names::MODEL_MOUNT;
use stowage_crds::validate::{AcceptedAccelerator, AcceptedDeployment, AcceptedOptions, AcceptedRuntime};

pub use adapters::{Adapter, MetricNames, adapter};
pub use container::wait_container;

/// Everything that an adapter may look at.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The runtime that the deployment names.
    pub runtime: &'a AcceptedRuntime,
    /// The deployment's `spec.runtime.options`.
    pub options: &'a AcceptedOptions,
    /// Where the weights are inside the container, for example `/models/model.gguf`.
    pub model_path: String,
    /// As clients send it.
    pub model_name: &'a str,
    /// The GPUs or CPUs of one replica.
    pub granted: &'a AcceptedAccelerator,
    /// Seconds that running requests may take after SIGTERM.
    pub drain_seconds: u64,
}

/// A container, as far as the engine decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Image reference.
    pub image: String,
    /// When the image is pulled.
    pub pull_policy: PullPolicy,
    /// Empty: the image's entry point.
    pub command: Vec<String>,
    /// Arguments, in order.
    pub args: Vec<String>,
    /// Name and value, each name once.
    pub env: Vec<(String, String)>,
    /// Port that serves HTTP.
    pub port: u16,
    /// Takes requests.
    pub readiness: HttpProbe,
    /// Is restarted when it fails.
    pub liveness: HttpProbe,
    /// Has started; the others wait for it.
    pub startup: HttpProbe,
}

/// Why an engine cannot be started as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Path in the InferenceDeployment, or in the InferenceRuntime where the text begins so.
    pub field: String,
    /// A constant of [`stowage_crds::conditions::reasons`].
    pub reason: &'static str,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Refusal {
    fn new(field: impl Into<String>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason, message: message.into() }
    }

    fn missing(field: &str, message: impl Into<String>) -> Self {
        Self::new(field, reasons::CAPABILITY_MISSING, message)
    }
}

/// The container of one replica on what it was granted. All refusals are collected.
pub fn engine(
    runtime: &AcceptedRuntime,
    deployment: &AcceptedDeployment,
    granted: &AcceptedAccelerator,
) -> Result<Engine, Vec<Refusal>> {
    let adapter = adapter(runtime.adapter).map_err(|refusal| vec![refusal])?;
    let facts = Facts {
        runtime,
        options: &deployment.options,
        model_path: format!("{MODEL_MOUNT}{}", deployment.source.path()),
        model_name: &deployment.model_name,
        granted,
        drain_seconds: deployment.drain_timeout.as_secs().max(1),
    };
    let mut refusals = capabilities(&facts);
    if !deployment.access.is_empty() && !adapter.separates_tenants() {
        let message = "this runtime does not keep the prefix caches of tenants apart, so their answers' timing would show \
                       what others asked; leave access out, or use a runtime of adapter Stowage";
        refusals.push(Refusal::missing("spec.model.access", message));
    }
    let base = placeholders::or_default(&facts, adapter).unwrap_or_else(|refusal| {
        refusals.extend(refusal);
        Vec::new()
    });
    let options = adapter.options(&facts).unwrap_or_else(|refused| {
        refusals.extend(refused);
        Vec::new()
    });
    refusals.extend(extra_args::overridden(&base, &options));
    refusals.extend(extra_args::refused(&deployment.extra_args, runtime, adapter));
    refusals.extend(env::refused(&deployment.pod.env, runtime, adapter));
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let Probes { readiness, liveness, startup } = &runtime.probes;
    let defaults = adapter.probes();
    Ok(Engine {
        image: runtime.image.clone(),
        pull_policy: runtime.image_pull_policy,
        command: if runtime.command.is_empty() { adapter.command() } else { runtime.command.clone() },
        args: [base, options, deployment.extra_args.clone()].concat(),
        env: env::of(runtime, &deployment.pod.env, adapter),
        port: runtime.port,
        readiness: readiness.clone().unwrap_or(defaults.readiness),
        liveness: liveness.clone().unwrap_or(defaults.liveness),
        startup: startup.clone().unwrap_or(defaults.startup),
    })
}

/// Every variant on paper: whether the runtime can do what the deployment asks, before anything is placed.
pub fn check(runtime: &AcceptedRuntime, deployment: &AcceptedDeployment) -> Result<(), Vec<Refusal>> {
    let mut refusals: Vec<Refusal> = Vec::new();
    for variant in &deployment.variants {
        for refusal in engine(runtime, deployment, &variant.accelerator).err().unwrap_or_default() {
            if !refusals.contains(&refusal) {
                refusals.push(refusal);
            }
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// What is asked against what the image declares.
fn capabilities(facts: &Facts<'_>) -> Vec<Refusal> {
    let declared = &facts.runtime.capabilities;
    let mut refusals = Vec::new();
    let mut one_of = |field: &str, value: &Option<String>, known: &[String]| {
        let Some(value) = value.as_ref().filter(|value| !known.contains(value)) else { return };
        let known = if known.is_empty() { "nothing else".to_owned() } else { known.join(", ") };
        let message = format!("\"{value}\" is not what this runtime can do ({known}); write Auto");
        refusals.push(Refusal::missing(&format!("spec.runtime.options.{field}"), message));
    };
    one_of("quantization", &facts.options.quantization, &declared.quantizations);
    one_of("kvCacheType", &facts.options.kv_cache_type, &declared.kv_cache_types);
    if facts.options.prefix_caching == Some(true) && !declared.prefix_caching {
        let message = "this runtime does not reuse prefixes; write prefixCaching: false or leave it out";
        refusals.push(Refusal::missing("spec.runtime.options.prefixCaching", message));
    }
    if matches!(facts.granted, AcceptedAccelerator::Gpu { count, .. } if *count > 1) && !declared.tensor_parallel {
        let message = "this runtime uses one GPU per replica; write count: 1 and more replicas";
        refusals.push(Refusal::missing("spec.variants[].count", message));
    }
    refusals
}

#[cfg(test)]
mod tests;
