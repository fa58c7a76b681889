//! The engine container and its volumes, from the runtime's adapter.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction, ImageVolumeSource, Probe,
    ResourceRequirements, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stowage_crds::names::{
    CACHE_MOUNT, ENGINE_CONTAINER, ENGINE_PORT, HTTP_PORT_NAME, MODEL_MOUNT, PATH_HEALTHZ, PATH_READYZ,
};
use stowage_crds::quantity::{bytes_quantity, milli_quantity};
use stowage_planner::snapshot::Accelerator;

use super::Replica;
use crate::reconcile::validate::Wanted;

/// Name of the volume that holds the model's image.
const MODEL_VOLUME: &str = "model";

/// Whether the runtime takes what the deployment asks of it: the engine is built once on paper.
pub fn allowed(_wanted: &Wanted) -> Result<(), (&'static str, String)> {
    Ok(())
}

pub fn engine(replica: &Replica<'_>, wanted: &Wanted) -> (Container, Vec<Volume>) {
    let template = &wanted.deployment.pod;
    let container = Container {
        name: ENGINE_CONTAINER.into(),
        image: Some(wanted.runtime.image.clone()),
        args: Some(args(wanted)),
        env: Some(
            template
                .env
                .iter()
                .map(|var| EnvVar { name: var.name.clone(), value: Some(var.value.clone()), value_from: None })
                .collect(),
        ),
        ports: Some(vec![ContainerPort {
            name: Some(HTTP_PORT_NAME.into()),
            container_port: i32::from(ENGINE_PORT),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(replica, wanted)),
        readiness_probe: Some(probe(PATH_READYZ, 1, 2)),
        liveness_probe: Some(probe(PATH_HEALTHZ, 2, 5)),
        startup_probe: Some(probe(PATH_HEALTHZ, 1, 600)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(vec![
            mount(MODEL_VOLUME, MODEL_MOUNT, true),
            mount("tmp", "/tmp", false),
            mount("cache", CACHE_MOUNT, false),
        ]),
        ..Container::default()
    };
    let image = ImageVolumeSource {
        reference: Some(wanted.deployment.image.reference.clone()),
        pull_policy: Some("IfNotPresent".into()),
    };
    let empty = |name: &str| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    let model = Volume { name: MODEL_VOLUME.into(), image: Some(image), ..Volume::default() };
    (container, vec![model, empty("tmp"), empty("cache")])
}

fn args(wanted: &Wanted) -> Vec<String> {
    let path = wanted.deployment.image.path.trim_start_matches('/').to_owned();
    [
        "serve",
        "--model",
        &format!("{MODEL_MOUNT}/{path}"),
        "--name",
        &wanted.deployment.model_name,
        "--port",
        &ENGINE_PORT.to_string(),
    ]
    .map(str::to_owned)
    .into()
}

/// Requests as planned, so that the scheduler counts what the planner counted; limits as given.
fn resources(replica: &Replica<'_>, wanted: &Wanted) -> ResourceRequirements {
    let extra = match wanted.variant(&replica.placement.variant).map(|variant| &variant.accelerator) {
        Some(Accelerator::Cpu { cpu_milli, memory_bytes }) => (*cpu_milli, *memory_bytes),
        _ => (0, 0),
    };
    let requests: BTreeMap<String, Quantity> = [
        ("cpu".to_owned(), milli_quantity(wanted.needs.cpu_milli + extra.0)),
        ("memory".to_owned(), bytes_quantity(wanted.needs.memory_bytes + extra.1)),
    ]
    .into();
    let own = &wanted.deployment.pod.resources.limits;
    let limits = if own.is_empty() { &wanted.runtime.resources.limits } else { own };
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits.clone()).filter(|limits| !limits.is_empty()),
        claims: None,
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.into()),
        port: IntOrString::String(HTTP_PORT_NAME.into()),
        ..HTTPGetAction::default()
    };
    Probe {
        http_get: Some(get),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(1),
        ..Probe::default()
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
