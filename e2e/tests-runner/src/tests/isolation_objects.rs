//! What an editor of a namespace, and code in an engine's container, must not be able to do to the objects
//! that the operator made there; beside each, what is allowed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use serde_json::{Value, json};
use stowage_contracts::names;

use crate::tests::isolation::{editor, must_refuse};
use crate::tools::cluster::{Cluster, text, wait_for};
use crate::tools::world::{Tenant, Wish, World};

/// What admission must refuse in a pod, as a merge patch: subresource ("" is the pod), patch.
fn refused_patches(pod: &Value) -> Vec<(&'static str, &'static str, Value)> {
    let mut containers = pod["spec"]["containers"].clone();
    containers[0]["image"] = json!("localhost/stowage/probe:dev");
    let mut tolerations = pod["spec"]["tolerations"].clone();
    if let Some(list) = tolerations.as_array_mut() {
        list.push(json!({"key": "other", "operator": "Exists"}));
    }
    let mut resized = pod["spec"]["containers"].clone();
    resized[0]["resources"]["requests"]["cpu"] = json!("1m");
    // Within the restricted Pod Security level, so that our own policy has to refuse it.
    let debugger = json!([{"name": "debug", "image": "localhost/stowage/probe:dev", "command": ["/bin/sleep", "9"], "targetContainerName": "engine",
        "securityContext": {"allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}]);
    vec![
        ("another image", "", json!({"spec": {"containers": containers}})),
        ("a deadline", "", json!({"spec": {"activeDeadlineSeconds": 1}})),
        ("a further toleration", "", json!({"spec": {"tolerations": tolerations}})),
        ("without managed-by", "", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})),
        ("another managed-by", "", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "eve"}}})),
        ("another deployment", "", json!({"metadata": {"labels": {"stowage.dev/deployment": "other"}}})),
        ("another tenant", "", json!({"metadata": {"labels": {"stowage.dev/tenant": "other"}}})),
        ("a new label of ours", "", json!({"metadata": {"labels": {"stowage.dev/new": "x"}}})),
        ("another placement", "", json!({"metadata": {"annotations": {"stowage.dev/placement": "garbage"}}})),
        ("without placement", "", json!({"metadata": {"annotations": {"stowage.dev/placement": null}}})),
        ("draining", "", json!({"metadata": {"annotations": {"stowage.dev/draining": "2026-01-01T00:00:00Z"}}})),
        ("without owner", "", json!({"metadata": {"ownerReferences": null}})),
        ("a finalizer", "", json!({"metadata": {"finalizers": ["example.com/keep"]}})),
        ("an ephemeral container", "ephemeralcontainers", json!({"spec": {"ephemeralContainers": debugger}})),
        ("other resources", "resize", json!({"spec": {"containers": resized}})),
        ("another address", "status", json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}})),
    ]
}

/// Rights that a platform may add to `edit`: then admission alone refuses.
async fn with_more_rights(w: &World, tenant: &Tenant) -> anyhow::Result<Cluster> {
    let eve = editor(w, tenant).await?;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "more", "namespace": tenant.name},
        "rules": [
            {"apiGroups": [""], "resources": ["pods/ephemeralcontainers", "pods/resize", "pods/status"], "verbs": ["get", "patch", "update"]},
            {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims", "resourceclaims/status"], "verbs": ["*"]}]});
    w.cluster().apply_value(&tenant.name, &role).await?;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "more", "namespace": tenant.name},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": "more", "apiGroup": "rbac.authorization.k8s.io"}});
    w.cluster().apply_value(&tenant.name, &binding).await?;
    Ok(eve)
}

pub async fn editor_changes_nothing_that_the_operator_set_in_a_pod(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let ns = tenant.name.as_str();
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let pod = w.pods(&tenant, "chat").await?.first().cloned().context("no pod")?;
    let name = text(&pod, "/metadata/name");
    let eve = with_more_rights(&w, &tenant).await?;
    let before = pod.clone();
    for (who, as_user) in [("cluster admin", w.cluster()), ("editor of the namespace", &eve)] {
        for (what, subresource, patch) in refused_patches(&pod) {
            let result = as_user.patch_part("Pod", ns, &name, subresource, &patch).await;
            // Kubernetes itself refuses to resize a pod with a claim, before admission is asked.
            let words = ["of the Stowage operator", "only cpu and memory resources are mutable"];
            must_refuse(&format!("{who}: {what}"), result, &words)?;
        }
        // Beside it: labels and annotations of other domains.
        let note = json!({"metadata": {"labels": {"example.com/team": who.len().to_string()}, "annotations": {"example.com/note": who}}});
        as_user.patch_part("Pod", ns, &name, "", &note).await.with_context(|| format!("{who}: a note on the pod"))?;
    }
    let after = w.cluster().get("Pod", ns, &name).await?.context("the pod is gone")?;
    ensure!(after["spec"] == before["spec"], "the pod's spec changed");
    let groups = ["system:serviceaccounts", "system:serviceaccounts:stowage-system", "system:authenticated"];
    let operator = w.cluster().impersonate(&names::operator_username(), &groups).await?;
    let woken = json!({"metadata": {"annotations": {"stowage.dev/e2e": "yes"}}});
    operator.patch_part("Pod", ns, &name, "", &woken).await.context("the operator's own annotation")?;
    w.answers(&tenant, "chat").await?;
    // Whom the pods belong to may still end one: it is replaced.
    eve.delete("Pod", ns, &name).await.context("delete the pod as editor")?;
    w.until(&tenant, "chat", "replaced", Duration::from_secs(60), |o| text(o, "/status/readyReplicas") == "1").await?;
    Ok(())
}

pub async fn editor_changes_nothing_that_the_operator_set_in_a_claim(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let ns = tenant.name.as_str();
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let claim = w.claims(&tenant, "chat").await?.first().map(|c| text(c, "/metadata/name")).context("no claim")?;
    let eve = with_more_rights(&w, &tenant).await?;
    for (who, as_user) in [("cluster admin", w.cluster()), ("editor with rights on claims", &eve)] {
        for (what, subresource, patch) in [
            ("another tenant", "", json!({"metadata": {"labels": {"stowage.dev/tenant": "other"}}})),
            ("without managed-by", "", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})),
            ("another placement", "", json!({"metadata": {"annotations": {"stowage.dev/placement": "garbage"}}})),
            ("without owner", "", json!({"metadata": {"ownerReferences": null}})),
            ("without finalizers", "", json!({"metadata": {"finalizers": null}})),
            (
                "other users",
                "status",
                json!({"status": {"reservedFor": [{"resource": "pods", "name": "eve", "uid": "1"}]}}),
            ),
        ] {
            let result = as_user.patch_part("ResourceClaim", ns, &claim, subresource, &patch).await;
            // Kubernetes itself refuses other users to whom may not bind claims, before admission is asked.
            let words = ["of the Stowage operator", "are not to be changed", "resourceclaims/binding"];
            must_refuse(&format!("{who}: {what}"), result, &words)?;
        }
        let note = json!({"metadata": {"annotations": {"example.com/note": who}}});
        let noted = as_user.patch_part("ResourceClaim", ns, &claim, "", &note).await;
        noted.with_context(|| format!("{who}: a note on the claim"))?;
        let forged = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": "mine", "namespace": ns, "labels": {"app.kubernetes.io/managed-by": "stowage", "stowage.dev/tenant": "other"}},
            "spec": {"devices": {"requests": [{"name": "g", "exactly": {"deviceClassName": "other"}}]}}});
        must_refuse(&format!("{who}: a claim with our label"), as_user.create(ns, &forged).await, &["label"])?;
    }
    Ok(())
}

/// The stock role alone: an editor makes claims of its own, none that look like ours, and deletes ours without effect
/// before its pod has ended.
pub async fn stock_editor_has_claims_of_its_own_and_none_of_ours(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let ns = tenant.name.as_str();
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let ours = w.claims(&tenant, "chat").await?.first().map(|c| text(c, "/metadata/name")).context("no claim")?;
    let eve = editor(&w, &tenant).await?;
    let claim = |name: &str, labels: Value| {
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": ns, "labels": labels},
            "spec": {"devices": {"requests": [{"name": "g", "exactly": {"deviceClassName": "other"}}]}}})
    };
    let our_label = json!({"app.kubernetes.io/managed-by": "stowage"});
    eve.create(ns, &claim("own", json!({}))).await.context("a claim of the editor's own")?;
    must_refuse(
        "our label, later",
        eve.patch_part("ResourceClaim", ns, "own", "", &json!({"metadata": {"labels": our_label}})).await,
        &["is for claims of the Stowage operator"],
    )?;
    must_refuse(
        "our label",
        eve.create(ns, &claim("other", our_label.clone())).await,
        &["is for claims of the Stowage operator"],
    )?;
    must_refuse(
        "our prefix",
        eve.create(ns, &claim("stowage-mine", json!({}))).await,
        &["names that begin with stowage-"],
    )?;
    // What the controller makes from the editor's template.
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
    let controller =
        w.cluster().impersonate("system:serviceaccount:kube-system:resource-claim-controller", &groups).await?;
    must_refuse(
        "our label from a template",
        controller.create(ns, &claim("made", our_label)).await,
        &["is for claims of the Stowage operator"],
    )?;

    eve.delete("ResourceClaim", ns, &ours).await.context("delete our claim as editor")?;
    let left = w.cluster().get("ResourceClaim", ns, &ours).await?.context("the claim is gone under its pod")?;
    ensure!(left.pointer("/status/allocation").is_some(), "the allocation is gone: {left}");
    w.answers(&tenant, "chat").await?;
    w.cluster().delete("InferenceDeployment", ns, "chat").await?;
    w.gone(&tenant, "chat", Duration::from_secs(60)).await
}

/// Verbs of the stock role `edit` on everything of ours; what it may write is guarded by admission, tested above.
pub async fn stock_edit_role_has_no_right_beyond_the_documented_ones(w: World) -> anyhow::Result<()> {
    const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let tenant = w.tenant("a").await?;
    let eve = editor(&w, &tenant).await?;
    let (all, read, none) = (VERBS.join(" "), "get list watch".to_owned(), String::new());
    let expected = BTreeMap::from([
        ("stowage.dev/inferencedeployments", all.clone()),
        ("stowage.dev/inferencedeployments/status", none.clone()),
        ("stowage.dev/inferencedeployments/finalizers", none.clone()),
        ("stowage.dev/inferencebatches", all.clone()),
        ("stowage.dev/inferenceruntimes", read.clone()),
        ("stowage.dev/gpuclasses", read.clone()),
        ("stowage.dev/tenantquotas", read.clone()),
        ("stowage.dev/tenantquotas/status", none.clone()),
        ("stowage.dev/gpunodes", read.clone()),
        ("stowage.dev/gpunodes/status", none.clone()),
        // Since Kubernetes 1.36; admission guards ours, tested above.
        ("resource.k8s.io/resourceclaims", all.clone()),
        ("resource.k8s.io/resourceclaimtemplates", all.clone()),
        ("resource.k8s.io/resourceclaims/status", read.clone()),
        ("resource.k8s.io/resourceslices", none.clone()),
        ("resource.k8s.io/deviceclasses", none.clone()),
        ("admissionregistration.k8s.io/validatingadmissionpolicies", none.clone()),
        ("admissionregistration.k8s.io/validatingadmissionpolicybindings", none.clone()),
        ("/pods/ephemeralcontainers", none.clone()),
        ("/pods/binding", none.clone()),
        ("/nodes", none),
    ]);
    let mut differ = Vec::new();
    for (resource, expected) in expected {
        let mut found = Vec::new();
        for verb in VERBS {
            if may(&eve, &tenant.name, resource, verb).await? {
                found.push(verb);
            }
        }
        if found.join(" ") != expected {
            differ.push(format!("{resource}: may {found:?}, expected \"{expected}\""));
        }
    }
    ensure!(differ.is_empty(), "rights of the stock role edit:\n{}", differ.join("\n"));
    Ok(())
}

/// Whether this user may, in the namespace. `resource`: group/resource or group/resource/subresource.
async fn may(user: &Cluster, namespace: &str, resource: &str, verb: &str) -> anyhow::Result<bool> {
    let mut parts = resource.splitn(3, '/').map(str::to_owned);
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        group: parts.next(),
        resource: parts.next(),
        subresource: parts.next(),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None },
        ..SelfSubjectAccessReview::default()
    };
    let api: kube::Api<SelfSubjectAccessReview> = kube::Api::all(user.client().clone());
    let answer = api.create(&kube::api::PostParams::default(), &review).await.context("ask for the user's rights")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// A pod with a shell in the place of the engine fills its report directory: that ends at its limit, in the
/// container's own memory, and leaves nothing on the node.
pub async fn hostile_container_fills_only_its_own_report_directory(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let runtime = w.unique("shell");
    w.also_remove("InferenceRuntime", "", &runtime);
    let object = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceRuntime", "metadata": {"name": runtime},
        "spec": {"adapter": "stowage", "version": "0", "image": "localhost/stowage/probe:dev", "imagePullPolicy": "Never",
            "command": ["/bin/sleep"], "args": ["3600"],
            "resources": {"requests": {"memory": "16Mi", "cpu": "10m"}}}});
    w.cluster().apply_value("", &object).await?;
    w.deploy(&tenant, "shell", &Wish::default().overlay(json!({"runtime": {"ref": runtime}}))).await?;
    let pod = wait_for("the shell to run", Duration::from_secs(60), || async {
        let pod = w.pods(&tenant, "shell").await?.first().cloned().unwrap_or_default();
        Ok(if text(&pod, "/status/phase") == "Running" { Ok(pod) } else { Err(pod["status"].to_string()) })
    })
    .await?;
    let name = text(&pod, "/metadata/name");
    let inside = async |script: &str| -> anyhow::Result<String> {
        let shell = ["exec", "-n", &tenant.name, &name, "--", "/bin/sh", "-c", script];
        let (_, out, err) = w.env.program("kubectl", &shell).await?;
        Ok(format!("{out}{err}"))
    };
    let mounted = inside("grep /run/stowage/report /proc/mounts").await?;
    ensure!(mounted.contains("tmpfs") && mounted.contains("size=256k"), "the report directory is {mounted:?}");
    let deep = inside(
        "cd /run/stowage/report && n=0; while mkdir d 2>/dev/null && cd d; do n=$((n + 1)); done; echo levels $n",
    )
    .await?;
    let levels: u32 = deep.trim().strip_prefix("levels ").and_then(|n| n.parse().ok()).with_context(|| deep.clone())?;
    ensure!((1..=32).contains(&levels), "{levels} levels");
    let filled = inside("cd /run/stowage/report && rm -r d; dd if=/dev/zero of=f bs=1k count=4096; ls -l f").await?;
    ensure!(filled.contains("No space left"), "a file of 4 MiB fits: {filled}");
    let devices = inside("echo $NVIDIA_VISIBLE_DEVICES").await?;
    ensure!(devices.trim() == "void", "NVIDIA_VISIBLE_DEVICES is {devices:?}");
    w.cluster().delete("InferenceDeployment", &tenant.name, "shell").await?;
    w.gone(&tenant, "shell", Duration::from_secs(60)).await
}
