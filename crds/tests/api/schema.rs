//! Walks the generated schemas: leaves, rules, and a value for any place.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Kind → schema of the whole object.
pub fn schemas() -> BTreeMap<String, Value> {
    stowage_crds::all_crds()
        .iter()
        .map(|crd| {
            let value = serde_json::to_value(crd).unwrap();
            (crd.spec.names.kind.clone(), value["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        })
        .collect()
}

/// Paths of all leaves below a schema: `[]` is an item, `*` any key.
pub fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            leaves(property, &format!("{path}.{name}"), found);
        }
    } else if schema["items"].is_object() {
        leaves(&schema["items"], &format!("{path}[]"), found);
    } else if schema["additionalProperties"].is_object() {
        leaves(&schema["additionalProperties"], &format!("{path}.*"), found);
    } else {
        found.push(path.trim_start_matches('.').to_owned());
    }
}

/// The schema at a path of [`leaves`].
pub fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(schema, |schema, step| {
        let (name, items) = step.split_at(step.find("[]").unwrap_or(step.len()));
        let schema = if name == "*" { &schema["additionalProperties"] } else { &schema["properties"][name] };
        (0..items.len() / 2).fold(schema, |schema, _| &schema["items"])
    })
}

/// The least value that the schema's shape allows.
pub fn sample(schema: &Value) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return values[0].clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let names = required.iter().filter_map(Value::as_str);
            Value::Object(names.map(|name| (name.to_owned(), sample(&schema["properties"][name]))).collect())
        }
        Some("array") => json!([sample(&schema["items"])]),
        Some("integer") => json!(schema["minimum"].as_f64().unwrap_or(1.0).max(1.0) as u64),
        Some("boolean") => json!(true),
        _ => json!("x".repeat(schema["minLength"].as_u64().unwrap_or(1).max(1) as usize)),
    }
}

/// Puts a value at a path of [`leaves`], making what is missing on the way.
pub fn set(object: &mut Value, schema: &Value, path: &str, value: Value) {
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    let (name, is_list) = match step.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (step, false),
    };
    let map: &mut Map<String, Value> = object.as_object_mut().unwrap();
    let (key, below) = if name == "*" {
        ("key".to_owned(), &schema["additionalProperties"])
    } else {
        (name.to_owned(), &schema["properties"][name])
    };
    let slot = map.entry(key).or_insert_with(|| sample(below));
    let (slot, below) = if is_list {
        let list = slot.as_array_mut().unwrap();
        if list.is_empty() {
            list.push(sample(&below["items"]));
        }
        (&mut list[0], &below["items"])
    } else {
        (slot, below)
    };
    if rest.is_empty() { *slot = value } else { set(slot, below, rest, value) }
}

/// Whether a manifest sets the leaf.
pub fn is_set(object: &Value, path: &str) -> bool {
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    let below = |value: &Value| rest.is_empty() || is_set(value, rest);
    match (step, step.strip_suffix("[]")) {
        ("*", _) => object.as_object().is_some_and(|map| map.values().any(below)),
        (_, Some(name)) => object[name].as_array().is_some_and(|list| list.iter().any(below)),
        (name, None) => object.get(name).is_some_and(below),
    }
}

/// Messages of all CEL rules in a schema.
pub fn messages(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "x-kubernetes-validations" {
                    let rules = value.as_array().unwrap().iter();
                    found.extend(rules.map(|rule| rule["message"].as_str().unwrap().to_owned()));
                } else {
                    messages(value, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| messages(item, found)),
        _ => {}
    }
}
