//! Every metric of Stowage: its name, kind, labels and help text, each once.
//!
//! Processes register by these constants, and dashboards and alerts are generated from the same
//! ones, so that a panel cannot name a metric that no process has. Label values come from closed
//! sets or from objects of the API; the latter are capped at [`LABEL_CAP`] values
//! (see [`crate::labels`]), then [`OTHER`].

pub mod agent;
pub mod engine;
pub mod gateway;
pub mod operator;
pub mod page;

use prometheus_client::registry::{Metric as Registered, Registry, Unit};

/// Most values of a label that names an object (tenant, model, deployment); half of them for one tenant alone.
pub const LABEL_CAP: usize = 2000;
/// The value of such a label beyond that.
pub const OTHER: &str = "other";

/// Who exports a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// `stowage-gateway`.
    Gateway,
    /// `stowage-operator`.
    Operator,
    /// `stowage-node-agent`.
    NodeAgent,
    /// `stowage-engine`.
    Engine,
}

/// What kind of numbers it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Who exports it.
    pub process: Process,
    /// What kind of numbers it has.
    pub kind: Kind,
    /// As it is scraped, with prefix, unit and `_total`.
    pub name: &'static str,
    /// Its labels, `le` aside.
    pub labels: &'static [&'static str],
    /// What is counted; without a full stop.
    pub help: &'static str,
}

/// Units that stand at the end of a name.
const UNITS: [(&str, Unit); 2] = [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)];

impl Metric {
    /// Registers `metric` under this name and help.
    pub fn register(&self, registry: &mut Registry, metric: impl Registered) {
        let (stem, unit) = self.stem();
        match unit {
            Some(unit) => registry.register_with_unit(stem, self.help, unit, metric),
            None => registry.register(stem, self.help, metric),
        }
    }

    /// The name without what the encoder adds (prefix, unit, `_total`), and the unit.
    pub fn stem(&self) -> (&'static str, Option<Unit>) {
        let name = self.name.strip_prefix("stowage_").unwrap_or(self.name);
        let name = name.strip_suffix("_total").unwrap_or(name);
        let unit = UNITS.iter().find_map(|(suffix, unit)| Some((name.strip_suffix(suffix)?, Some(unit.clone()))));
        unit.unwrap_or((name, None))
    }
}

/// All metrics of all processes.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    [gateway::ALL, operator::ALL, agent::ALL, engine::ALL].into_iter().flatten().copied()
}

/// The metric behind the name of a series: a histogram also has `_bucket`, `_count` and `_sum`.
pub fn of_series(name: &str) -> Option<&'static Metric> {
    let parts = ["_bucket", "_count", "_sum"];
    let base = parts.iter().find_map(|part| name.strip_suffix(part));
    all().find(|metric| match metric.kind {
        Kind::Histogram => base == Some(metric.name),
        Kind::Counter | Kind::Gauge => name == metric.name,
    })
}

/// Declares the metrics of one process, and the list of them.
macro_rules! metrics {
    ($process:ident; $($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $constant: Metric = Metric {
                process: Process::$process,
                kind: Kind::$kind,
                name: $name,
                labels: &[$($label),*],
                help: $help,
            };
        )+
        /// All of them.
        pub static ALL: &[&Metric] = &[$(&$constant),+];
    };
}
pub(crate) use metrics;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_follow_the_rules_of_prometheus() {
        let mut seen = BTreeSet::new();
        for metric in all() {
            let name = metric.name;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("stowage_") && !name.contains(':'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn series_of_histograms_are_found_by_their_parts_and_others_by_their_names() {
        let check = |series: &str, want: Option<&Metric>| assert_eq!(of_series(series), want, "{series}");
        check("stowage_requests_total", Some(&gateway::REQUESTS));
        check("stowage_queue_wait_seconds_bucket", Some(&gateway::QUEUE_WAIT));
        check("stowage_queue_wait_seconds", None);
        check("stowage_requests_total_count", None);
        check("stowage_no_such_metric", None);
    }
}
