//! Commands that restore what a chart installed, for the release that is there.
//!
//! Helm writes the release's name and namespace on everything that it installs. A second release beside it would be
//! refused, so the remedy names the existing one and keeps its values.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::Facts;

const RELEASE: &str = "meta.helm.sh/release-name";
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";

/// Restores the objects of `charts/stowage`.
pub(super) fn chart(f: &Facts) -> String {
    let mut annotations = Vec::new();
    annotations.extend(f.operator.got().and_then(|object| object.metadata.annotations.as_ref()));
    annotations.extend(f.gateway.got().and_then(|object| object.metadata.annotations.as_ref()));
    annotations.extend(f.device_class.got().and_then(|object| object.metadata.annotations.as_ref()));
    annotations
        .extend(f.policies.got().into_iter().flatten().filter_map(|object| object.metadata.annotations.as_ref()));
    annotations.extend(f.agents.got().into_iter().flatten().filter_map(|object| object.metadata.annotations.as_ref()));
    upgrade("charts/stowage", annotations).unwrap_or_else(|| {
        "helm install stowage charts/stowage --set image.registry=REGISTRY --set image.tag=TAG".to_owned()
    })
}

/// Restores the kinds.
pub(super) fn crds(installed: &[CustomResourceDefinition]) -> String {
    let ours = installed.iter().filter(|crd| crd.spec.group == stowage_crds::names::GROUP);
    let annotations = ours.filter_map(|crd| crd.metadata.annotations.as_ref()).collect();
    upgrade("charts/stowage-crds", annotations)
        .unwrap_or_else(|| "helm install stowage-crds charts/stowage-crds".to_owned())
}

fn upgrade(chart: &str, annotations: Vec<&BTreeMap<String, String>>) -> Option<String> {
    let release = annotations.into_iter().find_map(|all| Some((all.get(RELEASE)?, all.get(RELEASE_NAMESPACE)?)));
    release.map(|(name, namespace)| format!("helm upgrade {name} {chart} -n {namespace} --reuse-values"))
}
