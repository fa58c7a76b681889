//! The environment of an engine: the adapter's, then the runtime's, then what the runtime lets a
//! deployment set, and last what nobody may change.

use stowage_crds::conditions::reasons;
use stowage_crds::inference_deployment::EnvVar;
use stowage_crds::validate::AcceptedRuntime;

use crate::{Adapter, Refusal};

/// A GPU comes through the claim's devices alone. Without this, NVIDIA's container runtime would add
/// every GPU of the node to a container that asks for them, also to one that has no claim.
const FIXED: [(&str, &str); 1] = [("NVIDIA_VISIBLE_DEVICES", "void")];

/// Variables by which the loader, a shell or an interpreter runs code that the image does not hold, or
/// by which a process chooses among the node's devices. Refused whatever `allowedEnv` lists.
const NEVER: [&str; 10] = [
    "NVIDIA_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_INJECTION64_PATH",
    "PATH",
    "GCONV_PATH",
    "BASH_ENV",
    "ENV",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
];
/// The dynamic loader's: `LD_PRELOAD`, `LD_LIBRARY_PATH`, `LD_AUDIT` and others.
const NEVER_PREFIX: &str = "LD_";

/// Name and value, each name once, in order; of one name the last value wins.
pub fn of(runtime: &AcceptedRuntime, asked: &[EnvVar], adapter: &dyn Adapter) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let given = |entry: &EnvVar| (entry.name.clone(), entry.value.clone());
    let mut env: Vec<_> = adapter.env().iter().map(own).collect();
    env.extend(runtime.env.iter().chain(asked).map(given));
    env.extend(FIXED.iter().map(own));
    // Kubernetes would take the last one too, but server-side apply refuses a list with a name twice.
    let last: Vec<bool> =
        (0..env.len()).map(|index| env[index + 1..].iter().all(|later| later.0 != env[index].0)).collect();
    env.into_iter().zip(last).filter(|(_, last)| *last).map(|(entry, _)| entry).collect()
}

/// A refusal for each variable that a deployment may not set.
pub fn refused(asked: &[EnvVar], runtime: &AcceptedRuntime, adapter: &dyn Adapter) -> Vec<Refusal> {
    let refusal = |(index, entry): (usize, &EnvVar)| {
        let name = entry.name.as_str();
        let message = if NEVER.contains(&name) || name.starts_with(NEVER_PREFIX) {
            format!("{name} can run code or choose devices that the runtime does not declare; remove it")
        } else if adapter.env().iter().any(|(managed, _)| *managed == name) {
            format!("{name} is set by the operator; remove it")
        } else if runtime.allowed_env.iter().any(|allowed| allowed == name) {
            return None;
        } else if runtime.allowed_env.is_empty() {
            format!(
                "{name} is not allowed, this runtime allows no further environment; remove it, or ask the platform team for it in allowedEnv"
            )
        } else {
            format!("{name} is not allowed; this runtime allows {}", runtime.allowed_env.join(", "))
        };
        Some(Refusal::new(format!("spec.podTemplate.env[{index}]"), reasons::ENV_NOT_ALLOWED, message))
    };
    asked.iter().enumerate().filter_map(refusal).collect()
}
