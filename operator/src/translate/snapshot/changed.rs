//! Whether an engine's pod is still what was asked for. Admission refuses such changes to everyone but
//! the operator; where it is not in force, the pod is ended and the change is reported.

use stowage_crds::names::ENGINE_CONTAINER;

use crate::observe::view::KnownPod;
use crate::translate::validate::Wanted;

/// What was changed, as half a sentence; `None`: nothing that shows.
pub fn changed(pod: &KnownPod, wanted: Option<&Wanted>) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(added) = spec.ephemeral_containers.iter().flatten().next() {
        let image = added.image.as_deref().unwrap_or("no image");
        return Some(format!("a container was added to the pod after it was created: {} ({image})", added.name));
    }
    let current = &pod.identity()?.spec_hash;
    let asked = &wanted.filter(|wanted| wanted.spec_hash == *current)?.runtime.image;
    // An admission webhook may rewrite images (a registry mirror): that is part of the creation.
    let as_created = pod.metadata.generation == Some(1);
    let image = spec.containers.iter().find(|container| container.name == ENGINE_CONTAINER)?.image.as_deref()?;
    (image != asked && !as_created)
        .then(|| format!("the engine's image was changed after the pod was created: to {image} from {asked}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(spec: &str) -> KnownPod {
        KnownPod::from(serde_yaml::from_str::<Pod>(&format!("metadata: {{namespace: a, labels: {{app.kubernetes.io/managed-by: stowage, stowage.dev/deployment: x}}}}\nspec: {spec}")).unwrap())
    }

    #[test]
    fn an_added_container_is_a_change_whatever_the_spec_says() {
        let engine = "containers: [{name: engine, image: i}]";
        assert_eq!(changed(&pod(&format!("{{{engine}}}")), None), None);
        let debugged = pod(&format!("{{{engine}, ephemeralContainers: [{{name: debugger, image: busybox}}]}}"));
        let found = changed(&debugged, None).unwrap();
        assert!(found.contains("debugger (busybox)"), "{found}");
    }
}
