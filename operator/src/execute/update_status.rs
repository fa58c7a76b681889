//! Writes the status, and nothing but the status. What it says was rendered from what was applied.

use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use stowage_crds::InferenceDeployment;
use stowage_crds::names::API_VERSION;

use super::case::Case;
use super::write::{WriteError, Writer};
use crate::observe::source::version;

/// Replaces the deployment's status by this one; the object's version after it.
pub async fn write(writer: &Writer, case: &Case, status: &Value) -> Result<Option<u64>, WriteError> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(writer.client(), &case.id.namespace, &ApiResource::erase::<InferenceDeployment>(&()));
    let object = json!({
        "apiVersion": API_VERSION,
        "kind": "InferenceDeployment",
        // The UID is a precondition: never the status of a later object of that name.
        "metadata": {"name": case.id.name, "namespace": case.id.namespace, "uid": case.stored.uid()},
        "status": status,
    });
    let written: DynamicObject = writer.apply_status(&api, &case.id.name, &object).await?;
    Ok(version(&written.metadata))
}
