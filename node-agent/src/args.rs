//! The command line, and what follows from it.

use std::path::{Path, PathBuf};

use clap::Parser;
use stowage_contracts::hub::DEFAULT_ENDPOINT;
use stowage_contracts::names::{NODE_AGENT_ADMIN_PORT, NODE_STATE_DIR};
use stowage_fetch::Limits;
use stowage_fetch::address::{Addresses, Cidr};
use stowage_gpu_scenario::Profile;

use crate::device::process::Processes;
use crate::models::figures::Figures;
use crate::models::task::Settings;

/// Reads the GPUs of this node, publishes them, and prepares the claims on them.
#[derive(Debug, Clone, Parser)]
#[command(name = "stowage-node-agent", version)]
pub struct Args {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Uid of this pod; the sockets carry it, so that old and new agent overlap in an update.
    #[arg(long, env = "POD_UID", default_value = "local")]
    pub pod_uid: String,
    /// NVML's library. Default: the driver's, or on simulated nodes libfake_nvml.so beside this binary.
    #[arg(long, env = "STOWAGE_NVML_LIB", default_value = "")]
    pub nvml_lib: String,
    /// Simulate GPUs: h100-80g-x8, a100-80g-x8, l4-x1 or mixed.
    #[arg(long, env = "STOWAGE_SIMULATED_PROFILE", value_parser = optional_profile)]
    pub simulated_profile: Option<ProfileChoice>,
    /// checkpoint.json, scenario.json, reports/. The same path on the host.
    #[arg(long, env = "STOWAGE_STATE_DIR", default_value = NODE_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where CDI files go.
    #[arg(long, env = "STOWAGE_CDI_DIR", default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,
    /// The kubelet's directory of plugins.
    #[arg(long, env = "STOWAGE_PLUGINS_DIR", default_value = "/var/lib/kubelet/plugins")]
    pub plugins_dir: PathBuf,
    /// Where the kubelet looks for registration sockets.
    #[arg(long, env = "STOWAGE_REGISTRY_DIR", default_value = "/var/lib/kubelet/plugins_registry")]
    pub registry_dir: PathBuf,
    /// Address of probes, metrics and the summary.
    #[arg(long, env = "STOWAGE_LISTEN", default_value_t = format!("0.0.0.0:{NODE_AGENT_ADMIN_PORT}"))]
    pub listen: String,
    /// Address that serves metrics alone, for scrapers. Empty: none.
    #[arg(long, env = "STOWAGE_METRICS_LISTEN", default_value = "")]
    pub metrics_listen: String,
    /// Ranges of addresses inside that models may be fetched from, for example 10.0.0.0/8.
    #[arg(long, env = "STOWAGE_MODEL_ALLOWED_CIDRS", value_delimiter = ',')]
    pub model_allowed_cidrs: Vec<String>,
    /// Ranges of addresses that models are never fetched from.
    #[arg(long, env = "STOWAGE_MODEL_REFUSED_CIDRS", value_delimiter = ',')]
    pub model_refused_cidrs: Vec<String>,
    /// Size of the cache of models, in bytes [default: four fifths of the disk].
    #[arg(long, env = "STOWAGE_MODEL_CACHE_BYTES", default_value_t = 0)]
    pub model_cache_bytes: u64,
    /// Per cent of the disk that fetches leave free. The kubelet ends pods when less than 15 per cent are.
    #[arg(long, env = "STOWAGE_MODEL_DISK_RESERVE_PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=99))]
    pub model_disk_reserve_percent: u8,
    /// Bytes per second of all fetches together; 0: no limit.
    #[arg(long, env = "STOWAGE_MODEL_BYTES_PER_SECOND", default_value_t = 0)]
    pub model_bytes_per_second: u64,
    /// Address of the hub with model repositories: Hugging Face's, or a mirror's.
    #[arg(long, env = "STOWAGE_MODEL_HUB", default_value = DEFAULT_ENDPOINT)]
    pub model_hub: String,
}

/// An empty value, as charts write it for "unset", means no simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileChoice(pub Option<Profile>);

fn optional_profile(text: &str) -> Result<ProfileChoice, String> {
    if text.is_empty() {
        return Ok(ProfileChoice(None));
    }
    text.parse()
        .map(|profile| ProfileChoice(Some(profile)))
        .map_err(|err: stowage_gpu_scenario::profiles::UnknownProfile| err.to_string())
}

impl Args {
    pub fn profile(&self) -> Option<Profile> {
        self.simulated_profile.and_then(|choice| choice.0)
    }

    pub fn scenario(&self) -> PathBuf {
        self.state_dir.join("scenario.json")
    }

    /// How models are fetched and kept.
    pub fn models(&self) -> anyhow::Result<Settings> {
        let ranges = |texts: &[String], flag: &str| -> anyhow::Result<Vec<Cidr>> {
            let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
            texts.map(|text| text.parse().map_err(|err| anyhow::anyhow!("{flag}: {err}"))).collect()
        };
        let mut refused = ranges(&self.model_refused_cidrs, "--model-refused-cidrs")?;
        // It may have a public address, and answers callers from inside.
        if let Ok(host) = std::env::var("KUBERNETES_SERVICE_HOST") {
            let found = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), 443));
            let found = found.map_err(|err| anyhow::anyhow!("cannot look up the API server {host}: {err}"))?;
            refused.extend(found.map(|found| Cidr::from(found.ip())));
        }
        Ok(Settings {
            addresses: Addresses {
                allowed: ranges(&self.model_allowed_cidrs, "--model-allowed-cidrs")?,
                refused,
                any: false,
            },
            hub: stowage_fetch::parse_url(&self.model_hub).map_err(|err| anyhow::anyhow!("--model-hub: {err}"))?,
            processes: Processes::default(),
            limits: Limits { bytes_per_second: self.model_bytes_per_second, ..Limits::default() },
            cache_bytes: self.model_cache_bytes,
            figures: Figures::default(),
            disk_reserve_percent: self.model_disk_reserve_percent,
        })
    }

    /// The library to load; `None` is the driver's own.
    pub fn library(&self) -> Option<PathBuf> {
        if self.nvml_lib.is_empty() {
            self.profile().map(|_| fake_library())
        } else {
            Some(PathBuf::from(&self.nvml_lib))
        }
    }
}

/// Beside the binary, where the build puts it, or where the image has it.
fn fake_library() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("libfake_nvml.so")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("/usr/lib/stowage/libfake_nvml.so"))
}

/// Makes the scenario when there is none. One that is there is never touched: people edit it.
pub fn ensure_scenario(path: &Path, profile: Profile, node: &str) -> std::io::Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    crate::dra::files::write_atomically(path, profile.scenario(node).to_json().as_bytes())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_profile_is_none_and_a_wrong_one_is_refused_with_the_choices() {
        assert_eq!(optional_profile(""), Ok(ProfileChoice(None)));
        assert_eq!(optional_profile("l4-x1"), Ok(ProfileChoice(Some(Profile::L4x1))));
        assert!(optional_profile("h200").unwrap_err().contains("h100-80g-x8"));
    }

    #[test]
    fn scenario_is_made_once_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join("scenario.json");
        assert!(ensure_scenario(&path, Profile::L4x1, "n").unwrap());
        std::fs::write(&path, "edited").unwrap();
        assert!(!ensure_scenario(&path, Profile::L4x1, "n").unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "edited");
    }
}
