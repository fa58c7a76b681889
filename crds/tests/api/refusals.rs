//! Every rule has a manifest that it refuses, and `validate` refuses it too.

use std::collections::BTreeSet;

use stowage_crds::rules::Reason;

use crate::fixtures::{documents, here, judge, yaml_files};
use crate::schema::{messages, schemas};

#[test]
fn every_rule_has_a_manifest_that_it_refuses() {
    let mut rules = Vec::new();
    schemas().values().for_each(|schema| messages(schema, &mut rules));
    let rules: BTreeSet<String> = rules.into_iter().collect();
    let shown: BTreeSet<String> = yaml_files(&here().join("bad")).iter().map(|path| expected(path)).collect();
    assert_eq!(rules.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new(), "rules without a bad manifest");
    assert_eq!(shown.difference(&rules).collect::<Vec<_>>(), Vec::<&String>::new(), "bad manifests without a rule");
    assert!(rules.len() > 40, "{}", rules.len());
}

/// A class or runtime that was stored with such a name cannot be named by anything, so nothing else depends on it.
const NAMES_OF_CLUSTER_OBJECTS: [&str; 2] =
    [stowage_crds::rules::class::NAME_LENGTH.message, stowage_crds::rules::runtime::NAME_LENGTH.message];

#[test]
fn what_the_api_server_refuses_validate_refuses_too() {
    for path in yaml_files(&here().join("bad")) {
        let message = expected(&path);
        if NAMES_OF_CLUSTER_OBJECTS.contains(&message.as_str()) {
            continue;
        }
        let wanted = if message.starts_with("NotSupportedYet: ") { Reason::NotSupportedYet } else { Reason::Invalid };
        for object in documents(&path) {
            let refusals = judge(&object).unwrap().expect_err(&format!("{} is accepted", path.display()));
            assert!(refusals.iter().any(|refusal| refusal.reason == wanted), "{}: {refusals:#?}", path.display());
        }
    }
}

#[test]
fn messages_fit_into_an_event() {
    let mut rules = Vec::new();
    schemas().values().for_each(|schema| messages(schema, &mut rules));
    for message in rules {
        assert!(
            message.len() < 220
                && (message.contains("write")
                    || message.contains("remove")
                    || message.contains("set ")
                    || message.contains("send ")
                    || message.contains("asked for in")),
            "{message}"
        );
    }
}

fn expected(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().next().unwrap();
    line.strip_prefix("# refused: ")
        .unwrap_or_else(|| panic!("{} does not begin with `# refused: `", path.display()))
        .to_owned()
}
