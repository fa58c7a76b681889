//! The load report: what routers and autoscalers decide by.

use serde::{Deserialize, Serialize};
use stowage_engine_core::engine::Load;
use stowage_engine_core::executor::BLOCK_TOKENS;
use stowage_engine_core::fit::Coefficients;

/// `GET /stowage/v1/load`. The wire names are in docs/contracts.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadReport {
    pub running: usize,
    pub waiting: usize,
    /// Held by requests. Blocks that are only cached count as free: they are given up on demand.
    pub kv_blocks_used: usize,
    pub kv_blocks_total: usize,
    pub block_tokens: usize,
    /// Prompt tokens accepted and not computed yet.
    pub prefill_backlog_tokens: usize,
    pub draining: bool,
    pub coefficients: WireCoefficients,
    pub model: String,
}

/// Milliseconds; see `stowage_engine_core::fit`. Zero is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WireCoefficients {
    pub a: f64,
    pub d: f64,
    pub k: f64,
    pub p: f64,
}

impl LoadReport {
    pub fn new(model: &str, load: &Load, fit: Coefficients, draining: bool) -> Self {
        let Coefficients { a, d, k, p } = fit;
        Self {
            running: load.running,
            waiting: load.waiting,
            kv_blocks_used: load.blocks_used,
            kv_blocks_total: load.blocks_total,
            block_tokens: BLOCK_TOKENS,
            prefill_backlog_tokens: load.prefill_backlog,
            draining,
            coefficients: WireCoefficients { a, d, k, p },
            model: model.to_owned(),
        }
    }

    /// The short form, in the `x-stowage-load` header of every response.
    pub fn header(&self) -> String {
        format!(
            "running={},waiting={},kv={}/{},backlog={}",
            self.running, self.waiting, self.kv_blocks_used, self.kv_blocks_total, self.prefill_backlog_tokens
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_the_contracts() {
        let load = Load { running: 3, blocks_used: 12, blocks_total: 400, prefill_backlog: 512, ..Load::default() };
        let report = LoadReport::new("m", &load, Coefficients { a: 1.5, ..Coefficients::default() }, false);
        assert_eq!(report.header(), "running=3,waiting=0,kv=12/400,backlog=512");
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"running":3,"waiting":0,"kvBlocksUsed":12,"kvBlocksTotal":400,"blockTokens":16,"prefillBacklogTokens":512,"draining":false,"coefficients":{"a":1.5,"d":0.0,"k":0.0,"p":0.0},"model":"m"}"#
        );
    }
}
