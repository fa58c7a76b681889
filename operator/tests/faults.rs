//! What goes wrong around the operator: an API server in trouble, a leader cut off, objects that
//! cannot be read, engines and GPUs that fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    GIB, Link, Server, cluster, condition, deployment, history_is_clean, key, nothing_left, operator, patch, put, says,
    serves, until,
};

fn pods(server: &Server) -> Vec<Value> {
    server.store().of("pods").into_iter().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_api_server_is_asked_a_bounded_number_of_times_and_replicas_become_ready() {
    let server = cluster();
    let life = server.live();
    let answers = [Some(500), Some(429), Some(409), None, Some(410), Some(500), Some(503), None, Some(409), Some(429)];
    let link = Link::with_faults(answers.into_iter().cycle().take(40));
    deployment(&server, "chat", 2);
    let started = Instant::now();
    let operator = operator(&server, &link).await;
    until(&server, "two replicas in spite of all", serves(2)).await;
    let minutes = (started.elapsed().as_secs_f64() / 60.0).max(0.25);
    let per_minute = link.requests() as f64 / minutes;
    assert!(per_minute < 600.0, "{} requests in {:?}", link.requests(), started.elapsed());
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_is_cut_off_is_replaced_and_writes_nothing_afterwards() {
    let server = cluster();
    let life = server.live();
    let (old_link, new_link) = (Link::default(), Link::default());
    deployment(&server, "chat", 1);
    let old = operator(&server, &old_link).await;
    until(&server, "one replica", serves(1)).await;
    let new = operator(&server, &new_link).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(new_link.writes(), Vec::<String>::new(), "only the leader writes");
    old_link.cut();
    let (before, cut) = (old_link.writes().len(), Instant::now());
    patch(&server, "chat", json!({"spec": {"replicas": 2}}));
    until(&server, "the other one scales out", serves(2)).await;
    assert!(cut.elapsed() < Duration::from_secs(3 + 4), "{:?}", cut.elapsed());
    assert_eq!(old_link.writes().len(), before);
    history_is_clean(&server);
    old.kill();
    new.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_object_is_reported_and_disturbs_no_other() {
    let server = cluster();
    let life = server.live();
    server.act(|store| {
        put(store, "inferencedeployments", "team-a", "{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {name: broken, namespace: team-a}, spec: {model: 7}}");
        put(store, "tenantquotas", "", "{apiVersion: stowage.dev/v1alpha1, kind: TenantQuota, metadata: {name: odd}, spec: {namespaces: [x], gpus: [{class: a, nominalQuota: '-3'}]}}");
        put(store, "gpuclasses", "", "{apiVersion: stowage.dev/v1alpha1, kind: GpuClass, metadata: {name: none}, spec: {selector: {productNames: [nothing]}}}");
        put(store, "gpunodes", "", "{apiVersion: stowage.dev/v1alpha1, kind: GpuNode, metadata: {name: ghost}, spec: {}, status: {devices: 1}}")
    });
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "the valid one", serves(1)).await;
    says(&server, "broken", "Accepted", "False Malformed").await;
    says(&server, "chat", "Ready", "True OnTarget").await;
    let reason = |plural: &str, name: &str| {
        let key = (plural.to_owned(), String::new(), name.to_owned());
        server.store().get(&key).unwrap()["status"]["conditions"][0]["reason"].clone()
    };
    assert_eq!(reason("tenantquotas", "odd"), "Invalid");
    assert_eq!(reason("gpuclasses", "none"), "SelectsNothing");
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_change_is_refused_and_the_workload_goes_on_serving() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 2);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "two replicas", serves(2)).await;
    let before: Vec<Value> = pods(&server).iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    patch(
        &server,
        "chat",
        json!({"spec": {"variants": [{"name": "small", "class": "no-such-class", "memory": "1Gi"}]}}),
    );
    says(&server, "chat", "Accepted", "False ClassNotFound").await;
    says(&server, "chat", "Ready", "2 of 2 replicas go on").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after: Vec<Value> = pods(&server).iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    assert_eq!(after, before);
    server.act(|store| store.delete(&key("inferencedeployments", "chat"), None).unwrap());
    until(&server, "deleted although refused", nothing_left).await;
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_model_stalls_with_the_message_of_the_engine_and_no_pod_is_recreated() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "one replica", serves(1)).await;
    let pod = pods(&server)[0].clone();
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    server.act(|store| {
        let last = json!({"terminated": {"exitCode": 78, "reason": "Error", "message": "model.gguf: it is truncated. Fetch it again"}});
        let container = json!({"name": "engine", "image": "i", "imageID": "i", "ready": false, "restartCount": 9,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last});
        let mut broken = pod.clone();
        broken["status"] = json!({"phase": "Running", "containerStatuses": [container],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]});
        store.change(&key("pods", &name), broken)
    });
    says(&server, "chat", "Stalled", "True ModelRefused: ").await;
    says(&server, "chat", "Ready", "model.gguf: it is truncated. Fetch it again").await;
    assert_eq!(pods(&server)[0]["metadata"]["uid"], pod["metadata"]["uid"]);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_deleted_by_hand_and_one_on_a_unhealthy_gpu_are_replaced() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "one replica", serves(1)).await;
    let first = pods(&server)[0].clone();
    let name = first["metadata"]["name"].as_str().unwrap();
    server.act(|store| store.delete(&key("pods", name), None).unwrap());
    until(&server, "replaced", |now| serves(1)(now) && pods(&server)[0]["metadata"]["uid"] != first["metadata"]["uid"])
        .await;
    let gpu = |server: &Server| {
        let placement: Value =
            serde_json::from_str(pods(server)[0]["metadata"]["annotations"]["stowage.dev/placement"].as_str().unwrap())
                .unwrap();
        (placement["node"].as_str().unwrap().to_owned(), placement["gpus"][0]["uuid"].as_str().unwrap().to_owned())
    };
    let (node, unhealthy) = gpu(&server);
    server.act(|store| {
        let key = ("gpunodes".to_owned(), String::new(), node);
        let mut object = store.get(&key).unwrap().clone();
        for device in
            object["status"]["devices"].as_array_mut().unwrap().iter_mut().filter(|device| device["uuid"] == *unhealthy)
        {
            device["verdict"] = json!({"health": "Unhealthy", "reason": "Xid", "message": "Xid 79"});
        }
        store.change(&key, object)
    });
    until(&server, "moved off the unhealthy GPU", |now| serves(1)(now) && gpu(&server).1 != unhealthy).await;
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_deployments_share_the_gpus_and_no_share_is_promised_twice() {
    let server = cluster();
    let life = server.live();
    for number in 0..20 {
        deployment(&server, &format!("m{number}"), 1);
    }
    let operator = operator(&server, &Link::default()).await;
    // Four GPUs of 80 GiB and 100 %, slices of 20 GiB and 25 %, and a quota of four GPUs: sixteen fit.
    until(&server, "sixteen of twenty", |now| now.ready && now.claims == 16 && server.store().of("pods").len() == 16)
        .await;
    history_is_clean(&server);
    let placed = server.store().of("resourceclaims").len() as u64;
    assert!(placed * 20 * GIB <= 4 * 80 * GIB);
    let waiting = || {
        (0..20)
            .map(|number| format!("m{number}"))
            // The quota is as large as the cluster, so it is the one that binds.
            .filter(|name| condition(&server, name, "Placed").starts_with("False WaitingForQuota"))
            .collect::<Vec<_>>()
    };
    until(&server, "four say that they wait", |_| waiting().len() == 4).await;
    let waiting = waiting();
    let winner = (0..20).map(|number| format!("m{number}")).find(|name| !waiting.contains(name)).unwrap();
    server.act(|store| store.delete(&key("inferencedeployments", &winner), None).unwrap());
    until(&server, "one that waited takes the place", |now| now.ready && now.deployments == 19 && now.claims == 16)
        .await;
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_watches_double_no_replica() {
    let server = cluster();
    let life = server.live();
    let operator = operator(&server, &Link::default()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.lag(1500);
    for number in 0..6 {
        deployment(&server, &format!("m{number}"), 2);
    }
    until(&server, "twelve replicas", |now| now.ready && now.claims == 12 && pods(&server).len() == 12).await;
    // Several plans are made while the watches still show nothing of it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(pods(&server).len(), 12);
    let created =
        server.store().log.iter().filter(|(_, plural, event, _)| plural == "pods" && *event == "ADDED").count();
    assert_eq!(created, 12, "each pod was made once");
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_leaves_a_cordoned_node_only_when_its_replacement_is_ready() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "one replica", serves(1)).await;
    let least = || {
        let store = server.store();
        let budget = store.of("poddisruptionbudgets")[0].clone();
        assert!(budget["spec"]["maxUnavailable"].is_null(), "{budget}");
        budget["spec"]["minAvailable"].clone()
    };
    assert_eq!(least(), 1);
    let node = pods(&server)[0]["spec"]["nodeName"].as_str().unwrap().to_owned();
    let before = server.store().log.len();
    server.act(|store| {
        let key = ("nodes".to_owned(), String::new(), node.clone());
        let mut object = store.get(&key).unwrap().clone();
        object["spec"]["unschedulable"] = json!(true);
        store.change(&key, object)
    });
    let moved = |now: &support::Summary| {
        serves(1)(now) && pods(&server).iter().all(|pod| pod["spec"]["nodeName"] != node.as_str())
    };
    until(&server, "the replica on the other node", moved).await;
    // At any moment one pod takes requests.
    let mut serving = std::collections::BTreeSet::from([String::from("the first")]);
    for (version, plural, event, object) in server.store().log.iter().skip(before) {
        if plural != "pods" {
            continue;
        }
        let (meta, name) = (&object["metadata"], object["metadata"]["name"].as_str().unwrap().to_owned());
        let takes = *event != "DELETED"
            && meta["deletionTimestamp"].is_null()
            && meta["annotations"]["stowage.dev/draining"].is_null()
            && object["status"]["phase"] == "Running";
        if object["spec"]["nodeName"] == node.as_str() && !takes {
            serving.remove("the first");
        } else if takes {
            serving.insert(name);
        } else {
            serving.remove(&name);
        }
        assert!(!serving.is_empty(), "version {version}: no replica takes requests");
    }
    patch(&server, "chat", json!({"spec": {"replicas": 2}}));
    until(&server, "two replicas", serves(2)).await;
    assert_eq!(least(), 2);
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_that_drains_is_routed_to_again_when_the_count_returns() {
    let server = cluster();
    let life = server.live();
    // It cannot be asked what it has in flight, so that the drain lasts.
    let gateway = "{apiVersion: v1, kind: Pod, metadata: {name: gateway-1, namespace: stowage-system, labels: {app.kubernetes.io/name: stowage-gateway}},
        spec: {}, status: {phase: Running, podIP: 192.0.2.1, conditions: [{type: Ready, status: 'True'}]}}";
    server.act(|store| put(store, "pods", "stowage-system", gateway));
    let replicas = |server: &Server| -> Vec<Value> {
        pods(server).into_iter().filter(|pod| pod["metadata"]["namespace"] == "team-a").collect()
    };
    let draining = |pod: &Value| !pod["metadata"]["annotations"]["stowage.dev/draining"].is_null();
    let serving = |server: &Server, wanted: usize| {
        let all = replicas(server);
        all.len() == wanted && all.iter().all(|pod| pod["status"]["phase"] == "Running" && !draining(pod))
    };
    deployment(&server, "chat", 2);
    patch(&server, "chat", json!({"spec": {"scaling": {"drainTimeout": "600s"}}}));
    let operator = operator(&server, &Link::default()).await;
    until(&server, "two replicas", |_| serving(&server, 2)).await;
    let before = server.store().log.len();
    patch(&server, "chat", json!({"spec": {"replicas": 1}}));
    until(&server, "one of them drains", |_| replicas(&server).iter().any(draining)).await;
    let drains = replicas(&server).into_iter().find(draining).unwrap();
    assert_eq!(drains["metadata"]["annotations"]["stowage.dev/drain-reason"], "ScaleIn");
    patch(&server, "chat", json!({"spec": {"replicas": 2}}));
    until(&server, "both serve again", |_| serving(&server, 2)).await;
    let (drained, now) = (&drains["metadata"]["uid"], replicas(&server));
    let resumed = now.iter().find(|pod| &pod["metadata"]["uid"] == drained).unwrap();
    for mark in ["draining", "drain-until", "drain-reason"] {
        assert!(resumed["metadata"]["annotations"][format!("stowage.dev/{mark}")].is_null(), "{resumed}");
    }
    for (version, plural, event, object) in server.store().log.iter().skip(before).filter(|entry| entry.1 == "pods") {
        assert_eq!(*event, "MODIFIED", "version {version}: no pod comes or goes: {plural} {object}");
        assert!(object["metadata"]["deletionTimestamp"].is_null(), "version {version}: {object}");
    }
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_leave_a_lost_node_and_its_return_doubles_none() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 2);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "two replicas", serves(2)).await;
    let ready = |node: &str, status: &str| {
        let key = ("nodes".to_owned(), String::new(), node.to_owned());
        server.act(|store| {
            let mut object = store.get(&key).unwrap().clone();
            object["status"]["conditions"] = json!([{"type": "Ready", "status": status}]);
            store.change(&key, object)
        });
    };
    let on = |node: &str| pods(&server).iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    let lost = if on("node1") > 0 { "node1" } else { "node2" };
    ready(lost, "Unknown");
    until(&server, "all replicas elsewhere", |now| serves(2)(now) && on(lost) == 0).await;
    ready(lost, "True");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(serves(2)(&support::summary(&server)));
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}
