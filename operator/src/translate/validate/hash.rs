//! Which changes need new pods: a hash over the inputs, not over the built pod, because a new version
//! of the operator must not roll out all engines when a default moved.

use sha2::{Digest, Sha256};
use stowage_crds::InferenceDeploymentSpec;
use stowage_crds::pod_template::PodTemplate;
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
    let in_pods = |template: &PodTemplate| PodTemplate { topology_spread_constraints: Vec::new(), ..template.clone() };
    let pod_template = pod_template.as_ref().map(in_pods);
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn inputs_of(spec: &Value) -> String {
        inputs(&serde_json::from_value(spec.clone()).unwrap())
    }

    #[test]
    fn pods_are_renewed_for_what_they_are_built_from() {
        let spec = json!({
            "model": {"source": {"image": {"reference": "localhost/m:1", "path": "/m.gguf"}}},
            "variants": [{"name": "small", "class": "c", "memory": "2Gi", "compute": 10}],
            "podTemplate": {"labels": {"a": "b"}},
        });
        let changes = [
            ("/replicas", json!(3), false),
            ("/podTemplate/topologySpreadConstraints", json!([{"topologyKey": "zone", "maxSkew": 1}]), false),
            ("/podTemplate/nodeSelector", json!({"zone": "a"}), true),
            ("/podTemplate/labels", json!({"a": "c"}), true),
        ];
        for (at, value, renewed) in changes {
            let mut changed = spec.clone();
            let (parent, key) = at.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[key] = value;
            assert_eq!(inputs_of(&changed) != inputs_of(&spec), renewed, "{at}");
        }
    }
}
