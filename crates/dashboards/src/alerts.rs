//! Alerts and the recording rules that they need, as one Prometheus rules file.
//!
//! Burn rates follow the SRE workbook's three pairs of windows. There is one rule for all deployments: each exports
//! its objectives' target (`stowage_objective_target_ratio`), so that a new deployment needs no new rule. Every alert
//! has a runbook in `docs/runbooks`, and a firing and a silent case in `tests/rules`.

use serde::Serialize;
use stowage_telemetry::catalog::{Metric, agent, gateway, operator};

/// As Prometheus reads it.
#[derive(Debug, Serialize)]
pub struct RulesFile {
    /// Evaluated in order, each by itself.
    pub groups: Vec<Group>,
}

/// Rules that are evaluated together.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "Prometheus' own names")]
pub struct Group {
    pub name: String,
    pub rules: Vec<Rule>,
}

/// A recording rule or an alert.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "Prometheus' own names")]
pub enum Rule {
    Record { record: String, expr: String },
    Alert(Alert),
}

/// One alert.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "Prometheus' own names")]
pub struct Alert {
    pub alert: String,
    pub expr: String,
    #[serde(rename = "for")]
    pub pending: String,
    pub labels: Labels,
    pub annotations: Annotations,
}

#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "Prometheus' own names")]
pub struct Labels {
    pub severity: Severity,
}

/// Who is to look, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A person, now.
    Critical,
    /// A person, in working hours.
    Warning,
}

#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "Prometheus' own names")]
pub struct Annotations {
    pub summary: String,
    pub description: String,
    pub runbook_url: String,
}

/// A pair of windows: both must burn faster than the factor.
struct Burn {
    alert: &'static str,
    long: &'static str,
    short: &'static str,
    factor: &'static str,
    severity: Severity,
    /// What is left if it goes on.
    meaning: &'static str,
}

const BURNS: [Burn; 3] = [
    Burn {
        alert: "StowageObjectiveBurnFast",
        long: "1h",
        short: "5m",
        factor: "14.4",
        severity: Severity::Critical,
        meaning: "a month's budget would be gone in two days",
    },
    Burn {
        alert: "StowageObjectiveBurnMedium",
        long: "6h",
        short: "30m",
        factor: "6",
        severity: Severity::Critical,
        meaning: "a month's budget would be gone in five days",
    },
    Burn {
        alert: "StowageObjectiveBurnSlow",
        long: "3d",
        short: "6h",
        factor: "1",
        severity: Severity::Warning,
        meaning: "the budget is used up as fast as it comes",
    },
];

/// The largest share of missed objectives that a rule waits for: with a target of 90 % a burn rate of 14.4 could never
/// be reached.
const MOST_MISSED: &str = "0.9";

/// The rules file of the chart.
pub fn file() -> RulesFile {
    RulesFile { groups: vec![recorded(), burns(), decisions(), serving(), nodes()] }
}

/// As YAML.
pub fn yaml() -> String {
    let head = "# Made by `cargo xtask codegen` from crates/dashboards/src/alerts.rs.\n";
    // Rules are strings and lists: they are always YAML.
    head.to_owned() + &serde_yaml::to_string(&file()).unwrap_or_default()
}

/// All alerts.
pub fn all() -> Vec<Alert> {
    let rules = file().groups.into_iter().flat_map(|group| group.rules);
    rules.filter_map(|rule| if let Rule::Alert(alert) = rule { Some(alert) } else { None }).collect()
}

fn record_name(window: &str) -> String {
    format!("stowage:objective_missed:ratio_rate{window}")
}

/// The share of streams that missed an objective, over each window.
fn recorded() -> Group {
    let name = gateway::OBJECTIVE_REQUESTS.name;
    let by = "namespace, deployment, objective";
    let rule = |window: &str| Rule::Record {
        record: record_name(window),
        expr: format!(
            "sum by ({by}) (rate({name}{{attained=\"false\"}}[{window}])) / sum by ({by}) (rate({name}[{window}]))"
        ),
    };
    let windows = ["5m", "30m", "1h", "6h", "3d"];
    Group { name: "stowage.objectives".into(), rules: windows.into_iter().map(rule).collect() }
}

fn burns() -> Group {
    let target = format!("max by (namespace, deployment) ({})", gateway::OBJECTIVE_TARGET.name);
    let rule = |burn: &Burn| {
        let Burn { alert, long, short, factor, severity, meaning } = burn;
        let above = |window: &str| {
            format!(
                "{} > on (namespace, deployment) group_left () clamp_max({factor} * (1 - {target}), {MOST_MISSED})",
                record_name(window)
            )
        };
        made(
            alert,
            &format!("{} and {}", above(long), above(short)),
            "2m",
            *severity,
            "{{ $labels.namespace }}/{{ $labels.deployment }} misses its {{ $labels.objective }} objective",
            &format!("{{{{ $value | humanizePercentage }}}} of its streams missed it within {long}: {meaning}."),
        )
    };
    Group { name: "stowage.burn".into(), rules: BURNS.iter().map(rule).collect() }
}

fn decisions() -> Group {
    let max_by = |by: &str, metric: &Metric| format!("max by ({by}) ({})", metric.name);
    let deployment = "namespace, deployment";
    let tenant_gpus =
        |state: &str| format!("sum by (tenant, class) ({}{{state=\"{state}\"}})", operator::TENANT_GPUS.name);
    let rules = vec![
        made(
            "StowageNoLeader",
            &format!("sum({}) < 1 or absent({})", operator::LEADER.name, operator::LEADER.name),
            "2m",
            Severity::Critical,
            "No operator leads",
            "Nothing is placed, scaled or moved; requests are served as before.",
        ),
        made(
            "StowagePlanningPaused",
            &format!("max({}) == 1", operator::FROZEN.name),
            "2m",
            Severity::Critical,
            "Planning is paused",
            "An input is incomplete or failing, and nothing is decided until it is complete.",
        ),
        made(
            "StowageInputsStale",
            &format!(
                "{} > 90 or label_replace(max({}) > 0, \"source\", \"nodes with old data\", \"\", \"\")",
                max_by("source", &operator::INPUT_AGE),
                operator::STALE_NODES.name
            ),
            "3m",
            Severity::Warning,
            "Decisions rest on old data: {{ $labels.source }}",
            "The last message of this input came {{ $value }} s ago, or so many nodes have data too old to be used.",
        ),
        made(
            "StowageFlapping",
            &format!("resets({}[1h:1m]) > 6", max_by(deployment, &operator::DESIRED)),
            "0m",
            Severity::Warning,
            "{{ $labels.namespace }}/{{ $labels.deployment }} scales back and forth",
            "It was scaled in {{ $value }} times within an hour.",
        ),
        made(
            "StowageNoCapacity",
            &format!("max by ({deployment}) ({}{{by=\"Capacity\"}}) == 1", operator::LIMITED.name),
            "10m",
            Severity::Warning,
            "{{ $labels.namespace }}/{{ $labels.deployment }} waits for GPUs",
            "No node has had room for a replica of it for ten minutes.",
        ),
        made(
            "StowageNotServing",
            &format!("{} > 0 and {} == 0", max_by(deployment, &operator::WANTED), max_by(deployment, &operator::READY)),
            "10m",
            Severity::Critical,
            "{{ $labels.namespace }}/{{ $labels.deployment }} serves nothing",
            "{{ $value }} replicas are wanted, and none has been Ready for ten minutes.",
        ),
        made(
            "StowageQuotaStarvation",
            &format!("{} > 0 and {} < {}", tenant_gpus("waiting"), tenant_gpus("held"), tenant_gpus("guaranteed")),
            "15m",
            Severity::Warning,
            "{{ $labels.tenant }} does not get its quota of {{ $labels.class }}",
            "{{ $value }} GPUs were asked for and not granted, although it holds less than its nominal quota.",
        ),
    ];
    Group { name: "stowage.decisions".into(), rules }
}

fn serving() -> Group {
    let name = gateway::REQUESTS.name;
    let shed = format!("sum by (tenant, model) (rate({name}{{outcome=~\"queue_full|no_replica\"}}[5m]))");
    let rules = vec![made(
        "StowageGatewayShedding",
        &format!("{shed} / sum by (tenant, model) (rate({name}[5m])) > 0.01"),
        "5m",
        Severity::Warning,
        "Requests of {{ $labels.tenant }} for {{ $labels.model }} are refused for lack of room",
        "{{ $value | humanizePercentage }} of them found a full queue or no replica.",
    )];
    Group { name: "stowage.serving".into(), rules }
}

fn nodes() -> Group {
    let rules = vec![
        made(
            "StowageOvershoot",
            &format!("max by (instance) (max_over_time({}[5m])) > 0", agent::OVERSHOOTS.name),
            "0m",
            Severity::Warning,
            "A replica uses more GPU memory than it was promised",
            "{{ $value }} claims on the node of {{ $labels.instance }}; it is drained or ended, and its neighbours are not.",
        ),
        made(
            "StowageGpuUnhealthy",
            &format!("max by (uuid) ({}{{health=\"unhealthy\"}}) == 1", agent::HEALTH.name),
            "1m",
            Severity::Warning,
            "GPU {{ $labels.uuid }} is unhealthy",
            "Its replicas are moved and nothing is placed there; see its GpuNode for the reason.",
        ),
        made(
            "StowageAgentTrouble",
            &format!("max by (instance, kind) ({}) == 1", agent::TROUBLE.name),
            "5m",
            Severity::Warning,
            "The node agent of {{ $labels.instance }} reports {{ $labels.kind }}",
            "What it can still do is in the GpuNode's condition Degraded.",
        ),
    ];
    Group { name: "stowage.nodes".into(), rules }
}

fn made(alert: &str, expr: &str, pending: &str, severity: Severity, summary: &str, description: &str) -> Rule {
    Rule::Alert(Alert {
        alert: alert.into(),
        expr: expr.into(),
        pending: pending.into(),
        labels: Labels { severity },
        annotations: Annotations {
            summary: summary.into(),
            description: description.into(),
            // In the repository; the chart has a value for where that is read.
            runbook_url: format!("{}/{alert}.md", crate::RUNBOOKS),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{unknown_labels, unknown_names};
    use std::path::{Path, PathBuf};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn rules_name_metrics_and_labels_that_exist() {
        for rule in file().groups.into_iter().flat_map(|group| group.rules) {
            let (name, expr) = match rule {
                Rule::Record { record, expr } => (record, expr),
                Rule::Alert(alert) => (alert.alert, alert.expr),
            };
            assert_eq!(unknown_names(&expr), Vec::<&str>::new(), "{name}");
            // The burn alerts join recorded series, whose labels are those of the metric behind them.
            if !name.contains("Burn") {
                assert_eq!(unknown_labels(&expr), Vec::<&str>::new(), "{name}");
            }
        }
    }

    #[test]
    fn every_alert_has_a_runbook_with_what_to_do_and_every_runbook_an_alert() {
        let folder = root().join(crate::RUNBOOKS);
        let mut names: Vec<String> = all().into_iter().map(|alert| alert.alert).collect();
        for name in &names {
            let text = std::fs::read_to_string(folder.join(format!("{name}.md"))).unwrap_or_default();
            for part in [&format!("# {name}\n") as &str, "## Meaning", "## Look", "## Do"] {
                assert!(text.contains(part), "docs/runbooks/{name}.md lacks {part:?}");
            }
        }
        names.push("README".into());
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(names.iter().any(|name| format!("{name}.md") == file), "docs/runbooks/{file} is of no alert");
        }
    }
}
