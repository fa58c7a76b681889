//! Stowage itself on the running cluster: programs, images, the model, the charts. Used by the demo
//! and by the end-to-end tests; every step looks first, so a second run does little.

pub mod demo;
mod existing;
pub mod krew;

use crate::base::{paths, sh};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The namespace of operator and gateway.
pub const SYSTEM: &str = "stowage-system";
const IMAGES: &[&str] = &["operator", "gateway", "node-agent", "engine", "probe"];

/// The cluster that product and tests run on.
pub struct Target {
    /// For kubectl, helm and our own programs.
    pub kubeconfig: PathBuf,
    /// kubectl and helm of the local cluster; `None` for a cluster that was there already.
    pub bin: Option<PathBuf>,
}

// === impl Target ===

impl Target {
    /// The local cluster, or with CLUSTER=current whatever the present kubeconfig context names.
    pub fn find() -> Result<Self> {
        if is_current() {
            let file = std::env::var_os("KUBECONFIG").map(PathBuf::from);
            let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".kube/config");
            return Ok(Self { kubeconfig: file.unwrap_or_else(home), bin: None });
        }
        let kubeconfig = own(&["cluster", "kubeconfig"])?.trim().into();
        let bin = crate::programs::build::ensure(crate::programs::build::DEFAULT_VERSION)?;
        Ok(Self { kubeconfig, bin: Some(bin) })
    }

    /// A program of the cluster's, ready to take arguments.
    pub fn program(&self, name: &str) -> Command {
        let path = self.bin.as_ref().map_or_else(|| PathBuf::from(name), |b| b.join(name));
        let mut command = Command::new(path);
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        sh::output(self.program("kubectl").args(args))
    }

    /// Server-side apply of a manifest given as text.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        sh::output_with_input(
            self.program("kubectl").args(["apply", "--server-side", "--force-conflicts", "-f", "-"]),
            manifest,
        )?;
        Ok(())
    }
}

/// Whether a cluster that is already there is used.
pub fn is_current() -> bool {
    std::env::var("CLUSTER").is_ok_and(|c| c == "current")
}

/// Builds every program; the compiler's own messages are shown. The whole workspace at once, so that
/// `cargo test --workspace` finds its dependencies compiled with the same features.
pub fn build() -> Result<()> {
    let mut cargo = sh::cargo(&["build", "--workspace"]);
    ensure!(cargo.status().context("start cargo")?.success(), "the build failed (see above)");
    Ok(())
}

/// Writes the images and the model and gives them to every node of a local cluster: the checkout's own, or the
/// one that `options` of `cargo xtask cluster` name.
pub fn load(options: &[&str]) -> Result<()> {
    own(&["image", "--all"])?;
    let model = own(&["model"])?;
    let model = model
        .lines()
        .map(Path::new)
        .find(|p| p.extension().is_some_and(|e| e == "tar"))
        .context("`cargo xtask model` named no archive")?;
    let mut args = vec!["cluster".to_owned(), "load".to_owned(), model.display().to_string()];
    args.extend(options.iter().map(|&o| o.to_owned()));
    args.extend(IMAGES.iter().map(|i| paths::image_archive(i).display().to_string()));
    own(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(())
}

/// Installs or upgrades both charts with real Helm and waits until everything runs.
/// `hub`: where node agents look for repositories, for the tests; `None`: where the chart says.
pub fn install(target: &Target, hub: Option<&str>) -> Result<()> {
    if is_current() {
        existing::release(target)?;
    }
    install_crds(target)?;
    let (path, images) = (chart("stowage"), images()?.join(","));
    let mut args = vec!["upgrade", "--install", "stowage", &path, "--timeout", "180s", "--wait"];
    args.extend(["--set", "nodeAgent.simulated.enabled=true", "--set-string", &images, "--set", existing::MARK]);
    if !is_current() || hub.is_some() {
        // Models for the tests are served inside the cluster.
        args.extend(["--set", "nodeAgent.models.allowedCidrs={10.0.0.0/8}"]);
    }
    if !is_current() {
        // A disk of all nodes together, and of whatever else this machine does.
        args.extend(["--set", "nodeAgent.models.diskReservePercent=1"]);
    }
    // The Prometheus of `cargo xtask cluster observe` scrapes from where the API server is.
    let scraper = if is_current() { None } else { Some(scraper(target)?) };
    args.extend(scraper.iter().flat_map(|peers| ["--set-json", peers]));
    let hub = hub.map(|hub| format!("nodeAgent.models.hubEndpoint={hub}"));
    args.extend(hub.iter().flat_map(|hub| ["--set", hub]));
    helm(target, &args).map(drop).context("install stowage")
}

/// What the charts put on a cluster, and none of Stowage's own processes: policies, rights, classes, runtimes.
pub fn install_without_processes(target: &Target) -> Result<()> {
    install_crds(target)?;
    let (path, nowhere) = (chart("stowage"), "nodeAgent.nodeSelector.stowage\\.dev/none=none");
    helm(
        target,
        &["upgrade", "--install", "stowage", &path, "--set", "nodeAgent.simulated.enabled=true", "--set", nowhere],
    )
    .map(drop)
    .context("install stowage")?;
    target.kubectl(&["-n", SYSTEM, "scale", "deployment", "--all", "--replicas=0"])?;
    Ok(())
}

fn install_crds(target: &Target) -> Result<()> {
    let path = chart("stowage-crds");
    let args = ["upgrade", "--install", "stowage-crds", &path, "--wait", "--timeout", "60s", "--set", existing::MARK];
    helm(target, &args).map(drop).context("install the CRDs")
}

fn helm(target: &Target, args: &[&str]) -> Result<String> {
    sh::output(target.program("helm").args(args).env("HOME", paths::repo().join("target")))
}

fn chart(name: &str) -> String {
    paths::repo().join("charts").join(name).display().to_string()
}

/// The chart's value that lets the local cluster's control plane read metrics.
fn scraper(target: &Target) -> Result<String> {
    let path = "jsonpath={.endpoints[0].addresses[0]}";
    let address = target.kubectl(&["-n", "default", "get", "endpointslice", "kubernetes", "-o", path])?;
    Ok(format!("networkPolicies.metricsFrom=[{{\"ipBlock\":{{\"cidr\":\"{}/32\"}}}}]", address.trim()))
}

/// The chart's values for where the images are: on the nodes, as this program loads them, or in the registry
/// that STOWAGE_REGISTRY names, under the tag STOWAGE_TAG.
fn images() -> Result<Vec<String>> {
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(registry) = given("STOWAGE_REGISTRY").filter(|_| is_current()) {
        let tag = given("STOWAGE_TAG").context("set STOWAGE_TAG too, the images' tag in STOWAGE_REGISTRY")?;
        return Ok(vec![format!("image.registry={registry}"), format!("image.tag={tag}")]);
    }
    // The tag stays `dev` while what it names changes: the revision restarts what runs the old one.
    Ok(vec!["image.tag=dev".into(), format!("image.revision={}", revision()?)])
}

/// A short name for the images' present content.
fn revision() -> Result<String> {
    let mut all = String::new();
    for name in IMAGES {
        all += &stowage_oci::read_name(&paths::image_archive(name))?.1;
    }
    use sha2::Digest;
    Ok(sha2::Sha256::digest(all.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect())
}

/// The gateway as seen from here: the value of STOWAGE_URL, or a loopback port that leads to it.
pub struct Endpoint {
    pub url: String,
    /// `kubectl port-forward`, where the cluster is not ours; it ends with this value.
    forward: Option<Child>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(forward) = &mut self.forward {
            forward.kill().ok(); // it may have ended by itself
            forward.wait().ok();
        }
    }
}

impl Endpoint {
    /// The forwarder goes on when this program has ended. The URL, and the forwarder's process if there is one.
    pub fn leave_open(mut self) -> (String, Option<u32>) {
        let forward = self.forward.take();
        (self.url.clone(), forward.map(|forward| forward.id()))
    }
}

pub fn endpoint(target: &Target) -> Result<Endpoint> {
    match std::env::var("STOWAGE_URL").ok().filter(|url| !url.is_empty()) {
        Some(url) if is_current() => Ok(Endpoint { url, forward: None }),
        None if is_current() => port_forward(target),
        _ => Ok(Endpoint { url: local_forward(target)?, forward: None }),
    }
}

/// It leads to one gateway, and ends with that one: enough to look and to ask. It writes a line for each
/// connection, to a file: into a pipe that is not read it would write once and end.
fn port_forward(target: &Target) -> Result<Endpoint> {
    let log = paths::target().join("port-forward.log");
    let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut kubectl = target.program("kubectl");
    kubectl.args(["-n", SYSTEM, "port-forward", "service/stowage-gateway", ":80"]).stdout(file);
    let mut endpoint =
        Endpoint { url: String::new(), forward: Some(kubectl.spawn().context("start kubectl port-forward")?) };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        let port = output.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(" ->"));
        if let Some((port, _)) = port {
            endpoint.url = format!("http://127.0.0.1:{port}");
            return Ok(endpoint);
        }
        let ended =
            endpoint.forward.as_mut().is_some_and(|forward| forward.try_wait().is_ok_and(|ended| ended.is_some()));
        ensure!(
            !ended && Instant::now() < deadline,
            "kubectl port-forward printed {output:?}, not its port; set STOWAGE_URL instead"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn local_forward(target: &Target) -> Result<String> {
    let ip =
        target.kubectl(&["-n", SYSTEM, "get", "service", "stowage-gateway", "-o", "jsonpath={.spec.clusterIP}"])?;
    Ok(own(&["cluster", "forward", "--name", "gateway", "--to", &format!("{}:80", ip.trim())])?.trim().to_owned())
}

/// `cargo xtask …` once more, as its own process, so that each subcommand keeps its own output. Found by
/// the name it was started by: the build of the workspace may have replaced the file since.
pub fn own(args: &[&str]) -> Result<String> {
    sh::output(Command::new(program()?).args(args).stdin(Stdio::null()))
}

/// How this program was started, from anywhere.
pub fn program() -> Result<PathBuf> {
    let name = std::env::args_os().next().context("this program was started without a name")?;
    std::path::absolute(name).context("find this program")
}

/// Where Cargo puts programs.
pub fn built(program: &str) -> PathBuf {
    paths::target().join("debug").join(program)
}
