//! Nothing in a spec is ignored: each leaf of each schema stands in the table below, as honoured or
//! refused, and is shown to be so.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::fixtures::{documents, here, judge, yaml_files};
use crate::schema::{at, is_set, leaves, sample, schemas, set};

/// `Kind path verdict`. Verdicts: `honoured`; `refused`; `only A,B`: these values are honoured, every other
/// one of the enum is refused; `declared`: a statement about an image, which asks for nothing.
const TABLE: &str = include_str!("leaves.txt");

#[test]
fn every_leaf_stands_in_the_table() {
    let table = table();
    let mut found = BTreeMap::new();
    for (kind, schema) in schemas() {
        let mut paths = Vec::new();
        leaves(&schema["properties"]["spec"], "spec", &mut paths);
        for path in paths.into_iter().filter(|path| path != "spec") {
            found.insert((kind.clone(), path), ());
        }
    }
    let missing: Vec<_> = found.keys().filter(|leaf| !table.contains_key(leaf)).collect();
    let stale: Vec<_> = table.keys().filter(|leaf| !found.contains_key(leaf)).collect();
    assert!(missing.is_empty(), "not in leaves.txt, so nobody decided about them: {missing:#?}");
    assert!(stale.is_empty(), "in leaves.txt, but not in the schema: {stale:#?}");
}

#[test]
fn honoured_leaves_are_accepted_in_some_manifest() {
    let good: Vec<Value> = yaml_files(&here().join("good")).iter().flat_map(|path| documents(path)).collect();
    for ((kind, path), verdict) in table() {
        let shown = good.iter().any(|object| object["kind"] == kind.as_str() && is_set(object, &path));
        if verdict != "refused" {
            assert!(shown, "{kind} {path} is {verdict}, but no manifest in tests/good sets it");
        }
    }
}

#[test]
fn refused_leaves_are_refused() {
    let schemas = schemas();
    for ((kind, path), verdict) in table() {
        let schema = &schemas[&kind];
        let leaf = at(schema, &path);
        let values: Vec<Value> = match verdict.strip_prefix("only ") {
            Some(honoured) => {
                let honoured: Vec<&str> = honoured.split(',').collect();
                let all = leaf["enum"].as_array().unwrap_or_else(|| panic!("{path} is no enum")).iter();
                all.filter(|value| !honoured.contains(&value.as_str().unwrap())).cloned().collect()
            }
            None if verdict == "refused" => vec![refusable(leaf)],
            None => continue,
        };
        for value in values {
            let mut object = base(&kind);
            set(&mut object, schema, &path, value.clone());
            let refusals = judge(&object).unwrap().expect_err(&format!("{kind} {path}: {value} is accepted"));
            let parent = path.rsplit_once('.').unwrap().0;
            let near = |field: &str| {
                let field = field.replace("[0]", "[]");
                path.starts_with(&field) || field.starts_with(parent)
            };
            assert!(refusals.iter().any(|refusal| near(&refusal.field)), "{kind} {path}: {refusals:#?}");
        }
    }
}

/// A value that is not the default: a default asks for nothing.
fn refusable(leaf: &Value) -> Value {
    match leaf["type"].as_str() {
        Some("integer") => json!(2),
        _ => sample(leaf),
    }
}

/// An accepted object of the kind, with only what is needed.
fn base(kind: &str) -> Value {
    let spec = match kind {
        "InferenceDeployment" => json!({
            "model": {"source": {"image": {"reference": "models/m:1", "path": "/m.gguf"}}},
            "variants": [{"name": "small", "class": "h100-80g", "memory": "2Gi"}],
            "scaling": {"mode": "Manual"}
        }),
        "GpuClass" => json!({"selector": {"architectures": ["Hopper"]}}),
        "TenantQuota" => json!({"namespaces": ["team-a"]}),
        "InferenceRuntime" => json!({"adapter": "stowage", "version": "1", "image": "engine:1"}),
        "InferenceBatch" => json!({
            "model": "m", "endpoint": "/v1/completions", "deadline": "24h", "input": {"fileId": "a"}, "output": {"fileId": "b"}
        }),
        _ => json!({}),
    };
    let object =
        json!({"apiVersion": "stowage.dev/v1alpha1", "kind": kind, "metadata": {"name": "base"}, "spec": spec});
    assert!(kind == "InferenceBatch" || judge(&object) == Some(Ok(())), "{object}");
    object
}

fn table() -> BTreeMap<(String, String), String> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let mut word = || words.next().unwrap_or_else(|| panic!("leaves.txt: {line}"));
            ((word(), word()), word())
        })
        .collect()
}
