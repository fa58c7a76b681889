//! The six CRDs as they are installed.
//!
//! kube's derive is close; three things are mended here so that the manifests are what a Kubernetes
//! API author would write: optional fields are absent rather than `null`, number formats are the two
//! that Kubernetes knows, and nothing carries a Rust title.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{
    GpuClass, GpuNode, InferenceBatch, InferenceDeployment, InferenceRuntime, TenantQuota,
};

/// All CRDs, in the order in which they are documented.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    [
        InferenceDeployment::crd(),
        GpuClass::crd(),
        TenantQuota::crd(),
        InferenceRuntime::crd(),
        GpuNode::crd(),
        InferenceBatch::crd(),
    ]
    .into_iter()
    .map(mend)
    .collect()
}

fn mend(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD made of our types is JSON");
    mend_value(&mut value);
    serde_json::from_value(value).expect("mending keeps the shape of a CRD")
}

fn mend_value(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(mend_value),
        Value::Object(map) => {
            // A schema, not a property that happens to be called `type` or `format`.
            if map.get("type").is_some_and(Value::is_string) {
                map.remove("nullable");
                if let Some(Value::String(format)) = map.get_mut("format") {
                    match format.as_str() {
                        "uint8" | "uint16" => *format = "int32".into(),
                        "uint" | "uint32" | "uint64" => *format = "int64".into(),
                        _ => {}
                    }
                }
            }
            map.values_mut().for_each(mend_value);
        }
        _ => {}
    }
}
