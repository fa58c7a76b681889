//! How many tokens an answer had, from the answer itself.
//!
//! Engines say it in `usage`: once in a whole answer, and in the last event of a stream when the
//! client asked for it. A stream without it is counted by its events, one token each, which is what
//! engines send. Reading is opportunistic: what cannot be read counts as not said, and never
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

/// Counts a stream as it passes.
#[derive(Debug, Default)]
pub struct StreamUsage {
    events: u64,
    said: Option<Tokens>,
}

impl StreamUsage {
    /// Takes a piece of the stream that holds whole events.
    pub fn observe(&mut self, piece: &[u8]) {
        self.events += memchr::memmem::find_iter(piece, b"data: {").count() as u64;
        if memchr::memmem::find(piece, b"\"usage\":{").is_some() {
            let said =
                piece.split(|byte| *byte == b'\n').filter_map(|line| read(line.strip_prefix(b"data: ")?)).next_back();
            self.said = said.or(self.said);
        }
    }

    /// Events seen so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The count, given an estimate of the prompt for streams that do not say.
    pub fn tokens(&self, estimated_prompt: u64) -> Tokens {
        self.said.unwrap_or(Tokens { prompt: estimated_prompt, cached: 0, output: self.events })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_says_its_usage() {
        let json = br#"{"id":"x","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        assert_eq!(read(json), Some(Tokens { prompt: 5, cached: 3, output: 7 }));
        for bad in [&b"{}"[..], b"", b"[1]", br#"{"usage":null}"#, br#"{"usage":{"prompt_tokens":-1}}"#] {
            assert_eq!(read(bad), None);
        }
    }

    #[test]
    fn a_stream_is_counted_by_its_events_until_it_says_better() {
        let mut usage = StreamUsage::default();
        usage.observe(b"data: {\"choices\":[]}\n\ndata: {\"choices\":[]}\n\n");
        assert_eq!(usage.tokens(9), Tokens { prompt: 9, cached: 0, output: 2 });
        usage.observe(b"data: {\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n");
        assert_eq!(usage.tokens(9), Tokens { prompt: 4, cached: 0, output: 2 });
    }

    #[test]
    fn text_that_looks_like_usage_is_not_taken_for_it() {
        let mut usage = StreamUsage::default();
        usage.observe(b"data: {\"delta\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":9}\"}\n\n");
        assert_eq!(usage.tokens(1), Tokens { prompt: 1, cached: 0, output: 1 });
    }
}
