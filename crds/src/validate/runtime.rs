//! `InferenceRuntime`, narrow. Placeholders in `args` are checked where they are filled in: in the
//! `runtimes` crate.

use super::pod::{env_names, resources};
use super::{AcceptedResources, Refusal, Refusals};
use crate::inference_deployment::EnvVar;
use crate::inference_runtime::{AdapterName, Capabilities, HttpProbe, Probes, PullPolicy};
use crate::names::{ENGINE_PORT, RESERVED_ENV_PREFIX};
use crate::rules::runtime as rules;
use crate::syntax::is_image_reference;
use crate::{InferenceRuntimeSpec, support};

/// An accepted InferenceRuntime.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedRuntime {
    /// One that this release has.
    pub adapter: AdapterName,
    /// As people should see it.
    pub version: String,
    /// A valid image reference.
    pub image: String,
    /// When the image is pulled.
    pub image_pull_policy: PullPolicy,
    /// Empty: the image's.
    pub command: Vec<String>,
    /// Empty: the adapter's.
    pub args: Vec<String>,
    /// Valid names without the operator's prefix, each once.
    pub env: Vec<EnvVar>,
    /// Serves HTTP.
    pub port: u16,
    /// In place of the adapter's.
    pub probes: Probes,
    /// Where a deployment gives none.
    pub resources: AcceptedResources,
    /// Flags without values.
    pub allowed_args: Vec<String>,
    /// Names of environment variables.
    pub allowed_env: Vec<String>,
    /// What the image can do.
    pub capabilities: Capabilities,
}

/// Parses and checks an InferenceRuntime.
pub fn validate_runtime(spec: &InferenceRuntimeSpec) -> Result<AcceptedRuntime, Vec<Refusal>> {
    let InferenceRuntimeSpec {
        adapter,
        version,
        image,
        image_pull_policy,
        command,
        args,
        env,
        port,
        probes,
        resources: wanted,
        allowed_args,
        allowed_env,
        capabilities,
    } = spec;
    let mut refusals = Refusals::default();
    refusals.unsupported(spec, support::RUNTIME);
    refusals.require(is_image_reference(image), "spec.image", &rules::IMAGE);
    let flags = allowed_args.iter().all(|flag| flag.starts_with("--") && !flag.contains('='));
    refusals.require(flags, "spec.allowedArgs", &rules::ALLOWED_ARGS);
    let names = allowed_env.iter().all(|name| is_variable(name) && !name.starts_with(RESERVED_ENV_PREFIX));
    refusals.require(names, "spec.allowedEnv", &rules::ALLOWED_ENV);
    let ours = env.iter().any(|entry| entry.name.starts_with(RESERVED_ENV_PREFIX));
    refusals.require(!ours, "spec.env", &rules::ENV);
    env_names(&mut refusals, "spec.env", env);
    let probes = probes.clone().unwrap_or_default();
    let Probes { readiness, liveness, startup } = &probes;
    for (name, probe) in [("readiness", readiness), ("liveness", liveness), ("startup", startup)] {
        let Some(HttpProbe { path, period_seconds: _, failure_threshold: _ }) = probe else { continue };
        refusals.require(path.starts_with('/'), format!("spec.probes.{name}.path"), &rules::PROBE_PATH);
    }
    let resources = resources(&mut refusals, "spec.resources", wanted.as_ref());
    refusals.into_result(AcceptedRuntime {
        adapter: *adapter,
        version: version.clone(),
        image: image.clone(),
        image_pull_policy: image_pull_policy.unwrap_or(PullPolicy::IfNotPresent),
        command: command.clone(),
        args: args.clone(),
        env: env.clone(),
        port: port.unwrap_or(ENGINE_PORT),
        probes,
        resources,
        allowed_args: allowed_args.clone(),
        allowed_env: allowed_env.clone(),
        capabilities: capabilities.clone(),
    })
}

fn is_variable(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(letter) && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}
