//! The decoder on CPU kernels: packed layers, the paged cache, and one step over a ragged batch.

use stowage_engine_core::executor::{
    BLOCK_TOKENS, ExecError, Executor, LogitsWanted, ModelInfo, SeqProblem, SeqStep, StepBatch,
};
use stowage_engine_kernels::cpu::{
    Attention, AttnSeq, Epilogue, Heads, Kernels, KvCache, PackedMatrix, PackedX, gemm, rope,
};
use stowage_engine_kernels::mem::{Arena, Buffer, Shared};
use stowage_engine_kernels::pool::Pool;

use super::pack::{Layer, Packer};
use super::plan::{Plan, matrix_bytes, scratch_bytes, weight_bytes, widest};
use super::rope::Rotations;
use crate::config::ModelConfig;
use crate::read::Opened;
use crate::read::error::LoadError;
use crate::weights::WeightError;

/// Activations, as many rows as a step may have tokens.
struct Scratch {
    x: Buffer<f32>,
    qkv: Buffer<f32>,
    attn: Buffer<f32>,
    ffn: Buffer<f32>,
    packed: PackedX,
}

/// Rows of a step that fall into one KV block.
#[derive(Clone, Copy, Debug)]
struct Segment {
    first_row: usize,
    rows: usize,
    position: usize,
    block: u32,
}

pub struct CpuModel {
    config: ModelConfig,
    info: ModelInfo,
    kernels: Kernels,
    pool: Pool,
    embedding: PackedMatrix,
    /// `None` where the embedding serves as the head.
    head: Option<PackedMatrix>,
    output_norm: Vec<f32>,
    layers: Vec<Layer>,
    rotations: Rotations,
    cache: KvCache,
    scratch: Scratch,
    attention: Attention,
}

impl CpuModel {
    pub(crate) fn build(opened: &Opened, plan: Plan) -> Result<CpuModel, LoadError> {
        let (c, w) = (&opened.config, &opened.weights);
        let kernels = Kernels::new(plan.isa).ok_or(LoadError::IsaMissing(plan.isa))?;
        let mut pool = Pool::new(plan.threads).map_err(|source| LoadError::Threads { source })?;
        let path = || opened.meta.path.clone();
        let memory = |source| LoadError::Memory { source };
        let arena = Arena::new(matrix_bytes(c, w)).map_err(memory)?;
        let mut packer = Packer { weights: w, config: c, pool: &mut pool, arena };
        let result = (|| {
            let embedding = packer.plain("token_embd.weight", (c.vocab, c.hidden))?;
            let head = match w.has("output.weight") {
                true => Some(packer.plain("output.weight", (c.vocab, c.hidden))?),
                false => None,
            };
            let layers = (0..c.layers).map(|i| packer.layer(i)).collect::<Result<Vec<_>, _>>()?;
            let norm = w.vector("output_norm.weight", c.hidden)?;
            Ok((embedding, head, layers, norm))
        })();
        let (embedding, head, layers, output_norm) =
            result.map_err(|source: WeightError| LoadError::Weights { path: path(), source })?;
        let tokens = plan.max_step_tokens;
        let scratch = Scratch {
            x: Buffer::zeroed(tokens * c.hidden).map_err(memory)?,
            qkv: Buffer::zeroed(tokens * (c.q_width() + 2 * c.kv_width())).map_err(memory)?,
            attn: Buffer::zeroed(tokens * c.q_width()).map_err(memory)?,
            ffn: Buffer::zeroed(tokens * c.ffn).map_err(memory)?,
            packed: PackedX::new(tokens, widest(c)).map_err(memory)?,
        };
        let layout = plan.kv_layout(c);
        let info = ModelInfo {
            vocab: c.vocab,
            context_len: plan.context_len,
            block_tokens: BLOCK_TOKENS,
            num_blocks: plan.num_blocks,
            block_bytes: layout.block_bytes(),
            weight_bytes: weight_bytes(c, w),
            scratch_bytes: scratch_bytes(c, &plan),
            max_step_tokens: tokens,
            model_digest: opened.meta.digest,
            kv_type: plan.kv_type.name(),
            isa: plan.isa.name(),
        };
        Ok(CpuModel {
            rotations: Rotations::new(c),
            cache: KvCache::new(layout, plan.num_blocks).map_err(memory)?,
            attention: Attention::default(),
            config: c.clone(),
            info,
            kernels,
            pool,
            embedding,
            head,
            output_norm,
            layers,
            scratch,
        })
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            scale: 1.0 / (self.config.head_dim as f32).sqrt(),
        }
    }

    fn embed(&mut self, tokens: &[u32]) {
        let (hidden, embedding) = (self.config.hidden, &self.embedding);
        let x = Shared::new(&mut self.scratch.x);
        self.pool.run(tokens.len(), 8, &|from, to| {
            for (r, token) in tokens.iter().enumerate().take(to).skip(from) {
                // SAFETY: a step has at most as many rows as `x`, each claimed once.
                let row = unsafe { x.slice(r * hidden, hidden) };
                embedding.unpack_row(*token as usize, row);
            }
        });
    }

    fn layer(&mut self, i: usize, rows: usize, seqs: &[AttnSeq<'_>], segments: &[Segment]) {
        let heads = self.heads();
        let (c, k, layer) = (&self.config, &self.kernels, &self.layers[i]);
        let (hidden, q_width) = (c.hidden, c.q_width());
        let qkv_width = q_width + 2 * c.kv_width();
        let Scratch { x, qkv, attn, ffn, packed } = &mut self.scratch;
        let pool = &mut self.pool;

        let (input, eps) = (&**x, c.rms_eps);
        packed.fill((pool, k, k.act(layer.qkv.ty())), (rows, hidden), &|r, to| {
            k.rms_norm(&input[r * hidden..][..hidden], &layer.attn_norm, eps, to);
        });
        let bias = Epilogue::Store(layer.qkv_bias.as_deref());
        gemm((pool, k), &layer.qkv, packed, qkv, qkv_width, bias);

        let keep = Keep { config: c, kernels: k, layer, index: i, rotations: &self.rotations };
        keep.run(pool, &mut self.cache, qkv, segments);
        let cache = (&self.cache, i, heads);
        self.attention.run((pool, k), cache, seqs, (qkv, qkv_width), attn);

        let input = &**attn;
        packed.fill((pool, k, k.act(layer.attn_out.ty())), (rows, q_width), &|r, to| {
            to.copy_from_slice(&input[r * q_width..][..q_width]);
        });
        let bias = Epilogue::Add(layer.attn_out_bias.as_deref());
        gemm((pool, k), &layer.attn_out, packed, x, hidden, bias);

        let input = &**x;
        packed.fill((pool, k, k.act(layer.gate_up.ty())), (rows, hidden), &|r, to| {
            k.rms_norm(&input[r * hidden..][..hidden], &layer.ffn_norm, eps, to);
        });
        let bias = Epilogue::SiluMul(layer.gate_up_bias.as_deref());
        gemm((pool, k), &layer.gate_up, packed, ffn, c.ffn, bias);
        let (input, width) = (&**ffn, c.ffn);
        packed.fill((pool, k, k.act(layer.down.ty())), (rows, width), &|r, to| {
            to.copy_from_slice(&input[r * width..][..width]);
        });
        let bias = Epilogue::Add(layer.down_bias.as_deref());
        gemm((pool, k), &layer.down, packed, x, hidden, bias);
    }

    /// The logits of the given rows.
    fn logits(&mut self, rows: &[usize], out: &mut Vec<f32>) {
        out.resize(rows.len() * self.config.vocab, 0.0);
        if rows.is_empty() {
            return;
        }
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let (k, pool, packed) = (&self.kernels, &mut self.pool, &mut self.scratch.packed);
        let (x, norm, eps) = (&*self.scratch.x, &self.output_norm, self.config.rms_eps);
        packed.fill((pool, k, k.act(head.ty())), (rows.len(), hidden), &|r, to| {
            k.rms_norm(&x[rows[r] * hidden..][..hidden], norm, eps, to);
        });
        gemm((pool, k), head, packed, out, vocab, Epilogue::Store(None));
    }
}

impl Executor for CpuModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError> {
        batch.check(&self.info)?;
        let segments = segments(batch.seqs)?;
        let tokens: Vec<u32> = batch.seqs.iter().flat_map(|s| s.tokens).copied().collect();
        let mut seqs = Vec::with_capacity(batch.seqs.len());
        let mut wanted = Vec::with_capacity(batch.logits_rows());
        let mut first_row = 0;
        for s in batch.seqs {
            let rows = s.tokens.len();
            seqs.push(AttnSeq { first_row, rows, position: s.position, blocks: s.blocks });
            match s.want_logits {
                LogitsWanted::None => {}
                LogitsWanted::Last => wanted.push(first_row + rows - 1),
                LogitsWanted::All => wanted.extend(first_row..first_row + rows),
            }
            first_row += rows;
        }
        self.embed(&tokens);
        self.rotations.set(batch.seqs.iter().flat_map(|s| s.position..s.position + s.tokens.len()));
        self.attention.plan(self.heads(), &seqs, self.pool.threads());
        for i in 0..self.layers.len() {
            self.layer(i, tokens.len(), &seqs, &segments);
        }
        self.logits(&wanted, logits);
        Ok(())
    }
}

/// Cuts a batch at block borders, and makes sure that no block is written from two places: that
/// is what lets segments be written in parallel.
fn segments(seqs: &[SeqStep<'_>]) -> Result<Vec<Segment>, ExecError> {
    let mut out = Vec::new();
    let mut written: Vec<(u32, usize)> = Vec::new();
    let mut first_row = 0;
    for (seq, s) in seqs.iter().enumerate() {
        let end = s.position + s.tokens.len();
        let mut position = s.position;
        while position < end {
            let rows = (BLOCK_TOKENS - position % BLOCK_TOKENS).min(end - position);
            let block = s.blocks[position / BLOCK_TOKENS];
            out.push(Segment { first_row, rows, position, block });
            written.push((block, seq));
            first_row += rows;
            position += rows;
        }
    }
    written.sort_unstable();
    match written.windows(2).find(|w| w[0].0 == w[1].0) {
        None => Ok(out),
        Some(twice) => {
            let source = SeqProblem::WrittenTwice { block: twice[0].0 };
            Err(ExecError::BadSequence { seq: twice[1].1, source })
        }
    }
}

/// Finishes Q and K of a layer (norms, rotation) and keeps K and V in the cache.
struct Keep<'a> {
    config: &'a ModelConfig,
    kernels: &'a Kernels,
    layer: &'a Layer,
    index: usize,
    rotations: &'a Rotations,
}

impl Keep<'_> {
    fn run(&self, pool: &mut Pool, cache: &mut KvCache, qkv: &mut [f32], segments: &[Segment]) {
        let c = self.config;
        let width = c.q_width() + 2 * c.kv_width();
        let (writer, qkv) = (cache.writer(), Shared::new(qkv));
        pool.run(segments.len(), 1, &|from, to| {
            for segment in &segments[from..to] {
                for i in 0..segment.rows {
                    let row = segment.first_row + i;
                    // SAFETY: rows are disjoint, and each belongs to one segment.
                    let values = unsafe { qkv.slice(row * width, width) };
                    let position = segment.position + i;
                    let (q, kv) = values.split_at_mut(c.q_width());
                    let (keys, values) = kv.split_at_mut(c.kv_width());
                    self.rotate(q, row, self.layer.q_norm.as_deref());
                    self.rotate(keys, row, self.layer.k_norm.as_deref());
                    let heads = keys.chunks_exact(c.head_dim).zip(values.chunks_exact(c.head_dim));
                    for (head, (k, v)) in heads.enumerate() {
                        let slot = position % BLOCK_TOKENS;
                        // SAFETY: `segments` saw to it that a block belongs to one segment.
                        unsafe { writer.put((self.index, head), segment.block, slot, k, v) };
                    }
                }
            }
        });
    }

    fn rotate(&self, heads: &mut [f32], row: usize, norm: Option<&[f32]>) {
        let dim = self.config.head_dim;
        let (cos, sin) = self.rotations.at(row);
        for head in heads.chunks_exact_mut(dim) {
            if let Some(norm) = norm {
                let mut normed = [0.0; stowage_engine_kernels::cpu::MAX_HEAD_DIM];
                self.kernels.rms_norm(head, norm, self.config.rms_eps, &mut normed[..dim]);
                head.copy_from_slice(&normed[..dim]);
            }
            rope(head, cos, sin);
        }
    }
}
