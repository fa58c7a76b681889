//! The manifests of a file, each with its number in it.

use serde::Deserialize;
use serde_json::Value;
use stowage_crds::names::{API_VERSION, MAX_PLAN_BYTES, MAX_PLAN_MANIFESTS, PLANNED_KINDS};

/// Metadata that the API server writes: of no use in a manifest, and refused by server-side apply.
const WRITTEN_BY_THE_SERVER: [&str; 5] = ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"];

/// One manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    /// Position in the file, from 1, empty documents included.
    pub document: usize,
    pub kind: String,
    /// Empty for kinds without namespaces.
    pub namespace: String,
    pub name: String,
    pub object: Value,
}

/// The objects of `text`, YAML or JSON, each with the number of its document.
pub(crate) fn objects(text: &str, most: usize) -> Result<Vec<(usize, Value)>, String> {
    if text.len() > most {
        return Err(format!("more than {} KiB; give fewer manifests at a time", most >> 10));
    }
    let mut found = Vec::new();
    for (position, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let number = position + 1;
        let value = Value::deserialize(document).map_err(|e| format!("document {number} is no YAML: {e}"))?;
        match value {
            Value::Null => {}
            // What `kubectl get -o yaml` prints for several objects.
            Value::Object(list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
                found.extend(items.map(|item| (number, item.clone())));
            }
            value => found.push((number, value)),
        }
    }
    if found.is_empty() { Err("there is no manifest in it".to_owned()) } else { Ok(found) }
}

/// The manifests of `text`. Those without a namespace get `default`; `given` is the namespace of `-n`,
/// which none may contradict.
pub(crate) fn manifests(text: &str, default: &str, given: Option<&str>) -> Result<Vec<Manifest>, String> {
    let read = |(number, object)| manifest(number, object, default, given);
    let found = objects(text, MAX_PLAN_BYTES)?.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if found.len() > MAX_PLAN_MANIFESTS {
        return Err(format!("{} manifests are more than {MAX_PLAN_MANIFESTS}; plan them in parts", found.len()));
    }
    Ok(found)
}

fn manifest(document: usize, mut object: Value, default: &str, given: Option<&str>) -> Result<Manifest, String> {
    let text = |object: &Value, at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text(&object, "/apiVersion"), text(&object, "/kind"));
    if kind.is_empty() {
        return Err(format!("document {document} is no Kubernetes object: it has no kind"));
    }
    if version != API_VERSION || !PLANNED_KINDS.contains(&kind.as_str()) {
        let takes = PLANNED_KINDS.join(" and ");
        return Err(format!(
            "document {document} is a {kind} of {version:?}; a plan takes {takes} of {API_VERSION}. Leave it out"
        ));
    }
    let name = text(&object, "/metadata/name");
    if name.is_empty() {
        return Err(format!("document {document} ({kind}) has no metadata.name"));
    }
    let mut namespace = text(&object, "/metadata/namespace");
    if kind == "TenantQuota" {
        namespace.clear();
    } else if namespace.is_empty() {
        namespace = default.to_owned();
    }
    if let Some(given) = given.filter(|given| !namespace.is_empty() && *given != namespace) {
        return Err(format!("document {document} ({kind} {name}) is of namespace {namespace}, not {given} as -n says"));
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        WRITTEN_BY_THE_SERVER.iter().for_each(|field| drop(metadata.remove(*field)));
        match namespace.is_empty() {
            true => drop(metadata.remove("namespace")),
            false => drop(metadata.insert("namespace".to_owned(), Value::String(namespace.clone()))),
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    Ok(Manifest { document, kind, namespace, name, object })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str =
        "apiVersion: stowage.dev/v1alpha1\nkind: InferenceDeployment\nmetadata: {name: chat, uid: u}\nstatus: {}\n";

    #[test]
    fn manifests_have_a_namespace_and_nothing_that_the_server_writes() {
        let quota = "apiVersion: stowage.dev/v1alpha1\nkind: TenantQuota\nmetadata: {name: team-a}\n";
        let found = manifests(&format!("---\n---\n{CHAT}---\n{quota}"), "team-a", None).unwrap();
        let shown: Vec<_> =
            found.iter().map(|m| format!("{} {} {}/{}", m.document, m.kind, m.namespace, m.name)).collect();
        assert_eq!(shown, ["2 InferenceDeployment team-a/chat", "3 TenantQuota /team-a"]);
        let want = serde_json::json!({"apiVersion": API_VERSION, "kind": "InferenceDeployment",
            "metadata": {"name": "chat", "namespace": "team-a"}});
        assert_eq!(found[0].object, want);
    }

    #[test]
    fn list_of_objects_and_json_are_read_too() {
        let item = CHAT.replace('\n', "\n  ");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {item}");
        assert_eq!(manifests(&list, "n", None).unwrap().len(), 1);
        let json = serde_json::to_string(&serde_yaml::from_str::<Value>(CHAT).unwrap()).unwrap();
        assert_eq!(manifests(&json, "n", None).unwrap()[0].name, "chat");
    }

    #[test]
    fn document_that_cannot_be_planned_for_is_named_by_its_number() {
        let check = |text: &str, want: &str| {
            let error = manifests(text, "team-a", Some("team-a")).unwrap_err();
            assert!(error.contains(want), "{error}");
        };
        check("", "no manifest");
        check("a: [", "document 1 is no YAML");
        check("7", "document 1 is no Kubernetes object");
        check(&format!("{CHAT}---\napiVersion: v1\nkind: ConfigMap"), "document 2 is a ConfigMap of \"v1\"");
        check(&CHAT.replace("v1alpha1", "v9"), "of \"stowage.dev/v9\"");
        check(&CHAT.replace("name: chat, ", ""), "has no metadata.name");
        check(&CHAT.replace("uid: u", "namespace: team-b"), "is of namespace team-b, not team-a as -n says");
        check(&format!("{CHAT}---\n").repeat(101), "101 manifests are more than 100");
        check(&" ".repeat(MAX_PLAN_BYTES + 1), "more than 1024 KiB");
    }
}
