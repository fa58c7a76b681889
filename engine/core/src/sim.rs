//! An executor without a model: deterministic text, and time from the cost model.
//!
//! Its "K and V" are one number per position, a hash of the token, the position and the number
//! before it, and that number is read back *through the block table*. So the logits depend on the
//! whole context exactly if every block holds what it should: a block that was shared wrongly,
//! freed too early or published before it was written changes the text. That makes it an oracle for
//! the scheduler's tests, a stand-in for a model in the server's, and with [`CostModel`] a simulated
//! engine for the control plane.

use crate::executor::{BLOCK_TOKENS, ExecError, Executor, ModelInfo, StepBatch};
use crate::sampling::mix;

/// Milliseconds of one step: `a + d·decodes + k·(KV tokens)/1000 + p·(prefill tokens)/1000`.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct CostModel {
    /// Milliseconds per step.
    pub a: f64,
    /// Milliseconds per sequence that computes one token.
    pub d: f64,
    /// Milliseconds per 1,000 positions of KV that the step reads.
    pub k: f64,
    /// Milliseconds per 1,000 prompt tokens.
    pub p: f64,
}

impl CostModel {
    /// How long a step takes, in milliseconds.
    pub fn millis(&self, decodes: usize, kv_tokens: usize, prefill_tokens: usize) -> f64 {
        self.a + self.d * decodes as f64 + self.k * kv_tokens as f64 / 1e3 + self.p * prefill_tokens as f64 / 1e3
    }
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// The longest prompt and answer together, in tokens.
    pub context_len: usize,
    /// KV blocks.
    pub num_blocks: usize,
    /// Tokens that one step takes.
    pub max_step_tokens: usize,
    /// Tokens the text is made of, so that it can be printed. Not empty, below `vocab`.
    pub alphabet: std::ops::Range<u32>,
    /// Generated about once in this many tokens. 0 is never.
    pub stop_token: u32,
    /// One token in so many is the stop token; 0: none.
    pub stop_every: u64,
    /// What steps cost.
    pub cost: CostModel,
}

/// A simulated model.
#[derive(Debug)]
pub struct SimExecutor {
    info: ModelInfo,
    config: SimConfig,
    /// One per slot: `block · 16 + offset`. `None` was never written.
    kv: Vec<Option<u64>>,
    elapsed_ms: f64,
    steps: u64,
}

impl SimExecutor {
    /// An executor with an empty cache at time 0.
    pub fn new(config: SimConfig) -> Self {
        let info = ModelInfo {
            vocab: config.vocab,
            context_len: config.context_len,
            block_tokens: BLOCK_TOKENS,
            num_blocks: config.num_blocks,
            block_bytes: BLOCK_TOKENS * size_of::<Option<u64>>(),
            weight_bytes: 0,
            scratch_bytes: 0,
            max_step_tokens: config.max_step_tokens,
            model_digest: *blake3::hash(b"simulated model").as_bytes(),
            kv_type: "sim",
            isa: "simulated",
        };
        let kv = vec![None; config.num_blocks * BLOCK_TOKENS];
        Self { info, config, kv, elapsed_ms: 0.0, steps: 0 }
    }

    /// What the cost model has charged so far.
    pub fn elapsed_ms(&self) -> f64 {
        self.elapsed_ms
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn state(&self, blocks: &[u32], position: usize) -> Result<u64, ExecError> {
        self.kv[slot(blocks, position)].ok_or_else(|| {
            ExecError::Device(format!("position {position} is read and was never written: a scheduling error"))
        })
    }

    /// A peak on one letter, lower ones around it, the same for equal states.
    fn append_logits(&self, state: u64, logits: &mut Vec<f32>) {
        let start = logits.len();
        logits.resize(start + self.config.vocab, -20.0);
        let row = &mut logits[start..];
        let letters = self.config.alphabet.clone();
        let count = u64::from(letters.end - letters.start).max(1);
        for (i, letter) in letters.enumerate() {
            row[letter as usize] = (mix(state ^ i as u64) % 1000) as f32 / 500.0;
        }
        row[(u64::from(self.config.alphabet.start) + state % count) as usize] += 3.0;
        if self.config.stop_every > 0 && mix(state).is_multiple_of(self.config.stop_every) {
            row[self.config.stop_token as usize] = 20.0;
        }
    }
}

impl Executor for SimExecutor {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError> {
        batch.check(&self.info)?;
        logits.clear();
        let (mut decodes, mut kv_tokens, mut prefill) = (0, 0, 0);
        for seq in batch.seqs {
            let mut state = match seq.position {
                0 => 0,
                position => self.state(seq.blocks, position - 1)?,
            };
            let rows = seq.want_logits.rows(seq.tokens.len());
            for (i, token) in seq.tokens.iter().enumerate() {
                let position = seq.position + i;
                state = mix(state ^ mix(u64::from(*token) << 32 | position as u64));
                self.kv[slot(seq.blocks, position)] = Some(state);
                if seq.tokens.len() - i <= rows {
                    self.append_logits(state, logits);
                }
            }
            kv_tokens += seq.position + seq.tokens.len();
            if seq.tokens.len() == 1 { decodes += 1 } else { prefill += seq.tokens.len() }
        }
        self.elapsed_ms += self.config.cost.millis(decodes, kv_tokens, prefill);
        self.steps += 1;
        Ok(())
    }
}

fn slot(blocks: &[u32], position: usize) -> usize {
    blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
}
