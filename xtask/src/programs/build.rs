//! Builds the cluster's programs from the Go modules of `e2e/cluster`, once per state of their
//! sources: each part lies in the cache under a hash of what it is built from, so a fresh clone
//! finds it there, and a change of one part builds that part.

use crate::base::progress::Progress;
use crate::base::{paths, private, sh};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is built unless another one is asked for.
pub const DEFAULT_VERSION: &str = "1.36.3";

/// Programs that come from one module with the same flags.
struct Part {
    name: &'static str,
    /// Below `e2e/cluster`.
    module: &'static str,
    packages: &'static [&'static str],
    tags: &'static str,
    ldflags: String,
    cgo: bool,
    /// Another go.mod than the module's own, relative to the module.
    modfile: Option<String>,
    /// Where its programs appear below the common folder.
    folder: &'static str,
    /// Names under which its one program appears, too.
    links: &'static [&'static str],
}

const KUBE: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "etcd",
    "netpol",
];

fn parts(version: &str) -> Vec<Part> {
    let v = "-X k8s.io/component-base/version";
    let minor = version.split('.').nth(1).unwrap_or_default();
    let containerd = "-X github.com/containerd/containerd/v2/version.Version=v2.4.2";
    let part = |name, module, packages| Part {
        name,
        module,
        packages,
        tags: "",
        ldflags: String::new(),
        cgo: false,
        modfile: None,
        folder: "",
        links: &[],
    };
    vec![
        Part {
            ldflags: format!("{v}.gitVersion=v{version} {v}.gitMajor=1 {v}.gitMinor={minor}"),
            modfile: (version != DEFAULT_VERSION).then(|| format!("versions/{version}.mod")),
            links: KUBE,
            ..part("kubernetes", "kube", &["."])
        },
        Part {
            ldflags: containerd.into(),
            tags: "no_btrfs no_zfs no_devmapper no_tracing",
            ..part(
                "containerd",
                "node",
                &[
                    "github.com/containerd/containerd/v2/cmd/containerd",
                    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                    "github.com/containerd/containerd/v2/cmd/ctr",
                ],
            )
        },
        // Without the seccomp tag every sandbox fails: the kubelet asks for RuntimeDefault.
        Part { tags: "seccomp", cgo: true, ..part("runc", "node", &["github.com/opencontainers/runc"]) },
        Part {
            folder: "cni",
            ..part(
                "cni",
                "node",
                &[
                    "github.com/containernetworking/plugins/plugins/ipam/host-local",
                    "github.com/containernetworking/plugins/plugins/main/bridge",
                    "github.com/containernetworking/plugins/plugins/main/loopback",
                    "github.com/containernetworking/plugins/plugins/meta/portmap",
                ],
            )
        },
        part("coredns", "tools", &["./coredns"]),
        part("helm", "tools", &["helm.sh/helm/v4/cmd/helm"]),
        part("netfwd", "netfwd", &["."]),
        part("pause", "pause", &["."]),
        part("probe", "probe", &["."]),
    ]
}

/// The folder with all programs; builds those that the cache lacks.
pub fn ensure(version: &str) -> Result<PathBuf> {
    let cache = paths::cache().join("cluster");
    private::make_programs(&cache.join("parts"))?;
    private::check_programs(&cache)?;
    let parts = parts(version);
    let sources = paths::repo().join("e2e/cluster");
    let mut hashed = Vec::new();
    for part in &parts {
        hashed.push((part, cache.join("parts").join(format!("{}-{}", part.name, hash(part, &sources)?))));
    }
    let all: String = hashed.iter().map(|(_, dir)| dir.display().to_string()).collect();
    let bin = cache.join(hex16(all.as_bytes())).join("bin");
    if bin.is_dir() {
        return Ok(bin);
    }
    let missing: Vec<_> = hashed.iter().filter(|(_, dir)| !dir.exists()).collect();
    if !missing.is_empty() {
        super::prereq::to_build()?;
        build_all(&missing, &sources)?;
    }
    link(&hashed, &bin)?;
    Ok(bin)
}

fn build_all(missing: &[&(&Part, PathBuf)], sources: &Path) -> Result<()> {
    let mut progress = Progress::new("kubernetes");
    let mut counts = Vec::new();
    for (part, _) in missing {
        progress.set(0, 0, &format!("finding what {} needs (the first time, its modules are fetched)", part.name));
        counts.push(stale(part, sources).with_context(|| format!("listing the packages of {}", part.name))?);
    }
    let total: usize = counts.iter().sum();
    let mut done = 0;
    for ((part, dir), count) in missing.iter().zip(counts) {
        // A second build of the same part would only take the first one's time; the lock ends with the process.
        let lock = File::create(dir.with_extension("lock"))?;
        lock.lock().with_context(|| format!("waiting for another build of {}", part.name))?;
        if !dir.exists() {
            compile(part, dir, sources, |compiled, package| progress.set(done + compiled.min(count), total, package))?;
        }
        done += count;
    }
    progress.finish(&format!("built {} of its parts", missing.len()));
    Ok(())
}

fn go(part: &Part, sources: &Path, verb: &str) -> Command {
    let ldflags = format!("-s -w {}", part.ldflags);
    let mut go = sh::cmd(
        "go",
        &[verb, "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", ldflags.trim(), "-tags", part.tags],
    );
    if let Some(modfile) = &part.modfile {
        go.arg(format!("-modfile={modfile}"));
    }
    // The caller's GOFLAGS could ask for another module mode.
    go.current_dir(sources.join(part.module)).env("CGO_ENABLED", if part.cgo { "1" } else { "0" }).env("GOFLAGS", "");
    go
}

/// How many packages have to be compiled; linking counts as one of them.
fn stale(part: &Part, sources: &Path) -> Result<usize> {
    let listed = sh::output(
        go(part, sources, "list").args(["-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}"]).args(part.packages),
    )?;
    Ok(listed.lines().count() + 1)
}

fn compile(part: &Part, dir: &Path, sources: &Path, mut each: impl FnMut(usize, &str)) -> Result<()> {
    let partial = dir.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    fs::create_dir_all(&partial)?;
    let mut build = go(part, sources, "build");
    build.arg("-v").arg("-o").arg(format!("{}/", partial.display())).args(part.packages);
    let mut child = build.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot start go")?;
    let mut output: Vec<String> = Vec::new();
    let mut compiled = 0;
    for line in BufReader::new(child.stderr.take().context("no stderr")?).lines() {
        let line = line?;
        if line.contains(' ') || line.starts_with('#') {
            output.push(line); // not an import path: a download, a warning or an error
            continue;
        }
        compiled += 1;
        each(compiled, &line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("building {} failed ({status}): {}", part.name, sh::tail(&output.join("\n"), 12));
    }
    fs::rename(&partial, dir).with_context(|| format!("keeping {}", dir.display()))
}

/// One folder with a link to every program, since the programs find each other through PATH.
fn link(parts: &[(&Part, PathBuf)], bin: &Path) -> Result<()> {
    let next = bin.with_extension(std::process::id().to_string());
    for (part, dir) in parts {
        let folder = next.join(part.folder);
        fs::create_dir_all(&folder)?;
        for program in fs::read_dir(dir)?.flatten() {
            std::os::unix::fs::symlink(program.path(), folder.join(program.file_name()))?;
            for name in part.links {
                std::os::unix::fs::symlink(program.path(), folder.join(name))?;
            }
        }
    }
    if fs::rename(&next, bin).is_err() {
        fs::remove_dir_all(&next)?; // another build was faster
    }
    ensure!(bin.is_dir(), "cannot make {}", bin.display());
    Ok(())
}

/// Of everything that decides what the part becomes: flags and all sources of its module.
fn hash(part: &Part, sources: &Path) -> Result<String> {
    let module = sources.join(part.module);
    let mut files = Vec::new();
    collect(&module, &mut files)?;
    files.sort();
    ensure!(!files.is_empty(), "no sources in {}", module.display());
    if let Some(modfile) = part.modfile.as_ref().map(|m| module.join(m)) {
        let version = modfile.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(
            modfile.exists(),
            "Kubernetes {version} has no module file {} (see e2e/cluster/README.md)",
            modfile.display()
        );
    }
    let mut text = format!("{:?}", (part.packages, part.tags, &part.ldflags, part.cgo, &part.modfile)).into_bytes();
    for file in files {
        text.extend(file.strip_prefix(&module)?.as_os_str().as_encoded_bytes());
        text.extend(fs::read(&file)?);
    }
    Ok(hex16(&text))
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, into)?,
            false => into.push(path),
        }
    }
    Ok(())
}

fn hex16(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}
