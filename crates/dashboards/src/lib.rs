//! Grafana dashboards, Prometheus alerts and the page of all metrics, generated from the catalog of metrics.
//!
//! [`files`] answers what `cargo xtask codegen` writes into the chart. A panel or an alert names a metric by its
//! constant in `stowage_telemetry::catalog`, so it cannot name one that no process exports; [`lint`] holds the rules
//! of Grafana's dashboard-linter, which are tests here.
//!
//! Deliberately absent: anything that talks to Grafana or Prometheus.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alerts;
pub mod boards;
pub mod grafana;
pub mod lint;
pub mod query;
pub mod reference;

/// Where the dashboards lie, relative to the repository's root.
pub const DASHBOARDS: &str = "charts/stowage/dashboards";
/// The rules, relative to the repository's root.
pub const RULES: &str = "charts/stowage/rules/stowage.yaml";
/// Where the runbooks lie, relative to the repository's root.
pub const RUNBOOKS: &str = "docs/runbooks";

/// Every generated file: its path from the repository's root, and its content.
pub fn files() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> =
        boards::all().into_iter().map(|board| (format!("{DASHBOARDS}/{}.json", board.uid), pretty(&board))).collect();
    files.push((RULES.to_owned(), alerts::yaml()));
    files.push((reference::PAGE.to_owned(), reference::page()));
    files
}

fn pretty(board: &grafana::Dashboard) -> String {
    // A dashboard is strings, numbers and lists: it is always JSON.
    serde_json::to_string_pretty(board).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_files_are_what_the_code_makes() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (file, content) in files() {
            let found = std::fs::read_to_string(root.join(&file)).unwrap_or_default();
            assert!(found == content, "{file} is out of date; run `cargo xtask codegen` and commit");
        }
    }
}
