//! The scenario files of the simulated GPUs: read, changed, replaced by rename, and put back when the test ends.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::world::Env;

/// One node's scenario, as it was before the test.
pub struct Scenario {
    path: PathBuf,
    before: Vec<u8>,
}

// === impl Scenario ===

impl Scenario {
    /// Of a node of the local cluster.
    pub fn of(env: &Env, node: &str) -> anyhow::Result<Self> {
        let state = env.state.as_ref().context("scenarios can be changed on the local cluster only (STOWAGE_STATE)")?;
        let path = state.join(node).join("stowage/scenario.json");
        let before =
            std::fs::read(&path).with_context(|| format!("read the scenario of {node}: {}", path.display()))?;
        Ok(Self { path, before })
    }

    /// Changes the scenario as it is now; the moment of the change.
    pub fn change(&self, change: impl FnOnce(&mut Value)) -> anyhow::Result<Instant> {
        let mut scenario: Value = serde_json::from_slice(&std::fs::read(&self.path)?).context("parse the scenario")?;
        change(&mut scenario);
        self.replace(scenario.to_string().as_bytes())?;
        Ok(Instant::now())
    }

    /// Any bytes at all.
    pub fn replace(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let next = self.path.with_extension("e2e");
        std::fs::write(&next, bytes).and_then(|()| std::fs::rename(&next, &self.path)).context("replace the scenario")
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        if let Err(e) = self.replace(&self.before) {
            eprintln!("the scenario was not put back: {e:#}");
        }
    }
}

/// Index of the device with this uuid.
pub fn device<'a>(scenario: &'a mut Value, uuid: &str) -> Option<&'a mut Value> {
    scenario["devices"].as_array_mut()?.iter_mut().find(|d| d["uuid"] == uuid)
}

/// Two seconds: in which routing leaves a replica that failed.
pub const OUT_OF_ROUTING: Duration = Duration::from_secs(2);
