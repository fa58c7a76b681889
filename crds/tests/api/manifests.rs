//! Generated files are committed; examples are accepted.
//!
//! `cargo xtask codegen`, or `UPDATE_GOLDEN=1 cargo test -p stowage-crds generated`, writes the generated files.

use crate::fixtures::{documents, here, judge, repository, yaml_files};

#[test]
fn generated_files_are_up_to_date() {
    for (name, wanted) in stowage_crds::crd::generated() {
        let path = repository().join(&name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{name} is out of date; run `cargo xtask codegen`");
    }
}

#[test]
fn every_example_is_accepted() {
    let mut judged = 0;
    for path in yaml_files(&repository().join("examples")) {
        for object in documents(&path) {
            match judge(&object) {
                Some(Err(refusals)) => panic!("{}: {refusals:#?}", path.display()),
                Some(Ok(())) => judged += 1,
                None => {}
            }
        }
    }
    assert!(judged >= 8, "only {judged} objects of ours in examples/");
}

#[test]
fn every_good_manifest_is_accepted() {
    for path in yaml_files(&here().join("good")) {
        for object in documents(&path) {
            assert_eq!(judge(&object), Some(Ok(())), "{}", path.display());
        }
    }
}

/// The API server writes defaults into list items, and `kubectl apply` compares whole lists: the next apply would find
/// a difference.
#[test]
fn no_default_lies_inside_a_list() {
    for (kind, schema) in crate::schema::schemas() {
        assert_no_default(&kind, "spec", &schema["properties"]["spec"], false);
    }
}

fn assert_no_default(kind: &str, path: &str, schema: &serde_json::Value, in_list: bool) {
    assert!(!in_list || schema.get("default").is_none(), "{kind} {path} has the default {}", schema["default"]);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        assert_no_default(kind, &format!("{path}.{name}"), property, in_list);
    }
    if schema["items"].is_object() {
        assert_no_default(kind, &format!("{path}[]"), &schema["items"], true);
    }
}
