//! The objects of a fake API server: versions, preconditions, deletion, and a log that watches read.
//!
//! As much of Kubernetes' semantics as the operator relies on: resource versions, UIDs, create
//! conflicts, merge patch with preconditions, apply that is a no-op the second time, finalizers,
//! graceful pod deletion. Not here: schemas, defaulting, field ownership.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Plural, namespace, name.
pub type Key = (String, String, String);

#[derive(Default)]
pub struct Store {
    pub version: u64,
    pub objects: BTreeMap<Key, Value>,
    /// Version, plural, event type, object.
    pub log: Vec<(u64, String, &'static str, Value)>,
    uids: u64,
}

/// An answer that is no success: HTTP code and reason.
pub type Denied = (u16, &'static str);

impl Store {
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    pub fn of(&self, plural: &str) -> Vec<&Value> {
        self.objects.iter().filter(|((kind, ..), _)| kind == plural).map(|(_, object)| object).collect()
    }

    pub fn create(&mut self, key: &Key, mut object: Value) -> Result<Value, Denied> {
        if self.objects.contains_key(key) {
            return Err((409, "AlreadyExists"));
        }
        self.uids += 1;
        let meta = &mut object["metadata"];
        meta["uid"] = json!(format!("uid-{}", self.uids));
        meta["creationTimestamp"] = json!(jiff::Timestamp::now().to_string());
        meta["generation"] = json!(1);
        meta["name"] = json!(key.2);
        if !key.1.is_empty() {
            meta["namespace"] = json!(key.1);
        }
        Ok(self.put(key, object, "ADDED"))
    }

    /// Replaces the object; a resource version in it is a precondition.
    pub fn replace(&mut self, key: &Key, object: Value) -> Result<Value, Denied> {
        let stored = self.objects.get(key).ok_or((404, "NotFound"))?;
        let wanted = &object["metadata"]["resourceVersion"];
        if wanted.is_string() && *wanted != stored["metadata"]["resourceVersion"] {
            return Err((409, "Conflict"));
        }
        let mut object = object;
        for kept in ["uid", "creationTimestamp"] {
            object["metadata"][kept] = stored["metadata"][kept].clone();
        }
        Ok(self.change(key, object))
    }

    pub fn merge(&mut self, key: &Key, patch: Value) -> Result<Value, Denied> {
        let stored = self.objects.get(key).ok_or((404, "NotFound"))?;
        for precondition in ["uid", "resourceVersion"] {
            let wanted = &patch["metadata"][precondition];
            if wanted.is_string() && *wanted != stored["metadata"][precondition] {
                return Err((409, "Conflict"));
            }
        }
        let mut object = stored.clone();
        merge(&mut object, &patch);
        Ok(self.change(key, object))
    }

    /// Server-side apply of an object, or of its status alone.
    pub fn apply(&mut self, key: &Key, subresource: &str, wanted: Value) -> Result<Value, Denied> {
        let Some(stored) = self.objects.get(key) else {
            return if subresource.is_empty() { self.create(key, wanted) } else { Err((404, "NotFound")) };
        };
        let uid = &wanted["metadata"]["uid"];
        if uid.is_string() && *uid != stored["metadata"]["uid"] {
            return Err((409, "Conflict"));
        }
        let mut object = stored.clone();
        if subresource == "status" {
            object["status"] = wanted["status"].clone();
        } else {
            merge(&mut object, &wanted);
        }
        Ok(self.change(key, object))
    }

    pub fn delete(&mut self, key: &Key, uid: Option<&str>) -> Result<Value, Denied> {
        let mut object = self.objects.get(key).ok_or((404, "NotFound"))?.clone();
        if uid.is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return Err((409, "Conflict"));
        }
        let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let bound = key.0 == "pods" && object["spec"]["nodeName"].is_string();
        if !finalizers && !bound {
            return Ok(self.remove(key));
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
        }
        Ok(self.change(key, object))
    }

    pub fn remove(&mut self, key: &Key) -> Value {
        let object = self.objects.remove(key).unwrap_or_default();
        self.version += 1;
        let mut last = object.clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, key.0.clone(), "DELETED", last));
        object
    }

    /// Writes the object unless nothing changed.
    pub fn change(&mut self, key: &Key, mut object: Value) -> Value {
        let stored = self.objects.get(key).cloned().unwrap_or_default();
        object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        if object == stored {
            return object;
        }
        if object["spec"] != stored["spec"] {
            object["metadata"]["generation"] = json!(stored["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        let ending = !object["metadata"]["deletionTimestamp"].is_null();
        let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let object = self.put(key, object, "MODIFIED");
        if ending && !finalizers && key.0 != "pods" {
            self.remove(key);
        }
        object
    }

    fn put(&mut self, key: &Key, mut object: Value, event: &'static str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, key.0.clone(), event, object.clone()));
        self.objects.insert(key.clone(), object.clone());
        object
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
