//! The pinned ResourceClaim: it can only resolve to the GPUs that the plan chose, and the scheduler
//! remains the one that allocates. Its spec is immutable; moving a replica means a new claim.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{
    CELDeviceSelector, CapacityRequirements, DeviceClaim, DeviceClaimConfiguration, DeviceRequest, DeviceSelector,
    ExactDeviceRequest, OpaqueDeviceConfiguration, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::json;
use stowage_contracts::model::ClaimModel;
use stowage_crds::names::{
    ATTRIBUTE_PRODUCT_NAME, ATTRIBUTE_UUID, CAPACITY_MEMORY, CAPACITY_SM, CLAIM_REQUEST, DEVICE_CLASS, DRIVER,
};
use stowage_crds::quantity::bytes_quantity;
use stowage_planner::snapshot::GpuShare;

use super::Replica;

/// `None` for a replica without GPUs. `model`: what the node's agent fetches for it.
pub fn claim(replica: &Replica<'_>, model: Option<&ClaimModel>) -> Option<ResourceClaim> {
    let gpus = &replica.placement.gpus;
    asking(replica.meta(&replica.names.claim), gpus, selector(gpus), config(replica.sharing, model))
}

/// For as many and as much, of any GPUs of these products.
pub fn unpinned(
    meta: ObjectMeta,
    gpus: &[GpuShare],
    products: &BTreeSet<&str>,
    sharing: &str,
) -> Option<ResourceClaim> {
    // JSON's escapes are among those of CEL.
    let quoted: Vec<String> = products.iter().map(|product| json!(product).to_string()).collect();
    let attribute = format!("device.attributes[\"{DRIVER}\"].{ATTRIBUTE_PRODUCT_NAME}");
    asking(meta, gpus, format!("{attribute} in [{}]", quoted.join(", ")), config(sharing, None))
}

fn asking(
    metadata: ObjectMeta,
    gpus: &[GpuShare],
    expression: String,
    config: DeviceClaimConfiguration,
) -> Option<ResourceClaim> {
    let first = gpus.first()?;
    let request = ExactDeviceRequest {
        device_class_name: DEVICE_CLASS.into(),
        allocation_mode: Some("ExactCount".into()),
        count: i64::try_from(gpus.len()).ok(),
        selectors: Some(vec![DeviceSelector { cel: Some(CELDeviceSelector { expression }) }]),
        capacity: Some(CapacityRequirements {
            requests: Some(
                [
                    (CAPACITY_MEMORY.to_owned(), bytes_quantity(first.promise.memory_bytes)),
                    (CAPACITY_SM.to_owned(), Quantity(first.promise.sm_percent.to_string())),
                ]
                .into(),
            ),
        }),
        ..ExactDeviceRequest::default()
    };
    Some(ResourceClaim {
        metadata,
        spec: ResourceClaimSpec {
            devices: Some(DeviceClaim {
                requests: Some(vec![DeviceRequest {
                    name: CLAIM_REQUEST.into(),
                    exactly: Some(request),
                    ..DeviceRequest::default()
                }]),
                config: Some(vec![config]),
                ..DeviceClaim::default()
            }),
        },
        status: None,
    })
}

/// The model that a claim asks for.
pub fn model_of(claim: &ResourceClaim) -> Option<ClaimModel> {
    let configs = claim.spec.devices.as_ref()?.config.as_deref()?;
    let ours = configs.iter().filter_map(|config| config.opaque.as_ref()).find(|opaque| opaque.driver == DRIVER)?;
    serde_json::from_value(ours.parameters.0.get("model")?.clone()).ok()
}

/// Uuids come from the driver through NVML and hold letters, digits and dashes; anything else is
/// dropped rather than quoted, because it would not name a device anyway.
fn selector(gpus: &[GpuShare]) -> String {
    let quoted = |gpu: &GpuShare| {
        let uuid: String = gpu.uuid.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.:/".contains(*c)).collect();
        format!("\"{uuid}\"")
    };
    let attribute = format!("device.attributes[\"{DRIVER}\"].{ATTRIBUTE_UUID}");
    match gpus {
        [one] => format!("{attribute} == {}", quoted(one)),
        many => format!("{attribute} in [{}]", many.iter().map(quoted).collect::<Vec<_>>().join(", ")),
    }
}

fn config(sharing: &str, model: Option<&ClaimModel>) -> DeviceClaimConfiguration {
    let mut parameters =
        json!({"apiVersion": "gpu.stowage.dev/v1alpha1", "kind": "GpuShareConfig", "isolation": sharing});
    if let Some(model) = model {
        parameters["model"] = json!(model);
    }
    DeviceClaimConfiguration {
        requests: Some(vec![CLAIM_REQUEST.into()]),
        opaque: Some(OpaqueDeviceConfiguration { driver: DRIVER.into(), parameters: RawExtension(parameters) }),
    }
}
