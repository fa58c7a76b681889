//! Any value under any leaf is read and validated to a value, a refusal or a parse error; never to a panic, and never
//! to a number that the text does not contain.

use std::panic::catch_unwind;

use serde_json::{Value, json};
use stowage_crds::InferenceDeployment;
use stowage_crds::validate::{AcceptedAccelerator, validate_deployment};

use crate::schema::{leaves, schemas, set};

const TEXTS: &[&str] = &[
    "",
    " ",
    "0",
    "-1",
    "-0",
    "1e400",
    "9223372036854775808",
    "99999999999999999999999999999999999999999",
    "0x10",
    "1Gi ",
    "1 Gi",
    "1gi",
    "1.5.2",
    "+",
    ".",
    "∞",
    "NaN",
    "1\u{0}",
    "٣Gi",
    "🦀",
    "{model.path}",
    "..",
    "/../../etc/passwd",
    "Auto",
    "true",
    "null",
    "5m30s",
    "18446744073709551615ms",
    "1Ei",
    "8Ei",
    "0.0000000000000000000000000001",
];

fn nasty() -> Vec<Value> {
    let mut values: Vec<Value> = TEXTS.iter().map(|text| json!(text)).collect();
    values.push(json!("x".repeat(100_000)));
    values.extend([
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1.5),
        json!(1e300),
        json!([]),
        json!({}),
    ]);
    values
}

fn base() -> Value {
    json!({
        "apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "metadata": {"name": "base"},
        "spec": {
            "model": {"source": {"image": {"reference": "models/m:1", "path": "/m.gguf"}}},
            "variants": [{"name": "small", "class": "h100-80g", "memory": "2Gi"}],
            "scaling": {"mode": "Manual"}
        }
    })
}

#[test]
fn any_value_under_any_leaf_is_accepted_refused_or_unreadable_without_a_panic() {
    let schema = &schemas()["InferenceDeployment"];
    let mut paths = Vec::new();
    leaves(&schema["properties"]["spec"], "spec", &mut paths);
    let (mut accepted, mut refused, mut unreadable) = (0, 0, 0);
    for path in paths {
        for value in nasty() {
            let mut object = base();
            set(&mut object, schema, &path, value.clone());
            let judged = catch_unwind(|| {
                let read: Result<InferenceDeployment, _> = serde_json::from_value(object.clone());
                read.ok().map(|read| validate_deployment("base", &read.spec))
            });
            match judged.unwrap_or_else(|_| panic!("{path} = {value} panics")) {
                None => unreadable += 1,
                Some(Err(refusals)) => {
                    refused += 1;
                    assert!(
                        !refusals.is_empty() && refusals.iter().all(|refusal| refusal.message.len() < 1000),
                        "{path} = {value}"
                    );
                }
                Some(Ok(narrow)) => {
                    accepted += 1;
                    for variant in narrow.variants {
                        if let AcceptedAccelerator::Gpu { count, memory_bytes, sm_percent, .. } = variant.accelerator {
                            assert!(count > 0 && memory_bytes != Some(0), "{path} = {value}");
                            assert!(sm_percent.is_none_or(|percent| (1..=100).contains(&percent)), "{path} = {value}");
                        }
                    }
                }
            }
        }
    }
    assert!(accepted > 100 && refused > 100 && unreadable > 100, "{accepted} {refused} {unreadable}");
}
