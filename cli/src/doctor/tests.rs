//! A sound installation, and the same with one thing broken at a time.

use super::*;
use crate::testing::{golden, now, yaml};

const POLICIES: [&str; 3] = ["stowage-claims", "stowage-claim-templates", "stowage-pods"];

fn sound() -> Facts {
    let crd = |name: String| -> CustomResourceDefinition {
        yaml(&format!(
            "{{metadata: {{name: {name}}}, spec: {{group: g, scope: Cluster, names: {{kind: K, plural: k}}, versions: []}}, \
             status: {{conditions: [{{type: Established, status: 'True'}}]}}}}"
        ))
    };
    let deployment = |ready: u32| -> Deployment {
        yaml(&format!(
            "{{metadata: {{}}, spec: {{replicas: 2, selector: {{}}, template: {{}}}}, status: {{readyReplicas: {ready}}}}}"
        ))
    };
    Facts {
        version: (1, 36, "v1.36.3".into()),
        dra: Read::Got(true),
        crds: Read::Got(stowage_crds::all_crds().into_iter().filter_map(|c| c.metadata.name).map(crd).collect()),
        device_class: Read::Got(yaml("{metadata: {name: stowage-gpu}, spec: {}}")),
        policies: Read::Got(POLICIES.map(|n| yaml(&format!("{{metadata: {{name: {n}}}}}"))).to_vec()),
        bindings: Read::Got(
            POLICIES.map(|n| yaml(&format!("{{metadata: {{name: {n}}}, spec: {{policyName: {n}}}}}"))).to_vec(),
        ),
        lease: Read::Got(yaml(
            "{metadata: {}, spec: {holderIdentity: stowage-operator-7d9-x2, leaseDurationSeconds: 8, renewTime: '2026-03-01T11:59:58.500000Z'}}",
        )),
        operator: Read::Got(deployment(2)),
        gateway: Read::Got(deployment(2)),
        agents: Read::Got(vec![yaml(
            "{metadata: {}, status: {currentNumberScheduled: 1, desiredNumberScheduled: 1, numberMisscheduled: 0, numberReady: 1}}",
        )]),
        agent_pods: Read::Got(vec![]),
        slices: Read::Got(vec![yaml(
            "{metadata: {}, spec: {driver: gpu.stowage.dev, nodeName: node1, pool: {name: node1, generation: 1, resourceSliceCount: 1}}}",
        )]),
        nodes: Read::Got(vec![yaml(
            "{apiVersion: stowage.dev/v1alpha1, kind: GpuNode, metadata: {name: node1}, spec: {}, status: {simulated: true, observedTime: '2026-03-01T11:59:30Z', \
             devices: [{uuid: GPU-3f2a1b2c-0000-0000-0000-000000000001, index: 0, product: NVIDIA H100 80GB HBM3, memory: 80Gi}]}}",
        )]),
        classes: Read::Got(vec![yaml(
            "{apiVersion: stowage.dev/v1alpha1, kind: GpuClass, metadata: {name: h100-80g}, spec: {selector: {productNames: [NVIDIA H100 80GB HBM3]}}}",
        )]),
        runtimes: Read::Got(Vec::new()),
        quotas: Read::Got(vec![yaml(
            "{apiVersion: stowage.dev/v1alpha1, kind: TenantQuota, metadata: {name: team-a}, spec: {namespaces: [team-a]}}",
        )]),
        deployments: Read::Got(Vec::new()),
    }
}

fn finding(f: &Facts, name: &str) -> Finding {
    checks::all(f, now()).iter().find(|c| c.name == name).unwrap().finding
}

/// Breaks one thing and names the one check that must notice.
fn notices(name: &str, want: Finding, break_it: impl FnOnce(&mut Facts)) {
    let mut f = sound();
    assert_ne!(finding(&f, name), want, "{name} is fine before");
    break_it(&mut f);
    assert_eq!(finding(&f, name), want, "{name}");
}

#[test]
fn a_nearly_sound_installation_reads_well() {
    golden("doctor.txt", &render(&checks::all(&sound(), now()), Paint::OFF));
}

#[test]
fn every_breakage_is_noticed_by_its_check() {
    notices("kubernetes", Finding::Warn, |f| f.version = (1, 35, "v1.35.0".into()));
    notices("kubernetes", Finding::Fail, |f| f.version = (1, 33, "v1.33.0".into()));
    notices("device API", Finding::Fail, |f| f.dra = Read::Got(false));
    notices("CRDs", Finding::Fail, |f| {
        if let Read::Got(list) = &mut f.crds {
            list.pop();
        }
    });
    notices("DeviceClass", Finding::Fail, |f| f.device_class = Read::Absent);
    notices("policies", Finding::Fail, |f| f.bindings = Read::Got(vec![]));
    notices("policies", Finding::Unknown, |f| f.policies = Read::Failed("forbidden".into()));
    notices("leader", Finding::Fail, |f| {
        f.lease = Read::Got(yaml(
            "{metadata: {}, spec: {holderIdentity: x, leaseDurationSeconds: 8, renewTime: '2026-03-01T11:59:00.000000Z'}}",
        ));
    });
    notices("operator", Finding::Fail, |f| f.operator = Read::Absent);
    notices("gateway", Finding::Warn, |f| {
        f.gateway = Read::Got(yaml(
            "{metadata: {}, spec: {replicas: 2, selector: {}, template: {}}, status: {readyReplicas: 1}}",
        ));
    });
    notices("node agents", Finding::Fail, |f| f.agents = Read::Got(vec![]));
    notices("GpuNodes", Finding::Fail, |f| {
        if let Read::Got(nodes) = &mut f.nodes {
            nodes[0].status.as_mut().unwrap().observed_time = None;
        }
    });
    notices("GPUs", Finding::Warn, |f| {
        if let Read::Got(nodes) = &mut f.nodes {
            nodes[0].status.as_mut().unwrap().devices[0].verdict.health = stowage_crds::gpu_node::Health::Unhealthy;
        }
    });
    notices("ResourceSlices", Finding::Fail, |f| f.slices = Read::Got(vec![]));
    notices("GpuClasses", Finding::Fail, |f| f.classes = Read::Got(vec![]));
    notices("tenants", Finding::Warn, |f| {
        f.deployments = Read::Got(vec![yaml(
            "{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {name: x, namespace: nobody}, \
             spec: {model: {source: {image: {reference: r, path: /m}}}, variants: [{name: v, class: h100-80g}]}}",
        )]);
    });
}
