//! The kubelet's side: plugin registration, DRA and device health over unix sockets.
//!
//! Thin: messages in, [`Preparer`] asked, messages out. One answer per claim uid, errors per claim.
//! The kubelet finds us by the registration socket in its registry directory.
//!
//! **The name of the registration socket matters.** The kubelet dials it with the percent-encoded
//! path as `:authority`, which the h2 library refuses as malformed. With `@` in the name everything
//! before it parses as user info, and the stock server accepts it. There is an e2e test for this.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use stowage_contracts::names::DRIVER;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::device::model::{Health, Verdict};
use crate::dra::grant::ClaimRef;
use crate::dra::prepare::{Prepared, Preparer};

/// Generated from `proto/`.
#[allow(missing_docs, clippy::all)]
pub mod api {
    pub mod v1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
    }
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
    pub mod health {
        tonic::include_proto!("v1alpha1");
    }
}

use api::health::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
use api::health::{
    DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesRequest, NodeWatchResourcesResponse,
};
use api::registration::registration_server::{Registration, RegistrationServer};
use api::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use api::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use api::v1::{
    Device, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};

/// Name in our pool and verdict of each device.
pub type DeviceVerdicts = Arc<BTreeMap<String, Verdict>>;

/// The two sockets of this agent. Named after the pod, so that old and new agent overlap.
#[derive(Debug, Clone)]
pub struct Sockets {
    pub dra: PathBuf,
    pub registration: PathBuf,
}

impl Sockets {
    pub fn new(plugins: &Path, registry: &Path, pod_uid: &str) -> Self {
        Self {
            dra: plugins.join(DRIVER).join(format!("dra-{pod_uid}.sock")),
            registration: registry.join(format!("{DRIVER}-{pod_uid}@reg.sock")),
        }
    }

    /// Removes this agent's sockets before it ends, so that the kubelet does not dial them any more.
    pub fn remove(&self) {
        for path in [&self.registration, &self.dra] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes sockets of agents that were killed: nothing accepts connections on them.
    async fn remove_stale(&self) {
        let (dra, registration) = (("dra-", self.dra.parent()), (DRIVER, self.registration.parent()));
        for (prefix, dir) in [dra, registration] {
            let Some(Ok(entries)) = dir.map(std::fs::read_dir) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let ours = name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(".sock"));
                if ours && UnixStream::connect(entry.path()).await.is_err() {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Serves all three interfaces until `stop` changes. `registered` receives the kubelet's answer.
pub async fn serve(
    sockets: &Sockets,
    preparer: Arc<Preparer>,
    verdicts: watch::Receiver<DeviceVerdicts>,
    registered: watch::Sender<Result<(), String>>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    sockets.remove_stale().await;
    let dra = UnixListenerStream::new(listen(&sockets.dra)?);
    let registration = UnixListenerStream::new(listen(&sockets.registration)?);
    let health = HealthService { pool: preparer.node.clone(), verdicts };
    let endpoint = sockets.dra.display().to_string();
    let serve_dra = Server::builder()
        .add_service(DraPluginServer::new(DraService { preparer }))
        .add_service(DraResourceHealthServer::new(health))
        .serve_with_incoming_shutdown(dra, stopped(stop.clone()));
    let serve_registration = Server::builder()
        .add_service(RegistrationServer::new(RegistrationService { endpoint, registered }))
        .serve_with_incoming_shutdown(registration, stopped(stop.clone()));
    tracing::info!(socket = %sockets.registration.display(), "waiting for the kubelet to register the driver");
    let served = tokio::select! {
        served = async { tokio::try_join!(serve_dra, serve_registration) } => served.map(|_| ()),
        // A health stream never ends by itself: do not wait for it.
        () = async { stopped(stop.clone()).await; tokio::time::sleep(std::time::Duration::from_secs(2)).await } => Ok(()),
    };
    sockets.remove();
    Ok(served?)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|err| anyhow::anyhow!("cannot make {}: {err}", dir.display()))?;
    }
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|err| anyhow::anyhow!("cannot listen on {}: {err}", path.display()))
}

struct RegistrationService {
    /// The DRA socket, as the kubelet sees its path.
    endpoint: String,
    registered: watch::Sender<Result<(), String>>,
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["v1.DRAPlugin".to_owned(), "v1alpha1.DRAResourceHealth".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("the kubelet has registered the driver");
            let _ = self.registered.send_replace(Ok(()));
        } else {
            tracing::error!(error = status.error, "the kubelet refuses the driver");
            let _ = self.registered.send_replace(Err(format!("the kubelet refuses the driver: {}", status.error)));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// The kubelet's two questions about claims.
pub struct DraService {
    pub preparer: Arc<Preparer>,
}

fn claim_ref(claim: &api::v1::Claim) -> ClaimRef {
    ClaimRef { namespace: claim.namespace.clone(), name: claim.name.clone(), uid: claim.uid.clone() }
}

#[tonic::async_trait]
impl DraPlugin for DraService {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in &request.get_ref().claims {
            let answer = match self.preparer.prepare(&claim_ref(claim)).await {
                Ok(devices) => NodePrepareResourceResponse {
                    devices: devices.into_iter().map(device).collect(),
                    error: String::new(),
                },
                Err(err) => {
                    tracing::warn!(claim = %format!("{}/{}", claim.namespace, claim.name), %err, "claim not prepared");
                    NodePrepareResourceResponse { devices: Vec::new(), error: err.to_string() }
                }
            };
            claims.insert(claim.uid.clone(), answer);
        }
        Ok(Response::new(NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in &request.get_ref().claims {
            let error = self.preparer.unprepare(&claim_ref(claim)).await.err().map(|err| err.to_string());
            if let Some(err) = &error {
                tracing::warn!(claim = %format!("{}/{}", claim.namespace, claim.name), err, "claim not unprepared");
            }
            claims.insert(claim.uid.clone(), NodeUnprepareResourceResponse { error: error.unwrap_or_default() });
        }
        Ok(Response::new(NodeUnprepareResourcesResponse { claims }))
    }
}

fn device(prepared: Prepared) -> Device {
    Device {
        request_names: vec![prepared.request],
        pool_name: prepared.pool,
        device_name: prepared.device,
        cdi_device_ids: prepared.cdi_ids,
        share_id: prepared.share_id,
    }
}

struct HealthService {
    pool: String,
    verdicts: watch::Receiver<DeviceVerdicts>,
}

#[tonic::async_trait]
impl DraResourceHealth for HealthService {
    type NodeWatchResourcesStream = Pin<Box<dyn Stream<Item = Result<NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let pool = self.pool.clone();
        let stream = WatchStream::new(self.verdicts.clone()).map(move |verdicts| Ok(health(&pool, &verdicts)));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The kubelet knows no "degraded": such a device still works.
fn health(pool: &str, verdicts: &BTreeMap<String, Verdict>) -> NodeWatchResourcesResponse {
    let now = jiff::Timestamp::now().as_second();
    let devices = verdicts.iter().map(|(name, verdict)| DeviceHealth {
        device: Some(DeviceIdentifier { pool_name: pool.to_owned(), device_name: name.clone() }),
        health: match verdict.health {
            Health::Healthy | Health::Degraded => HealthStatus::Healthy.into(),
            Health::Unhealthy => HealthStatus::Unhealthy.into(),
        },
        last_updated_time: now,
        health_check_timeout_seconds: 0,
        message: verdict.message.clone(),
    });
    NodeWatchResourcesResponse { devices: devices.collect() }
}
