//! A view made from YAML documents.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stowage_operator::observe::parsed::{Parse, Parsed};
use stowage_operator::observe::view::{Objects, Stored, View};

pub const NOW: &str = "2026-01-01T12:00:00Z";

/// The view in which exactly these objects exist at [`NOW`].
pub fn view(yaml: &str) -> View {
    let mut view = View { now: NOW.parse().unwrap(), ..View::default() };
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        match object["kind"].as_str().unwrap() {
            "Node" => insert(&mut view.nodes, &object, typed),
            "Pod" => insert(&mut view.pods, &object, identified::<Pod>),
            "ResourceSlice" => insert(&mut view.slices, &object, |object| typed::<ResourceSlice>(object).into()),
            "ResourceClaim" => insert(&mut view.claims, &object, identified::<ResourceClaim>),
            "GpuNode" => insert(&mut view.gpu_nodes, &object, stored),
            "GpuClass" => insert(&mut view.classes, &object, stored),
            "TenantQuota" => insert(&mut view.quotas, &object, stored),
            "InferenceRuntime" => insert(&mut view.runtimes, &object, stored),
            "InferenceDeployment" => insert(&mut view.deployments, &object, stored),
            kind => panic!("{kind} is not known here"),
        }
    }
    view
}

pub fn insert<T>(objects: &mut Objects<T>, object: &Value, read: fn(&Value) -> T) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    objects.insert((text("namespace"), text("name")), Arc::new(read(object)));
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap()
}

pub fn identified<K: Parse + DeserializeOwned>(object: &Value) -> Parsed<K> {
    typed::<K>(object).into()
}

fn stored<S: DeserializeOwned, T: DeserializeOwned + Serialize>(object: &Value) -> Stored<S, T> {
    Stored::read(typed::<DynamicObject>(object))
}
