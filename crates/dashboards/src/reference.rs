//! The page that lists every metric, from the catalog.

use std::fmt::Write as _;

use stowage_telemetry::catalog::{Kind, Process, all};

/// The page, relative to the repository's root.
pub const PAGE: &str = "docs/metrics.md";

/// As Markdown.
pub fn page() -> String {
    let mut text = "# Metrics\n\nMade by `cargo xtask codegen` from `crates/telemetry/src/catalog`. Values of `tenant`, `model`, \
        `namespace` and `deployment` come from objects, never from requests, and are capped at 2,000, of one tenant at half of what the others leave, then `other`. Histograms \
        have `_bucket`, `_count` and `_sum`.\n"
        .to_owned();
    let processes = [
        (Process::Gateway, "Gateway", "port 8083, `/metrics`"),
        (
            Process::Operator,
            "Operator",
            "port 8083, `/metrics`; what describes the current plan is exported by the leader alone",
        ),
        (Process::NodeAgent, "Node agent", "port 8083, `/metrics`"),
        (Process::Engine, "Engine", "the port that serves, `/metrics`"),
    ];
    for (process, name, place) in processes {
        let _ = write!(text, "\n## {name}\n{place}\n\n| name | kind | labels | |\n|---|---|---|---|\n");
        for metric in all().filter(|metric| metric.process == process) {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(text, "| `{}` | {kind} | {} | {} |", metric.name, metric.labels.join(", "), metric.help);
        }
    }
    text
}
