//! The GPUs: what is promised on each, what is used of it, and how healthy they are.

use stowage_telemetry::catalog::{agent, operator};

use crate::grafana::PanelKind::{Bargauge, Stat, StateTimeline, Timeseries};
use crate::grafana::{Dashboard, Panel};
use crate::query::{series, sum_rate};

/// Adds the node and the index of each GPU, for the chosen nodes.
const PLACED: &str = r#"on (uuid) group_left (node, index) max by (uuid, node, index)"#;
const GPU: &str = "{{node}} GPU {{index}}";

pub(super) fn board() -> Dashboard {
    let description = "What is promised on each GPU, what is used of it, and how healthy it is";
    Dashboard::new("stowage-gpus", "GPUs", description)
        .variable("node", "Node", agent::INFO.name)
        .row(4, now())
        .row(10, vec![packing_memory(), packing_sm()])
        .row(9, vec![promised_and_used(), by_tenant()])
        .row(8, vec![used(), busy(), unclaimed()])
        .row(8, vec![health(), xid()])
        .row(8, vec![temperature(), power(), agents()])
}

/// `expr` must have the label `uuid` and no other.
fn placed(expr: &str) -> String {
    format!(r#"({expr}) * {PLACED} ({})"#, series(&agent::INFO, r#"node=~"$node""#))
}

/// A GPU on which nothing is promised has none of these series: it counts as 0.
fn with_empty(expr: &str) -> String {
    format!("{expr} or 0 * max by (uuid) ({})", agent::MEMORY.name)
}

fn now() -> Vec<Panel> {
    let state = |state: &str| format!("max({})", series(&operator::CLUSTER_GPUS, &format!(r#"state="{state}""#)));
    vec![
        Panel::new(Stat, "GPUs", "short", "Of all nodes").query("total", state("total")),
        Panel::new(Stat, "Healthy", "short", "GPUs on which replicas may run").query("healthy", state("healthy")),
        Panel::new(Stat, "Promised", "short", "GPUs promised to claims, by the larger share of memory and SMs")
            .query("promised", state("promised")),
        Panel::new(Stat, "Fragmented", "short", "Free parts too small for the replicas that are expected")
            .query("fragmented", state("fragmented")),
    ]
}

fn packing_memory() -> Panel {
    let promised = format!("sum by (uuid) ({})", agent::MEMORY_PROMISED.name);
    let share = format!("({}) / max by (uuid) ({})", with_empty(&promised), agent::MEMORY.name);
    Panel::new(Bargauge, "Promised memory", "percentunit", "Share of each GPU's memory that claims hold")
        .query(GPU, placed(&share))
}

fn packing_sm() -> Panel {
    let promised = format!("sum by (uuid) ({})", agent::SM_PROMISED.name);
    Panel::new(Bargauge, "Promised SMs", "percentunit", "Share of each GPU's SMs that claims hold")
        .query(GPU, placed(&with_empty(&promised)))
}

fn promised_and_used() -> Panel {
    let sum = |metric| format!("sum({})", series(metric, ""));
    Panel::new(Timeseries, "Memory promised and used", "bytes", "Of all GPUs")
        .query("there", sum(&agent::MEMORY))
        .query("promised", sum(&agent::MEMORY_PROMISED))
        .query("used by claims", sum(&agent::MEMORY_CLAIMED))
}

fn by_tenant() -> Panel {
    let expr = format!("sum by (tenant) ({})", agent::MEMORY_PROMISED.name);
    Panel::new(Timeseries, "Memory promised by tenant", "bytes", "Of all GPUs").stacked().query("{{tenant}}", expr)
}

fn used() -> Panel {
    let expr = format!("max by (uuid) ({})", agent::MEMORY_USED.name);
    Panel::new(Timeseries, "Memory in use", "bytes", "By everything that runs on the GPU").query(GPU, placed(&expr))
}

fn busy() -> Panel {
    let expr = format!("max by (uuid) ({})", agent::BUSY.name);
    Panel::new(Timeseries, "Busy", "percentunit", "Share of time in which some kernel ran").query(GPU, placed(&expr))
}

fn unclaimed() -> Panel {
    let expr = format!("max by (uuid) ({})", agent::MEMORY_UNCLAIMED.name);
    let description = "In use by processes of no claim; anything but 0 runs beside Stowage";
    Panel::new(Timeseries, "Memory of unknown processes", "bytes", description).query(GPU, placed(&expr))
}

fn health() -> Panel {
    let verdicts = [("healthy", 0), ("degraded", 1), ("unhealthy", 2)];
    let parts: Vec<String> = verdicts
        .iter()
        .map(|(health, n)| {
            format!("{n} * max by (uuid) ({})", series(&agent::HEALTH, &format!(r#"health="{health}""#)))
        })
        .collect();
    let expr = parts.join(" + ");
    Panel::new(StateTimeline, "Health", "short", "0 healthy, 1 degraded (used last), 2 unhealthy (not used)")
        .query(GPU, placed(&expr))
}

fn xid() -> Panel {
    let expr = format!("3600 * {}", sum_rate(&agent::XID, "", "uuid, class"));
    Panel::new(Timeseries, "Xid errors per hour", "short", "By GPU and what they end").query("{{uuid}} {{class}}", expr)
}

fn temperature() -> Panel {
    let expr = format!("max by (uuid) ({})", agent::TEMPERATURE.name);
    Panel::new(Timeseries, "Temperature", "celsius", "Of the GPU").query(GPU, placed(&expr))
}

fn power() -> Panel {
    let expr = format!("max by (uuid) ({})", agent::POWER.name);
    Panel::new(Timeseries, "Power", "watt", "Drawn by the GPU").query(GPU, placed(&expr))
}

fn agents() -> Panel {
    let description = "Claims over their promise, faults of agents, and the age of the oldest reading in seconds";
    Panel::new(Timeseries, "Node agents", "short", description)
        .query("overshoots", format!("sum({})", agent::OVERSHOOTS.name))
        .query("fault {{kind}}", format!("sum by (kind) ({})", agent::TROUBLE.name))
        .query("reading age", format!("max({})", agent::READING_AGE.name))
}
