//! What an engine says of its load, in its long form (JSON) and its short form (response header).
//!
//! Parsing only. Both come from the network, so anything unreadable is `None` and never a panic; a
//! reader that gets `None` from a stream of reports takes it for a broken engine.

use serde::Deserialize;
use stowage_planner::route::Coefficients;

/// One report. What an engine does not say is 0, which means unknown for capacities.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    pub running: u32,
    pub waiting: u32,
    /// Tokens in the KV cache of running requests.
    pub kv_tokens: f64,
    /// Tokens that the KV cache can hold; 0 is unknown.
    pub kv_capacity: f64,
    /// Tokens accepted and not yet prefilled.
    pub backlog_tokens: f64,
    pub draining: bool,
    pub coefficients: Option<Coefficients>,
    /// Tokens per block, which the short form does not carry.
    block_tokens: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    running: u32,
    waiting: u32,
    #[serde(default)]
    kv_blocks_used: u64,
    #[serde(default)]
    kv_blocks_total: u64,
    #[serde(default)]
    block_tokens: u64,
    #[serde(default)]
    prefill_backlog_tokens: u64,
    #[serde(default)]
    draining: bool,
    coefficients: Option<WireCoefficients>,
}

#[derive(Deserialize)]
struct WireCoefficients {
    #[serde(default)]
    a: f64,
    #[serde(default)]
    d: f64,
    #[serde(default)]
    k: f64,
    #[serde(default)]
    p: f64,
}

impl Load {
    /// A line of `GET /stowage/v1/load`.
    pub fn from_json(line: &[u8]) -> Option<Self> {
        let wire: Wire = serde_json::from_slice(line).ok()?;
        let block = wire.block_tokens as f64;
        Some(Self {
            running: wire.running,
            waiting: wire.waiting,
            kv_tokens: wire.kv_blocks_used as f64 * block,
            kv_capacity: wire.kv_blocks_total as f64 * block,
            backlog_tokens: wire.prefill_backlog_tokens as f64,
            draining: wire.draining,
            coefficients: wire.coefficients.map(|c| Coefficients { a: c.a, d: c.d, k: c.k, p: c.p }),
            block_tokens: block,
        })
    }

    /// This report brought up to date by `running=3,waiting=0,kv=12/400,backlog=512`. Keys that are
    /// not known are skipped; one unreadable value leaves everything as it was.
    #[must_use]
    pub fn updated_by_header(mut self, header: &str) -> Self {
        let before = self;
        for pair in header.split(',') {
            let Some((key, value)) = pair.trim().split_once('=') else { return before };
            let read = match key {
                "running" => value.parse().map(|n| self.running = n).is_ok(),
                "waiting" => value.parse().map(|n| self.waiting = n).is_ok(),
                "backlog" => value.parse::<u32>().map(|n| self.backlog_tokens = n.into()).is_ok(),
                "kv" => self.set_kv(value).is_some(),
                _ => true,
            };
            if !read {
                return before;
            }
        }
        self
    }

    fn set_kv(&mut self, value: &str) -> Option<()> {
        let (used, total) = value.split_once('/')?;
        let (used, total): (u32, u32) = (used.parse().ok()?, total.parse().ok()?);
        self.kv_tokens = f64::from(used) * self.block_tokens;
        self.kv_capacity = f64::from(total) * self.block_tokens;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &[u8] = br#"{"running":3,"waiting":1,"kvBlocksUsed":10,"kvBlocksTotal":100,"blockTokens":16,
        "prefillBacklogTokens":512,"draining":false,"coefficients":{"a":5.0,"d":0.1,"k":0,"p":40},"model":"m","new":1}"#;

    #[test]
    fn the_long_form_is_read_in_tokens() {
        let load = Load::from_json(FULL).unwrap();
        assert_eq!((load.running, load.waiting, load.backlog_tokens), (3, 1, 512.0));
        assert_eq!((load.kv_tokens, load.kv_capacity), (160.0, 1600.0));
        assert_eq!(load.coefficients.map(|c| c.p), Some(40.0));
    }

    #[test]
    fn a_short_report_is_enough_and_garbage_is_none() {
        assert!(Load::from_json(br#"{"running":0,"waiting":0}"#).is_some());
        for bad in [&b""[..], b"{}", b"hello", b"{\"running\":-1,\"waiting\":0}", b"\xff\xfe", b"[]"] {
            assert_eq!(Load::from_json(bad), None);
        }
    }

    #[test]
    fn the_header_updates_what_it_names() {
        let load = Load::from_json(FULL).unwrap().updated_by_header("running=9, waiting=2,kv=50/100,backlog=0,x=y");
        assert_eq!((load.running, load.waiting, load.backlog_tokens, load.kv_tokens), (9, 2, 0.0, 800.0));
    }

    #[test]
    fn an_unreadable_header_changes_nothing() {
        let load = Load::from_json(FULL).unwrap();
        for bad in ["", "running", "running=x", "running=1,kv=1", "waiting=1,backlog=-4"] {
            assert_eq!(load.updated_by_header(bad), load, "{bad}");
        }
    }
}
