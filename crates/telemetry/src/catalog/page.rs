//! Judges a metrics page: whether it shows what the catalog lists, and what `promtool` says of it.
//!
//! For the tests of each process, on its own real output.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use super::{Kind, Process, all, of_series};

/// What a page shows that the catalog does not list, one sentence each.
pub fn problems(process: Process, page: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (series, labels) in samples(page) {
        let Some(metric) = of_series(series).filter(|metric| metric.process == process) else {
            problems.push(format!("{series} is not in the catalog of {process:?}"));
            continue;
        };
        let bucket = metric.kind == Kind::Histogram && series.ends_with("_bucket");
        let wanted: BTreeSet<&str> = metric.labels.iter().copied().chain(bucket.then_some("le")).collect();
        if wanted != labels {
            problems.push(format!("{series} has the labels {labels:?}, and the catalog says {wanted:?}"));
        }
    }
    problems.sort();
    problems.dedup();
    problems
}

/// Names in the catalog of which the page has no sample.
pub fn missing(process: Process, page: &str) -> Vec<&'static str> {
    let shown: BTreeSet<&str> = samples(page).filter_map(|(series, _)| Some(of_series(series)?.name)).collect();
    all().filter(|metric| metric.process == process && !shown.contains(metric.name)).map(|metric| metric.name).collect()
}

/// Series names with their label names.
fn samples(page: &str) -> impl Iterator<Item = (&str, BTreeSet<&str>)> {
    page.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).map(|line| {
        let end = line.find(['{', ' ']).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        (name, rest.strip_prefix('{').map(label_names).unwrap_or_default())
    })
}

/// The names in `a="…",b="…"} 1`. Values may contain any character; quotes in them are escaped.
fn label_names(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once("=\"") {
        names.insert(name.trim_start_matches(','));
        let mut escaped = false;
        let close = after.find(|c: char| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        let Some(close) = close else { break };
        rest = &after[close + 1..];
        if rest.starts_with('}') {
            break;
        }
    }
    names
}

/// What `promtool check metrics` complains of; empty: nothing. `None`: there is no promtool here.
pub fn promtool(page: &str) -> Option<String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // It reads all before it writes, so this cannot wait for itself.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(page.as_bytes()));
    let output = child.wait_with_output().ok()?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if let Some(Err(err)) = written {
        said += &format!("promtool did not read the page: {err}\n");
    }
    if !output.status.success() && said.is_empty() {
        said = format!("promtool ended with {}\n", output.status);
    }
    Some(said)
}

/// Asserts that a page in the older text format is as the catalog says and clean to promtool; panics
/// with what is wrong. For tests.
#[track_caller]
#[allow(clippy::missing_panics_doc, reason = "it is an assertion")]
pub fn assert_clean(process: Process, page: &str) {
    let found = problems(process, page);
    assert!(found.is_empty(), "{}\n{page}", found.join("\n"));
    match promtool(page) {
        Some(said) => assert!(said.is_empty(), "promtool check metrics: {said}"),
        None => eprintln!("skipped: promtool is not installed (Debian: prometheus)"),
    }
}

/// How often each name of the catalog is on a page, in series.
pub fn series(page: &str) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for metric in samples(page).filter_map(|(series, _)| of_series(series)) {
        *counts.entry(metric.name).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_series_and_other_labels_are_problems() {
        let check = |page: &str, count: usize| {
            let found = problems(Process::Engine, page);
            assert_eq!(found.len(), count, "{page}: {found:?}");
        };
        check("# HELP x y\nstowage_engine_draining 1\n", 0);
        check("stowage_engine_drains 1\n", 1);
        check("stowage_leader 1\n", 1);
        check("stowage_engine_requests_total{outcome=\"ok\"} 1\n", 0);
        check("stowage_engine_requests_total{outcome=\"a\\\"b},c=\"} 1\n", 0);
        check("stowage_engine_requests_total{model=\"m\",outcome=\"ok\"} 1\n", 1);
        check("stowage_engine_requests_total 1\n", 1);
        check("stowage_engine_batch_sequences_bucket{le=\"1.0\"} 1\nstowage_engine_batch_sequences_sum 1\n", 0);
    }

    #[test]
    fn what_has_no_sample_is_missing() {
        let absent = missing(Process::Engine, "stowage_engine_draining 1\n");
        assert!(absent.contains(&"stowage_engine_running_requests") && !absent.contains(&"stowage_engine_draining"));
    }

    #[test]
    fn promtool_complains_of_a_counter_without_its_suffix() {
        let Some(said) = promtool("# HELP stowage_x y\n# TYPE stowage_x counter\nstowage_x 1\n") else { return };
        assert!(said.contains("_total"), "{said}");
        let clean = promtool("# HELP stowage_x_total y\n# TYPE stowage_x_total counter\nstowage_x_total 1\n");
        assert_eq!(clean.as_deref(), Some(""));
    }
}
