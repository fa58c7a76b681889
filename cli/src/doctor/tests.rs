//! A working installation, and the same with one fault at a time.

use super::installation::POLICIES;
use super::*;
use crate::testing::{golden, now, yaml};

/// As Helm marks what it installs.
const RELEASE: &str = "annotations: {meta.helm.sh/release-name: prod, meta.helm.sh/release-namespace: default}";

fn working() -> Facts {
    let crd = |name: String| -> CustomResourceDefinition {
        yaml(&format!(
            "{{metadata: {{name: {name}}}, spec: {{group: g, scope: Cluster, names: {{kind: K, plural: k}}, versions: []}}, \
             status: {{conditions: [{{type: Established, status: 'True'}}]}}}}"
        ))
    };
    let deployment = |ready: u32| -> Deployment {
        yaml(&format!(
            "{{metadata: {{{RELEASE}}}, spec: {{replicas: 2, selector: {{}}, template: {{}}}}, status: {{readyReplicas: {ready}}}}}"
        ))
    };
    Facts {
        version: (1, 36, "v1.36.3".into()),
        dra: Read::Got(true),
        crds: Read::Got(stowage_crds::all_crds().into_iter().filter_map(|c| c.metadata.name).map(crd).collect()),
        device_class: Read::Got(yaml("{metadata: {name: stowage-gpu}, spec: {}}")),
        policies: Read::Got(POLICIES.iter().map(|n| yaml(&format!("{{metadata: {{name: {n}}}}}"))).collect()),
        bindings: Read::Got(
            POLICIES.iter().map(|n| yaml(&format!("{{metadata: {{name: {n}}}, spec: {{policyName: {n}}}}}"))).collect(),
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
        runtimes: Read::Got(vec![yaml(
            "{apiVersion: stowage.dev/v1alpha1, kind: InferenceRuntime, metadata: {name: stowage-engine}, spec: {adapter: stowage, version: '1', image: e}}",
        )]),
        quotas: Read::Got(vec![quota("{type: KeysUsable, status: 'True', reason: KeysUsable, message: ''}")]),
        deployments: Read::Got(vec![yaml(DEPLOYMENT)]),
        owned: Read::Got(vec![owned("pod", "chat-a", "1234"), owned("resourceclaim", "stowage-chat-a", "1234")]),
    }
}

/// Tenant team-a, which names a key Secret, with this condition.
fn quota(condition: &str) -> stowage_crds::TenantQuota {
    let time = "lastTransitionTime: 2026-03-01T11:48:00Z";
    yaml(&format!(
        "{{apiVersion: stowage.dev/v1alpha1, kind: TenantQuota, metadata: {{name: team-a}}, spec: {{namespaces: [team-a], \
         credentials: {{apiKeys: [{{secretName: team-a-keys}}]}}}}, status: {{conditions: [{}, {time}}}]}}}}",
        condition.trim_end_matches('}')
    ))
}

const DEPLOYMENT: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: chat, namespace: team-a, uid: '1234'}
spec: {model: {source: {image: {reference: r, path: /m}}}, variants: [{name: v, class: h100-80g}]}
";

fn owned(kind: &'static str, name: &str, owner: &str) -> Owned {
    let meta = format!(
        "{{name: {name}, namespace: team-a, ownerReferences: [{{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, name: chat, uid: '{owner}'}}]}}"
    );
    Owned { kind, meta: yaml(&meta) }
}

fn check(f: &Facts, name: &str) -> Check {
    all(f, now()).into_iter().find(|c| c.name == name).unwrap()
}

fn finding(f: &Facts, name: &str) -> Finding {
    check(f, name).finding
}

/// Breaks one thing and names the check that must notice it.
fn notices(name: &str, want: Finding, break_it: impl FnOnce(&mut Facts)) {
    let mut f = working();
    assert_ne!(finding(&f, name), want, "{name} passes before");
    break_it(&mut f);
    assert_eq!(finding(&f, name), want, "{name}");
}

#[test]
fn missing_bundled_runtime_is_reported_with_the_upgrade_of_the_release_that_is_there() {
    let mut f = working();
    f.runtimes = Read::Got(Vec::new());
    golden("doctor.txt", &render(&all(&f, now()), Paint::OFF));
}

#[test]
fn working_installation_passes_every_check() {
    for check in all(&working(), now()) {
        assert_eq!(check.finding, Finding::Ok, "{check:?}");
    }
}

#[test]
fn remedy_of_a_missing_chart_is_the_command_of_the_readme() {
    let mut f = working();
    f.operator = Read::Absent;
    f.gateway = Read::Absent;
    let fix = check(&f, "operator").fix.unwrap();
    assert!(fix.starts_with("helm install stowage charts/stowage --set image.registry="), "{fix}");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    for command in
        ["helm install stowage charts/stowage --set image.registry=", "helm install stowage-crds charts/stowage-crds"]
    {
        assert!(readme.contains(command), "README.md has no {command}");
    }
}

#[test]
fn missing_runtime_of_a_user_is_no_fault_of_the_chart() {
    let mut f = working();
    f.deployments = Read::Got(vec![yaml(&DEPLOYMENT.replace("spec: {", "spec: {runtime: {ref: vllm}, "))]);
    let check = check(&f, "runtimes");
    assert_eq!(check.finding, Finding::Fail);
    assert!(check.found.contains("vllm (named by team-a/chat)"), "{}", check.found);
    let fix = check.fix.unwrap();
    assert!(fix.contains("kubectl -n team-a edit infd chat") && !fix.contains("helm"), "{fix}");
}

#[test]
fn unusable_keys_are_reported_as_the_condition_of_the_tenant_says() {
    let keys = |condition: &str| {
        let mut f = working();
        f.quotas = Read::Got(vec![quota(condition)]);
        check(&f, "API keys")
    };
    let check =
        keys("{type: KeysUsable, status: 'False', reason: KeyNotAHash, message: 'Secret team-a-keys: no hash.'}");
    assert_eq!(check.finding, Finding::Warn);
    assert_eq!(check.found, "team-a (KeyNotAHash): Secret team-a-keys: no hash.");
    let check = keys("{type: Accepted, status: 'True', reason: Accepted, message: ''}");
    assert_eq!(check.finding, Finding::Warn);
    assert!(check.found.contains("no gateway has reported on the keys of team-a"), "{}", check.found);
}

#[test]
fn object_whose_deployment_is_gone_is_listed_with_the_command_that_deletes_it() {
    let mut f = working();
    let mut alone = owned("pod", "chat-b", "1234");
    alone.meta.owner_references = None;
    f.owned = Read::Got(vec![owned("pod", "chat-a", "1234"), alone, owned("resourceclaim", "stowage-chat-b", "gone")]);
    let check = check(&f, "leftovers");
    assert_eq!(check.finding, Finding::Warn);
    assert!(check.found.contains("pod team-a/chat-b") && !check.found.contains("chat-a"), "{}", check.found);
    assert_eq!(check.fix.as_deref(), Some("kubectl -n team-a delete pod/chat-b resourceclaim/stowage-chat-b"));
}

#[test]
fn remedy_of_an_unclassified_gpu_is_a_class_that_is_accepted() {
    let mut f = working();
    f.classes = Read::Got(Vec::new());
    let fix = check(&f, "GpuClasses").fix.unwrap();
    let json = fix.strip_prefix("echo '").unwrap().strip_suffix("' | kubectl apply -f -").unwrap();
    let class: GpuClass = serde_json::from_str(json).unwrap();
    assert_eq!(class.metadata.name.as_deref(), Some("h100-80gb-hbm3"));
    stowage_crds::validate::validate_class(&class.spec).unwrap();
}

#[test]
fn policies_are_those_of_the_chart() {
    let chart = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/golden/stowage.yaml")).unwrap();
    let documents = chart.split("\n---").filter(|document| document.contains("\nkind: ValidatingAdmissionPolicy\n"));
    let mut found: Vec<&str> =
        documents.filter_map(|document| document.lines().find_map(|line| line.strip_prefix("  name: "))).collect();
    let mut wanted = POLICIES.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

#[test]
fn every_fault_is_noticed_by_its_check() {
    notices("kubernetes", Finding::Warn, |f| f.version = (1, 35, "v1.35.0".into()));
    notices("kubernetes", Finding::Warn, |f| f.version = (1, 34, "v1.34.0".into()));
    notices("kubernetes", Finding::Fail, |f| f.version = (1, 33, "v1.33.0".into()));
    notices("device API", Finding::Fail, |f| f.dra = Read::Got(false));
    notices("CRDs", Finding::Fail, |f| {
        if let Read::Got(list) = &mut f.crds {
            list.pop();
        }
    });
    notices("DeviceClass", Finding::Fail, |f| f.device_class = Read::Absent);
    notices("policies", Finding::Fail, |f| f.bindings = Read::Got(vec![]));
    notices("policies", Finding::Unknown, |f| {
        f.policies = Read::Failed(crate::cluster::Unreadable { message: "forbidden".into(), forbidden: true })
    });
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
            "{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {name: x, namespace: unlisted}, \
             spec: {model: {source: {image: {reference: r, path: /m}}}, variants: [{name: v, class: h100-80g}]}}",
        )]);
    });
}
