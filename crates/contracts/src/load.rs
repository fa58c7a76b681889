//! The engine's load report: what routers and autoscalers decide by.
//!
//! The long form is a JSON line of `GET /stowage/v1/load`, the short form the header
//! [`HEADER_LOAD`](crate::names::HEADER_LOAD) of each response.
//!
//! An engine may run a tenant's own code, and what it reports is added up with what others report. So readers refuse
//! figures that no engine can have: [`LoadReport::plausible`] and [`LoadHeader::parse`] name them.

use serde::{Deserialize, Serialize};

/// Beyond these a figure is no engine's, whatever the hardware.
const MAX_SEQUENCES: u32 = 1 << 20;
const MAX_BLOCKS: u64 = 1 << 40;
const MAX_BLOCK_TOKENS: u64 = 1 << 20;
pub(crate) const MAX_TOKENS: u64 = 1 << 40;
const MAX_COEFFICIENT: f64 = 1e6;

/// Cost of one iteration in milliseconds; zero is unknown, never free.
///
/// `milliseconds = a + d·decodes + k·(KV tokens)/1000 + p·(prefill tokens)/1000`
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Coefficients {
    /// Per iteration.
    pub a: f64,
    /// Per decoding sequence.
    pub d: f64,
    /// Per 1,000 tokens in the KV cache.
    pub k: f64,
    /// Per 1,000 prefill tokens.
    pub p: f64,
}

impl Coefficients {
    /// Llama-3.1-70B FP8 on four H100: the reference row of the evaluation protocols. What a pool of
    /// unknown replicas is ranked by; within one pool only the proportions matter.
    pub const REFERENCE: Self = Self { a: 11.020, d: 0.0547, k: 0.02791, p: 44.571 };

    /// Whether an engine can have learned them.
    pub(crate) fn plausible(self) -> bool {
        [self.a, self.d, self.k, self.p].iter().all(|value| value.abs() <= MAX_COEFFICIENT)
    }

    /// A fitted zero, a negative or a NaN means *unknown*, never free: those come from `fallback`.
    #[must_use]
    pub fn or_known(self, fallback: Self) -> Self {
        let known = |value: f64, other: f64| if value.is_finite() && value > 0.0 { value } else { other };
        Self {
            a: known(self.a, fallback.a),
            d: known(self.d, fallback.d),
            k: known(self.k, fallback.k),
            p: known(self.p, fallback.p),
        }
    }
}

/// The long form. What an engine does not report is zero, which for capacities means unknown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadReport {
    /// Names this start of the process: another value is another incarnation, which knows nothing of
    /// earlier requests. Empty: the engine does not report it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub incarnation: String,
    /// Sequences in the batch.
    pub running: u32,
    /// Sequences that wait for a place in the batch.
    pub waiting: u32,
    /// Blocks held by requests. Blocks that are only cached count as free: they are given up on demand.
    #[serde(default)]
    pub kv_blocks_used: u64,
    /// Blocks of the whole KV cache.
    #[serde(default)]
    pub kv_blocks_total: u64,
    /// Tokens per block.
    #[serde(default)]
    pub block_tokens: u64,
    /// Prompt tokens accepted and not computed yet.
    #[serde(default)]
    pub prefill_backlog_tokens: u64,
    /// No new requests, please: the process is about to end.
    #[serde(default)]
    pub draining: bool,
    /// Learned by the engine; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficients: Option<Coefficients>,
    /// The model that is served.
    #[serde(default)]
    pub model: String,
}

/// The short form: `running=3,waiting=0,kv=12/400,backlog=512`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadHeader {
    /// As [`LoadReport::running`].
    pub running: Option<u32>,
    /// As [`LoadReport::waiting`].
    pub waiting: Option<u32>,
    /// Blocks used and in all, as in [`LoadReport`].
    pub kv_blocks: Option<(u64, u64)>,
    /// As [`LoadReport::prefill_backlog_tokens`].
    pub backlog_tokens: Option<u64>,
}

impl LoadReport {
    /// Whether an engine can have made it. Readers ask this first.
    pub fn plausible(&self) -> bool {
        self.header().plausible()
            && self.block_tokens <= MAX_BLOCK_TOKENS
            && self.coefficients.is_none_or(Coefficients::plausible)
    }

    /// The short form of this report.
    pub fn header(&self) -> LoadHeader {
        LoadHeader {
            running: Some(self.running),
            waiting: Some(self.waiting),
            kv_blocks: Some((self.kv_blocks_used, self.kv_blocks_total)),
            backlog_tokens: Some(self.prefill_backlog_tokens),
        }
    }

    /// Takes over what the header names.
    pub fn update(&mut self, header: LoadHeader) {
        let LoadHeader { running, waiting, kv_blocks, backlog_tokens } = header;
        self.running = running.unwrap_or(self.running);
        self.waiting = waiting.unwrap_or(self.waiting);
        (self.kv_blocks_used, self.kv_blocks_total) = kv_blocks.unwrap_or((self.kv_blocks_used, self.kv_blocks_total));
        self.prefill_backlog_tokens = backlog_tokens.unwrap_or(self.prefill_backlog_tokens);
    }
}

impl LoadHeader {
    /// Unknown keys are skipped. `None` when any value is unreadable, or none that an engine can have: then nothing of
    /// it is believed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut header = Self::default();
        for pair in text.split(',') {
            let (key, value) = pair.trim().split_once('=')?;
            match key {
                "running" => header.running = Some(value.parse().ok()?),
                "waiting" => header.waiting = Some(value.parse().ok()?),
                "backlog" => header.backlog_tokens = Some(value.parse().ok()?),
                "kv" => {
                    let (used, total) = value.split_once('/')?;
                    header.kv_blocks = Some((used.parse().ok()?, total.parse().ok()?));
                }
                _ => {}
            }
        }
        header.plausible().then_some(header)
    }

    fn plausible(self) -> bool {
        let Self { running, waiting, kv_blocks, backlog_tokens } = self;
        let sequences = [running, waiting].into_iter().flatten().all(|count| count <= MAX_SEQUENCES);
        sequences
            && kv_blocks.is_none_or(|(used, total)| plausible_blocks(used, total))
            && backlog_tokens.is_none_or(|tokens| tokens <= MAX_TOKENS)
    }
}

/// A total of zero is one that is not reported.
pub(crate) fn plausible_blocks(used: u64, total: u64) -> bool {
    used.max(total) <= MAX_BLOCKS && (total == 0 || used <= total)
}

impl std::fmt::Display for LoadHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = [
            self.running.map(|n| format!("running={n}")),
            self.waiting.map(|n| format!("waiting={n}")),
            self.kv_blocks.map(|(used, total)| format!("kv={used}/{total}")),
            self.backlog_tokens.map(|n| format!("backlog={n}")),
        ];
        f.write_str(&pairs.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> LoadReport {
        LoadReport {
            incarnation: "a1".into(),
            running: 3,
            kv_blocks_used: 12,
            kv_blocks_total: 400,
            block_tokens: 16,
            prefill_backlog_tokens: 512,
            coefficients: Some(Coefficients { a: 1.5, ..Coefficients::default() }),
            model: "m".into(),
            ..LoadReport::default()
        }
    }

    fn parse(text: &str) -> Option<LoadReport> {
        serde_json::from_str(text).ok().filter(LoadReport::plausible)
    }

    #[test]
    fn long_form_round_trips_and_keeps_its_names() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(
            text,
            r#"{"incarnation":"a1","running":3,"waiting":0,"kvBlocksUsed":12,"kvBlocksTotal":400,"blockTokens":16,"prefillBacklogTokens":512,"draining":false,"coefficients":{"a":1.5,"d":0.0,"k":0.0,"p":0.0},"model":"m"}"#
        );
        assert_eq!(serde_json::from_str::<LoadReport>(&text).unwrap(), report());
    }

    #[test]
    fn report_that_no_engine_can_make_is_refused_and_the_largest_possible_one_is_read() {
        let line = |field: &str| format!(r#"{{"running":1,"waiting":0,{field}}}"#);
        let read = |field: &str| parse(&line(field)).is_some();
        for good in [
            r#""kvBlocksUsed":1099511627776,"kvBlocksTotal":1099511627776,"blockTokens":1048576"#,
            r#""kvBlocksUsed":7,"kvBlocksTotal":0"#,
            r#""prefillBacklogTokens":1099511627776,"coefficients":{"a":-1,"d":0,"k":1e6}"#,
        ] {
            assert!(read(good), "{good}");
        }
        for bad in [
            r#""kvBlocksUsed":18446744073709551615,"kvBlocksTotal":1"#,
            r#""kvBlocksUsed":2,"kvBlocksTotal":1"#,
            r#""kvBlocksUsed":18446744073709551615"#,
            r#""kvBlocksTotal":1099511627777"#,
            r#""blockTokens":18446744073709551615"#,
            r#""prefillBacklogTokens":18446744073709551615"#,
            r#""coefficients":{"p":1e300}"#,
        ] {
            assert!(!read(bad), "{bad}");
        }
        assert_eq!(parse(r#"{"running":4294967295,"waiting":1}"#), None);
        assert_eq!(parse(r#"{"running":1,"waiting":4294967295}"#), None);
    }

    #[test]
    fn short_report_is_enough_and_garbage_is_refused() {
        let read = parse;
        assert!(read(r#"{"running":0,"waiting":0,"coefficients":{"a":1}}"#).is_some());
        for bad in ["", "{}", "hello", r#"{"running":-1,"waiting":0}"#, "[]"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn header_round_trips_and_updates_what_it_names() {
        let text = report().header().to_string();
        assert_eq!(text, "running=3,waiting=0,kv=12/400,backlog=512");
        assert_eq!(LoadHeader::parse(&text), Some(report().header()));
        let mut updated = report();
        updated.update(LoadHeader::parse("running=9, kv=50/100,x=y").unwrap());
        assert_eq!((updated.running, updated.kv_blocks_used, updated.prefill_backlog_tokens), (9, 50, 512));
    }

    #[test]
    fn unreadable_header_is_refused_whole() {
        for bad in [
            "",
            "running",
            "running=x",
            "running=1,kv=1",
            "waiting=1,backlog=-4",
            "running=4294967295",
            "waiting=1,kv=18446744073709551615/1",
            "backlog=18446744073709551615",
        ] {
            assert_eq!(LoadHeader::parse(bad), None, "{bad}");
        }
    }
}
