//! Nothing in a spec is ignored: each leaf of each schema is honoured, or refused by a row of the table of what this
//! release does not support.

use serde_json::{Value, json};
use stowage_crds::support::{Honoured, Row, rows};

use crate::fixtures::{documents, here, judge, repository, yaml_files};
use crate::schema::{at, is_set, leaves, sample, schemas, set};

/// Kind and path of every leaf of a spec.
fn all_leaves() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (kind, schema) in schemas() {
        let mut paths = Vec::new();
        leaves(&schema["properties"]["spec"], "spec", &mut paths);
        found.extend(paths.into_iter().filter(|path| path != "spec").map(|path| (kind.clone(), path)));
    }
    found
}

fn refused(kind: &str, path: &str) -> bool {
    rows().iter().any(|row| row.refuses_leaf(kind, path))
}

#[test]
fn honoured_leaf_is_accepted_in_some_manifest() {
    let good: Vec<Value> = yaml_files(&here().join("good")).iter().flat_map(|path| documents(path)).collect();
    for (kind, path) in all_leaves().into_iter().filter(|(kind, path)| !refused(kind, path)) {
        let shown = good.iter().any(|object| object["kind"] == kind.as_str() && is_set(object, &path));
        assert!(shown, "{kind} {path} is in no row of support.rs and in no manifest of tests/good");
    }
}

#[test]
fn refused_leaf_is_refused_as_not_supported_yet() {
    let schemas = schemas();
    for (kind, path) in all_leaves().into_iter().filter(|(kind, path)| refused(kind, path)) {
        let mut object = base(&kind);
        set(&mut object, &schemas[&kind], &path, sample(at(&schemas[&kind], &path)));
        assert_not_supported(&kind, &path, &object);
    }
}

#[test]
fn value_outside_the_honoured_ones_is_refused() {
    let schemas = schemas();
    for row in rows() {
        let Honoured::Only(honoured) = row.honoured else { continue };
        let path = if row.fields.is_empty() { row.at.to_owned() } else { row.path() };
        for value in others(at(&schemas[row.kind], &path), honoured) {
            let mut object = base(row.kind);
            set(&mut object, &schemas[row.kind], &path, value);
            assert_not_supported(row.kind, &path, &object);
        }
    }
}

/// Values that the schema has beside the honoured ones.
fn others(leaf: &Value, honoured: &[&str]) -> Vec<Value> {
    let all = match (leaf["enum"].as_array(), leaf["type"].as_str()) {
        (Some(values), _) => values.clone(),
        (None, Some("boolean")) => vec![json!(true), json!(false)],
        _ => vec![json!(1), json!(2)],
    };
    let others: Vec<Value> = all
        .into_iter()
        .filter(|value| {
            !honoured
                .iter()
                .any(|literal| serde_json::from_str(&literal.replace('\'', "\"")).ok().as_ref() == Some(value))
        })
        .collect();
    assert!(!others.is_empty(), "{leaf} has no value that is refused");
    others
}

fn assert_not_supported(kind: &str, path: &str, object: &Value) {
    let refusals = judge(object).unwrap().expect_err(&format!("{kind} {path} is accepted"));
    let near = |field: &str| path.starts_with(field) || field.starts_with(path.rsplit_once('.').unwrap().0);
    let found = refusals.iter().any(|refusal| refusal.reason.as_str() == "NotSupportedYet" && near(&refusal.field));
    assert!(found, "{kind} {path}: {refusals:#?}");
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

/// `coldStart.maxHeld`: the last two steps of a path are in no other text.
fn ends_of(row: &Row) -> Vec<String> {
    let parent = row.at.rsplit('.').next().unwrap_or_default().trim_end_matches("[]").to_owned();
    row.fields.iter().map(|field| format!("{parent}.{field}")).filter(|end| !end.starts_with("spec.")).collect()
}

#[test]
fn no_other_part_recommends_a_field_that_is_refused() {
    let ends: Vec<String> =
        rows().iter().filter(|row| !matches!(row.honoured, Honoured::Only(_))).flat_map(ends_of).collect();
    let folders = ["operator/src", "gateway/src", "planner/src", "node-agent/src", "runtimes/src", "cli/src"];
    for file in folders.iter().flat_map(|folder| rust_files(&repository().join(folder))) {
        let text = std::fs::read_to_string(&file).unwrap();
        for end in ends.iter().filter(|end| *end != "variants.memory") {
            assert!(
                !text.contains(&format!("{end} ")) && !text.contains(&format!("{end}.")),
                "{}: {end}",
                file.display()
            );
        }
    }
}

fn rust_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn page_of_unsupported_fields_names_each_row() {
    let page = stowage_crds::support::page();
    for row in rows() {
        assert!(page.contains(row.message), "{}", row.message);
    }
}
