//! Condition types and reasons are API: each is used by some part, and documented.

use std::path::Path;

use crate::fixtures::repository;

/// Name and text of every constant in `conditions.rs`.
fn constants() -> Vec<(String, String)> {
    let source = std::fs::read_to_string(repository().join("crds/src/conditions.rs")).unwrap();
    let lines = source.lines().filter_map(|line| line.trim().strip_prefix("pub const "));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(": &str = \"").unwrap();
            (name.to_owned(), rest.trim_end_matches("\";").to_owned())
        })
        .collect()
}

/// Everything that our programs are made of, in one text.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("crds/src/conditions.rs")
        {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_condition_type_and_reason_is_used_by_some_part() {
    let mut text = String::new();
    for part in ["crds/src", "runtimes/src", "operator/src", "node-agent/src"] {
        sources(&repository().join(part), &mut text);
    }
    let words: std::collections::BTreeSet<&str> = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let unused: Vec<_> = constants().into_iter().filter(|(name, _)| !words.contains(name.as_str())).collect();
    assert!(unused.is_empty(), "used by no part: {unused:?}; remove the constants, or use them");
}

#[test]
fn every_condition_type_and_reason_is_documented() {
    let folder = repository().join("docs/spec/v1alpha1");
    let pages = std::fs::read_dir(folder).unwrap().map(|page| std::fs::read_to_string(page.unwrap().path()).unwrap());
    let text: String = pages.collect();
    let missing: Vec<_> = constants().into_iter().filter(|(_, word)| !text.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "not in docs/spec/v1alpha1: {missing:?}");
}

/// Rows of a page's table of conditions: the type, and the words in backticks of the columns True and False.
fn documented_conditions(page: &str) -> Vec<(String, Vec<String>)> {
    let page = repository().join("docs/spec/v1alpha1").join(page);
    let page = std::fs::read_to_string(page).unwrap();
    let table = page.lines().skip_while(|line| !line.starts_with("| condition | True | False |"));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rows.map(|row| {
        let (first, others) = row.trim_start_matches('|').split_once('|').unwrap();
        (quoted(first).remove(0), quoted(others))
    })
    .collect()
}

#[test]
fn table_of_conditions_has_every_type_and_only_existing_reasons() {
    let words: std::collections::BTreeMap<String, String> = constants().into_iter().map(|(a, b)| (b, a)).collect();
    // A TenantQuota has one of its own.
    let pages = ["inferencedeployment.md", "tenantquota.md"];
    let table: Vec<_> = pages.into_iter().flat_map(documented_conditions).collect();
    for (kind, reasons) in &table {
        let unknown: Vec<_> = reasons.iter().filter(|reason| !words.contains_key(*reason)).collect();
        assert!(!reasons.is_empty() && unknown.is_empty(), "{kind}: no such reason {unknown:?}");
    }
    let source = std::fs::read_to_string(repository().join("crds/src/conditions.rs")).unwrap();
    let types = source.split("pub mod reasons").next().unwrap();
    let wanted: Vec<&str> = types.split('"').skip(1).step_by(2).collect();
    let found: Vec<&str> = table.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(found, wanted);
}

#[test]
fn every_reason_of_a_deployment_that_does_not_serve_has_advice() {
    let page = std::fs::read_to_string(repository().join("docs/spec/v1alpha1/inferencedeployment.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with("| `Ready` |")).unwrap();
    let reasons = row.split('|').nth(3).unwrap().split('`').skip(1).step_by(2);
    let advice = std::fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let (_, table) = advice.split_once("## Troubleshooting").unwrap();
    let table = table.split("\n## ").next().unwrap();
    // They say that it works, or repeat another condition.
    let plain = ["Starting", "PartlyReady", "NotAccepted", "Deleting"];
    let missing: Vec<&str> =
        reasons.filter(|reason| !plain.contains(reason) && !table.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md, Troubleshooting, has no row for {missing:?}");
}
