//! What is asked of the engine, and what is known of a request while it runs.

use crate::blocks::{BlockHash, BlockId};
use crate::executor::BLOCK_TOKENS;
use crate::sampling::{SamplingParams, TokenCounts};

/// Names a request for as long as it lives. The caller chooses it and never uses one twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// Who goes first when not all can. Within a class the older one does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Priority {
    /// Someone waits for the answer.
    #[default]
    Interactive,
    /// Fills what the others leave. Every request of this release is interactive; the batch API
    /// (`/v1/batches`) is what will submit with it.
    Batch,
}

/// One sequence to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Cut to what the context leaves. 0 computes the prompt and generates nothing.
    pub max_tokens: usize,
    /// Stop tokens are not sampled before so many tokens were generated. 0 is off.
    pub min_tokens: usize,
    /// Tokens that end the text: they are counted, and not given out.
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// `Some(k)`: log-probabilities of the chosen token and of the `k` likeliest.
    pub logprobs: Option<u8>,
    /// `Some(k)`: the same for each token of the prompt but the first. Such a prompt is computed
    /// again even where the cache holds it, since the cache keeps no logits.
    pub prompt_logprobs: Option<u8>,
    /// Who goes first.
    pub priority: Priority,
    /// Whose request it is: tenants take turns. Empty is a tenant too.
    pub tenant: Vec<u8>,
    /// Requests share cached blocks only with requests of the same salt. Empty is a salt too.
    pub salt: Vec<u8>,
    /// The name of the adapter (LoRA) the request runs with, empty for the model alone.
    pub adapter: String,
}

/// Why a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FinishReason {
    /// The model generated one of the stop tokens.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The device kept failing, or its numbers were not finite.
    Failed,
}

/// What a request has cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose K and V were found in the cache when the request first ran.
    pub cached_tokens: usize,
    /// The stop token included.
    pub completion_tokens: usize,
}

/// A request under way. Everything the scheduler and the sampler know of it is a function of these
/// fields; a preempted one loses `blocks` and `computed`, and nothing else, so that running it again
/// replays K and V and never advances RNG or penalties twice.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) request: Request,
    /// Order of submission; never changes, so a preempted request keeps its turn.
    pub(crate) arrival: u64,
    /// Prompt and answer so far. The last one is not computed yet, except between chunks.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose K and V are in `blocks`.
    pub(crate) computed: usize,
    pub(crate) blocks: Vec<BlockId>,
    /// How often each token was generated or given: what penalties look at.
    pub(crate) counts: TokenCounts,
    /// Hashes of the full blocks of `tokens`, computed once.
    hashes: Vec<BlockHash>,
    root: BlockHash,
    /// Blocks offered to others, or taken from them: `blocks[..published]`.
    pub(crate) published: usize,
    /// Blocks announced as being computed: `announced.0..announced.1`.
    pub(crate) announced: (usize, usize),
    /// Set when first admitted.
    pub(crate) cached_tokens: Option<usize>,
    /// Tokens of the prompt whose log-probabilities were given out. Survives preemption.
    pub(crate) scored: usize,
}

impl Sequence {
    pub(crate) fn new(request: Request, arrival: u64, root: BlockHash) -> Self {
        let tokens = request.prompt.clone();
        let counts = TokenCounts::new(&request.prompt, &request.sampling);
        Self {
            request,
            arrival,
            tokens,
            computed: 0,
            blocks: Vec::new(),
            counts,
            hashes: Vec::new(),
            root,
            published: 0,
            announced: (0, 0),
            cached_tokens: None,
            scored: 0,
        }
    }

    /// Tokens known and not computed. At least one while the sequence lives.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// The hash of full block `index`, or `None` while it is not full.
    pub(crate) fn hash(&mut self, index: usize) -> Option<BlockHash> {
        while self.hashes.len() <= index {
            let start = self.hashes.len() * BLOCK_TOKENS;
            let tokens = self.tokens.get(start..start + BLOCK_TOKENS)?;
            let parent = self.hashes.last().copied().unwrap_or(self.root);
            self.hashes.push(parent.child(tokens));
        }
        Some(self.hashes[index])
    }

    /// Full blocks that may come from the cache: one token always stays to be computed, since
    /// without it there would be no logits to sample from, and so do those that are still to be scored.
    pub(crate) fn reusable_blocks(&self) -> usize {
        let computable = if self.scores() { self.scored } else { self.tokens.len() - 1 };
        computable / BLOCK_TOKENS
    }

    /// Log-probabilities of the prompt are wanted and not all given out yet.
    pub(crate) fn scores(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.scored + 1 < self.request.prompt.len()
    }

    pub(crate) fn push(&mut self, token: u32) {
        self.counts.push(token);
        self.tokens.push(token);
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.generated(),
        }
    }
}
