//! The clients of the end-to-end tests, at their pinned versions, in the cache.

use crate::base::{paths, python, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// Where the scripts are, and the Python that runs those written in it.
pub struct Clients {
    pub folder: PathBuf,
    pub python: PathBuf,
    /// For the clients of `make test-long`, which bring hundreds of megabytes.
    pub python_long: Option<PathBuf>,
}

/// Copies the scripts beside the installed packages of Node, since an ES module is looked for only in the
/// folders above the file that imports it. Installs what is not installed at the pinned version.
pub fn ensure(long: bool) -> Result<Clients> {
    let source = paths::repo().join("e2e/clients");
    let folder = paths::cache().join("e2e-clients");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let lock = "package-lock.json";
    let is_installed = folder.join("node_modules").exists()
        && std::fs::read(folder.join(lock)).ok()
            == Some(std::fs::read(source.join(lock)).context("read the lock file")?);
    for entry in std::fs::read_dir(&source).with_context(|| format!("read {}", source.display()))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        std::fs::copy(&path, folder.join(name)).with_context(|| format!("copy {}", path.display()))?;
    }
    if !is_installed {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(&folder);
        let installed = sh::output(&mut npm).context("install the clients of Node (needs npm)");
        // Without the lock file the next run installs anew.
        installed.inspect_err(|_| drop(std::fs::remove_file(folder.join(lock))))?;
    }
    let environment = |name: &str, file: &str| {
        let requirements = std::fs::read_to_string(folder.join(file)).with_context(|| format!("read {file}"))?;
        python::ensure(name, &pinned(&requirements), &requirements_of(&requirements), &[])
            .with_context(|| format!("install the clients of {file}"))
    };
    Ok(Clients {
        python: environment("e2e-clients-venv", "requirements.txt")?,
        python_long: if long { Some(environment("e2e-clients-long-venv", "requirements-long.txt")?) } else { None },
        folder,
    })
}

fn requirements_of(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// A statement that fails unless each `name==version` is installed.
fn pinned(requirements: &str) -> String {
    let pins = requirements_of(requirements).into_iter().filter_map(|line| line.split_once("=="));
    // `name[extra]` is the package `name`.
    let pins = pins.map(|(name, version)| (name.split('[').next().unwrap_or(name), version));
    let checks = pins.map(|(name, version)| format!("assert version({name:?}) == {version:?}"));
    std::iter::once("from importlib.metadata import version".to_owned()).chain(checks).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pinned_version_is_checked() {
        let text = "# comment\na-b==1.2\n\nc[x]==3\n";
        assert_eq!(requirements_of(text), ["a-b==1.2", "c[x]==3"]);
        let expected = "from importlib.metadata import version\nassert version(\"a-b\") == \"1.2\"\nassert version(\"c\") == \"3\"";
        assert_eq!(pinned(text), expected);
    }
}
