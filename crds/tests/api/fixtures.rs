//! Manifests on disk, read the way the CLI reads them.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use stowage_crds::validate::{self, Refusal};
use stowage_crds::{GpuClass, GpuNode, InferenceBatch, InferenceDeployment, InferenceRuntime, TenantQuota};

pub fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every YAML document of a file; empty ones are left out.
pub fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .filter(|document| !document.is_null())
        .collect()
}

/// Files below a folder whose name ends in `.yaml`, sorted.
pub fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Runs the `validate` of the object's kind. `None`: not a kind of ours.
pub fn judge(object: &Value) -> Option<Result<(), Vec<Refusal>>> {
    if object["apiVersion"] != "stowage.dev/v1alpha1" {
        return None;
    }
    fn read<T: serde::de::DeserializeOwned>(object: &Value) -> T {
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error} in {object}"))
    }
    Some(match object["kind"].as_str().unwrap() {
        "InferenceDeployment" => {
            let read: InferenceDeployment = read(object);
            let name = read.metadata.name.clone().unwrap_or_default();
            validate::validate_deployment(&name, &read.spec).map(|_| ())
        }
        "GpuClass" => validate::validate_class(&read::<GpuClass>(object).spec).map(|_| ()),
        "TenantQuota" => {
            let read: TenantQuota = read(object);
            let name = read.metadata.name.clone().unwrap_or_default();
            validate::validate_quota(&name, &read.spec).map(|_| ())
        }
        "InferenceRuntime" => validate::validate_runtime(&read::<InferenceRuntime>(object).spec).map(|_| ()),
        "InferenceBatch" => validate::validate_batch(&read::<InferenceBatch>(object).spec),
        "GpuNode" => {
            let _: GpuNode = read(object);
            Ok(())
        }
        other => panic!("kind {other} is not in this API"),
    })
}
