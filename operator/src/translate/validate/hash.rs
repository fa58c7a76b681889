//! Which changes need new pods: a hash over the inputs, not over the built pod, because a new version
//! of the operator must not roll out all engines when a default moved.

use sha2::{Digest, Sha256};
use stowage_crds::InferenceDeploymentSpec;
use stowage_crds::validate::AcceptedRuntime;

/// The part of a spec that a pod is built from, as JSON. What only planning and routing read is left out.
pub fn inputs(spec: &InferenceDeploymentSpec) -> String {
    let InferenceDeploymentSpec {
        model,
        runtime,
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
    let model = (&model.name, &model.source, &model.adapters);
    serde_json::to_string(&(model, runtime, variants, isolation, pod_template)).unwrap_or_default()
}

/// 16 hexadecimal digits over a spec's [`inputs`] and the runtime that it names.
pub fn spec_hash(inputs: &str, runtime: &AcceptedRuntime) -> String {
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
    let engine = (adapter, version, image, command, args, env, port, probes, &resources.requests, &resources.limits);
    let engine = serde_json::to_string(&engine).unwrap_or_default();
    // One more element of the same list.
    let digest = Sha256::digest(format!("{},{engine}]", inputs.trim_end_matches(']')));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
