//! `cargo xtask image`: OCI archives of our programs, made without a container engine. Our programs
//! are ordinary glibc binaries, so an image is a layer with the few libraries they need (the same
//! for all of them) and a layer with the stripped program.

pub mod model;

use crate::base::{paths, sh};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use stowage_oci::{Config, Entry, Layer};

#[derive(clap::Args)]
pub struct Args {
    /// Images to write (operator, gateway, node-agent, engine, probe); all of them when none is named
    names: Vec<String>,
    /// All images
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Build the programs first
    #[arg(long)]
    build: bool,
    /// Of release builds, for clusters that serve; development builds otherwise
    #[arg(long)]
    release: bool,
}

impl Args {
    /// One image, from programs as they are.
    pub fn only(name: &str) -> Self {
        Self { names: vec![name.into()], all: false, build: false, release: false }
    }
}

/// An image of one of our programs.
struct Image {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    /// `uid:gid`. Only the agent needs root: it writes into the kubelet's folders.
    user: &'static str,
    /// Package, file in the build folder, place in the image.
    extra: Option<(&'static str, &'static str, &'static str)>,
}

const NONROOT: &str = "65532:65532";
const IMAGES: &[Image] = &[
    Image { name: "operator", package: "stowage-operator", program: "stowage-operator", user: NONROOT, extra: None },
    Image { name: "gateway", package: "stowage-gateway", program: "stowage-gateway", user: NONROOT, extra: None },
    Image { name: "engine", package: "stowage-engine", program: "stowage-engine", user: NONROOT, extra: None },
    Image {
        name: "node-agent",
        package: "stowage-node-agent",
        program: "stowage-node-agent",
        user: "",
        extra: Some(("fake-nvml", "libfake_nvml.so", "usr/lib/stowage/libfake_nvml.so")),
    },
];
const PROBE: &str = "probe";
/// Names under which the test image offers busybox (its wget crashes on look-ups: /bin/probe does HTTP).
const BUSYBOX: &[&str] = &[
    "sh", "env", "sleep", "cat", "ls", "nc", "ip", "hostname", "id", "ps", "kill", "dd", "touch", "rm", "mkdir",
    "test", "true", "false", "echo", "head", "tail", "grep", "wc", "df", "date", "stat", "chmod", "ln", "mv", "cp",
    "find", "tr", "cut", "xargs", "printenv",
];

pub fn run(args: Args) -> Result<()> {
    let all = args.all || args.names.is_empty();
    let known = IMAGES.iter().map(|i| i.name).chain([PROBE]);
    let wanted: Vec<&str> = known.filter(|n| all || args.names.iter().any(|w| w == n)).collect();
    if let Some(unknown) = args.names.iter().find(|n| !wanted.contains(&n.as_str())) {
        bail!("there is no image {unknown} (operator, gateway, engine, node-agent, probe)");
    }
    let images: Vec<&Image> = IMAGES.iter().filter(|i| wanted.contains(&i.name)).collect();
    if args.build {
        build(&images, args.release)?;
    }
    let profile = if args.release { "release" } else { "debug" };
    let base = if images.is_empty() { None } else { Some(base()?) };
    for image in images {
        let base = base.as_ref().context("no base layer")?;
        report(&paths::image_archive(image.name), &program(image, base, profile)?)?;
    }
    if wanted.contains(&PROBE) {
        report(&paths::image_archive(PROBE), &probe()?)?;
    }
    Ok(())
}

/// The image of every sandbox.
pub fn pause(program: &Path, archive: &Path) -> Result<()> {
    let layer = Layer::new(&[Entry::File("pause".into(), 0o755, fs::read(program)?)])?;
    let config = Config { entrypoint: vec!["/pause".into()], user: NONROOT.into(), env: vec![] };
    stowage_oci::write(archive, "localhost/stowage/pause:dev", &[&layer], &config)?;
    Ok(())
}

fn build(images: &[&Image], release: bool) -> Result<()> {
    let packages = images.iter().flat_map(|i| [Some(i.package), i.extra.map(|e| e.0)]).flatten();
    let args: Vec<&str> = packages.flat_map(|p| ["-p", p]).collect();
    let status = sh::cargo(&["build"]).args(release.then_some("--release")).args(args).status()?;
    ensure!(status.success(), "cargo build failed");
    Ok(())
}

fn report(archive: &Path, digest: &str) -> Result<()> {
    let size = fs::metadata(archive)?.len() / 1_000_000;
    println!("{}  {size} MB  {digest}", archive.display());
    Ok(())
}

fn program(image: &Image, base: &Base, profile: &str) -> Result<String> {
    let place = format!("usr/local/bin/{}", image.program);
    let own = built(profile, image.package, image.program)?;
    let mut entries = vec![Entry::File(place.clone(), 0o755, stripped(&own)?)];
    let mut libraries = libraries(&own)?;
    if let Some((package, file, place)) = image.extra {
        let source = built(profile, package, file)?;
        entries.push(Entry::File(place.into(), 0o755, stripped(&source)?));
        libraries.extend(self::libraries(&source)?);
    }
    for library in libraries.difference(&base.libraries) {
        entries.push(file(library)?);
    }
    let env = vec![
        "PATH=/usr/local/bin:/usr/bin:/bin".to_string(),
        "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".into(),
    ];
    let config = Config { entrypoint: vec![format!("/{place}")], user: image.user.into(), env };
    let name = format!("localhost/stowage/{}:dev", image.name);
    let layers = [&base.layer, &Layer::new(&entries)?];
    Ok(stowage_oci::write(&paths::image_archive(image.name), &name, &layers, &config)?)
}

/// The layer that all our programs share.
struct Base {
    layer: Layer,
    libraries: BTreeSet<PathBuf>,
}

/// The C library's parts and gcc's, found as this program found them, so that the layer is the same
/// whichever images are written.
fn base() -> Result<Base> {
    let mut libraries = libraries(&std::env::current_exe()?)?;
    let libc = libraries.iter().find(|l| l.ends_with("libc.so.6")).context("this program has no libc.so.6")?;
    let dir = libc.parent().unwrap_or(Path::new("/lib")).to_path_buf();
    let parts = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1"];
    libraries.extend(parts.iter().map(|p| dir.join(p)).filter(|p| p.exists()));
    let text = |path: &str, text: &str| Entry::File(path.into(), 0o644, text.as_bytes().to_vec());
    let mut entries = vec![
        Entry::Dir("tmp".into(), 0o1777),
        text("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n"),
        text("etc/group", "root:x:0:\nnonroot:x:65532:\n"),
        text("etc/nsswitch.conf", "hosts: files dns\n"),
    ];
    if let Ok(certificates) = fs::read("/etc/ssl/certs/ca-certificates.crt") {
        entries.push(Entry::File("etc/ssl/certs/ca-certificates.crt".into(), 0o644, certificates));
    }
    for library in &libraries {
        entries.push(file(library)?);
    }
    Ok(Base { layer: Layer::new(&entries)?, libraries })
}

/// The test image: /bin/probe and a static busybox under its usual names.
fn probe() -> Result<String> {
    let bin = crate::programs::build::ensure(crate::programs::build::DEFAULT_VERSION)?;
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() || !libraries(busybox)?.is_empty() {
        crate::programs::prereq::install(vec!["busybox-static"])?;
    }
    let mut entries = vec![
        Entry::File("bin/probe".into(), 0o755, fs::read(bin.join("probe"))?),
        Entry::File("bin/busybox".into(), 0o755, fs::read(busybox).context("reading busybox")?),
        Entry::Dir("tmp".into(), 0o1777),
        // What an engine must refuse to load, for the tests: 16 MiB of the model hold its header and some tensors.
        Entry::File("models/garbage.gguf".into(), 0o644, b"this is no model".repeat(64)),
        Entry::File("models/truncated.gguf".into(), 0o644, model::beginning(16 << 20)?),
    ];
    entries.extend(BUSYBOX.iter().map(|name| Entry::Link(format!("bin/{name}"), "busybox".into())));
    let config = Config { entrypoint: vec!["/bin/probe".into()], user: NONROOT.into(), env: vec!["PATH=/bin".into()] };
    let layer = Layer::new(&entries)?;
    Ok(stowage_oci::write(&paths::image_archive(PROBE), "localhost/stowage/probe:dev", &[&layer], &config)?)
}

fn built(profile: &str, package: &str, file: &str) -> Result<PathBuf> {
    let path = paths::target().join(profile).join(file);
    ensure!(path.exists(), "{} is not built: add --build (package {package})", path.display());
    Ok(path)
}

/// The program without its symbols; the build's own file stays as it is.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    if sh::which("strip").is_none() {
        crate::programs::prereq::install(vec!["binutils"])?;
    }
    let work = paths::target().join("images/stripped");
    fs::create_dir_all(&work)?;
    let copy = work.join(program.file_name().context("a program without a name")?);
    sh::output(Command::new("strip").arg("--strip-unneeded").arg("-o").arg(&copy).arg(program))?;
    fs::read(&copy).with_context(|| format!("reading {}", copy.display()))
}

/// The shared libraries that the loader would load, itself included; none for a static program.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if let Some(lost) = text.lines().find(|l| l.contains("not found")) {
        bail!("{}: {}", program.display(), lost.trim());
    }
    Ok(text.lines().flat_map(|l| l.split_whitespace().find(|w| w.starts_with('/'))).map(PathBuf::from).collect())
}

fn file(path: &Path) -> Result<Entry> {
    let data = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Entry::File(path.to_string_lossy().trim_start_matches('/').into(), 0o755, data))
}
