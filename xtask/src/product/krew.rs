//! `cargo xtask krew`: the archive of the kubectl plugin for this machine's platform, and the manifest with which
//! `kubectl krew install --manifest` installs it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;
use sha2::{Digest, Sha256};

use crate::base::{paths, sh};

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where the archive will lie, for example https://example.com/stowage/v0.1.0
    #[arg(long)]
    url: String,
    /// The program; target/release/kubectl-stowage otherwise
    #[arg(long)]
    program: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let program = args.program.clone().unwrap_or_else(|| paths::target().join("release/kubectl-stowage"));
    ensure!(program.is_file(), "{} does not exist; cargo build --release -p kubectl-stowage", program.display());
    let out = paths::target().join("krew");
    let files = out.join("files");
    std::fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
    std::fs::copy(&program, files.join("kubectl-stowage"))?;
    std::fs::copy(paths::repo().join("LICENSE"), files.join("LICENSE"))?;
    let platform = Platform::here()?;
    let archive = out.join(format!("kubectl-stowage_{}_{}.tar.gz", platform.os, platform.arch));
    // The same files are the same bytes.
    let fixed =
        ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--use-compress-program=gzip -n"];
    sh::output(
        Command::new("tar")
            .args(fixed)
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&files)
            .args(["LICENSE", "kubectl-stowage"]),
    )?;
    let digest: String = Sha256::digest(std::fs::read(&archive)?).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let manifest =
        manifest(env!("CARGO_PKG_VERSION"), &platform, &format!("{}/{name}", args.url.trim_end_matches('/')), &digest);
    let path = out.join("stowage.yaml");
    std::fs::write(&path, manifest)?;
    println!("{}\n{}", archive.display(), path.display());
    println!("kubectl krew install --manifest={} --archive={}", path.display(), archive.display());
    Ok(())
}

/// As krew names platforms.
struct Platform {
    os: &'static str,
    arch: &'static str,
}

impl Platform {
    fn here() -> Result<Self> {
        let os = match std::env::consts::OS {
            "macos" => "darwin",
            os => os,
        };
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => anyhow::bail!("krew has no name for {other}"),
        };
        Ok(Self { os, arch })
    }
}

fn manifest(version: &str, platform: &Platform, uri: &str, digest: &str) -> String {
    let Platform { os, arch } = platform;
    format!(
        "apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: stowage
spec:
  version: v{version}
  shortDescription: What runs where on your GPUs, and why
  description: |
    State, reasons, dry runs and a live view of the models that Stowage packs onto
    the GPUs of a cluster. It only reads.
  caveats: |
    Completion in the shell needs a second program on the PATH:
      kubectl stowage completion kubectl > ~/.local/bin/kubectl_complete-stowage
      chmod +x ~/.local/bin/kubectl_complete-stowage
  platforms:
  - selector: {{matchLabels: {{os: {os}, arch: {arch}}}}}
    uri: {uri}
    sha256: {digest}
    bin: kubectl-stowage
    files:
    - {{from: kubectl-stowage, to: .}}
    - {{from: LICENSE, to: .}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_names_the_archive_and_its_digest() {
        let platform = Platform { os: "linux", arch: "amd64" };
        let text = manifest("0.1.0", &platform, "https://example.com/a.tar.gz", "ab12");
        for line in ["version: v0.1.0", "os: linux, arch: amd64", "uri: https://example.com/a.tar.gz", "sha256: ab12"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
