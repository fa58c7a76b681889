//! What other pods, other users and other tenants must not be able to do; beside each, what is allowed.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use stowage_contracts::names;

use crate::tools::cluster::{Cluster, condition, text, wait_for};
use crate::tools::http::Caller;
use crate::tools::parts::{agents, gateways};
use crate::tools::process;
use crate::tools::world::{NODES, SYSTEM, Tenant, Wish, World};

const PROBE_IMAGE: &str = "localhost/stowage/probe:dev";

fn claim(namespace: &str, name: &str, request: &Value) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": {"requests": [request]}}})
}

/// A pod that `restricted` admits.
fn pod(namespace: &str, name: &str, overlay: &Value) -> Value {
    let security = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
    let mut container = json!({"name": "c", "image": PROBE_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sleep", "3600"], "securityContext": security});
    let mut spec = json!({"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false});
    for (key, value) in overlay.as_object().into_iter().flatten() {
        if key == "resources" { container["resources"] = value.clone() } else { spec[key] = value.clone() }
    }
    spec["containers"] = json!([container]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// A user bound to the stock role `edit` in the tenant's namespace.
pub async fn editor(w: &World, tenant: &Tenant) -> anyhow::Result<Cluster> {
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "editor", "namespace": tenant.name},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "edit", "apiGroup": "rbac.authorization.k8s.io"}});
    w.cluster().apply_value(&tenant.name, &binding).await?;
    w.cluster().impersonate("eve", &["system:authenticated"]).await
}

/// Refused, and with one of these words.
pub fn must_refuse(what: &str, result: Result<Value, kube::Error>, words: &[&str]) -> anyhow::Result<()> {
    match result {
        Ok(_) => bail!("{what}: admitted"),
        Err(e) => {
            let error = e.to_string();
            ensure!(words.iter().any(|word| error.contains(word)), "{what}: refused, but not with {words:?}: {error}");
            Ok(())
        }
    }
}

pub async fn nobody_but_the_operator_gets_a_gpu_of_our_class(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let ns = tenant.name.as_str();
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let ours = w.claims(&tenant, "chat").await?.first().map(|c| text(c, "/metadata/name")).context("no claim")?;
    let exactly = json!({"name": "g", "exactly": {"deviceClassName": "stowage-gpu"}});
    let first = json!({"name": "g", "firstAvailable": [{"name": "x", "deviceClassName": "stowage-gpu"}]});
    let admin = w.cluster();
    let eve = editor(&w, &tenant).await?;
    for (who, as_user) in [("cluster admin", admin), ("editor of the namespace", &eve)] {
        // The role `edit` of Kubernetes 1.36 may make claims and templates: the policies refuse, for either of the two.
        let refused = |what: &str, result| must_refuse(&format!("{who}: {what}"), result, &["operator"]);
        refused("claim of our class", as_user.create(ns, &claim(ns, "mine", &exactly)).await)?;
        refused("claim with firstAvailable", as_user.create(ns, &claim(ns, "mine", &first)).await)?;
        let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "t", "namespace": ns},
            "spec": {"spec": {"devices": {"requests": [exactly]}}}});
        refused("template of our class", as_user.create(ns, &template).await)?;
        let join = json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": ours}], "resources": {"claims": [{"name": "gpu"}]}});
        refused("pod that names our claim", as_user.create(ns, &pod(ns, "join", &join)).await)?;
        let limit = json!({"resources": {"limits": {"deviceclass.resource.kubernetes.io/stowage-gpu": "1"}}});
        refused("pod with the extended resource", as_user.create(ns, &pod(ns, "extended", &limit)).await)?;
    }
    // Beside it: the operator may, and an ordinary pod is admitted.
    let operator = w
        .cluster()
        .impersonate(
            &names::operator_username(),
            &["system:serviceaccounts", "system:serviceaccounts:stowage-system", "system:authenticated"],
        )
        .await?;
    operator.create(ns, &claim(ns, "stowage-allowed", &exactly)).await.context("the operator's own claim")?;
    w.cluster().delete("ResourceClaim", ns, "stowage-allowed").await?;
    eve.create(ns, &pod(ns, "plain", &json!({}))).await.context("a plain pod")?;
    Ok(())
}

pub async fn an_agent_writes_only_its_own_node(w: World) -> anyhow::Result<()> {
    let nodes: Vec<String> =
        w.cluster().list("Node", "", "").await?.iter().map(|n| text(n, "/metadata/name")).collect();
    ensure!(nodes.len() >= 2, "this test needs two nodes");
    let agent = agent_of(&w, &nodes[0]).await?;
    for (node, allowed) in [(&nodes[0], true), (&nodes[1], false)] {
        let patch = json!({"metadata": {"annotations": {"e2e.stowage.dev/touched": "yes"}}});
        let result = agent.merge("GpuNode", "", node, &patch).await;
        match (allowed, result) {
            (true, Err(e)) => bail!("an agent may not write its own GpuNode: {e:#}"),
            (false, Ok(())) => bail!("an agent wrote the GpuNode of another node"),
            (false, Err(e)) => {
                ensure!(format!("{e:#}").contains("may not write GpuNode"), "refused without naming the reason: {e:#}")
            }
            _ => {}
        }
    }
    for (node, allowed) in [(&nodes[0], true), (&nodes[1], false)] {
        let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": w.unique(node)},
            "spec": {"driver": names::DRIVER, "nodeName": node, "devices": [],
                "pool": {"name": w.unique("pool"), "generation": 1, "resourceSliceCount": 1}}});
        w.also_remove("ResourceSlice", "", &w.unique(node));
        match (allowed, agent.create("", &slice).await) {
            (true, Err(e)) => bail!("an agent may not publish a ResourceSlice of its own node: {e:#}"),
            (false, result) => {
                must_refuse("a ResourceSlice of another node", result, &["may not write a ResourceSlice of node"])?
            }
            _ => {}
        }
    }
    Ok(())
}

/// The API as the agent of one node: its service account with the node-bound token's extra.
async fn agent_of(w: &World, node: &str) -> anyhow::Result<Cluster> {
    use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
    let pods = w.cluster().list("Pod", NODES, "app.kubernetes.io/name=stowage-node-agent").await?;
    let pod = pods.iter().find(|p| text(p, "/spec/nodeName") == node).context("no agent on the node")?;
    let bound = BoundObjectReference {
        kind: Some("Pod".into()),
        api_version: Some("v1".into()),
        name: Some(text(pod, "/metadata/name")),
        uid: Some(text(pod, "/metadata/uid")),
    };
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { audiences: None, bound_object_ref: Some(bound), expiration_seconds: Some(600) }),
        ..TokenRequest::default()
    };
    let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
        kube::Api::namespaced(w.cluster().client().clone(), NODES);
    let made = accounts
        .create_token_request("stowage-node-agent", &kube::api::PostParams::default(), &request)
        .await
        .context("ask for a token of the agent's account")?;
    let token = made.status.and_then(|s| s.token).context("the API server gave no token")?;
    Cluster::with_token(&token).await
}

/// Runs `probe get` in a pod of the tenant: the body, or the error.
async fn fetch_from(w: &World, tenant: &Tenant, pod: &str, url: &str) -> anyhow::Result<Result<String, String>> {
    let (code, out, err) =
        w.env.program("kubectl", &["exec", "-n", &tenant.name, pod, "--", "/bin/probe", "get", url]).await?;
    Ok(if code == 0 { Ok(out) } else { Err(err) })
}

fn address(pod: &Value, port: u16, path: &str) -> String {
    format!("http://{}:{port}{path}", text(pod, "/status/podIP"))
}

pub async fn a_pod_of_another_tenant_reaches_no_engine_agent_or_operator(w: World) -> anyhow::Result<()> {
    let (a, b) = (w.tenant("a").await?, w.tenant("b").await?);
    w.deploy_ready(&a, "chat", &Wish::default()).await?;
    w.cluster().apply_value(&b.name, &pod(&b.name, "other", &json!({}))).await?;
    wait_for("the other tenant's pod to run", Duration::from_secs(30), || async {
        let pod = w.cluster().get("Pod", &b.name, "other").await?.unwrap_or_default();
        Ok(if text(&pod, "/status/phase") == "Running" { Ok(()) } else { Err(pod["status"].to_string()) })
    })
    .await?;
    let mut closed = Vec::new();
    for engine in w.pods(&a, "chat").await? {
        closed.push(address(&engine, names::ENGINE_PORT, names::PATH_HEALTHZ));
    }
    for agent in agents(&w).await? {
        closed.push(address(&agent, names::NODE_AGENT_ADMIN_PORT, names::PATH_METRICS));
        closed.push(address(&agent, names::METRICS_PORT, names::PATH_METRICS));
    }
    for operator in w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-operator").await? {
        closed.push(address(&operator, names::OPERATOR_ADMIN_PORT, names::PATH_DECISIONS));
        closed.push(address(&operator, names::METRICS_PORT, names::PATH_METRICS));
    }
    for gateway in w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-gateway").await? {
        closed.push(address(&gateway, names::GATEWAY_ADMIN_PORT, names::PATH_SIGNALS));
        closed.push(address(&gateway, names::METRICS_PORT, names::PATH_METRICS));
    }
    for url in &closed {
        match fetch_from(&w, &b, "other", url).await? {
            Ok(body) => bail!("the other tenant's pod reached {url}: {}", body.chars().take(80).collect::<String>()),
            // Not another reason, such as a program that did not start.
            Err(why) => ensure!(why.contains("deadline exceeded") || why.contains("refused"), "{url}: {why}"),
        }
    }
    // Beside it: the same pod reaches the gateway.
    let gateway = w.cluster().get("Service", SYSTEM, "stowage-gateway").await?.context("no gateway Service")?;
    let url = format!("http://{}/healthz", text(&gateway, "/spec/clusterIP"));
    fetch_from(&w, &b, "other", &url)
        .await?
        .map_err(|e| anyhow::anyhow!("the gateway is not reachable from a pod: {e}"))?;
    Ok(())
}

pub async fn keys_decide_who_asks_and_what_they_see(w: World) -> anyhow::Result<()> {
    let (a, b) = (w.tenant("a").await?, w.tenant("b").await?);
    w.deploy_ready(&a, "mine", &Wish::default()).await?;
    w.answers(&a, "mine").await?;
    let wrong = Caller::new(&w.env.url, "sk-wrong")?;
    let none = Caller::new(&w.env.url, "")?;
    for (what, caller, status) in
        [("wrong key", &wrong, 401), ("no key", &none, 401), ("another tenant's key", &b.caller, 404)]
    {
        let answer = caller.chat("mine", "hello", 4).await?;
        ensure!(answer.status == status, "{what}: {} {}", answer.status, answer.body);
        ensure!(answer.body["error"]["message"].is_string(), "{what}: no OpenAI error: {}", answer.body);
    }
    let unknown = b.caller.chat("no-such-model", "hello", 4).await?;
    let theirs = b.caller.chat("mine", "hello", 4).await?;
    ensure!(
        theirs.body.to_string().replace("mine", "M") == unknown.body.to_string().replace("no-such-model", "M"),
        "a hidden model and one that does not exist can be distinguished: {} {}",
        theirs.body,
        unknown.body
    );
    let models = b.caller.get("/v1/models").await?;
    ensure!(models.body["data"].as_array().is_some_and(Vec::is_empty), "models of b: {}", models.body);
    // Refused even beside a good one: it is in a proxy's log now.
    for caller in [&none, &a.caller] {
        let path = format!("/v1/chat/completions?api_key={}", a.caller.key);
        let query = caller.post(&path, &crate::tools::http::chat_body("mine", "hi", 4)).await?;
        let refused = query.status == 401 && query.body.to_string().contains("URL");
        ensure!(refused, "a key in the query string: {} {}", query.status, query.body);
    }
    // Revoked: the Secret's key changes, and within two seconds the old one is worth nothing.
    w.keys(&a.name, &[("test", "sk-another")]).await?;
    let revoked = Instant::now();
    let header = format!("authorization: Bearer {}", a.caller.key);
    for gateway in gateways(&w).await? {
        let left = Duration::from_secs(2).saturating_sub(revoked.elapsed());
        wait_for("the revoked key to be refused by every gateway", left, || async {
            let ask = ["-H", &header, "http://127.0.0.1:8080/v1/models"];
            let (status, _) = process::ask_inside(gateway, &ask).await?;
            Ok(if status == 401 { Ok(()) } else { Err(status.to_string()) })
        })
        .await?;
    }
    Ok(())
}

/// One Secret is missing, one has another type, one holds a key in plain text, one nothing, and one another tenant's key.
pub async fn keys_that_give_no_access_are_named_and_their_values_are_not(w: World) -> anyhow::Result<()> {
    let (a, b) = (w.tenant("a").await?, w.tenant("b").await?);
    let plain = "sk-in-plain-text";
    let usable = |tenant: &str, status: &str, reason: &str, part: &str| {
        let (w, tenant, what) = (w.clone(), tenant.to_owned(), format!("KeysUsable={status} {reason} {part}"));
        let (status, reason, part) = (status.to_owned(), reason.to_owned(), part.to_owned());
        async move {
            wait_for(&what, Duration::from_secs(20), || async {
                let quota = w.cluster().get("TenantQuota", "", &tenant).await?.unwrap_or_default();
                let found = condition(&quota, "KeysUsable");
                let as_wanted =
                    found.as_ref().is_some_and(|(s, r, m)| *s == status && *r == reason && m.contains(&part));
                let leaked = quota["status"].to_string().contains(plain);
                ensure!(!leaked, "the value of a key is in the status: {}", quota["status"]);
                Ok(if as_wanted { Ok(()) } else { Err(format!("{found:?}")) })
            })
            .await
        }
    };
    usable(&a.name, "True", "KeysUsable", "").await?;
    let secret = b.name.clone();
    let write = |kind: &str, data: Value| {
        let object = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "stringData": data,
            "metadata": {"name": secret, "namespace": SYSTEM}});
        let (w, secret) = (w.clone(), secret.clone());
        async move {
            w.cluster().delete("Secret", SYSTEM, &secret).await?;
            w.cluster().create(SYSTEM, &object).await.context("write the Secret")
        }
    };
    let hash = |key: &str| {
        use sha2::Digest;
        crate::tools::world::hex(&sha2::Sha256::digest(key.as_bytes()))
    };
    write(names::API_KEYS_SECRET_TYPE, json!({"test": plain})).await?;
    usable(&b.name, "False", "KeyNotAHash", "the value of test").await?;
    write(names::API_KEYS_SECRET_TYPE, json!({"test": hash(&a.caller.key)})).await?;
    usable(&b.name, "False", "KeyTaken", "test is a key of another tenant").await?;
    write(names::API_KEYS_SECRET_TYPE, json!({})).await?;
    usable(&b.name, "False", "NoKey", "it holds no key").await?;
    write("Opaque", json!({"test": hash("sk-other")})).await?;
    usable(&b.name, "False", "SecretNotFound", &secret).await?;
    write(names::API_KEYS_SECRET_TYPE, json!({"test": hash("sk-other")})).await?;
    usable(&b.name, "True", "KeysUsable", "").await
}

pub async fn private_routes_of_the_engine_cannot_be_reached_through_the_gateway(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    let port = tenant.caller.url.trim_start_matches("http://").to_owned();
    for path in [
        "/metrics",
        "/stowage/v1/load",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "//metrics",
        "/v1//models",
        "/v1/chat/completions/../../../stowage/v1/load",
        "/stowage%2fv1%2fload",
        "/%6detrics",
    ] {
        let status = raw_get(&port, path, &tenant.caller.key).await?;
        ensure!(status == 404 || status == 400, "{path} answered {status}");
    }
    Ok(())
}

/// GET with the path exactly as given: HTTP clients tidy paths before they send them.
async fn raw_get(address: &str, path: &str, key: &str) -> anyhow::Result<u16> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connect to the gateway")?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("read the answer")?;
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("no status in {line:.60}"))
}

pub async fn no_token_is_cached_across_tenants(w: World) -> anyhow::Result<()> {
    let (a, b) = (w.tenant("a").await?, w.tenant("b").await?);
    let shared = json!({"model": {"access": {"tenants": [b.name]}}});
    w.deploy_ready(&a, "chat", &Wish::default().overlay(shared)).await?;
    w.answers(&a, "chat").await?;
    let question = "The harbour master keeps a long ledger of ships, cargoes, tides and winds. ".repeat(8);
    let cached = |answer: &crate::tools::http::Answer| {
        answer.body.pointer("/usage/prompt_tokens_details/cached_tokens").and_then(Value::as_u64).unwrap_or(0)
    };
    let qualified = format!("{}/chat", a.name);
    let ask = async |t: &Tenant| -> anyhow::Result<u64> {
        let model = if t.name == a.name { "chat" } else { &qualified };
        let answer = t.caller.chat(model, &question, 4).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        Ok(cached(&answer))
    };
    ask(&a).await?;
    let again = ask(&a).await?;
    ensure!(again > 0, "the same tenant's second question hit no cached token: the test proves nothing");
    // Not by asking: b's own first question would share the chat template's beginning with its second.
    wait_for("b to see the model", Duration::from_secs(10), || async {
        let models = b.caller.get("/v1/models").await?.body;
        let seen = models["data"].as_array().is_some_and(|m| m.iter().any(|m| m["id"] == qualified));
        Ok(if seen { Ok(()) } else { Err(models.to_string()) })
    })
    .await?;
    let other = ask(&b).await?;
    ensure!(other == 0, "{other} tokens of another tenant were served from the cache");
    Ok(())
}
