//! PromQL: the queries that panels and alerts are built from, and which names a query uses.

use std::collections::BTreeSet;

use stowage_telemetry::catalog::{Kind, Metric, Process, of_series};

/// What dashboards replace by a time of a few scrapes.
pub const INTERVAL: &str = "$__rate_interval";

/// The series with these matchers, for example `stowage_ready_replicas{namespace=~"$namespace"}`.
pub fn series(metric: &Metric, matchers: &str) -> String {
    part(metric, "", matchers)
}

/// A counter's growth per second.
pub fn rate(metric: &Metric, matchers: &str) -> String {
    format!("rate({}[{INTERVAL}])", series(metric, matchers))
}

/// A counter's growth per second, summed by labels; no label: of all.
pub fn sum_rate(metric: &Metric, matchers: &str, by: &str) -> String {
    format!("sum{} ({})", by_labels(by), rate(metric, matchers))
}

/// A quantile of a histogram, by labels.
pub fn quantile(q: &str, metric: &Metric, matchers: &str, by: &str) -> String {
    let by = if by.is_empty() { "le".to_owned() } else { format!("le, {by}") };
    format!("histogram_quantile({q}, sum by ({by}) (rate({}[{INTERVAL}])))", part(metric, "_bucket", matchers))
}

/// The mean of a histogram, by labels.
pub fn mean(metric: &Metric, matchers: &str, by: &str) -> String {
    let sum = |suffix| format!("sum{} (rate({}[{INTERVAL}]))", by_labels(by), part(metric, suffix, matchers));
    format!("{} / {}", sum("_sum"), sum("_count"))
}

/// A series of a histogram (`_bucket`, `_count`, `_sum`), or with an empty suffix the metric itself.
pub fn part(metric: &Metric, suffix: &str, matchers: &str) -> String {
    if matchers.is_empty() {
        format!("{}{suffix}", metric.name)
    } else {
        format!("{}{suffix}{{{matchers}}}", metric.name)
    }
}

fn by_labels(by: &str) -> String {
    if by.is_empty() { String::new() } else { format!(" by ({by})") }
}

/// Names of our series in a query.
pub fn names(expr: &str) -> BTreeSet<&str> {
    words(expr).filter(|word| word.starts_with("stowage_")).collect()
}

/// Names of our series in a query that no process exports.
pub fn unknown_names(expr: &str) -> Vec<&str> {
    names(expr).into_iter().filter(|name| of_series(name).is_none()).collect()
}

/// Whether series of the metric have the label: its own, or one that every scrape adds. Engines name no namespace
/// themselves, so that theirs is the one of the pod.
pub fn has_label(metric: &Metric, label: &str) -> bool {
    metric.labels.contains(&label)
        || ["job", "instance", "pod"].contains(&label)
        || (label == "le" && metric.kind == Kind::Histogram)
        || (label == "namespace" && metric.process == Process::Engine)
}

/// Labels in braces and in `by (…)`, `on (…)` and the like that no metric of the query has.
pub fn unknown_labels(expr: &str) -> Vec<&str> {
    let metrics: Vec<&Metric> = names(expr).into_iter().filter_map(of_series).collect();
    labels(expr).into_iter().filter(|label| !metrics.iter().any(|metric| has_label(metric, label))).collect()
}

/// Counters of a query that stand outside `rate`, `increase` and `resets`.
pub fn bare_counters(expr: &str) -> Vec<&str> {
    let functions = ["rate(", "increase(", "resets(", "changes("];
    let is_counter = |name: &&str| of_series(name).is_some_and(|metric| metric.kind != Kind::Gauge);
    let bare = |name: &&str| {
        expr.match_indices(*name).any(|(at, _)| !functions.iter().any(|function| expr[..at].ends_with(function)))
    };
    names(expr).into_iter().filter(is_counter).filter(bare).collect()
}

fn words(expr: &str) -> impl Iterator<Item = &str> {
    expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn labels(expr: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for group in between(expr, '{', '}') {
        let names = group.split("\"").step_by(2).flat_map(words);
        found.extend(names);
    }
    for word in ["by", "on", "ignoring", "without", "group_left", "group_right"] {
        for start in [format!(" {word} ("), format!("{word}(")] {
            for (at, _) in expr.match_indices(&start) {
                found.extend(words(expr[at + start.len()..].split(')').next().unwrap_or_default()));
            }
        }
    }
    found
}

fn between(text: &str, open: char, close: char) -> impl Iterator<Item = &str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_telemetry::catalog::{gateway, operator};

    #[test]
    fn names_that_nobody_exports_are_found() {
        let check = |expr: &str, want: &[&str]| assert_eq!(unknown_names(expr), want, "{expr}");
        check("sum(rate(stowage_requests_total[5m])) / stowage_leader", &[]);
        check("rate(stowage_requests[5m])", &["stowage_requests"]);
        check("stowage_queue_wait_seconds_bucket + stowage_queue_wait_seconds", &["stowage_queue_wait_seconds"]);
    }

    #[test]
    fn labels_that_no_metric_of_the_query_has_are_found() {
        let check = |expr: &str, want: &[&str]| assert_eq!(unknown_labels(expr), want, "{expr}");
        check(r#"sum by (tenant) (rate(stowage_requests_total{outcome="a,b=c"}[5m]))"#, &[]);
        check(r#"sum by (deployment) (rate(stowage_requests_total{owner="x"}[5m]))"#, &["deployment", "owner"]);
        check("stowage_leader * on (pod) group_left (tenant) stowage_frozen", &["tenant"]);
        check(&quantile("0.5", &gateway::QUEUE_WAIT, r#"namespace=~"$namespace""#, "deployment"), &[]);
    }

    #[test]
    fn counters_outside_of_rates_are_found() {
        assert_eq!(bare_counters("sum(stowage_requests_total)"), ["stowage_requests_total"]);
        assert!(bare_counters(&sum_rate(&gateway::REQUESTS, "", "tenant")).is_empty());
        assert!(bare_counters(&series(&operator::LEADER, "")).is_empty());
    }
}
