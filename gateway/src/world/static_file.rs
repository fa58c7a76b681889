//! A world from a file, for development and benchmarks: no cluster, the same [`Facts`].
//!
//! The file is read again when it changes, so that tests can let replicas come and go.
//! Keys stand in it as they are, which is why no chart ever sets this option.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use stowage_crds::quantity;
use stowage_crds::tenant_quota::TokenQuota;

use crate::listen::credentials::hash_key;
use crate::world::facts::{DeploymentFact, Facts, PodFact, QuotaFact, SecretKeys};
use crate::world::observe::token_limits;
use crate::world::salt::SaltKey;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    tenants: Vec<TenantEntry>,
    models: Vec<ModelEntry>,
    /// What the Secret with the key of the salts holds in a cluster.
    cache_key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TenantEntry {
    name: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    models_from: Vec<String>,
    tokens: Option<TokenQuota>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ModelEntry {
    name: String,
    tenant: String,
    #[serde(default)]
    access: Vec<String>,
    #[serde(default)]
    endpoints: Vec<SocketAddr>,
    hold: Option<String>,
    max_held: Option<usize>,
}

/// Why a file is no world.
#[derive(Debug, thiserror::Error)]
pub enum StaticWorldError {
    #[error("cannot read the world file {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the world file {path} is not as docs/gateway.md shows it")]
    Parse { path: PathBuf, source: serde_yaml::Error },
    #[error("the world file {path} has no duration in models[{index}].hold: write 500ms, 30s or 2m")]
    Hold { path: PathBuf, index: usize },
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Facts, StaticWorldError> {
    let text = std::fs::read_to_string(path).map_err(|source| StaticWorldError::Read { path: path.into(), source })?;
    let file = serde_yaml::from_str(&text).map_err(|source| StaticWorldError::Parse { path: path.into(), source })?;
    facts(file).map_err(|index| StaticWorldError::Hold { path: path.into(), index })
}

/// Passes the file's state to `apply` whenever the file changes. Never returns. A file that is unreadable
/// for a moment changes nothing.
pub async fn follow(path: PathBuf, apply: impl Fn(&Facts)) {
    let mut seen = modified(&path);
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = modified(&path);
        if now == seen {
            continue;
        }
        match read(&path) {
            Ok(facts) => {
                seen = now;
                apply(&facts);
            }
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "keeping the last world"),
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// On error, the index of the model whose hold is no duration.
fn facts(file: File) -> Result<Facts, usize> {
    let salt_key = file.cache_key.and_then(|key| SaltKey::new(key.as_bytes()));
    let mut facts = Facts { salt_key, ..Facts::default() };
    for tenant in file.tenants {
        let hashes = tenant.keys.iter().enumerate().map(|(i, key)| (i.to_string(), hash_key(key))).collect();
        facts.secrets.insert(tenant.name.clone(), SecretKeys { hashes, unreadable: Vec::new() });
        facts.quotas.push(QuotaFact {
            name: tenant.name.clone(),
            created: 0,
            namespaces: vec![tenant.name.clone()],
            key_secrets: vec![tenant.name],
            models_from: tenant.models_from,
            limits: tenant.tokens.as_ref().map(token_limits).unwrap_or_default(),
        });
    }
    for (index, model) in file.models.into_iter().enumerate() {
        let hold = model.hold.map(|text| quantity::parse_duration(&text)).transpose().map_err(|_| index)?;
        let name = format!("model-{index}");
        let pods = model.endpoints.iter().map(|address| PodFact {
            namespace: model.tenant.clone(),
            name: address.to_string(),
            uid: address.to_string(),
            deployment: name.clone(),
            owner_uid: None,
            address: Some(*address),
            ready: true,
            draining: false,
            gpus: Vec::new(),
        });
        facts.pods.extend(pods);
        facts.deployments.push(DeploymentFact {
            namespace: model.tenant,
            name,
            model: model.name,
            access: model.access,
            hold,
            max_held: model.max_held,
            ..DeploymentFact::default()
        });
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::snapshot::World;

    fn parse(yaml: &str) -> Result<Facts, String> {
        let file: File = serde_yaml::from_str(yaml).map_err(|e| e.to_string())?;
        facts(file).map_err(|index| format!("hold of {index}"))
    }

    #[test]
    fn a_file_makes_the_same_world_as_the_watches() {
        let facts = parse(
            "tenants: [{name: a, keys: [sk-a], tokens: {perMinute: 100, maxConcurrent: 2}}, {name: b, keys: [sk-b]}]
models: [{name: m, tenant: a, access: [b], endpoints: ['127.0.0.1:9001', '127.0.0.1:9002'], hold: 5s}]
cacheKey: 0123456789abcdef0123456789abcdef",
        );
        let world = World::build(&facts.unwrap());
        assert_eq!(world.keys.tenant_of("sk-a").map(|t| &**t), Some("a"));
        assert_eq!(world.tenant("a").and_then(|t| t.limits.per_minute), Some(100));
        assert!(world.salt_key.is_some());
        let deployment = world.resolve(&"b".into(), "a/m").unwrap();
        assert_eq!((deployment.replicas.len(), deployment.hold), (2, Duration::from_secs(5)));
    }

    #[test]
    fn errors_of_the_file_are_named() {
        assert!(parse("tenants: []").unwrap_err().contains("models"));
        assert!(parse("tenants: []\nmodels: []\nmodel: []").unwrap_err().contains("model"));
        assert_eq!(parse("tenants: []\nmodels: [{name: m, tenant: a, hold: soon}]").unwrap_err(), "hold of 0");
    }
}
