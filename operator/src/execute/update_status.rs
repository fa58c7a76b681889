//! Writes the status, and nothing but the status. It takes what was applied, so that nobody tells of
//! writes that have not been tried.

use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use stowage_crds::InferenceDeployment;
use stowage_crds::names::API_VERSION;

use super::apply::Applied;
use super::case::Case;
use crate::execute::write::{WriteError, Writer};

pub async fn write(writer: &Writer, case: &Case, status: &Value, _applied: &Applied) -> Result<(), WriteError> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(writer.client(), &case.id.namespace, &ApiResource::erase::<InferenceDeployment>(&()));
    let object = json!({
        "apiVersion": API_VERSION,
        "kind": "InferenceDeployment",
        // The UID is a precondition: never the status of a namesake.
        "metadata": {"name": case.id.name, "namespace": case.id.namespace, "uid": case.stored.uid()},
        "status": status,
    });
    let _: DynamicObject = writer.apply_status(&api, &case.id.name, &object).await?;
    Ok(())
}
