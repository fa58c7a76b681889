//! A minimal `external.metrics.k8s.io`: one metric, whose value stands in a file. It runs as a process of its own in the
//! network of the API server, which reaches it like any aggregated API, with the API server's own certificate.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::tools::cluster::text;
use crate::tools::process;
use crate::tools::world::World;

/// The name of the metric.
pub const METRIC: &str = "stowage-e2e-load";
const GROUP: &str = "external.metrics.k8s.io/v1beta1";
const COMMAND: &str = "serve-external-metrics";
const PORT: u16 = 16443;

/// The server as a test sees it; it ends with this value.
pub struct Adapter {
    child: Child,
    value: PathBuf,
}

/// What the process of [`Adapter`] was started with.
pub struct Request {
    address: String,
    certificate: PathBuf,
    key: PathBuf,
    value: PathBuf,
}

// === impl Adapter ===

impl Adapter {
    /// Starts the server and registers it.
    pub async fn start(w: &World, value: u32) -> anyhow::Result<Self> {
        let state = w.env.state.as_ref().context("the local cluster only (STOWAGE_STATE)")?;
        let slices = w.cluster().list("EndpointSlice", "default", "kubernetes.io/service-name=kubernetes").await?;
        let address = slices.first().map(|slice| text(slice, "/endpoints/0/addresses/0")).context("no API server")?;
        let pids = process::named("kube-apiserver", &state.display().to_string());
        let server = pids.first().context("the API server's process was not found")?;
        let file = std::env::temp_dir().join(w.unique("external-metric"));
        let child = Command::new("nsenter")
            .arg(format!("--net=/proc/{server}/ns/net"))
            .arg(std::env::current_exe()?)
            .args([COMMAND, &format!("{address}:{PORT}")])
            .args([state.join("pki/apiserver.crt"), state.join("pki/apiserver.key"), file.clone()])
            .stdout(Stdio::null())
            .spawn()
            .context("run nsenter")?;
        let adapter = Self { child, value: file };
        adapter.set(value)?;
        for object in registration(&address) {
            let (kind, namespace) = (text(&object, "/kind"), text(&object, "/metadata/namespace"));
            w.also_remove(&kind, &namespace, &text(&object, "/metadata/name"));
            w.cluster().apply_value(&namespace, &object).await?;
        }
        Ok(adapter)
    }

    /// The metric's value from now on.
    pub fn set(&self, value: u32) -> anyhow::Result<()> {
        std::fs::write(&self.value, value.to_string()).context("write the metric's value")
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // The child is this process's own, so it exists until it is waited for.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.value));
    }
}

fn registration(address: &str) -> [Value; 3] {
    let meta = |name: &str| json!({"name": name, "namespace": "kube-system"});
    let mut slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta("stowage-e2e-metrics"),
        "addressType": "IPv4", "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}]});
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "stowage-e2e-metrics"});
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("stowage-e2e-metrics"),
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT, "protocol": "TCP"}]}}),
        slice,
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {"group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true,
                "service": {"name": "stowage-e2e-metrics", "namespace": "kube-system", "port": 443}}}),
    ]
}

// === impl Request ===

impl Request {
    /// The arguments of a process that is to serve the metric.
    pub fn of(mut args: impl Iterator<Item = String>) -> Option<Self> {
        (args.nth(1)? == COMMAND).then_some(())?;
        let mut next = || args.next();
        Some(Self { address: next()?, certificate: next()?.into(), key: next()?.into(), value: next()?.into() })
    }

    /// Serves until it is killed.
    pub fn carry_out(self) -> anyhow::Result<()> {
        let chain = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?);
        for stream in TcpListener::bind(&self.address)?.incoming() {
            let (stream, config, value) = (stream?, config.clone(), self.value.clone());
            std::thread::spawn(move || {
                if let Err(why) = serve(stream, config, &value) {
                    eprintln!("external metrics: {why:#}");
                }
            });
        }
        Ok(())
    }
}

/// The requests of one connection, one after the other.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, value: &Path) -> anyhow::Result<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let mut head = String::new();
        if stream.read_line(&mut head)? == 0 {
            return Ok(());
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line)? > 0, "the request ended in its head");
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, text)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = text.trim().parse()?;
            }
        }
        stream.read_exact(&mut vec![0; length])?;
        let (status, body) = answer(path.split('?').next().unwrap_or_default(), value);
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        let out = stream.get_mut();
        out.write_all(head.as_bytes())?;
        out.write_all(body.as_bytes())?;
        out.flush()?;
    }
}

fn answer(path: &str, value: &Path) -> (&'static str, String) {
    let root = format!("/apis/{GROUP}");
    let body = if path == root {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [
            {"name": METRIC, "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": ["get"]}]})
    } else if path.starts_with(&root) && path.ends_with(METRIC) {
        let value = std::fs::read_to_string(value).unwrap_or_default();
        let now = k8s_openapi::jiff::Timestamp::now();
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({"kind": "ExternalMetricValueList", "apiVersion": GROUP, "metadata": {}, "items": [
            {"metricName": METRIC, "metricLabels": {}, "timestamp": now, "value": value.trim()}]})
    } else {
        return ("404 Not Found", json!({"kind": "Status", "apiVersion": "v1", "code": 404}).to_string());
    };
    ("200 OK", body.to_string())
}
