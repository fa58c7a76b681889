//! Generated files are committed; examples are accepted.

use crate::fixtures::{documents, here, judge, repository, yaml_files};

#[test]
fn committed_crds_are_what_the_types_say() {
    let folder = repository().join("charts/stowage-crds/templates");
    for (name, wanted) in stowage_crds::crd::manifests() {
        let path = folder.join(&name);
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} is out of date; run `cargo xtask codegen`", path.display());
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
