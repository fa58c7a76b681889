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
