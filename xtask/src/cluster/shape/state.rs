//! What a cluster was asked to be, and how far its start came: `cluster.json` in the state directory.

use super::layout::Layout;
use crate::base::private;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Written before the first process starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Of Kubernetes, without `v`.
    pub version: String,
    /// Where its programs lie.
    pub bin: PathBuf,
    /// `node1` to `nodeN`.
    pub nodes: usize,
    /// The simulated GPUs of every node.
    pub gpu_profile: String,
    /// On loopback.
    pub api_port: u16,
    /// Whether a start once ended well: then what died since is started again, else all is cleaned.
    pub complete: bool,
    /// By name.
    #[serde(default)]
    pub forwards: BTreeMap<String, Forward>,
}

/// A loopback port that leads into a node's network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// On loopback.
    pub port: u16,
    /// Address and port as seen by the node.
    pub to: String,
    /// Whose network.
    pub via: String,
}

impl State {
    /// `None` where nothing was started, or what is there cannot be read (an interrupted write).
    pub fn load(layout: &Layout) -> Option<Self> {
        let text = std::fs::read_to_string(file(layout)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Of a cluster that must be there.
    pub fn required(layout: &Layout) -> Result<Self> {
        let hint = "start one with `cargo xtask cluster up`";
        let state = Self::load(layout).with_context(|| format!("no cluster in {}: {hint}", layout.state.display()))?;
        if state.bin.exists() {
            private::check_programs(&state.bin)?;
        }
        Ok(state)
    }

    /// Replaces the file in one step.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let next = layout.state.join("cluster.json.next");
        std::fs::write(&next, serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::rename(&next, file(layout)).context("writing cluster.json")
    }
}

fn file(layout: &Layout) -> PathBuf {
    layout.state.join("cluster.json")
}
