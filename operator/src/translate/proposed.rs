//! The objects as they would be once some manifests were applied or deleted: the input of a dry run. Pure.
//!
//! A manifest is merged as `kubectl apply` merges: what it leaves out stays, unless the manifest that was applied
//! last had it. Whether the result is accepted is not judged here but by [`build`](super::build), as for any object.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use stowage_contracts::names::{API_VERSION, MAX_PLAN_MANIFESTS, PLANNED_KINDS};
use stowage_crds::conditions::reasons;
use stowage_planner::difference::{Document, DryRunRequest, Proposal, Refused};

use crate::observe::keeps_annotation;
use crate::observe::view::{LAST_APPLIED, Malformed, Objects, Stored, View};

/// Why a request cannot be planned for at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    #[error("there is no manifest in the request")]
    Empty,
    #[error("{0} manifests are more than {MAX_PLAN_MANIFESTS}; plan them in parts")]
    TooMany(usize),
    #[error("manifest {number} is {what}; a plan takes {} of {API_VERSION}", PLANNED_KINDS.join(" and "))]
    Kind { number: usize, what: String },
    #[error("manifest {number} ({kind}) has no {field}")]
    Unnamed { number: usize, kind: String, field: &'static str },
    #[error("manifests {first} and {number} are both {object}; leave one out")]
    Twice { first: usize, number: usize, object: String },
}

/// The view with the manifests in it, and what each does to its object. A refusal that only the other objects give
/// reason for is not known yet.
pub fn propose(view: &View, request: &DryRunRequest<Value>) -> Result<(View, Vec<Document>), ProposalError> {
    let DryRunRequest { manifests, delete } = request;
    if manifests.is_empty() {
        return Err(ProposalError::Empty);
    }
    if manifests.len() > MAX_PLAN_MANIFESTS {
        return Err(ProposalError::TooMany(manifests.len()));
    }
    let (mut view, mut documents) = (view.clone(), Vec::new());
    for (position, manifest) in manifests.iter().enumerate() {
        let target = Target::read(position + 1, manifest)?;
        let same = |d: &Document| d.kind == target.kind && (&d.namespace, &d.name) == (&target.key.0, &target.key.1);
        if let Some(first) = documents.iter().position(same) {
            let object = format!("{} {}/{}", target.kind, target.key.0, target.key.1);
            return Err(ProposalError::Twice { first: first + 1, number: position + 1, object });
        }
        let (proposal, refusal) = match (target.kind.as_str(), delete) {
            ("TenantQuota", false) => apply(&mut view.quotas, &target, manifest, view.now),
            ("TenantQuota", true) => remove(&mut view.quotas, &target),
            (_, false) => apply(&mut view.deployments, &target, manifest, view.now),
            (_, true) => end(&mut view.deployments, &target, view.now),
        };
        documents.push(Document {
            number: u32::try_from(position + 1).unwrap_or(u32::MAX),
            kind: target.kind,
            namespace: target.key.0,
            name: target.key.1,
            proposal,
            refusal,
        });
    }
    Ok((view, documents))
}

/// The object that a manifest is about.
struct Target {
    kind: String,
    /// Namespace and name.
    key: (String, String),
}

impl Target {
    fn read(number: usize, manifest: &Value) -> Result<Self, ProposalError> {
        let text = |at: &str| manifest.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        if version != API_VERSION || !PLANNED_KINDS.contains(&kind.as_str()) {
            let what = match (version.is_empty(), kind.is_empty()) {
                (_, true) => "no object: it has no kind".to_owned(),
                (true, false) => format!("a {kind} without apiVersion"),
                (false, false) => format!("a {kind} of {version}"),
            };
            return Err(ProposalError::Kind { number, what });
        }
        let (mut namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        if name.is_empty() {
            return Err(ProposalError::Unnamed { number, kind, field: "metadata.name" });
        }
        if kind == "TenantQuota" {
            namespace.clear();
        } else if namespace.is_empty() {
            return Err(ProposalError::Unnamed { number, kind, field: "metadata.namespace" });
        }
        Ok(Self { kind, key: (namespace, name) })
    }
}

type Done = (Proposal, Option<Refused>);

fn apply<S, T>(objects: &mut Objects<Stored<S, T>>, target: &Target, manifest: &Value, now: jiff::Timestamp) -> Done
where
    S: Serialize + DeserializeOwned + PartialEq + Clone,
    T: Clone,
{
    let old = objects.get(&target.key).cloned();
    let merged = merged(old.as_deref(), manifest);
    let spec: Result<S, Malformed> = serde_json::from_value(merged).map_err(|err| Malformed(err.to_string()));
    if let Err(Malformed(why)) = &spec {
        // The API server refuses it by the same types, and whatever is stored stays.
        let proposal = if old.is_some() { Proposal::Change } else { Proposal::Create };
        let message = format!("spec: {why}");
        return (proposal, Some(Refused { reason: reasons::MALFORMED.to_owned(), message }));
    }
    let annotations = annotations(manifest);
    let (proposal, next) = match old {
        None => {
            (Proposal::Create, Stored { meta: created(target, annotations, now), spec, status: None, unlike: None })
        }
        Some(old) => {
            let mut next = Stored::clone(&old);
            let same = match (&old.spec, &spec) {
                (Ok(old), Ok(new)) => old == new,
                _ => false,
            };
            if !same {
                next.meta.generation = Some(old.generation() + 1);
            }
            let had = next.meta.annotations.clone().unwrap_or_default();
            next.meta.annotations.get_or_insert_default().extend(annotations);
            let same = same && next.meta.annotations.as_ref() == Some(&had);
            next.spec = spec;
            (if same { Proposal::Unchanged } else { Proposal::Change }, next)
        }
    };
    objects.insert(target.key.clone(), Arc::new(next));
    (proposal, None)
}

/// Deletion of an object with a finalizer: it stays until its work has ended.
fn end<S: Clone, T: Clone>(objects: &mut Objects<Stored<S, T>>, target: &Target, now: jiff::Timestamp) -> Done {
    let Some(old) = objects.get(&target.key) else { return absent(target) };
    let mut next = Stored::clone(old);
    next.meta.deletion_timestamp.get_or_insert(Time(now));
    objects.insert(target.key.clone(), Arc::new(next));
    (Proposal::Delete, None)
}

fn remove<S, T>(objects: &mut Objects<Stored<S, T>>, target: &Target) -> Done {
    match objects.remove(&target.key) {
        Some(_) => (Proposal::Delete, None),
        None => absent(target),
    }
}

fn absent(target: &Target) -> Done {
    let message = format!("there is no {} of this name", target.kind);
    (Proposal::Delete, Some(Refused { reason: "NotFound".to_owned(), message }))
}

fn created(
    target: &Target,
    annotations: std::collections::BTreeMap<String, String>,
    now: jiff::Timestamp,
) -> ObjectMeta {
    let (namespace, name) = &target.key;
    ObjectMeta {
        name: Some(name.clone()),
        namespace: (!namespace.is_empty()).then(|| namespace.clone()),
        // No UID of Kubernetes has this form.
        uid: Some(format!("proposed:{namespace}/{name}")),
        generation: Some(1),
        creation_timestamp: Some(Time(now)),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    }
}

fn annotations(manifest: &Value) -> std::collections::BTreeMap<String, String> {
    let given = manifest.pointer("/metadata/annotations").and_then(Value::as_object);
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    given.into_iter().flatten().filter_map(text).filter(|(key, value)| keeps_annotation(key, value)).collect()
}

/// The spec after the manifest is applied.
fn merged<S: Serialize, T>(old: Option<&Stored<S, T>>, manifest: &Value) -> Value {
    let empty = || Value::Object(Map::new());
    let mut spec = old.and_then(|old| serde_json::to_value(old.spec.as_ref().ok()?).ok()).unwrap_or_else(empty);
    let last = old.and_then(|old| old.meta.annotations.as_ref()?.get(LAST_APPLIED));
    let last: Value = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let new = manifest.get("spec").cloned().unwrap_or_else(empty);
    merge(&mut spec, &last["spec"], &new);
    spec
}

/// A three-way JSON merge; lists are replaced.
fn merge(live: &mut Value, last: &Value, new: &Value) {
    let Value::Object(fields) = new else {
        *live = new.clone();
        return;
    };
    if !live.is_object() {
        *live = Value::Object(Map::new());
    }
    let Value::Object(target) = live else { return };
    for key in last.as_object().into_iter().flatten().map(|(key, _)| key) {
        if !fields.contains_key(key) {
            target.remove(key);
        }
    }
    for (key, value) in fields {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), &last[key], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::StoredDeployment;
    use serde_json::json;

    #[test]
    fn what_was_applied_last_and_is_left_out_now_is_taken_out() {
        let model = json!({"source": {"image": {"reference": "a:b", "path": "/m"}}});
        let variants = json!([{"name": "small", "class": "h100-80g", "memory": "1Gi", "compute": 10}]);
        let spec = json!({"model": model, "variants": variants, "podTemplate": {"nodeSelector": {"zone": "a"}}});
        let applied = |text: String| {
            let annotations = json!({LAST_APPLIED: text, "example.org/note": "x"});
            let object = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment",
                "metadata": {"name": "chat", "annotations": annotations}, "spec": spec});
            let stored = StoredDeployment::read(serde_json::from_value(object).unwrap());
            assert!(stored.spec.is_ok(), "{:?}", stored.spec);
            stored
        };
        let selector = |stored: &StoredDeployment| {
            merged(Some(stored), &json!({"spec": {"model": model}}))["podTemplate"]["nodeSelector"]["zone"].clone()
        };
        assert_eq!(selector(&applied(json!({"spec": spec}).to_string())), Value::Null);
        assert_eq!(selector(&applied("{}".into())), "a", "another field manager's");
        let long = applied(json!({"spec": spec, "x": "y".repeat(20_000)}).to_string());
        assert!(long.annotation(LAST_APPLIED).is_none() && long.annotation("example.org/note").is_none());
    }

    #[test]
    fn what_a_manifest_leaves_out_stays_unless_it_was_applied_last() {
        let check = |last: Value, new: Value, want: Value| {
            let mut live = json!({"replicas": 3, "scaling": {"mode": "Manual", "minReplicas": 1}, "list": [1, 2]});
            merge(&mut live, &last, &new);
            assert_eq!(live, want, "{last} {new}");
        };
        let rest = json!({"replicas": 3, "scaling": {"mode": "Active", "minReplicas": 1}, "list": [1, 2]});
        check(Value::Null, json!({"scaling": {"mode": "Active"}}), rest);
        let left = json!({"scaling": {"mode": "Manual"}, "list": [7]});
        let last = json!({"replicas": 3, "scaling": {"minReplicas": 1}});
        check(last, json!({"scaling": {"mode": "Manual"}, "list": [7]}), left);
        let removed = json!({"scaling": {"mode": "Manual", "minReplicas": 1}, "list": [1, 2]});
        check(Value::Null, json!({"replicas": null}), removed);
    }

    #[test]
    fn request_that_cannot_be_planned_for_is_refused_with_the_manifests_number() {
        let good = json!({"apiVersion": API_VERSION, "kind": "InferenceDeployment", "metadata": {"name": "a", "namespace": "n"}});
        let check = |manifests: Vec<Value>, want: &str| {
            let request = DryRunRequest { manifests, delete: false };
            let error = propose(&View::default(), &request).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        };
        check(vec![], "no manifest");
        check(vec![good.clone(), json!({"apiVersion": "v1", "kind": "ConfigMap"})], "manifest 2 is a ConfigMap of v1");
        check(vec![json!(7)], "manifest 1 is no object");
        check(vec![json!({"kind": "TenantQuota"})], "manifest 1 is a TenantQuota without apiVersion");
        check(vec![json!({"apiVersion": API_VERSION, "kind": "TenantQuota"})], "has no metadata.name");
        check(
            vec![json!({"apiVersion": API_VERSION, "kind": "InferenceDeployment", "metadata": {"name": "a"}})],
            "metadata.namespace",
        );
        check(vec![good.clone(), good.clone()], "manifests 1 and 2 are both InferenceDeployment n/a");
        check(vec![good; MAX_PLAN_MANIFESTS + 1], "101 manifests are more than 100");
    }
}
