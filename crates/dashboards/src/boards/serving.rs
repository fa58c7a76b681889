//! What clients get: latency against objectives, queues, tokens, refusals.

use stowage_telemetry::catalog::gateway;

use super::CHOSEN;
use crate::grafana::PanelKind::{Stat, Timeseries};
use crate::grafana::{Dashboard, Panel};
use crate::query::{quantile, series, sum_rate};

const DEPLOYMENT: &str = "namespace, deployment";
const LEGEND: &str = "{{namespace}}/{{deployment}}";

pub(super) fn board() -> Dashboard {
    let description = "Latency, queues, tokens and refusals as clients see them, with the objectives beside them";
    Dashboard::new("stowage-serving", "Serving", description)
        .variable("namespace", "Namespace", &series(&gateway::ROUTABLE, ""))
        .variable("deployment", "Deployment", &series(&gateway::ROUTABLE, r#"namespace=~"$namespace""#))
        .row(4, now())
        .row(9, vec![first_token(), between_tokens()])
        .row(8, vec![missed(), queue_wait(), waiting()])
        .row(8, vec![outcomes(), tokens(), cached()])
        .row(8, vec![in_flight(), replicas(), retries()])
}

fn now() -> Vec<Panel> {
    let requests = |matchers| sum_rate(&gateway::REQUESTS, matchers, "");
    let refused = requests(r#"outcome=~"queue_full|no_replica|engine_failed|stream_broken""#);
    vec![
        Panel::new(Stat, "Requests per second", "reqps", "Of all tenants and models").query("requests", requests("")),
        Panel::new(Stat, "Failed", "percentunit", "Requests that found no room or replica, or were lost, of all")
            .query("failed", format!("{refused} / {}", requests(""))),
        Panel::new(Stat, "Tokens per second", "short", "Output tokens of all tenants and models")
            .query("output", sum_rate(&gateway::TOKENS, r#"direction="output""#, "")),
        Panel::new(Stat, "Waiting now", "short", "Requests that wait for a replica")
            .query("waiting", format!("sum({})", series(&gateway::WAITING, CHOSEN))),
    ]
}

fn objective(name: &str) -> String {
    let matchers = format!(r#"{CHOSEN}, objective="{name}""#);
    format!("max by ({DEPLOYMENT}) ({})", series(&gateway::OBJECTIVE, &matchers))
}

fn first_token() -> Panel {
    let of = |q| quantile(q, &gateway::TIME_TO_FIRST_TOKEN, CHOSEN, DEPLOYMENT);
    Panel::new(Timeseries, "Time to first token", "s", "Of streamed answers, at the gateway, with the objective")
        .query("{{namespace}}/{{deployment}} p50", of("0.5"))
        .query("{{namespace}}/{{deployment}} p95", of("0.95"))
        .query("{{namespace}}/{{deployment}} p99", of("0.99"))
        .query("{{namespace}}/{{deployment}} objective", objective("ttft"))
}

fn between_tokens() -> Panel {
    let of = |q| quantile(q, &gateway::INTER_TOKEN_LATENCY, CHOSEN, DEPLOYMENT);
    Panel::new(Timeseries, "Time between tokens", "s", "Mean of each stream, with the objective")
        .query("{{namespace}}/{{deployment}} p50", of("0.5"))
        .query("{{namespace}}/{{deployment}} p95", of("0.95"))
        .query("{{namespace}}/{{deployment}} objective", objective("itl"))
}

fn missed() -> Panel {
    let by = format!("{DEPLOYMENT}, objective");
    let of = |matchers: &str| sum_rate(&gateway::OBJECTIVE_REQUESTS, &format!("{CHOSEN}{matchers}"), &by);
    let expr = format!("{} / {}", of(r#", attained="false""#), of(""));
    Panel::new(Timeseries, "Objectives missed", "percentunit", "Share of streams; 5 % is what the objectives allow")
        .query("{{namespace}}/{{deployment}} {{objective}}", expr)
}

fn queue_wait() -> Panel {
    let of = |q| quantile(q, &gateway::QUEUE_WAIT, CHOSEN, DEPLOYMENT);
    Panel::new(Timeseries, "Time in the queue", "s", "Until a request has a replica")
        .query("{{namespace}}/{{deployment}} p50", of("0.5"))
        .query("{{namespace}}/{{deployment}} p95", of("0.95"))
}

fn waiting() -> Panel {
    let expr = format!("sum by ({DEPLOYMENT}) ({})", series(&gateway::WAITING, CHOSEN));
    Panel::new(Timeseries, "Waiting requests", "short", "For room or for a first replica").query(LEGEND, expr)
}

fn outcomes() -> Panel {
    Panel::new(Timeseries, "Requests by outcome", "reqps", "Of all tenants and models")
        .stacked()
        .query("{{outcome}}", sum_rate(&gateway::REQUESTS, "", "outcome"))
}

fn tokens() -> Panel {
    let expr = sum_rate(&gateway::TOKENS, "", "tenant, model, direction");
    Panel::new(Timeseries, "Tokens by tenant and model", "short", "Per second; the tenant is the calling one")
        .query("{{tenant}} {{model}} {{direction}}", expr)
}

fn cached() -> Panel {
    let of = |matchers| sum_rate(&gateway::TOKENS, matchers, "model");
    let expr = format!("{} / {}", of(r#"direction="input", cached="true""#), of(r#"direction="input""#));
    Panel::new(Timeseries, "Prompt tokens from the prefix cache", "percentunit", "By the model's name")
        .query("{{model}}", expr)
}

fn in_flight() -> Panel {
    let expr = format!("sum by ({DEPLOYMENT}) ({})", series(&gateway::IN_FLIGHT, CHOSEN));
    Panel::new(Timeseries, "Sequences in flight", "short", "At the replicas, of all gateways").query(LEGEND, expr)
}

fn replicas() -> Panel {
    let expr = format!("min by ({DEPLOYMENT}) ({})", series(&gateway::ROUTABLE, CHOSEN));
    let description = "Replicas that every gateway sends requests to; fewer than Ready: some are refused or drain";
    Panel::new(Timeseries, "Routable replicas", "short", description).query(LEGEND, expr)
}

fn retries() -> Panel {
    let expr = sum_rate(&gateway::RETRIES, "", "reason");
    Panel::new(Timeseries, "Retries", "reqps", "Requests sent to another replica before their first byte")
        .query("{{reason}}", expr)
}
