//! The operator beside others: an API server that refuses its pods, objects of other owners, objects
//! that no deployment owns any more, tenants that lose their quota.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use stowage_operator::serve::published::Basis;
use support::{
    Link, Server, cluster, condition, deployment, history_is_clean, key, nothing_left, operator, patch, put, says,
    serves, until,
};

fn uids(server: &Server, plural: &str) -> Vec<Value> {
    server.store().of(plural).iter().map(|object| object["metadata"]["uid"].clone()).collect()
}

/// Notes of the events with this reason.
fn events(server: &Server, reason: &str) -> Vec<String> {
    let store = server.store();
    let of_reason = store.of("events").into_iter().filter(|event| event["reason"] == reason);
    of_reason.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn refused_at_least(server: &Server, count: u64) {
    until(server, "refusals", |_| server.refusals() >= count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_pod_is_reported_once_and_nothing_is_made_for_it_until_the_cause_changes() {
    let server = cluster();
    let life = server.live();
    let link = Link::default();
    server.refuse("pods", Some("exceeded quota: rq, requested: pods=1, used: pods=0, limited: pods=0"));
    deployment(&server, "chat", 1);
    let operator = operator(&server, &link).await;
    refused_at_least(&server, 4).await;
    says(
        &server,
        "chat",
        "Ready",
        "False ApiRefused: 0 of 1 replicas take requests. The API server refuses to create pod: exceeded quota: rq",
    )
    .await;
    says(&server, "chat", "Stalled", "Raise the ResourceQuota or free what it counts").await;
    assert_eq!(condition(&server, "chat", "Reconciling"), "", "never beside Stalled");
    let of_deployment: Vec<String> = link.writes().into_iter().filter(|write| write.contains("chat")).collect();
    assert!(of_deployment.iter().all(|write| write.ends_with("/status")), "{of_deployment:?}");
    assert!(of_deployment.len() <= 3, "the status is written when it changes: {of_deployment:?}");
    assert_eq!(events(&server, "ApiRefused").len(), 1);
    server.refuse("pods", None);
    server.act(|store| {
        put(
            store,
            "resourcequotas",
            "team-a",
            "{apiVersion: v1, kind: ResourceQuota, metadata: {name: rq, namespace: team-a}}",
        )
    });
    until(&server, "one replica once the quota changed", serves(1)).await;
    says(&server, "chat", "Ready", "True OnTarget").await;
    assert_eq!(condition(&server, "chat", "Stalled"), "");
    history_is_clean(&server);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_creations_of_a_tenant_do_not_hold_up_what_ends() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "z", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "z serves", serves(1)).await;
    server.slow(2_000);
    (0..15).for_each(|n| deployment(&server, &format!("a-{n:02}"), 1));
    until(&server, "all lanes are taken", |_| server.slowed() >= 4).await;
    patch(&server, "z", json!({"spec": {"replicas": 0}}));
    let pods = |name: &str| {
        let store = server.store();
        let of = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|found| found.starts_with(name));
        store.of("pods").into_iter().filter(of).cloned().collect::<Vec<_>>()
    };
    let ends = |pod: &Value| {
        !pod["metadata"]["annotations"]["stowage.dev/draining"].is_null()
            || !pod["metadata"]["deletionTimestamp"].is_null()
    };
    until(&server, "z ends", |_| pods("z").iter().all(ends)).await;
    let created = pods("a-").len();
    assert!(created < 4, "{created} of 15 were created first");
    let claims = || {
        server
            .store()
            .of("resourceclaims")
            .iter()
            .filter(|claim| claim["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("stowage-z-")))
            .count()
    };
    until(&server, "z gives its GPU back", |_| claims() == 0).await;
    let created = pods("a-").len();
    assert!(created < 12, "{created} of 15 were created before a GPU was given back");
    until(&server, "all others are created", |_| pods("a-").len() == 15).await;
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decision_of_a_creation_that_waited_for_its_turn_is_in_the_status() {
    let server = cluster();
    let life = server.live();
    server.slow(200);
    (0..14).for_each(|n| deployment(&server, &format!("a-{n:02}"), 1));
    let operator = operator(&server, &Link::default()).await;
    let actions = || {
        let store = server.store();
        let action = |d: &&Value| d["status"]["decision"]["action"].as_str().unwrap_or_default().to_owned();
        store.of("inferencedeployments").iter().map(action).collect::<Vec<_>>()
    };
    until(&server, "all serve", |now| now.ready && now.claims == 14).await;
    until(&server, "each says that it was created", |_| actions().iter().all(|action| action == "Create")).await;
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_policy_starts_no_pod_and_a_refused_deployment_can_be_deleted() {
    let server = cluster();
    let life = server.live();
    server.refuse("networkpolicies", Some("exceeded quota: no-netpol"));
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    says(&server, "chat", "Ready", "The API server refuses to create the NetworkPolicy: exceeded quota: no-netpol")
        .await;
    assert!(server.store().of("pods").is_empty() && server.store().of("resourceclaims").is_empty());
    server.act(|store| store.delete(&key("inferencedeployments", "chat"), None).unwrap());
    until(&server, "deleted although refused", nothing_left).await;
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_other_owners_are_never_changed_and_a_clash_is_reported() {
    let server = cluster();
    let life = server.live();
    let foreign = |version: &str, kind: &str, name: &str| {
        let meta = json!({"name": name, "namespace": "team-a", "labels": {"owner": "web-team"}});
        json!({"apiVersion": version, "kind": kind, "metadata": meta, "spec": {"podSelector": {}}}).to_string()
    };
    let (same_name, clash) = server.act(|store| {
        let same_name = put(store, "services", "team-a", &foreign("v1", "Service", "chat"));
        (
            same_name,
            put(store, "networkpolicies", "team-a", &foreign("networking.k8s.io/v1", "NetworkPolicy", "stowage-chat")),
        )
    });
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    says(&server, "chat", "Ready", "False NameClash: ").await;
    says(&server, "chat", "Stalled", "NetworkPolicy stowage-chat exists and does not belong to this deployment").await;
    assert!(server.store().of("pods").is_empty(), "no engine without its policy");
    let now = |plural: &str, name: &str| server.store().get(&key(plural, name)).cloned();
    assert_eq!(now("networkpolicies", "stowage-chat"), Some(clash));
    server.act(|store| store.remove(&key("networkpolicies", "stowage-chat")));
    until(&server, "one replica once the name is free", |now| now.ready && now.pods.len() == 1).await;
    server.act(|store| store.delete(&key("inferencedeployments", "chat"), None).unwrap());
    until(&server, "only the other owner's Service is left", |now| now.pods.is_empty() && now.deployments == 0).await;
    until(&server, "the shared objects are gone", |now| now.services == 1 && now.policies == 0 && now.budgets == 0)
        .await;
    assert_eq!(now("services", "chat"), Some(same_name));
    operator.stop().await;
    life.abort();
}

/// Deletes as `kubectl delete --cascade=orphan` does.
fn orphan(server: &Server, name: &str) {
    server.act(|store| {
        let key = key("inferencedeployments", name);
        let mut object = store.get(&key).unwrap().clone();
        object["metadata"]["finalizers"].as_array_mut().unwrap().push(json!("orphan"));
        store.change(&key, object);
        store.delete(&key, None).unwrap()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_go_on_and_are_adopted_by_a_deployment_of_the_same_spec() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 2);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "two replicas", serves(2)).await;
    let (pods, claims) = (uids(&server, "pods"), uids(&server, "resourceclaims"));
    orphan(&server, "chat");
    until(&server, "only the deployment is gone", |now| now.deployments == 0).await;
    assert_eq!((uids(&server, "pods"), uids(&server, "resourceclaims")), (pods.clone(), claims.clone()));
    deployment(&server, "chat", 2);
    says(&server, "chat", "Ready", "True OnTarget").await;
    let owner = uids(&server, "inferencedeployments")[0].clone();
    let adopted = |plural: &str| {
        server.store().of(plural).iter().all(|object| object["metadata"]["ownerReferences"][0]["uid"] == owner)
    };
    for plural in ["pods", "resourceclaims", "services", "networkpolicies", "poddisruptionbudgets"] {
        until(&server, plural, |_| adopted(plural)).await;
    }
    assert_eq!((uids(&server, "pods"), uids(&server, "resourceclaims")), (pods, claims), "the same ones");
    assert!(serves(2)(&support::summary(&server)));
    operator.stop().await;
    life.abort();
}

/// The garbage collector takes the owner off, and that shows before the deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_of_a_deployment_whose_deletion_does_not_show_yet_are_left_alone() {
    for other_spec in [false, true] {
        let server = cluster();
        let life = server.live();
        deployment(&server, "chat", 1);
        let operator = operator(&server, &Link::default()).await;
        until(&server, "one replica", serves(1)).await;
        if other_spec {
            server.refuse("pods", Some("no room"));
            patch(&server, "chat", json!({"spec": {"model": {"source": {"image": {"path": "/other.gguf"}}}}}));
            refused_at_least(&server, 1).await;
        }
        let all = || {
            ["pods", "resourceclaims", "services", "networkpolicies", "poddisruptionbudgets"]
                .map(|plural| uids(&server, plural))
        };
        let before = all();
        server.lag_of("inferencedeployments", 3_000);
        orphan(&server, "chat");
        until(&server, "only the deployment is gone", |now| now.deployments == 0).await;
        let known = |basis: &Basis| !basis.view.deployments.is_empty();
        let published = operator.published.clone();
        until(&server, "the deletion shows", |_| !published.borrow().basis.as_deref().is_none_or(known)).await;
        assert_eq!(all(), before, "other spec: {other_spec}");
        operator.stop().await;
        life.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_ended_by_a_deployment_of_another_spec() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "one replica", serves(1)).await;
    let old = uids(&server, "pods");
    orphan(&server, "chat");
    until(&server, "only the deployment is gone", |now| now.deployments == 0).await;
    deployment(&server, "chat", 0);
    patch(&server, "chat", json!({"spec": {"replicas": 1, "model": {"source": {"image": {"path": "/other.gguf"}}}}}));
    until(&server, "one replica of the new spec", |now| serves(1)(now) && uids(&server, "pods") != old).await;
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_whose_image_was_changed_is_replaced_and_reported() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "one replica", serves(1)).await;
    let pod = server.store().of("pods")[0].clone();
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    server.act(|store| {
        let mut changed = pod.clone();
        changed["spec"]["containers"][0]["image"] = json!("evil/engine:1");
        store.change(&key("pods", &name), changed)
    });
    says(&server, "chat", "Degraded", "True PodChanged: ").await;
    until(&server, "replaced", |now| serves(1)(now) && uids(&server, "pods")[0] != pod["metadata"]["uid"]).await;
    assert!(condition(&server, "chat", "Degraded").contains("evil/engine:1"), "shown for a while");
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lowered_quota_ends_nothing_and_a_deleted_one_is_reported_as_such() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 2);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "two replicas", serves(2)).await;
    let (pods, quota) = (uids(&server, "pods"), ("tenantquotas".to_owned(), String::new(), "team-a".to_owned()));
    server.act(|store| {
        store.merge(&quota, json!({"spec": {"gpus": [{"class": "h100-80g", "nominalQuota": "250m"}]}})).unwrap()
    });
    says(
        &server,
        "chat",
        "QuotaReserved",
        "False OverQuota: team-a holds 0.5 h100-80g and may hold 0.25: what runs stays",
    )
    .await;
    says(&server, "chat", "Ready", "True OnTarget").await;
    until(&server, "an event", |_| events(&server, "OverQuota").len() == 1).await;
    server.act(|store| store.remove(&quota));
    says(&server, "chat", "Accepted", "False NoTenant: Namespace team-a belongs to no TenantQuota any more").await;
    says(&server, "chat", "Ready", "False NoTenant: ").await;
    until(&server, "an event", |_| events(&server, "NoTenant").len() == 1).await;
    assert_eq!(uids(&server, "pods"), pods);
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_budget_is_removed_when_the_user_wants_none() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    until(&server, "one replica", serves(1)).await;
    patch(&server, "chat", json!({"metadata": {"annotations": {"stowage.dev/disruption-budget": "none"}}}));
    until(&server, "no budget", |now| now.budgets == 0 && now.ready && now.pods.len() == 1).await;
    operator.stop().await;
    life.abort();
}

/// An editor may put one on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_budget_that_a_finalizer_keeps_holds_nothing_up() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 1);
    let link = Link::default();
    let operator = operator(&server, &link).await;
    until(&server, "one replica", serves(1)).await;
    let budget = server.store().objects.keys().find(|key| key.0 == "poddisruptionbudgets").cloned().unwrap();
    server.act(|store| store.merge(&budget, json!({"metadata": {"finalizers": ["example.org/keep"]}})).unwrap());
    patch(&server, "chat", json!({"metadata": {"annotations": {"stowage.dev/disruption-budget": "none"}}}));
    let ends = || !server.store().get(&budget).unwrap()["metadata"]["deletionTimestamp"].is_null();
    until(&server, "the budget ends", |_| ends()).await;
    patch(&server, "chat", json!({"spec": {"replicas": 2}}));
    until(&server, "another replica", serves(2)).await;
    let deletions = link.writes().iter().filter(|write| write.starts_with("DELETE poddisruptionbudgets")).count();
    assert!(deletions <= 2, "deleted {deletions} times");
    operator.stop().await;
    life.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_without_replicas_is_ready() {
    let server = cluster();
    deployment(&server, "chat", 0);
    let operator = operator(&server, &Link::default()).await;
    says(&server, "chat", "Ready", "True ScaledToZero: ").await;
    assert_eq!(condition(&server, "chat", "Stalled"), "");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_creates_the_key_of_the_salts_once_and_keeps_the_one_that_exists() {
    let server = cluster();
    let stored = || server.store().of("secrets").first().map(|secret| secret["data"]["key"].clone());
    let first = operator(&server, &Link::default()).await;
    until(&server, "a key", |_| stored().is_some()).await;
    let key = stored();
    assert_eq!(key.as_ref().and_then(Value::as_str).map(str::len), Some(44), "32 bytes in base64");
    first.stop().await;
    let link = Link::default();
    let second = operator(&server, &link).await;
    until(&server, "the second tries too", |_| link.keys_created() > 0).await;
    assert_eq!((stored(), server.store().of("secrets").len()), (key, 1));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_request_absurd_amounts_stop_no_other_tenant() {
    let server = cluster();
    let life = server.live();
    server.act(|store| {
        for name in ["p", "q", "r"] {
            let yaml = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: team-b}}, spec: {{nodeName: node1, \
                 containers: [{{name: c, image: i, resources: {{requests: {{cpu: '9223372036854775', memory: '9223372036854775807'}}}}}}]}}}}"
            );
            put(store, "pods", "team-b", &yaml);
        }
    });
    deployment(&server, "chat", 1);
    let operator = operator(&server, &Link::default()).await;
    says(&server, "chat", "Ready", "True OnTarget").await;
    operator.stop().await;
    life.abort();
}
