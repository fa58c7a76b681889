//! The engine as a piece of a Kubernetes container.

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stowage_crds::inference_runtime::{HttpProbe, PullPolicy};
use stowage_crds::names::{ENGINE_CONTAINER, HTTP_PORT_NAME};

use crate::Engine;

impl Engine {
    /// Name, image, command, arguments, environment, port and probes; the rest is the operator's to add.
    pub fn container(&self) -> Container {
        let policy = match self.pull_policy {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        };
        let env = self.env.iter().map(|(name, value)| EnvVar {
            name: name.clone(),
            value: Some(value.clone()),
            value_from: None,
        });
        Container {
            name: ENGINE_CONTAINER.to_owned(),
            image: Some(self.image.clone()),
            image_pull_policy: Some(policy.to_owned()),
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
