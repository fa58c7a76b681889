//! Inside the engines: batches, steps, the KV cache, the prefix cache.

use stowage_telemetry::catalog::engine;

use crate::grafana::PanelKind::{Stat, Timeseries};
use crate::grafana::{Dashboard, Panel};
use crate::query::{mean, quantile, series, sum_rate};

/// Engines name neither: both are labels of the scrape.
const CHOSEN: &str = r#"namespace=~"$namespace", pod=~"$pod""#;
const POD: &str = "namespace, pod";
const LEGEND: &str = "{{namespace}}/{{pod}}";

pub(super) fn board() -> Dashboard {
    let description = "Batches, steps, KV cache and prefix cache of each engine";
    Dashboard::new("stowage-engine", "Engine", description)
        .variable("namespace", "Namespace", engine::RUNNING.name)
        .variable("pod", "Pod", &series(&engine::RUNNING, r#"namespace=~"$namespace""#))
        .row(4, now())
        .row(8, vec![requests(), kv(), backlog()])
        .row(9, vec![steps(), latency()])
        .row(8, vec![batch(), prefix(), evictions()])
        .row(8, vec![outcomes(), tokens(), state()])
}

fn now() -> Vec<Panel> {
    let sum = |metric| format!("sum({})", series(metric, CHOSEN));
    vec![
        Panel::new(Stat, "Running", "short", "Requests being computed").query("running", sum(&engine::RUNNING)),
        Panel::new(Stat, "Waiting", "short", "Requests waiting for room").query("waiting", sum(&engine::WAITING)),
        Panel::new(Stat, "KV cache in use", "percentunit", "Blocks held by requests, of all").query(
            "used",
            format!("sum({}) / sum({})", series(&engine::KV_BLOCKS_USED, CHOSEN), series(&engine::KV_BLOCKS, CHOSEN)),
        ),
        Panel::new(Stat, "Output tokens per second", "short", "Of all chosen engines")
            .query("output", sum_rate(&engine::TOKENS, &format!(r#"{CHOSEN}, direction="output""#), "")),
    ]
}

fn requests() -> Panel {
    let by = |metric| format!("sum by ({POD}) ({})", series(metric, CHOSEN));
    Panel::new(Timeseries, "Requests", "short", "Running and waiting")
        .query("{{namespace}}/{{pod}} running", by(&engine::RUNNING))
        .query("{{namespace}}/{{pod}} waiting", by(&engine::WAITING))
}

fn kv() -> Panel {
    let by = |metric| format!("sum by ({POD}) ({})", series(metric, CHOSEN));
    let share = |metric| format!("{} / {}", by(metric), by(&engine::KV_BLOCKS));
    Panel::new(Timeseries, "KV cache", "percentunit", "Blocks held by requests, and blocks that occupy memory, of all")
        .query("{{namespace}}/{{pod}} held", share(&engine::KV_BLOCKS_USED))
        .query("{{namespace}}/{{pod}} touched", share(&engine::KV_BLOCKS_TOUCHED))
}

fn backlog() -> Panel {
    let expr = format!("sum by ({POD}) ({})", series(&engine::PREFILL_BACKLOG, CHOSEN));
    Panel::new(Timeseries, "Prefill backlog", "short", "Prompt tokens not computed yet").query(LEGEND, expr)
}

fn steps() -> Panel {
    let of = |q| quantile(q, &engine::STEP_DURATION, CHOSEN, "phase");
    Panel::new(Timeseries, "Step time", "s", "A step with prompt tokens counts as prefill")
        .query("{{phase}} p50", of("0.5"))
        .query("{{phase}} p95", of("0.95"))
}

fn latency() -> Panel {
    let p95 = |metric| quantile("0.95", metric, CHOSEN, "");
    Panel::new(Timeseries, "Latency in the engine", "s", "95th percentiles; beside the gateway's they show the network")
        .query("time to first token", p95(&engine::TIME_TO_FIRST_TOKEN))
        .query("between tokens", p95(&engine::INTER_TOKEN_LATENCY))
        .query("queue wait", p95(&engine::QUEUE_WAIT))
        .query("whole request", p95(&engine::REQUEST_DURATION))
}

fn batch() -> Panel {
    Panel::new(Timeseries, "Batch size", "short", "Mean sequences in a step")
        .query(LEGEND, mean(&engine::BATCH, CHOSEN, POD))
}

fn prefix() -> Panel {
    let of = |matchers: &str| sum_rate(&engine::TOKENS, &format!("{CHOSEN}, {matchers}"), POD);
    let expr = format!("{} / {}", of(r#"direction="input", cached="true""#), of(r#"direction="input""#));
    Panel::new(Timeseries, "Prefix cache hits", "percentunit", "Prompt tokens that were not computed again")
        .query(LEGEND, expr)
}

fn evictions() -> Panel {
    Panel::new(Timeseries, "Preemptions and evictions", "short", "Per second; preemptions mean that KV memory is short")
        .query("{{namespace}}/{{pod}} preemptions", sum_rate(&engine::PREEMPTIONS, CHOSEN, POD))
        .query("{{namespace}}/{{pod}} evictions", sum_rate(&engine::KV_EVICTIONS, CHOSEN, POD))
}

fn outcomes() -> Panel {
    Panel::new(Timeseries, "Requests by outcome", "reqps", "As the engines count them")
        .stacked()
        .query("{{outcome}}", sum_rate(&engine::REQUESTS, CHOSEN, "outcome"))
}

fn tokens() -> Panel {
    let expr = sum_rate(&engine::TOKENS, CHOSEN, "direction, cached");
    Panel::new(Timeseries, "Tokens per second", "short", "Cached ones come from the prefix cache")
        .query("{{direction}} cached {{cached}}", expr)
}

fn state() -> Panel {
    let by = |metric| format!("sum by ({POD}) ({})", series(metric, CHOSEN));
    Panel::new(Timeseries, "State", "short", "1 while draining, failed steps per second, open connections")
        .query("{{namespace}}/{{pod}} draining", by(&engine::DRAINING))
        .query("{{namespace}}/{{pod}} failed steps", sum_rate(&engine::STEP_FAILURES, CHOSEN, POD))
        .query("{{namespace}}/{{pod}} connections", by(&engine::CONNECTIONS))
}
