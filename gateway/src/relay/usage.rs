//! How many tokens an answer had, from the answer itself.
//!
//! Engines report it in `usage`: once in a whole answer, and in the last event of a stream when the
//! client asked for it. A stream without it is counted by its events, one token each, which is what
//! engines send. Reading is opportunistic: what cannot be read counts as not reported, and never
//! disturbs the relay.

use serde::Deserialize;

use crate::metrics::Tokens;

#[derive(Deserialize)]
struct Answer {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: u64,
}

/// The `usage` of a JSON object: a whole answer, or one event of a stream.
pub fn read(json: &[u8]) -> Option<Tokens> {
    let usage = serde_json::from_slice::<Answer>(json).ok()?.usage?;
    Some(Tokens {
        prompt: usage.prompt_tokens,
        cached: usage.prompt_tokens_details.map_or(0, |details| details.cached_tokens),
        output: usage.completion_tokens,
    })
}

/// Tokens that a chat template adds at most to each prompt.
const TEMPLATE_TOKENS: u64 = 1024;
/// Output of one sequence where neither the request nor the deployment bounds it.
const LONGEST_OUTPUT: u64 = 1 << 20;

/// The most that a request can use, whatever its engine reports: an engine may belong to another tenant than the
/// one that pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    prompt: u64,
    output: u64,
}

impl Bounds {
    /// Of a request with a body of so many bytes, each of which is at most one token.
    pub fn new(body_bytes: usize, prompts: u32, choices: u32, max_tokens: Option<u32>, model_len: Option<u32>) -> Self {
        let (prompts, choices) = (u64::from(prompts), u64::from(choices));
        let longest = [max_tokens, model_len].into_iter().flatten().map(u64::from).min().unwrap_or(LONGEST_OUTPUT);
        Self {
            prompt: (body_bytes as u64).saturating_add(TEMPLATE_TOKENS.saturating_mul(prompts)),
            output: longest.saturating_mul(prompts).saturating_mul(choices),
        }
    }

    /// Whether the report can be true.
    pub fn allow(self, reported: Tokens) -> bool {
        reported.prompt <= self.prompt && reported.output <= self.output && reported.cached <= reported.prompt
    }
}

/// Counts a stream as it passes.
#[derive(Debug, Default)]
pub struct StreamUsage {
    events: u64,
    reported: Option<Tokens>,
}

impl StreamUsage {
    /// Takes a piece of the stream that holds whole events.
    pub fn observe(&mut self, piece: &[u8]) {
        self.events += memchr::memmem::find_iter(piece, b"data: {").count() as u64;
        if memchr::memmem::find(piece, b"\"usage\":{").is_some() {
            let reported =
                piece.split(|byte| *byte == b'\n').filter_map(|line| read(line.strip_prefix(b"data: ")?)).next_back();
            self.reported = reported.or(self.reported);
        }
    }

    /// Events seen so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The count, given an estimate of the prompt for streams without a report.
    pub fn tokens(&self, estimated_prompt: u64) -> Tokens {
        self.reported.unwrap_or(Tokens { prompt: estimated_prompt, cached: 0, output: self.events })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_a_whole_answer_is_read() {
        let json = br#"{"id":"x","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        assert_eq!(read(json), Some(Tokens { prompt: 5, cached: 3, output: 7 }));
        for bad in [&b"{}"[..], b"", b"[1]", br#"{"usage":null}"#, br#"{"usage":{"prompt_tokens":-1}}"#] {
            assert_eq!(read(bad), None);
        }
    }

    #[test]
    fn stream_is_counted_by_its_events_until_it_reports_usage() {
        let mut usage = StreamUsage::default();
        usage.observe(b"data: {\"choices\":[]}\n\ndata: {\"choices\":[]}\n\n");
        assert_eq!(usage.tokens(9), Tokens { prompt: 9, cached: 0, output: 2 });
        usage.observe(b"data: {\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n");
        assert_eq!(usage.tokens(9), Tokens { prompt: 4, cached: 0, output: 2 });
    }

    #[test]
    fn reports_beyond_what_the_request_allows_are_not_believed() {
        let bounds = Bounds::new(100, 2, 3, Some(10), Some(4096));
        let check = |prompt, cached, output| bounds.allow(Tokens { prompt, cached, output });
        assert!(check(100 + 2 * TEMPLATE_TOKENS, 5, 60));
        assert!(!check(101 + 2 * TEMPLATE_TOKENS, 0, 1));
        assert!(!check(1, 0, 61));
        assert!(!check(1, 2, 1));
        assert!(!check(u64::MAX, u64::MAX, u64::MAX));
        let unbounded = Bounds::new(1, 1, 1, None, None);
        assert!(unbounded.allow(Tokens { prompt: 1, cached: 0, output: LONGEST_OUTPUT }));
    }

    #[test]
    fn text_that_looks_like_usage_is_not_counted() {
        let mut usage = StreamUsage::default();
        usage.observe(b"data: {\"delta\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":9}\"}\n\n");
        assert_eq!(usage.tokens(1), Tokens { prompt: 1, cached: 0, output: 1 });
    }
}
