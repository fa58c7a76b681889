//! What users may add: flags that the platform lists, and never one that the operator sets.

use stowage_crds::conditions::reasons;
use stowage_crds::validate::AcceptedRuntime;

use crate::{Adapter, Refusal};

/// A refusal for each argument that is not allowed.
pub fn refused(extra: &[String], runtime: &AcceptedRuntime, adapter: &dyn Adapter) -> Vec<Refusal> {
    let refusal = |(index, arg): (usize, &String)| {
        let name = name(arg);
        let message = if adapter.managed().contains(&name) {
            format!("{name} is set by the operator; use the field of spec.runtime.options or spec.variants instead")
        } else if runtime.allowed_args.iter().any(|allowed| allowed == name) {
            return None;
        } else if runtime.allowed_args.is_empty() {
            format!(
                "{name} is not allowed, this runtime allows no further arguments; remove it, or ask the platform team for it in allowedArgs"
            )
        } else {
            format!("{name} is not allowed; this runtime allows {}", runtime.allowed_args.join(", "))
        };
        Some(Refusal::new(format!("spec.runtime.extraArgs[{index}]"), reasons::ARG_NOT_ALLOWED, message))
    };
    extra.iter().enumerate().filter_map(refusal).collect()
}

/// Flags that both the runtime's own `args` and the deployment's options set.
pub fn overridden(base: &[String], options: &[String]) -> Vec<Refusal> {
    let flags = options.iter().filter(|arg| arg.starts_with("--"));
    let fixed = flags.filter(|flag| base.iter().any(|arg| name(arg) == name(flag)));
    fixed
        .map(|flag| {
            let message = format!("{} stands in the runtime's own args, so a deployment cannot choose it", name(flag));
            Refusal::new("InferenceRuntime spec.args", reasons::ARG_NOT_ALLOWED, message)
        })
        .collect()
}

/// `--seed=7` is `--seed`. Some parsers take `_` for `-`.
fn name(arg: &str) -> &str {
    arg.split_once('=').map_or(arg, |(name, _)| name)
}
