//! The engine as a piece of a Kubernetes container.

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stowage_contracts::model::COMPLETE;
use stowage_crds::inference_runtime::{HttpProbe, PullPolicy};
use stowage_crds::names::{ENGINE_CONTAINER, HTTP_PORT_NAME, MODEL_MOUNT, WAIT_CONTAINER};
use stowage_crds::validate::AcceptedRuntime;

use crate::{Engine, adapter};

impl Engine {
    /// Name, image, command, arguments, environment, port and probes; the rest is the operator's to add.
    pub fn container(&self) -> Container {
        let env = self.env.iter().map(|(name, value)| EnvVar {
            name: name.clone(),
            value: Some(value.clone()),
            value_from: None,
        });
        Container {
            name: ENGINE_CONTAINER.to_owned(),
            image: Some(self.image.clone()),
            image_pull_policy: Some(pull_policy(self.pull_policy).to_owned()),
            command: Some(self.command.clone()).filter(|command| !command.is_empty()),
            args: Some(self.args.clone()),
            env: Some(env.collect::<Vec<_>>()).filter(|env| !env.is_empty()),
            ports: Some(vec![ContainerPort {
                name: Some(HTTP_PORT_NAME.to_owned()),
                container_port: i32::from(self.port),
                protocol: Some("TCP".to_owned()),
                ..ContainerPort::default()
            }]),
            readiness_probe: Some(probe(&self.readiness)),
            liveness_probe: Some(probe(&self.liveness)),
            startup_probe: Some(probe(&self.startup)),
            ..Container::default()
        }
    }
}

/// A container that ends when the node agent has put the model together; the engine starts after it. `None` for
/// adapters that do not exist.
pub fn wait_container(runtime: &AcceptedRuntime) -> Option<Container> {
    let adapter = adapter(runtime.adapter).ok()?;
    let (command, args) = adapter.wait_for(&format!("{MODEL_MOUNT}/{COMPLETE}"));
    let command = if command.is_empty() { runtime.command.clone() } else { command };
    Some(Container {
        name: WAIT_CONTAINER.to_owned(),
        image: Some(runtime.image.clone()),
        image_pull_policy: Some(pull_policy(runtime.image_pull_policy).to_owned()),
        command: Some(command).filter(|command| !command.is_empty()),
        args: Some(args).filter(|args| !args.is_empty()),
        ..Container::default()
    })
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn probe(probe: &HttpProbe) -> Probe {
    let HttpProbe { path, period_seconds, failure_threshold } = probe;
    let number = |value: Option<u32>, default: u32| i32::try_from(value.unwrap_or(default)).ok();
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.clone()),
            port: IntOrString::String(HTTP_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: number(*period_seconds, 1),
        failure_threshold: number(*failure_threshold, 3),
        timeout_seconds: Some(1),
        ..Probe::default()
    }
}
