//! Prometheus' own tools on what is generated: every rule and every panel's query parses, and every alert fires and
//! stays silent when it should. Cases: `rules/*.yaml`, in promtool's format.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use stowage_dashboards::{RULES, alerts, boards};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What promtool says where it fails; `None`: there is no promtool.
fn promtool(arguments: &[&str], folder: &Path) -> Option<Result<(), String>> {
    let output = Command::new("promtool").args(arguments).current_dir(folder).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some(if output.status.success() { Ok(()) } else { Err(said) })
}

fn must_pass(arguments: &[&str], folder: &Path) {
    match promtool(arguments, folder) {
        Some(result) => assert!(result.is_ok(), "{}", result.unwrap_err()),
        None => eprintln!("skipped: promtool is not installed (Debian: prometheus)"),
    }
}

#[test]
fn rules_are_valid() {
    let path = here().join("../..").join(RULES);
    must_pass(&["check", "rules", "--lint=all", "--lint-fatal", &path.display().to_string()], &here());
}

/// As rules, because promtool has no other way to parse a query.
#[test]
fn every_query_of_every_panel_parses() {
    let mut text = "groups:\n- name: panels\n  rules:\n".to_owned();
    for board in boards::all() {
        for (n, target) in board.panels.iter().flat_map(|panel| &panel.targets).enumerate() {
            let expr = target.expr.replace("$__rate_interval", "1m");
            text += &format!("  - record: p_{}_{n}\n    expr: {}\n", board.uid.replace('-', "_"), Value::String(expr));
        }
    }
    let file = std::env::temp_dir().join(format!("stowage-panels-{}.yaml", std::process::id()));
    std::fs::write(&file, text).unwrap();
    must_pass(&["check", "rules", "--lint=none", &file.display().to_string()], &here());
    std::fs::remove_file(file).unwrap();
}

fn cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(here().join("tests/rules")).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

#[test]
fn every_alert_fires_and_stays_silent_as_its_cases_say() {
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        must_pass(&["test", "rules", &name], case.parent().unwrap());
    }
}

#[test]
fn every_alert_has_a_firing_and_a_silent_case() {
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for case in cases() {
        let file: Value = serde_yaml::from_str(&std::fs::read_to_string(case).unwrap()).unwrap();
        let tests = file["tests"].as_array().unwrap().iter();
        for case in tests.flat_map(|test| test["promql_expr_test"].as_array().unwrap()) {
            let expr = case["expr"].as_str().unwrap();
            let name = expr.split("alertname=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
            let fires = case["exp_samples"].as_array().is_some_and(|samples| !samples.is_empty());
            if fires {
                firing.insert(name)
            } else {
                silent.insert(name)
            };
        }
    }
    let alerts: BTreeSet<String> = alerts::all().into_iter().map(|alert| alert.alert).collect();
    assert_eq!((&firing, &silent), (&alerts, &alerts));
}
