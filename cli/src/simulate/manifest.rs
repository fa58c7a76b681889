//! The deployment of a file, and what the objects beside it say of its price.

use serde::de::DeserializeOwned;
use serde_json::Value;
use stowage_contracts::charge::gpu_milli;
use stowage_crds::names::API_VERSION;
use stowage_crds::quantity::parse_bytes;
use stowage_crds::validate::{
    AcceptedAccelerator, AcceptedClass, AcceptedDeployment, AcceptedVariant, message, validate_class,
    validate_deployment,
};
use stowage_crds::{GpuClass, GpuNode, InferenceDeployment};

use crate::plan::objects;

/// Largest file, in bytes: of a large cluster, GpuNodes name many models.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// What a file says.
#[derive(Debug)]
pub(super) struct Manifest {
    /// `namespace/name`, or the name alone.
    pub name: String,
    pub deployment: AcceptedDeployment,
    /// Of a replica of the first variant: millionths of the currency per hour, and the currency. The error says why
    /// there is none.
    pub price: Result<(u64, String), String>,
}

pub(super) fn read(text: &str) -> Result<Manifest, String> {
    let all = objects(text, MAX_BYTES)?;
    let of = |kind: &'static str| {
        all.iter().filter(move |(_, object)| object["kind"] == kind && object["apiVersion"] == API_VERSION)
    };
    let mut deployments = of("InferenceDeployment");
    let Some((number, object)) = deployments.next() else {
        let kinds: Vec<&str> = all.iter().map(|(_, object)| object["kind"].as_str().unwrap_or("no object")).collect();
        return Err(format!("there is no InferenceDeployment of {API_VERSION} in it, but: {}", kinds.join(", ")));
    };
    if let Some((second, _)) = deployments.next() {
        return Err(format!("documents {number} and {second} are both InferenceDeployments; leave one out"));
    }
    let object: InferenceDeployment = parsed(*number, object)?;
    let name = object.metadata.name.clone().ok_or_else(|| format!("document {number} has no metadata.name"))?;
    let refused = |refusals: Vec<_>| format!("document {number}: {}", message(&refusals));
    let deployment = validate_deployment(&name, &object.spec).map_err(refused)?;
    let classes = of("GpuClass").map(|(n, object)| parsed(*n, object)).collect::<Result<Vec<GpuClass>, _>>()?;
    let nodes = of("GpuNode").map(|(n, object)| parsed(*n, object)).collect::<Result<Vec<GpuNode>, _>>()?;
    let price = match deployment.variants.first() {
        Some(variant) => price(variant, &classes, &nodes),
        None => Err("there is no variant".to_owned()),
    };
    let name = object.metadata.namespace.map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"));
    Ok(Manifest { name, deployment, price })
}

fn parsed<T: DeserializeOwned>(number: usize, object: &Value) -> Result<T, String> {
    serde_json::from_value(object.clone()).map_err(|e| format!("document {number}: {e}"))
}

/// A slice costs its part of a GPU, so it takes a GpuNode to know how large one is.
fn price(variant: &AcceptedVariant, classes: &[GpuClass], nodes: &[GpuNode]) -> Result<(u64, String), String> {
    let AcceptedAccelerator::Gpu { class: name, count, memory_bytes, estimated, sm_percent } = &variant.accelerator
    else {
        return Err("replicas on CPUs have no price".to_owned());
    };
    let class = classes.iter().find(|class| class.metadata.name.as_ref() == Some(name));
    let class = class.ok_or_else(|| format!("no GpuClass {name} is in the file"))?;
    let class = validate_class(&class.spec).map_err(|refusals| format!("GpuClass {name}: {}", message(&refusals)))?;
    let (micros, currency) = class.price.clone().ok_or_else(|| format!("GpuClass {name} has no price"))?;
    if *estimated {
        return Err("memory is Auto, so the part of a GPU is not known here".to_owned());
    }
    let milli = match (memory_bytes, sm_percent) {
        (None, None) => 1000,
        (memory, sm) => {
            let whole = size(&class, nodes).ok_or_else(|| format!("no GpuNode with a GPU of {name} is in the file"))?;
            gpu_milli(memory.unwrap_or(whole), whole, sm.unwrap_or(100), 100)
        }
    };
    Ok((micros.saturating_mul(milli).saturating_mul(u64::from(*count)) / 1000, currency))
}

/// Promisable memory of the smallest GPU of the class.
fn size(class: &AcceptedClass, nodes: &[GpuNode]) -> Option<u64> {
    let devices = nodes.iter().filter_map(|node| node.status.as_ref()).flat_map(|status| &status.devices);
    let sized = devices.filter_map(|device| Some((device, parse_bytes(&device.memory).ok()?)));
    sized.filter(|(device, bytes)| class.selects(device, *bytes)).map(|(_, bytes)| bytes).min()
}
