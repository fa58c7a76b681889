//! Why there are so many replicas: what is wanted, what limits it, what was decided, from how old inputs.

use stowage_telemetry::catalog::{gateway, operator};

use super::CHOSEN;
use crate::grafana::PanelKind::{Stat, StateTimeline, Timeseries};
use crate::grafana::{Annotation, Dashboard, Panel, Source};
use crate::query::{INTERVAL, mean, part, quantile, series, sum_rate};

pub(super) fn board() -> Dashboard {
    let description = "How many replicas each deployment wants and has, what limits them, and what was decided";
    let mut board = Dashboard::new("stowage-decisions", "Decisions", description)
        .variable("namespace", "Namespace", operator::DESIRED.name)
        .variable("deployment", "Deployment", &series(&operator::DESIRED, r#"namespace=~"$namespace""#))
        .row(4, now())
        .row(9, vec![replicas()])
        .row(8, vec![load(), limits()])
        .row(8, vec![startup(), taken()])
        .row(8, vec![inputs(), planning(), predictions()]);
    board.annotations.list.push(decided());
    board
}

fn now() -> Vec<Panel> {
    let sum = |metric| format!("sum({})", series(metric, CHOSEN));
    let attained = |matchers: &str| sum_rate(&gateway::OBJECTIVE_REQUESTS, &format!("{CHOSEN}{matchers}"), "");
    vec![
        Panel::new(Stat, "Wanted", "short", "Replicas that specs and scaling rules ask for")
            .query("wanted", sum(&operator::WANTED)),
        Panel::new(Stat, "Ready", "short", "Replicas that take requests").query("ready", sum(&operator::READY)),
        Panel::new(Stat, "Limited deployments", "short", "Deployments with fewer replicas than they ask for")
            .query("limited", format!("sum({}) or vector(0)", series(&operator::LIMITED, CHOSEN))),
        Panel::new(Stat, "Objectives attained", "percentunit", "Share of streams within the objectives")
            .query("attained", format!("{} / {}", attained(r#", attained="true""#), attained(""))),
        Panel::new(Stat, "Cost per hour", "currencyUSD", "Price of the promised GPU shares, per hour")
            .query("cost", format!("3600 * {}", sum_rate(&operator::COST, CHOSEN, ""))),
    ]
}

fn replicas() -> Panel {
    let by = |metric| format!("sum by (namespace, deployment) ({})", series(metric, CHOSEN));
    let description = "Wanted by spec or rule, granted by quota, planned, and Ready; marks are decisions";
    Panel::new(Timeseries, "Replicas", "short", description)
        .query("{{namespace}}/{{deployment}} wanted", by(&operator::WANTED))
        .query("{{namespace}}/{{deployment}} granted", by(&operator::GRANTED))
        .query("{{namespace}}/{{deployment}} planned", by(&operator::DESIRED))
        .query("{{namespace}}/{{deployment}} ready", by(&operator::READY))
}

fn load() -> Panel {
    let by = |metric| format!("sum by (namespace, deployment) ({})", series(metric, CHOSEN));
    let description = "In replicas that would be busy all the time; only where a rule decides the count";
    Panel::new(Timeseries, "Load against capacity", "short", description)
        .query("{{namespace}}/{{deployment}} offered", by(&operator::OFFERED_LOAD))
        .query("{{namespace}}/{{deployment}} forecast", by(&operator::FORECAST_LOAD))
        .query("{{namespace}}/{{deployment}} capacity", by(&operator::CAPACITY))
}

fn limits() -> Panel {
    let expr = format!("max by (namespace, deployment, by) ({})", series(&operator::LIMITED, CHOSEN));
    let description = "Quota, Capacity (no node has room), MaxReplicas, or Signals (missing or stale measurements)";
    Panel::new(StateTimeline, "Limited by", "short", description).query("{{namespace}}/{{deployment}} {{by}}", expr)
}

fn startup() -> Panel {
    let description = "Mean time from the creation of a replica to Ready, by stage, and the largest prediction";
    Panel::new(Timeseries, "From decision to Ready", "s", description)
        .stacked()
        .query("{{stage}}", mean(&operator::DECISION_TO_READY, "", "stage"))
        .query("predicted", format!("max({})", series(&operator::PREDICTED_READY, CHOSEN)))
}

fn taken() -> Panel {
    let description = "Decisions per minute by action and reason; the action Wait is a refusal";
    Panel::new(Timeseries, "Decisions", "short", description)
        .query("{{action}}: {{reason}}", format!("60 * {}", sum_rate(&operator::DECISIONS, "", "action, reason")))
}

fn inputs() -> Panel {
    let description = "Age of the last message of each input; above 90 s something is wrong with its source";
    Panel::new(Timeseries, "Input ages", "s", description)
        .query("{{source}}", format!("max by (source) ({})", series(&operator::INPUT_AGE, "")))
        .query("stale nodes (count)", format!("max({})", series(&operator::STALE_NODES, "")))
}

fn planning() -> Panel {
    let paused = format!("max({})", series(&operator::FROZEN, ""));
    Panel::new(Timeseries, "Planning", "s", "Time of a plan, 95th percentile and mean; 1 while planning is paused")
        .query("p95", quantile("0.95", &operator::PLAN_DURATION, "", ""))
        .query("mean", mean(&operator::PLAN_DURATION, "", ""))
        .query("paused", paused)
}

fn predictions() -> Panel {
    let description = "Median difference between predicted and actual, as a share of the actual";
    Panel::new(Timeseries, "Prediction error", "percentunit", description)
        .unbounded()
        .query("{{of}}", quantile("0.5", &operator::PREDICTION_ERROR, "", "of"))
}

fn decided() -> Annotation {
    let counted = part(&operator::DECISIONS, "", "");
    Annotation {
        name: "Decisions".into(),
        datasource: Source::chosen(),
        enable: true,
        expr: format!("sum by (kind, action, reason) (increase({counted}[{INTERVAL}])) > 0"),
        icon_color: "blue".into(),
        step: "30s".into(),
        tag_keys: "kind,action".into(),
        title_format: "{{action}}".into(),
        text_format: "{{kind}}: {{reason}}".into(),
    }
}
