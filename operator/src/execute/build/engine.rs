//! The engine container and its volumes: what the runtime's adapter renders, with what keeps it in
//! bounds added here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, ImageVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource,
    ResourceRequirements, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stowage_contracts::hub::{HubModel, TOKEN_DIR, TOKEN_FILE, TokenRef};
use stowage_contracts::model::{ClaimModel, FileModel};
use stowage_contracts::s3::{ACCESS_KEY_ID, S3Login, SECRET_ACCESS_KEY, SESSION_TOKEN};
use stowage_crds::names::{CACHE_MOUNT, ENGINE_CONTAINER, MODEL_MOUNT};
use stowage_crds::quantity::{bytes_quantity, milli_quantity};
use stowage_crds::validate::{AcceptedAccelerator, AcceptedSource};
use stowage_planner::snapshot::Accelerator;

use super::Replica;
use crate::translate::validate::Wanted;

/// Name of the volume that holds the model.
const MODEL_VOLUME: &str = "model";
/// Name of the volume that holds the token of the model's source.
const TOKEN_VOLUME: &str = "source-token";

/// The engine's command line in this variant; empty if it cannot be rendered.
pub fn args(wanted: &Wanted, variant: &str) -> Vec<String> {
    rendered(wanted, variant).and_then(|container| container.args).unwrap_or_default()
}

pub fn engine(replica: &Replica<'_>, wanted: &Wanted) -> (Container, Vec<Volume>) {
    // What was accepted can be rendered: validation tried it for every variant.
    let rendered = rendered(wanted, &replica.placement.variant)
        .unwrap_or_else(|| Container { name: ENGINE_CONTAINER.into(), ..Container::default() });
    let container = Container {
        resources: Some(resources(replica, wanted)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        // The engine's last line says why it could not start; it becomes the deployment's condition.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts(wanted)),
        ..rendered
    };
    (container, volumes(wanted))
}

/// A container that ends when the node agent has put the model together, kept in the same bounds as the engine.
pub fn waiting(wanted: &Wanted, engine: &Container) -> Option<Container> {
    Some(Container {
        resources: engine.resources.clone(),
        security_context: engine.security_context.clone(),
        // The node's agent reads it there. The engine has it neither as a file nor in its environment.
        volume_mounts: login(wanted).map(|_| vec![mount(TOKEN_VOLUME, &format!("/{TOKEN_DIR}"), true)]),
        ..stowage_runtimes::wait_container(&wanted.runtime)?
    })
}

/// A fetched model is mounted through the claim, by the node agent.
fn mounts(wanted: &Wanted) -> Vec<VolumeMount> {
    let model = wanted.fetched.is_none().then(|| mount(MODEL_VOLUME, MODEL_MOUNT, true));
    model.into_iter().chain([mount("tmp", "/tmp", false), mount("cache", CACHE_MOUNT, false)]).collect()
}

fn rendered(wanted: &Wanted, variant: &str) -> Option<Container> {
    let granted: &AcceptedAccelerator =
        &wanted.deployment.variants.iter().find(|known| known.name == variant)?.accelerator;
    stowage_runtimes::engine(&wanted.runtime, &wanted.deployment, granted).ok().map(|engine| engine.container())
}

fn volumes(wanted: &Wanted) -> Vec<Volume> {
    let model = match &wanted.deployment.source {
        AcceptedSource::Image(image) => Some(Volume {
            name: MODEL_VOLUME.into(),
            image: Some(ImageVolumeSource {
                reference: Some(image.reference.clone()),
                pull_policy: Some("IfNotPresent".into()),
            }),
            ..Volume::default()
        }),
        AcceptedSource::Volume(volume) => Some(Volume {
            name: MODEL_VOLUME.into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: volume.claim_name.clone(),
                read_only: Some(true),
            }),
            ..Volume::default()
        }),
        AcceptedSource::Http(_) | AcceptedSource::S3(_) | AcceptedSource::Hub(_) => None,
    };
    let login = login(wanted).map(|(secret, files)| Volume {
        name: TOKEN_VOLUME.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(files),
            default_mode: Some(0o440),
            // Otherwise the pod would wait without a word; the agent says what is missing.
            optional: Some(true),
        }),
        ..Volume::default()
    });
    let scratch = |name: &str| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    model.into_iter().chain(login).chain([scratch("tmp"), scratch("cache")]).collect()
}

/// The Secret with the login of the model's source, and which of its keys are mounted under which names.
fn login(wanted: &Wanted) -> Option<(&str, Vec<KeyToPath>)> {
    let file = |key: &str, path: &str| KeyToPath { key: key.to_owned(), path: path.to_owned(), mode: None };
    match wanted.fetched.as_ref()? {
        ClaimModel::Hub(HubModel { token, .. }) => {
            let TokenRef { namespace: _, secret, key } = token.as_ref()?;
            Some((secret, vec![file(key, TOKEN_FILE)]))
        }
        ClaimModel::File(FileModel { s3, .. }) => {
            let S3Login { region: _, namespace: _, secret } = s3.as_ref()?;
            let keys = [ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN];
            Some((secret, keys.map(|key| file(key, key)).into()))
        }
    }
}

/// Requests as planned, so that the scheduler counts what the planner counted; limits as given.
fn resources(replica: &Replica<'_>, wanted: &Wanted) -> ResourceRequirements {
    let extra = match wanted.variant(&replica.placement.variant).map(|variant| &variant.accelerator) {
        Some(Accelerator::Cpu { cpu_milli, memory_bytes }) => (*cpu_milli, *memory_bytes),
        _ => (0, 0),
    };
    let requests: BTreeMap<String, Quantity> = [
        ("cpu".to_owned(), milli_quantity(wanted.needs.cpu_milli.saturating_add(extra.0))),
        ("memory".to_owned(), bytes_quantity(wanted.needs.memory_bytes.saturating_add(extra.1))),
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

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
