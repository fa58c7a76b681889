//! The number of replicas follows the load: to zero and back, in and out, by rule or by an autoscaler of others.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::external_metrics::{Adapter, METRIC};
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::http::Answer;
use crate::tools::load::{Load, Outcome, under_way};
use crate::tools::parts::{all_gateways, operators, waiting};
use crate::tools::world::{Tenant, Wish, World};

const QUESTION: &str = "What is the capital of France?";
/// Of a replica that is ready at once: the longest that anything here waits for one.
const SOON: Duration = Duration::from_secs(120);

/// A spec in mode Active that rests soon.
fn rests_after(seconds: u32) -> Wish {
    let idle = json!({"after": format!("{seconds}s")});
    Wish::default().overlay(json!({"replicas": null,
        "scaling": {"mode": "Active", "minReplicas": 0, "maxReplicas": 2, "idle": idle, "coldStart": {"hold": "120s"}}}))
}

fn ready_replicas(object: &Value) -> u64 {
    object.pointer("/status/readyReplicas").and_then(Value::as_u64).unwrap_or(0)
}

fn answered(answer: anyhow::Result<Answer>) -> anyhow::Result<()> {
    let answer = answer?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(())
}

/// The answer to a request that begins as soon as the gateways know the tenant's key and the model.
async fn first_answer(tenant: &Tenant, model: &str) -> anyhow::Result<()> {
    let asked = wait_for("the gateways to know the key and the model", Duration::from_secs(20), || async {
        let answer = tenant.caller.chat(model, QUESTION, 8).await?;
        Ok(if matches!(answer.status, 401 | 404) { Err(answer.status.to_string()) } else { Ok(answer) })
    });
    answered(asked.await)
}

/// None of the requests failed.
pub fn none_lost(outcome: &Outcome) -> anyhow::Result<()> {
    let Outcome { succeeded, failures } = outcome;
    ensure!(failures.is_empty(), "{} of {succeeded} requests lost: {:?}", failures.len(), failures.first());
    Ok(())
}

pub async fn idle_model_goes_to_zero_and_its_first_request_is_held_and_answered(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy(&tenant, "rests", &rests_after(5)).await?;
    for turn in ["the first request of all", "a request after the rest"] {
        let asked = Instant::now();
        // Two at once, of which each may meet another gateway.
        let (first, second) = tokio::join!(first_answer(&tenant, "rests"), first_answer(&tenant, "rests"));
        first.context(turn)?;
        second.context(turn)?;
        w.note(&format!("{turn} was answered after {:.1} s", asked.elapsed().as_secs_f64()));
        let rests = w
            .until(&tenant, "rests", "scaled to zero", Duration::from_secs(60), |o| {
                let reason = condition(o, "Ready").is_some_and(|(_, reason, _)| reason == "ScaledToZero");
                reason && text(o, "/status/replicas") == "0"
            })
            .await?;
        ensure!(text(&rests, "/status/desiredReplicas") == "0", "desired: {}", rests["status"]);
        wait_for("no pod and no claim", Duration::from_secs(60), || async {
            let (pods, claims) = (w.pods(&tenant, "rests").await?.len(), w.claims(&tenant, "rests").await?.len());
            Ok(if pods + claims == 0 { Ok(()) } else { Err(format!("{pods} pods, {claims} claims")) })
        })
        .await?;
    }
    Ok(())
}

pub async fn scale_in_loses_no_request_over_three_cycles(w: World) -> anyhow::Result<()> {
    cycles(&w, 3).await
}

pub async fn scale_in_loses_no_request_over_twenty_cycles(w: World) -> anyhow::Result<()> {
    cycles(&w, 20).await
}

/// Two replicas to one and back, under load. In the last cycle each replica has an answer that is longer than the
/// drain may take.
async fn cycles(w: &World, count: u32) -> anyhow::Result<()> {
    const DRAIN: Duration = Duration::from_secs(12);
    let tenant = w.tenant("a").await?;
    let drain = json!({"scaling": {"mode": "Manual", "drainTimeout": format!("{}s", DRAIN.as_secs())}});
    let wish = Wish::default().overlay(drain);
    w.deploy_ready(&tenant, "breathes", &wish.clone().replicas(2)).await?;
    w.answers(&tenant, "breathes").await?;
    let load = Load::start(&tenant.caller, "breathes", 3, 16);
    let mut took = Vec::new();
    for cycle in 1..=count {
        w.deploy_ready(&tenant, "breathes", &wish.clone().replicas(2)).await?;
        under_way(&load, load.succeeded() + 6).await?;
        let last = cycle == count;
        let begun = tokio::sync::Semaphore::new(0);
        let long = async { if last { both_long(w, &tenant, &begun).await } else { Ok(()) } };
        let shrink = async {
            if last {
                let both = tokio::time::timeout(SOON, begun.acquire_many(2)).await;
                both.context("the two long answers did not begin")??.forget();
            }
            let began = Instant::now();
            w.deploy(&tenant, "breathes", &wish.clone().replicas(1)).await?;
            wait_for("one pod", SOON, || async {
                let pods = w.pods(&tenant, "breathes").await?.len();
                Ok(if pods == 1 { Ok(()) } else { Err(format!("{pods} pods")) })
            })
            .await?;
            took.push(began.elapsed().as_secs_f64());
            anyhow::Ok(())
        };
        let (long, shrink) = tokio::join!(long, shrink);
        shrink.with_context(|| format!("cycle {cycle}"))?;
        long?;
    }
    let outcome = load.finish().await;
    w.note(&format!("{} requests; scaled in within {took:.1?} s", outcome.succeeded));
    let most = DRAIN.as_secs_f64() + 10.0;
    ensure!(took.iter().all(|seconds| *seconds < most), "the deadline of {DRAIN:?} did not end the drain: {took:?}");
    none_lost(&outcome)
}

/// Two answers of 1,500 tokens, one on each replica: the one whose replica goes ends at the deadline with an error
/// event, the other one whole. Each adds a permit when it has begun.
async fn both_long(w: &World, tenant: &Tenant, begun: &tokio::sync::Semaphore) -> anyhow::Result<()> {
    let question = "Count from one to two thousand, in words.";
    let ask = || tenant.caller.chat_stream_seen("breathes", question, 1500, || begun.add_permits(1));
    let (one, other) = tokio::join!(ask(), ask());
    let ended = [one, other].map(|result| match result {
        Ok((_, done)) => if done { "whole" } else { "cut" }.to_owned(),
        Err(why) => format!("{why:#}"),
    });
    let broken = ended.iter().filter(|end| end.contains("stream_broken")).count();
    let whole = ended.iter().filter(|end| *end == "whole").count();
    w.note(&format!("of two answers longer than the drain, {broken} ended at the deadline and {whole} whole"));
    ensure!(broken + whole == 2 && broken <= 1, "two long answers ended like this: {ended:?}");
    Ok(())
}

/// What `kubectl stowage explain` prints.
async fn explained(tenant: &Tenant, name: &str) -> anyhow::Result<String> {
    let program = crate::tools::world::Env::built("kubectl-stowage")?;
    let output = tokio::process::Command::new(program).args(["explain", name, "-n", &tenant.name]).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub async fn advisory_changes_nothing_and_says_what_it_would_do(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy(&tenant, "advised", &rests_after(600)).await?;
    first_answer(&tenant, "advised").await?;
    let pod = text(w.pods(&tenant, "advised").await?.first().context("no pod")?, "/metadata/uid");
    let advisory = rests_after(5).and(&json!({"scaling": {"mode": "Advisory"}}));
    w.deploy(&tenant, "advised", &advisory).await?;
    let said = wait_for("Advisory to say what it would do", SOON, || async {
        let text = explained(&tenant, "advised").await?;
        Ok(if text.contains("Active would have 0") { Ok(text) } else { Err(text) })
    })
    .await?;
    ensure!(said.contains("the count stays at 1 (scaling.mode Advisory)"), "{said}");
    let pods = w.pods(&tenant, "advised").await?;
    ensure!(pods.len() == 1 && text(&pods[0], "/metadata/uid") == pod, "Advisory changed the replicas");
    answered(tenant.caller.chat("advised", QUESTION, 8).await)
}

/// An HPA of Kubernetes itself owns the count in mode Manual, through the scale subresource.
pub async fn hpa_drives_a_manual_deployment(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "driven", &Wish::default().overlay(json!({"replicas": null}))).await?;
    let adapter = Adapter::start(&w, 30).await?;
    let target = json!({"type": "AverageValue", "averageValue": "10"});
    let hpa = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "driven", "namespace": tenant.name},
        "spec": {"minReplicas": 1, "maxReplicas": 4,
            "scaleTargetRef": {"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "driven"},
            "metrics": [{"type": "External", "external": {"metric": {"name": METRIC}, "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}});
    w.cluster().apply_value(&tenant.name, &hpa).await?;
    let scaled = w.ready(&tenant, "driven", 3).await;
    let seen = w.cluster().get("HorizontalPodAutoscaler", &tenant.name, "driven").await?.unwrap_or_default();
    scaled.with_context(|| format!("the autoscaler shows {}", seen["status"]))?;
    adapter.set(10)?;
    w.ready(&tenant, "driven", 1).await?;
    // What the owner writes else leaves the count alone.
    w.deploy(
        &tenant,
        "driven",
        &Wish::default().overlay(json!({"replicas": null, "podTemplate": {"labels": {"a": "b"}}})),
    )
    .await?;
    let object = w.until(&tenant, "driven", "of the new spec", SOON, |o| ready_replicas(o) == 1).await?;
    ensure!(text(&object, "/spec/replicas") == "1", "spec.replicas: {}", text(&object, "/spec/replicas"));
    Ok(())
}

pub async fn spend_limit_holds_replicas_back_and_names_the_sum_that_would_do(w: World) -> anyhow::Result<()> {
    // A replica is 5 % of a GPU at 3.00 an hour: 0.15. Two are within the limit, three are not.
    let quota =
        json!({"gpus": [{"class": "h100-80g", "nominalQuota": "4"}], "spend": {"perHour": "0.40", "currency": "USD"}});
    let tenant = w.tenant_with("a", quota).await?;
    w.deploy(&tenant, "spends", &Wish::default().replicas(3)).await?;
    let limited = w
        .until(&tenant, "spends", "two replicas, and the third one refused", SOON, |o| {
            ready_replicas(o) == 2 && condition(o, "QuotaReserved").is_some_and(|(status, ..)| status == "False")
        })
        .await?;
    let (_, _, message) = condition(&limited, "QuotaReserved").context("no condition")?;
    ensure!(message.contains("0.30") && message.contains("0.40") && message.contains("0.45"), "{message}");
    w.cluster().merge("TenantQuota", "", &tenant.name, &json!({"spec": {"spend": {"perHour": "0.45"}}})).await?;
    w.ready(&tenant, "spends", 3).await
}

/// Without gateways nothing is known of the load: a model that would go to rest stays, and the reason is shown.
pub async fn without_gateways_counts_are_frozen_and_reported(w: World) -> anyhow::Result<()> {
    const IDLE: u32 = 8;
    let tenant = w.tenant("a").await?;
    w.deploy(&tenant, "frozen", &rests_after(IDLE)).await?;
    first_answer(&tenant, "frozen").await?;
    let gateways = all_gateways(&w, 0).await?;
    let frozen = async {
        w.until(&tenant, "frozen", "limited by missing signals", Duration::from_secs(60), |o| {
            condition(o, "ScalingLimited").is_some_and(|(_, reason, _)| reason == "Signals")
        })
        .await?;
        let began = Instant::now();
        // Longer than the idle time: what is tested is that it does not end the replica.
        while began.elapsed() < Duration::from_secs(u64::from(IDLE) + 7) {
            let pods = w.pods(&tenant, "frozen").await?;
            let drains = pods.iter().filter(|p| p["metadata"]["annotations"].get("stowage.dev/draining").is_some());
            ensure!(pods.len() == 1 && drains.count() == 0, "scaled without signals: {} pods", pods.len());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    };
    let frozen = frozen.await;
    all_gateways(&w, gateways).await?;
    frozen?;
    w.until(&tenant, "frozen", "at rest once signals are back", SOON, |o| text(o, "/status/replicas") == "0").await?;
    Ok(())
}

/// The operators are absent when a burst meets a model at rest: the gateways hold it, and the operator that comes
/// back finds it.
pub async fn burst_without_an_operator_is_held_and_scaled_out_when_it_is_back(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy(&tenant, "bursts", &rests_after(600)).await?;
    w.until(&tenant, "bursts", "seen", SOON, |o| condition(o, "Ready").is_some_and(|c| c.1 == "ScaledToZero")).await?;
    operators(&w, 0).await?;
    let load = Load::start(&tenant.caller, "bursts", 12, 48);
    wait_for("all requests to wait at the gateways", SOON, || async {
        let waiting = waiting(&w, &tenant).await?;
        Ok(if waiting == 12 { Ok(()) } else { Err(format!("{waiting} of 12")) })
    })
    .await?;
    let early = load.succeeded();
    operators(&w, 2).await?;
    let back = Instant::now();
    let out = w.until(&tenant, "bursts", "scaled out", Duration::from_secs(180), |o| ready_replicas(o) >= 1).await;
    w.note(&format!("a replica took requests {:.1} s after the operators were Ready", back.elapsed().as_secs_f64()));
    let outcome = load.finish().await;
    out?;
    ensure!(early == 0, "{early} answers without a replica");
    none_lost(&outcome)
}
