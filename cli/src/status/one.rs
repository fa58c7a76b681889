//! One deployment, a screen's worth. Figures that were not measured are left out.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use stowage_crds::conditions::types;
use stowage_crds::deployment_status::{
    Bottleneck, InferenceDeploymentStatus, MemoryEstimate, PlacedGpu, Placement, ServedLoad,
};
use stowage_crds::inference_deployment::PERCENTILE;
use stowage_crds::quantity::{parse_bytes, parse_milli};
use stowage_crds::{GpuNode, TenantQuota, names};
use stowage_planner::render::{bytes, gpus, latency, short_uuid};

use super::list::money;
use super::{View, short_age};
use crate::bottleneck::verdict;
use crate::out::{Paint, Table, Tone};

pub(crate) fn render(view: &View, wide: bool, now: Timestamp, paint: Paint) -> String {
    let name = view.deployment.metadata.name.clone().unwrap_or_default();
    let namespace = view.deployment.metadata.namespace.clone().unwrap_or_default();
    let Some(status) = &view.deployment.status else {
        let next = if view.unread.is_empty() {
            "if this does not change: kubectl stowage doctor"
        } else {
            "if this does not change, ask an administrator of the cluster whether the operator runs"
        };
        return format!("{namespace}/{name}  the operator has written no status yet; {next}\n");
    };
    let mut out = headline(view, status, paint);
    let mut lines: Vec<(&str, String)> = Vec::new();
    lines.extend(conditions(status, wide, paint).into_iter().map(|text| ("state", text)));
    lines.extend(objectives(view, status).map(|text| ("objective", text)));
    lines.extend(status.load.as_ref().map(|found| ("load", load(found))));
    let replicas = replicas(view, status, now, paint);
    if !replicas.is_empty() {
        lines.push(("replicas", replicas));
    }
    lines.extend(view.tenant_quota.as_ref().and_then(budget).map(|text| ("budget", text)));
    lines.extend(view.tenant_quota.as_ref().and_then(keys).map(|text| ("keys", text)));
    lines.extend(status.memory_estimate.as_ref().map(|found| ("memory", estimate(found))));
    lines.extend(status.cost.as_ref().map(|c| ("cost", cost(c))));
    lines.extend(last(status, &namespace, &name, paint).map(|text| ("last", text)));
    if let Some(b) = &status.bottleneck {
        lines.push(("bottleneck", bottleneck(b, paint)));
    }
    lines.extend(status.url.clone().map(|url| ("url", url)));
    if wide {
        lines.extend(effective(status));
    }
    lines.extend(unread(view, wide).into_iter().map(|text| ("not read", text)));
    let mut previous = "";
    for (label, text) in lines {
        let shown = if label == previous { "" } else { label };
        previous = label;
        let text = text.trim_end().replace('\n', &format!("\n{:11}", ""));
        let _ = writeln!(out, "{shown:<10} {text}");
    }
    out
}

/// `TTFT p95 ≤ 800ms (mean 212 ms) · ITL p95 ≤ 60ms (mean 9.1 ms)`: those of the spec, with what was measured.
fn objectives(view: &View, status: &InferenceDeploymentStatus) -> Option<String> {
    let asked = view.deployment.spec.objectives.as_ref()?;
    let each = |name: &str, limit: &Option<String>, micros: Option<u64>| {
        let now = micros.map_or(String::new(), |micros| format!(" (mean {})", latency(micros)));
        limit.as_ref().map(|limit| format!("{name} p{} ≤ {limit}{now}", asked.percentile.unwrap_or(PERCENTILE)))
    };
    let load = status.load.as_ref();
    let ttft = each("TTFT", &asked.ttft, load.map(|load| load.time_to_first_token_micros));
    let itl = each("ITL", &asked.itl, load.map(|load| load.inter_token_micros));
    let both: Vec<String> = ttft.into_iter().chain(itl).collect();
    (!both.is_empty()).then(|| both.join(" · "))
}

fn load(found: &ServedLoad) -> String {
    let ServedLoad { requests_per_second, running, waiting, prefix_hit_percent, .. } = found;
    format!(
        "{requests_per_second} requests/s · {running} running · {waiting} waiting · prefix cache held \
         {prefix_hit_percent} % of the prompt tokens"
    )
}

/// One line; `kubectl stowage bottleneck` has the evidence.
fn bottleneck(found: &Bottleneck, paint: Paint) -> String {
    let advice = found.suggestion.as_ref().map_or(String::new(), |text| format!("; {text}"));
    format!("{}{advice}", verdict(found, paint))
}

/// What `memory: Auto` became.
fn estimate(found: &MemoryEstimate) -> String {
    let MemoryEstimate { key: _, weights, kv_cache, scratch, context_len, sequences, memory } = found;
    let mib = |quantity: &Quantity| match parse_bytes(quantity) {
        Ok(bytes) => format!("{} MiB", bytes.div_ceil(1 << 20)),
        Err(_) => quantity.0.clone(),
    };
    format!(
        "{} (Auto: {} weights, {} KV cache for {sequences} × {context_len} tokens, {} scratch)",
        memory.0,
        mib(weights),
        mib(kv_cache),
        mib(scratch)
    )
}

fn headline(view: &View, status: &InferenceDeploymentStatus, paint: Paint) -> String {
    let d = &view.deployment;
    let model = status.summary.as_ref().map_or("", |s| s.model.as_str());
    let runtime = status.effective.as_ref().and_then(|e| e.runtime.as_deref());
    let runtime = runtime.unwrap_or(&d.spec.runtime.r#ref);
    let ready = condition(status, types::READY);
    let yes = ready.is_some_and(|c| c.status == "True");
    let state = format!(
        "{} {}/{}",
        if yes { "Ready" } else { ready.map_or("Unknown", |c| c.reason.as_str()) },
        status.ready_replicas,
        status.desired_replicas
    );
    format!(
        "{}  {model} on {runtime}    {}, scaling {:?}\n",
        paint.paint(
            Tone::Strong,
            &format!(
                "{}/{}",
                d.metadata.namespace.as_deref().unwrap_or_default(),
                d.metadata.name.as_deref().unwrap_or_default()
            )
        ),
        paint.paint(if yes { Tone::Good } else { Tone::Warn }, &state),
        d.spec.scaling.mode
    )
}

fn condition<'a>(status: &'a InferenceDeploymentStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|c| c.type_ == kind)
}

/// What this account may not read. Wide: with the server's message.
fn unread(view: &View, wide: bool) -> Vec<String> {
    let line = |u: &super::Unread| {
        let message = if wide { format!(" ({})", u.message) } else { String::new() };
        format!("{}; not shown: {}{message}", u.kinds, u.missing)
    };
    view.unread.iter().map(line).collect()
}

/// Conditions that need attention: the always-present ones while they are false, the others while they
/// are true. The same message is shown once. Wide: all.
fn conditions(status: &InferenceDeploymentStatus, wide: bool, paint: Paint) -> Vec<String> {
    let always = [types::ACCEPTED, types::QUOTA_RESERVED, types::PLACED, types::READY];
    let mut shown: Vec<&str> = Vec::new();
    let mut out = Vec::new();
    for c in &status.conditions {
        let wrong = (c.status != "True") == always.contains(&c.type_.as_str());
        if !wide && (!wrong || shown.contains(&c.message.as_str())) {
            continue;
        }
        shown.push(&c.message);
        let head = format!("{}={} {}", c.type_, c.status, c.reason);
        let tone = if wrong { Tone::Warn } else { Tone::Faint };
        out.push(format!("{}: {}", paint.paint(tone, &head), c.message));
    }
    out
}

fn replicas(view: &View, status: &InferenceDeploymentStatus, now: Timestamp, paint: Paint) -> String {
    let mut table = Table::default();
    for p in &status.placements {
        let pod = view.pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(&p.name));
        let state = pod.map_or_else(|| without_pod(view, p), pod_state);
        let good = state == "Ready";
        let age = pod.and_then(|p| p.metadata.creation_timestamp.as_ref()).map(|t| t.0);
        table.row([
            p.name.clone(),
            device(p, &view.gpu_nodes),
            promise(p, &view.gpu_nodes),
            state,
            short_age(age, now),
        ]);
        table.tone(3, if good { Tone::Good } else { Tone::Warn });
    }
    // A pod that is on its way out has no placement any more, but still holds its slice.
    for pod in &view.pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if status.placements.iter().any(|p| p.name == name) {
            continue;
        }
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        let age = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        table.row([name, node, String::new(), pod_state(pod), short_age(age, now)]);
    }
    table.render("", paint)
}

/// The state of a replica whose pod was not found, or not looked for.
fn without_pod(view: &View, p: &Placement) -> String {
    match (view.unread.iter().any(|u| u.kinds == "pods"), p.ready) {
        (false, _) => "no pod".to_owned(),
        (true, true) => "Ready".to_owned(),
        (true, false) => "not Ready".to_owned(),
    }
}

/// `node2 GPU-3f2a1b2c (simulated)`.
fn device(p: &Placement, nodes: &[GpuNode]) -> String {
    let uuids: Vec<String> = p.gpus.iter().map(|g| short_uuid(&g.uuid)).collect();
    let simulated = nodes
        .iter()
        .filter(|n| n.metadata.name.as_deref() == Some(&p.node))
        .any(|n| n.status.as_ref().is_some_and(|s| s.simulated));
    let note = if simulated && !uuids.is_empty() { " (simulated)" } else { "" };
    format!("{} {}{note}", p.node, if uuids.is_empty() { "CPU".to_owned() } else { uuids.join(" ") })
}

/// `2 of 80 GiB promised, 10 % SM`.
fn promise(p: &Placement, nodes: &[GpuNode]) -> String {
    let Some(first) = p.gpus.first() else { return String::new() };
    let Ok(promised) = parse_bytes(&first.memory) else { return String::new() };
    let each = if p.gpus.len() > 1 { " each" } else { "" };
    let of = total(first, nodes).map_or(String::new(), |t| format!(" of {}", bytes(t)));
    format!("{}{of} promised, {} % SM{each}", bytes(promised), first.compute)
}

fn total(gpu: &PlacedGpu, nodes: &[GpuNode]) -> Option<u64> {
    let devices = nodes.iter().filter_map(|n| n.status.as_ref()).flat_map(|s| &s.devices);
    let device = devices.into_iter().find(|d| d.uuid == gpu.uuid)?;
    parse_bytes(&device.memory).ok()
}

/// One word where the pod works; otherwise the reason, and the last line that the engine wrote.
fn pod_state(pod: &Pod) -> String {
    let annotations = pod.metadata.annotations.as_ref();
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".to_owned();
    }
    if annotations.is_some_and(|a| a.contains_key(names::ANNOTATION_DRAINING)) {
        return "Draining".to_owned();
    }
    let Some(status) = &pod.status else { return "Pending".to_owned() };
    let conditions = status.conditions.iter().flatten();
    let engine = status.container_statuses.iter().flatten().find(|c| c.name == names::ENGINE_CONTAINER);
    if let Some(waiting) = engine.and_then(|c| c.state.as_ref()?.waiting.as_ref()) {
        let reason = waiting.reason.clone().unwrap_or_else(|| "Waiting".to_owned());
        return with_message(reason, engine.and_then(last_line).or_else(|| waiting.message.clone()));
    }
    if conditions.clone().any(|c| c.type_ == "Ready" && c.status == "True") {
        return "Ready".to_owned();
    }
    if let Some(c) = conditions.clone().find(|c| c.type_ == "PodScheduled" && c.status != "True") {
        return with_message("not scheduled".to_owned(), c.message.clone());
    }
    let phase = status.phase.clone().unwrap_or_else(|| "Unknown".to_owned());
    if phase == "Running" { "starting".to_owned() } else { with_message(phase, status.message.clone()) }
}

/// What the engine wrote before it ended.
fn last_line(c: &k8s_openapi::api::core::v1::ContainerStatus) -> Option<String> {
    let ended = c.last_state.as_ref()?.terminated.as_ref()?;
    let words = ended.message.as_deref().unwrap_or_default().trim();
    let last = words.lines().last().unwrap_or_default();
    if last.is_empty() {
        return Some(format!("exit code {}", ended.exit_code));
    }
    Some(last.to_owned())
}

fn with_message(reason: String, words: Option<String>) -> String {
    match words.filter(|w| !w.is_empty()) {
        Some(words) => format!("{reason}: {words}"),
        None => reason,
    }
}

/// `team-a: 0.3 of 4 h100-80g guaranteed (0 borrowed)`.
fn budget(quota: &TenantQuota) -> Option<String> {
    let usage = &quota.status.as_ref()?.usage;
    let milli = |q: &_| parse_milli(q).ok();
    let each: Vec<String> = usage
        .iter()
        .filter_map(|u| {
            let nominal = quota.spec.gpus.iter().find(|g| g.class == u.class);
            let nominal = nominal.map_or(Some(0), |g| milli(&g.nominal_quota))?;
            let mut text = format!(
                "{} of {} {} guaranteed, {} borrowed",
                gpus(milli(&u.nominal)?),
                gpus(nominal),
                u.class,
                gpus(milli(&u.borrowed)?)
            );
            let (lent, pending) = (milli(&u.lent)?, milli(&u.pending)?);
            if lent > 0 {
                let _ = write!(text, ", {} lent", gpus(lent));
            }
            if pending > 0 {
                let _ = write!(text, ", {} waiting", gpus(pending));
            }
            Some(text)
        })
        .collect();
    let name = quota.metadata.name.as_deref().unwrap_or_default();
    (!each.is_empty()).then(|| format!("{name}: {}", each.join(" · ")))
}

/// Only while some of the tenant's API keys give no access.
fn keys(quota: &TenantQuota) -> Option<String> {
    let mut conditions = quota.status.as_ref()?.conditions.iter();
    let usable = conditions.find(|condition| condition.type_ == types::KEYS_USABLE)?;
    (usable.status != "True").then(|| format!("KeysUsable={} {}: {}", usable.status, usable.reason, usable.message))
}

fn cost(c: &stowage_crds::deployment_status::Cost) -> String {
    let mut out = format!("{}/h", money(&c.per_hour, &c.currency));
    for (figure, what) in [(&c.per_million_input_tokens, "input"), (&c.per_million_output_tokens, "output")] {
        if let Some(figure) = figure {
            let _ = write!(out, " · {} per million {what} tokens", money(figure, &c.currency));
        }
    }
    out
}

fn last(status: &InferenceDeploymentStatus, namespace: &str, name: &str, paint: Paint) -> Option<String> {
    let d = status.decision.as_ref()?;
    let next = paint.paint(Tone::Faint, &format!("kubectl stowage explain -n {namespace} {name}"));
    let at = d.time.0.strftime("%H:%M:%SZ");
    Some(format!("{at}  {} ({}): {}    {next}", d.action, d.reason, d.message))
}

fn effective(status: &InferenceDeploymentStatus) -> Vec<(&'static str, String)> {
    let Some(e) = &status.effective else { return Vec::new() };
    let mut lines = Vec::new();
    lines.extend(e.image.clone().map(|i| ("image", i)));
    if !e.args.is_empty() {
        lines.push(("args", e.args.join(" ")));
    }
    lines.extend(e.sharing.clone().map(|s| ("sharing", s)));
    lines.extend(e.kv_blocks.map(|n| ("kv blocks", n.to_string())));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::list;
    use super::*;
    use crate::testing::{golden, now, yaml};

    fn view(extra: &str) -> View {
        View {
            deployment: yaml(&format!("{DEPLOYMENT}{extra}")),
            pods: vec![yaml(POD_READY), yaml(POD_BROKEN), yaml(POD_LEAVING)],
            gpu_nodes: vec![yaml(GPU_NODE)],
            tenant_quota: Some(yaml(QUOTA)),
            unread: Vec::new(),
        }
    }

    #[test]
    fn deployment_with_a_failing_replica_shows_reason_and_place() {
        golden("status_one.txt", &render(&view(""), false, now(), Paint::OFF));
    }

    #[test]
    fn wide_status_shows_all_conditions_image_and_arguments() {
        golden("status_one_wide.txt", &render(&view(""), true, now(), Paint::OFF));
    }

    #[test]
    fn list_has_one_line_per_deployment() {
        let all = [yaml(DEPLOYMENT), yaml(UNSEEN)];
        let mut text = list::render(&all, Some("team-a"), false, now(), Paint::OFF);
        text += &list::render(&all, None, true, now(), Paint::OFF);
        text += &list::render(&[], Some("team-a"), false, now(), Paint::OFF);
        golden("status_list.txt", &text);
    }

    #[test]
    fn object_without_status_is_shown_as_not_processed_yet() {
        let mut v = view("");
        v.deployment = yaml(UNSEEN);
        let text = render(&v, false, now(), Paint::OFF);
        assert!(text.contains("has written no status yet") && text.contains("kubectl stowage doctor"), "{text}");
        v.unread = unreadable();
        let text = render(&v, false, now(), Paint::OFF);
        assert!(text.contains("ask an administrator") && !text.contains("doctor"), "{text}");
    }

    #[test]
    fn keys_that_give_no_access_are_shown_with_their_reason() {
        let mut v = view("");
        let quota = QUOTA.replace("status: {", "status: {conditions: [{type: KeysUsable, status: 'False', reason: SecretNotFound, message: 'Secret k: there is none.', lastTransitionTime: 2026-03-01T11:48:00Z}], ");
        v.tenant_quota = Some(yaml(&quota));
        let text = render(&v, false, now(), Paint::OFF);
        assert!(text.contains("keys       KeysUsable=False SecretNotFound: Secret k: there is none."), "{text}");
        assert!(!render(&view(""), false, now(), Paint::OFF).contains("KeysUsable"));
    }

    /// What an account with rights in one namespace gets.
    fn unreadable() -> Vec<super::super::Unread> {
        let message = |kinds: &str| format!("{kinds}.stowage.dev is forbidden: User \"dev\" cannot list resource");
        vec![
            super::super::Unread {
                kinds: "GpuNodes",
                missing: "the size of the GPUs and whether they are simulated",
                message: message("gpunodes"),
            },
            super::super::Unread {
                kinds: "TenantQuotas",
                missing: "the tenant's budget",
                message: message("tenantquotas"),
            },
        ]
    }

    #[test]
    fn status_without_cluster_rights_names_what_is_not_shown() {
        let mut v = view("");
        (v.gpu_nodes, v.tenant_quota, v.unread) = (Vec::new(), None, unreadable());
        let text = render(&v, false, now(), Paint::OFF) + &render(&v, true, now(), Paint::OFF);
        golden("status_without_rights.txt", &text);
    }

    const UNSEEN: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: new, namespace: team-a, creationTimestamp: 2026-03-01T11:59:50Z}
spec:
  model: {source: {image: {reference: 'models/smollm2:q4', path: /model.gguf}}}
  variants: [{name: small, class: h100-80g, memory: 2Gi, compute: 10}]
  scaling: {mode: Manual}
";

    const DEPLOYMENT: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: chat, namespace: team-a, creationTimestamp: 2026-03-01T11:48:00Z, generation: 2}
spec:
  model: {name: smollm2-135m-instruct, source: {image: {reference: 'models/smollm2:q4', path: /model.gguf}}}
  objectives: {ttft: 800ms, itl: 60ms}
  variants: [{name: small, class: h100-80g, memory: 2Gi, compute: 10}]
  replicas: 3
  scaling: {mode: Manual}
status:
  load: {requestsPerSecond: '41.2', running: 118, waiting: 14, timeToFirstTokenMicros: 1212000, interTokenMicros: 9140, prefixHitPercent: 63}
  bottleneck: {stage: Queue, sharePercent: 71, evidence: 'queue 71 %', suggestion: 'replicas: 4 instead of 3; predicted time to first token 98.0 ms'}
  observedGeneration: 2
  replicas: 2
  readyReplicas: 1
  desiredReplicas: 3
  summary: {model: smollm2-135m-instruct, ready: 1/3, gpus: '0.2', class: h100-80g}
  conditions:
  - {type: Accepted, status: 'True', reason: Accepted, message: The spec is understood and honoured in full., lastTransitionTime: 2026-03-01T11:48:00Z}
  - {type: QuotaReserved, status: 'True', reason: WithinNominal, message: The guaranteed quota covers 3 replicas., lastTransitionTime: 2026-03-01T11:48:00Z}
  - {type: Placed, status: 'False', reason: WaitingForGPU, message: 'No node fits 1 × h100-80g 2 GiB 10 % SM; of 1 node: 1 cordoned (node1). Fits if node1 is uncordoned.', lastTransitionTime: 2026-03-01T11:48:00Z}
  - {type: Ready, status: 'False', reason: WaitingForGPU, message: 'No node fits 1 × h100-80g 2 GiB 10 % SM; of 1 node: 1 cordoned (node1). Fits if node1 is uncordoned.', lastTransitionTime: 2026-03-01T11:48:00Z}
  - {type: Degraded, status: 'True', reason: CrashLoop, message: 'chat-b81zq0 ends again and again.', lastTransitionTime: 2026-03-01T11:48:00Z}
  placements:
  - {name: chat-4k2m9x, node: node2, gpus: [{uuid: GPU-3f2a1b2c-0000-0000-0000-000000000001, memory: 2Gi, compute: 10}], variant: small, tier: Running, ready: true}
  - {name: chat-b81zq0, node: node2, gpus: [{uuid: GPU-3f2a1b2c-0000-0000-0000-000000000001, memory: 2Gi, compute: 10}], variant: small, tier: Running, ready: false}
  effective: {runtime: stowage-engine 0.1.0, image: 'stowage/engine:0.1.0', args: [serve, --model, /models/model.gguf], sharing: EngineBudget}
  decision: {id: 1-0, time: 2026-03-01T11:59:30Z, action: Wait, reason: WaitingForGPU, message: 'No node fits.'}
  cost: {perHour: '0.60', currency: USD}
  url: http://stowage-gateway.stowage-system
";

    const POD_READY: &str = "
metadata: {name: chat-4k2m9x, creationTimestamp: 2026-03-01T11:50:00Z}
spec: {containers: [], nodeName: node2}
status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}
";

    const POD_BROKEN: &str = "
metadata: {name: chat-b81zq0, creationTimestamp: 2026-03-01T11:58:00Z}
spec: {containers: [], nodeName: node2}
status:
  phase: Running
  conditions: [{type: Ready, status: 'False'}]
  containerStatuses:
  - name: engine
    image: x
    imageID: x
    ready: false
    restartCount: 3
    state: {waiting: {reason: CrashLoopBackOff, message: back-off 40s}}
    lastState: {terminated: {exitCode: 1, message: \"loading\\nmodel.gguf: tensor blk.7 is truncated (fetch again)\\n\"}}
";

    const POD_LEAVING: &str = "
metadata: {name: chat-x0c7w3, creationTimestamp: 2026-03-01T11:49:00Z, annotations: {stowage.dev/draining: '2026-03-01T11:59:58Z'}}
spec: {containers: [], nodeName: node1}
status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}
";

    const GPU_NODE: &str = "
apiVersion: stowage.dev/v1alpha1
kind: GpuNode
metadata: {name: node2}
spec: {}
status:
  simulated: true
  devices: [{uuid: GPU-3f2a1b2c-0000-0000-0000-000000000001, index: 0, product: NVIDIA H100 80GB HBM3, memory: 80Gi}]
";

    const QUOTA: &str = "
apiVersion: stowage.dev/v1alpha1
kind: TenantQuota
metadata: {name: team-a}
spec: {namespaces: [team-a], gpus: [{class: h100-80g, nominalQuota: '4'}]}
status: {usage: [{class: h100-80g, nominal: 200m, borrowed: '0', lent: '0', pending: 100m}]}
";
}
