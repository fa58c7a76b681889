//! Which tenant gets which slice, and the reasons given to those that wait.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::reserved::on;
use crate::tools::cluster::{condition, text};
use crate::tools::world::{NODES, Wish, World};

pub async fn two_tenants_share_one_gpu_and_a_third_waits_with_a_true_counterfactual(w: World) -> anyhow::Result<()> {
    let (a, b, c) = (w.tenant("a").await?, w.tenant("b").await?, w.tenant("c").await?);
    let node = on(w.node()?);
    // Seven whole GPUs of the node are taken first, so that one is left for the three.
    let mut whole = node.clone();
    whole["variants"] = json!([{"name": "whole", "class": "h100-80g", "count": 7}]);
    let filler = w.tenant_with("filler", json!({"gpus": [{"class": "h100-80g", "nominalQuota": "8"}]})).await?;
    w.deploy_ready(&filler, "filler", &Wish::default().overlay(whole)).await?;

    w.deploy_ready(&a, "left", &Wish::default().slice("30Gi", 35).overlay(node.clone())).await?;
    w.deploy_ready(&b, "right", &Wish::default().slice("40Gi", 50).overlay(node.clone())).await?;
    let (left, right) = (w.slices(&a, "left").await?, w.slices(&b, "right").await?);
    ensure!(left.len() == 1 && right.len() == 1, "one slice each: {left:?} {right:?}");
    ensure!(left[0].0 == right[0].0 && !left[0].0.is_empty(), "one GPU for both: {left:?} {right:?}");
    ensure!((left[0].1.as_str(), left[0].2.as_str()) == ("30Gi", "35"), "granted as asked: {left:?}");
    ensure!((right[0].1.as_str(), right[0].2.as_str()) == ("40Gi", "50"), "granted as asked: {right:?}");

    w.deploy(&c, "third", &Wish::default().slice("10Gi", 20).overlay(node)).await?;
    let waiting = w
        .until(&c, "third", "refused with a reason", Duration::from_secs(20), |o| {
            condition(o, "Placed")
                .is_some_and(|(status, reason, message)| status == "False" && !reason.is_empty() && !message.is_empty())
        })
        .await?;
    ensure!(w.pods(&c, "third").await?.is_empty(), "a pod exists for a replica that is not placed");
    let counterfactual = text(&waiting, "/status/decision/counterfactual");
    // The other tenant, and none of its deployments.
    let names_it =
        counterfactual.contains(&format!("once tenant {} ends 1 replica", a.name)) && !counterfactual.contains("/left");
    ensure!(names_it, "the counterfactual names another cure than the one that is tried next: {counterfactual}");

    w.cluster().delete("InferenceDeployment", &a.name, "left").await?;
    w.ready(&c, "third", 1).await?;
    let third = w.slices(&c, "third").await?;
    ensure!(third.len() == 1 && third[0].0 == right[0].0, "placed on the GPU that became free: {third:?}");
    w.answers(&c, "third").await?;
    Ok(())
}

pub async fn restricted_pod_security_admits_all_but_the_agent(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?; // its namespace enforces `restricted`
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let system = w.cluster().get("Namespace", "", "stowage-system").await?.unwrap_or_default();
    let level = system.pointer("/metadata/labels").and_then(|l| l.get("pod-security.kubernetes.io/enforce")).cloned();
    ensure!(level == Some(json!("restricted")), "stowage-system enforces {level:?}");
    let agents = w.cluster().list("Pod", NODES, "app.kubernetes.io/name=stowage-node-agent").await?;
    ensure!(!agents.is_empty(), "no agent pods");
    // The same agent pod, asked for in a restricted namespace, is refused.
    let mut copy = agents[0].clone();
    (copy["apiVersion"], copy["kind"]) = (json!("v1"), json!("Pod")); // a list's items do not carry them
    copy["metadata"] = json!({"name": "agent-copy", "namespace": tenant.name});
    copy["spec"]["serviceAccountName"] = Value::Null;
    copy["spec"]["serviceAccount"] = Value::Null;
    copy.as_object_mut().map(|o| o.remove("status"));
    match w.cluster().create(&tenant.name, &copy).await {
        Ok(_) => anyhow::bail!("a restricted namespace admitted the agent"),
        Err(e) => ensure!(e.to_string().contains("violates PodSecurity"), "refused for another reason: {e}"),
    }
    Ok(())
}

pub async fn the_drivers_sockets_are_registered_with_every_kubelet(w: World) -> anyhow::Result<()> {
    let nodes = w.cluster().list("Node", "", "").await?;
    let slices = w.cluster().list("ResourceSlice", "", "").await?;
    for node in &nodes {
        let name = text(node, "/metadata/name");
        let ours = slices
            .iter()
            .filter(|s| {
                text(s, "/spec/nodeName") == name && text(s, "/spec/driver") == stowage_contracts::names::DRIVER
            })
            .count();
        ensure!(ours > 0, "no ResourceSlice of ours for {name}");
    }
    // A pod whose claim is prepared on each node proves the registration: the kubelet calls only plugins it knows.
    // On reserved nodes, the tests that have them do the same.
    let tenant = w.tenant("a").await?;
    for name in nodes.iter().map(|n| text(n, "/metadata/name")).filter(|n| !w.env.is_reserved(n)) {
        w.deploy_ready(&tenant, &format!("on-{name}"), &Wish::default().overlay(on(&name))).await?;
    }
    Ok(())
}
