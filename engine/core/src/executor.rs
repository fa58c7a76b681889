//! The seam between deciding what to compute and computing it.
//!
//! The scheduler hands an [`Executor`] one ragged [`StepBatch`]: per sequence the tokens to run
//! now, where they stand, and the KV blocks that hold everything up to and including them. Prefill,
//! decode and chunks are the same thing here, so there is one code path to get right. The call is
//! synchronous: one engine thread owns scheduler and executor, and parallelism is the executor's
//! own business.
//!
//! Deliberately absent: sampling, tokenizing, block allocation, hashing. An executor neither
//! counts references nor knows which blocks are free; it writes exactly the slots
//! `position..position + tokens.len()` of each sequence's table and reads only what is before them.

use thiserror::Error;

/// Tokens in one KV block. Fixed: hash keys, kernels and the load report all count in it.
pub const BLOCK_TOKENS: usize = 16;

/// What a loaded model offers and what it costs. All sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Width of a logits row. Every token id in a step must be below it.
    pub vocab: usize,
    /// The longest sequence (prompt and answer) this instance accepts, in tokens.
    pub context_len: usize,
    /// Always [`BLOCK_TOKENS`]; here so that reports need no second source.
    pub block_tokens: usize,
    /// KV blocks that fit into the byte budget. Block ids are `0..num_blocks`.
    pub num_blocks: usize,
    /// One block over all layers, K and V.
    pub block_bytes: usize,
    /// Weights in memory as packed, not as in the file.
    pub weight_bytes: usize,
    /// Activations and other fixed memory.
    pub scratch_bytes: usize,
    /// The most tokens one step may carry, over all sequences. A step beyond it is refused.
    pub max_step_tokens: usize,
    /// BLAKE3 over the model's identity: part of every prefix-cache key.
    pub model_digest: [u8; 32],
    /// How K and V are stored (`f32`, `bf16`): part of every prefix-cache key.
    pub kv_type: &'static str,
    /// The kernels in use (`avx512`, `avx2`, `portable`), for logs and reports.
    pub isa: &'static str,
}

/// Which rows of logits a sequence wants back from this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogitsWanted {
    /// A chunk in the middle of a prompt: nothing to sample.
    #[default]
    None,
    /// The row after the last token.
    Last,
    /// A row after every token: for the log-probabilities of a prompt (`echo` with `logprobs`).
    All,
}

impl LogitsWanted {
    /// Rows that come back for a sequence of `tokens` tokens.
    pub fn rows(self, tokens: usize) -> usize {
        match self {
            LogitsWanted::None => 0,
            LogitsWanted::Last => usize::from(tokens > 0),
            LogitsWanted::All => tokens,
        }
    }
}

/// One sequence's share of a step.
#[derive(Clone, Copy, Debug)]
pub struct SeqStep<'a> {
    /// The tokens to compute now. Never empty.
    pub tokens: &'a [u32],
    /// Position of `tokens[0]` in its sequence. K and V of everything before it are already in
    /// `blocks`, written by earlier steps (of this sequence, or of another with the same prefix).
    pub position: usize,
    /// The sequence's block table: entry `i` holds positions `16·i..16·i + 16`. It must cover
    /// `position + tokens.len()`; more is fine. Blocks may be shared between sequences for
    /// reading; a block that one of them writes in this step must not be in another's reach.
    /// An executor refuses a block written from two places.
    pub blocks: &'a [u32],
    /// Which rows of logits come back.
    pub want_logits: LogitsWanted,
}

/// One step over several sequences, in the order in which logits come back.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepBatch<'a> {
    /// Each sequence at most once.
    pub seqs: &'a [SeqStep<'a>],
}

impl StepBatch<'_> {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.seqs.iter().map(|s| s.tokens.len()).sum()
    }

    /// Rows of logits that come back.
    pub fn logits_rows(&self) -> usize {
        self.seqs.iter().map(|s| s.want_logits.rows(s.tokens.len())).sum()
    }

    /// Checks every promise of the batch against the model, so that an executor may index without
    /// looking again. Executors call it first; the scheduler's tests call it too.
    pub fn check(&self, info: &ModelInfo) -> Result<(), ExecError> {
        let tokens = self.tokens();
        if tokens > info.max_step_tokens {
            return Err(ExecError::StepTooLarge { tokens, max: info.max_step_tokens });
        }
        for (seq, s) in self.seqs.iter().enumerate() {
            s.check(info).map_err(|source| ExecError::BadSequence { seq, source })?;
        }
        Ok(())
    }
}

impl SeqStep<'_> {
    fn check(&self, info: &ModelInfo) -> Result<(), SeqProblem> {
        let end = self.position.saturating_add(self.tokens.len());
        if self.tokens.is_empty() {
            return Err(SeqProblem::NoTokens);
        }
        if end > info.context_len {
            return Err(SeqProblem::PastContext { end, context: info.context_len });
        }
        let needed = end.div_ceil(info.block_tokens);
        if self.blocks.len() < needed {
            return Err(SeqProblem::TableTooShort { blocks: self.blocks.len(), needed });
        }
        if let Some(&block) = self.blocks[..needed].iter().find(|b| **b as usize >= info.num_blocks) {
            return Err(SeqProblem::NoSuchBlock { block, blocks: info.num_blocks });
        }
        if let Some(&token) = self.tokens.iter().find(|t| **t as usize >= info.vocab) {
            return Err(SeqProblem::NoSuchToken { token, vocab: info.vocab });
        }
        Ok(())
    }
}

/// Computes steps. `Send` and not `Sync`: one engine thread owns it.
pub trait Executor: Send {
    /// What was loaded.
    fn info(&self) -> &ModelInfo;

    /// Runs the step. On success the K and V of all its tokens are in their blocks, and the wanted
    /// rows (`vocab` values each, f32, before softmax) are what `logits` holds, in batch order. (Who
    /// passes the same vector again spares clearing megabytes.) On an error the contents of the slots
    /// to be written are undefined; the same step may be tried again.
    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError>;
}

impl<E: Executor + ?Sized> Executor for Box<E> {
    fn info(&self) -> &ModelInfo {
        (**self).info()
    }

    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError> {
        (**self).step(batch, logits)
    }
}

/// Why a step was not run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExecError {
    /// More tokens than `max_step_tokens`.
    #[error("a step of {tokens} tokens was asked for, at most {max} fit")]
    StepTooLarge {
        /// Of the step.
        tokens: usize,
        /// What fits.
        max: usize,
    },
    /// One of the sequences breaks a promise of [`SeqStep`].
    #[error("sequence {seq} of the step cannot run")]
    BadSequence {
        /// Its index in the step.
        seq: usize,
        /// What is wrong with it.
        source: SeqProblem,
    },
    /// The same step may succeed later.
    #[error("the device failed: {0}")]
    Device(String),
}

/// What is wrong with one sequence of a step. Always a mistake of the caller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SeqProblem {
    /// A sequence has at least one token.
    #[error("it has no tokens to compute")]
    NoTokens,
    /// Longer than the context.
    #[error("it would end at position {end}, the context ends at {context}")]
    PastContext {
        /// One past its last position.
        end: usize,
        /// Positions there are.
        context: usize,
    },
    /// Its positions have no block.
    #[error("its table has {blocks} blocks, {needed} are needed")]
    TableTooShort {
        /// In the table.
        blocks: usize,
        /// For its positions.
        needed: usize,
    },
    /// The table names a block beyond the cache.
    #[error("block {block} does not exist: the cache has {blocks}")]
    NoSuchBlock {
        /// The block.
        block: u32,
        /// Ids are below it.
        blocks: usize,
    },
    /// A token beyond the vocabulary.
    #[error("token {token} does not exist: the vocabulary has {vocab}")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Ids are below it.
        vocab: usize,
    },
    /// Two sequences, or two parts of one, would write the same block.
    #[error("block {block} would be written from two places in one step")]
    WrittenTwice {
        /// The block.
        block: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ModelInfo {
        ModelInfo {
            vocab: 100,
            context_len: 64,
            block_tokens: BLOCK_TOKENS,
            num_blocks: 8,
            block_bytes: 1,
            weight_bytes: 1,
            scratch_bytes: 1,
            max_step_tokens: 32,
            model_digest: [0; 32],
            kv_type: "f32",
            isa: "portable",
        }
    }

    fn check(tokens: &[u32], position: usize, blocks: &[u32]) -> Result<(), ExecError> {
        let seq = SeqStep { tokens, position, blocks, want_logits: LogitsWanted::Last };
        StepBatch { seqs: &[seq] }.check(&info())
    }

    fn problem(tokens: &[u32], position: usize, blocks: &[u32]) -> SeqProblem {
        match check(tokens, position, blocks) {
            Err(ExecError::BadSequence { seq: 0, source }) => source,
            other => panic!("expected a refusal of sequence 0, got {other:?}"),
        }
    }

    #[test]
    fn a_chunk_that_fills_its_last_block_needs_no_further_block() {
        assert_eq!(check(&[1; 16], 16, &[0, 1]), Ok(()));
    }

    #[test]
    fn one_token_over_the_block_needs_another() {
        assert_eq!(problem(&[1], 32, &[0, 1]), SeqProblem::TableTooShort { blocks: 2, needed: 3 });
    }

    #[test]
    fn the_context_bounds_the_sequence() {
        assert_eq!(problem(&[1], 64, &[0; 5]), SeqProblem::PastContext { end: 65, context: 64 });
        assert_eq!(problem(&[1], usize::MAX, &[0; 5]), SeqProblem::PastContext { end: usize::MAX, context: 64 });
    }

    #[test]
    fn unknown_blocks_and_tokens_are_refused() {
        assert_eq!(problem(&[1], 0, &[8]), SeqProblem::NoSuchBlock { block: 8, blocks: 8 });
        assert_eq!(problem(&[100], 0, &[0]), SeqProblem::NoSuchToken { token: 100, vocab: 100 });
        assert_eq!(problem(&[], 0, &[0]), SeqProblem::NoTokens);
    }

    #[test]
    fn a_block_beyond_what_is_needed_is_not_looked_at() {
        assert_eq!(check(&[1], 0, &[0, 99]), Ok(()));
    }

    #[test]
    fn a_step_over_the_budget_is_refused() {
        assert_eq!(check(&[1; 33], 0, &[0, 1, 2]), Err(ExecError::StepTooLarge { tokens: 33, max: 32 }));
    }

    #[test]
    fn rows_follow_what_is_wanted() {
        assert_eq!(LogitsWanted::None.rows(5), 0);
        assert_eq!(LogitsWanted::Last.rows(5), 1);
        assert_eq!(LogitsWanted::All.rows(5), 5);
    }
}
