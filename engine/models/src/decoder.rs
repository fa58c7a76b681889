//! The decoder on CPU kernels: packed layers, the paged cache, and one step over a ragged batch.

use stowage_engine_core::executor::{
    BLOCK_TOKENS, ExecError, Executor, LogitsWanted, ModelInfo, SeqProblem, SeqStep, StepBatch,
};
use stowage_engine_kernels::cpu::{
    Attention, AttnSeq, Epilogue, Heads, Kernels, KvCache, KvLayout, KvType, PackedMatrix, PackedX, gemm, rope,
};
use stowage_engine_kernels::isa::Isa;
use stowage_engine_kernels::mem::{Arena, Buffer, Shared};
use stowage_engine_kernels::pool::Pool;
use stowage_engine_kernels::quant::WeightType;

use crate::config::ModelConfig;
use crate::load::{LoadError, Opened};
use crate::rope::Rotations;
use crate::weights::{Matrix, WeightError, Weights, interleaved_row};

/// What was decided about an instance.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub isa: Isa,
    pub threads: usize,
    pub kv_type: KvType,
    pub context_len: usize,
    pub max_step_tokens: usize,
    pub num_blocks: usize,
}

impl Plan {
    pub fn kv_layout(&self, config: &ModelConfig) -> KvLayout {
        KvLayout { ty: self.kv_type, layers: config.layers, kv_heads: config.kv_heads, head_dim: config.head_dim }
    }
}

struct Layer {
    attn_norm: Vec<f32>,
    /// Q, then K, then V.
    qkv: PackedMatrix,
    qkv_bias: Option<Vec<f32>>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attn_out: PackedMatrix,
    ffn_norm: Vec<f32>,
    /// Panels of gate and up alternate.
    gate_up: PackedMatrix,
    down: PackedMatrix,
}

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

const NAMES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// The type in which matrices that are merged are packed: their own if they share it. If not,
/// f32, which holds any of them exactly.
fn merged_type(types: &[WeightType]) -> WeightType {
    if types.iter().all(|t| *t == types[0]) { types[0] } else { WeightType::F32 }
}

/// Looks for every matrix the configuration promises. Done before anything is computed from the
/// configuration, so that its numbers are known to be no larger than the file.
pub(crate) fn check_shapes(c: &ModelConfig, w: &Weights) -> Result<(), WeightError> {
    let (q, kv, hidden) = (c.q_width(), c.kv_width(), c.hidden);
    w.matrix("token_embd.weight", (c.vocab, hidden))?;
    let shapes =
        [q, kv, kv, hidden, c.ffn, c.ffn, hidden].into_iter().zip([hidden, hidden, hidden, q, hidden, hidden, c.ffn]);
    for i in 0..c.layers {
        for (name, shape) in NAMES.iter().zip(shapes.clone()) {
            w.matrix(&format!("blk.{i}.{name}.weight"), shape)?;
        }
    }
    Ok(())
}

impl CpuModel {
    /// Bytes of the weights, known before packing.
    pub(crate) fn weight_bytes(opened: &Opened) -> usize {
        let c = &opened.config;
        CpuModel::matrix_bytes(opened) + (2 * c.layers + 1) * c.hidden * 4
    }

    /// Bytes of the packed matrices among them.
    fn matrix_bytes(opened: &Opened) -> usize {
        let (c, w) = (&opened.config, &opened.weights);
        let ty = |name: &str| w.tensors.get(name).map_or(WeightType::F32, |t| t.ty);
        let layer = |i: usize| {
            let [q, k, v, o, gate, up, down] = NAMES.map(|n| ty(&format!("blk.{i}.{n}.weight")));
            let qkv = (merged_type(&[q, k, v]), c.q_width() + 2 * c.kv_width(), c.hidden);
            let gate_up = (merged_type(&[gate, up]), 2 * c.ffn, c.hidden);
            [qkv, (o, c.hidden, c.q_width()), gate_up, (down, c.hidden, c.ffn)]
        };
        let ends = ["token_embd.weight", "output.weight"].into_iter().filter(|n| w.has(n));
        let ends = ends.map(|n| (ty(n), c.vocab, c.hidden));
        let matrices = (0..c.layers).flat_map(layer).chain(ends);
        matrices.map(|(ty, rows, cols)| PackedMatrix::bytes_for(ty, rows, cols)).sum()
    }

    /// Bytes of everything else but the KV cache.
    pub(crate) fn scratch_bytes(config: &ModelConfig, plan: &Plan) -> usize {
        let c = config;
        let row = c.hidden + c.q_width() + 2 * c.kv_width() + c.q_width() + c.ffn;
        plan.max_step_tokens * row * 4
            + PackedX::bytes_for(plan.max_step_tokens, widest(c))
            + Rotations::bytes_for(c, plan.max_step_tokens)
    }

    pub(crate) fn build(opened: &Opened, plan: Plan) -> Result<CpuModel, LoadError> {
        let (c, w) = (&opened.config, &opened.weights);
        let kernels = Kernels::new(plan.isa).ok_or(LoadError::IsaMissing(plan.isa))?;
        let mut pool = Pool::new(plan.threads).map_err(|source| LoadError::Threads { source })?;
        let path = || opened.meta.path.clone();
        let memory = |source| LoadError::Memory { source };
        let arena = Arena::new(CpuModel::matrix_bytes(opened)).map_err(memory)?;
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
            weight_bytes: CpuModel::weight_bytes(opened),
            scratch_bytes: CpuModel::scratch_bytes(c, &plan),
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
        gemm((pool, k), &layer.attn_out, packed, x, hidden, Epilogue::Add);

        let input = &**x;
        packed.fill((pool, k, k.act(layer.gate_up.ty())), (rows, hidden), &|r, to| {
            k.rms_norm(&input[r * hidden..][..hidden], &layer.ffn_norm, eps, to);
        });
        gemm((pool, k), &layer.gate_up, packed, ffn, c.ffn, Epilogue::SiluMul);
        let (input, width) = (&**ffn, c.ffn);
        packed.fill((pool, k, k.act(layer.down.ty())), (rows, width), &|r, to| {
            to.copy_from_slice(&input[r * width..][..width]);
        });
        gemm((pool, k), &layer.down, packed, x, hidden, Epilogue::Add);
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

fn widest(c: &ModelConfig) -> usize {
    c.hidden.max(c.q_width()).max(c.ffn)
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

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), ExecError> {
        let blocks = self.info.num_blocks;
        let beyond = pairs.iter().flat_map(|(a, b)| [*a, *b]).find(|b| *b as usize >= blocks);
        if let Some(block) = beyond {
            return Err(ExecError::NoSuchBlock { block, blocks });
        }
        for (from, to) in pairs {
            self.cache.copy_block(*from as usize, *to as usize);
        }
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

/// Takes tensors out of the file and into panels.
struct Packer<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
    pool: &'a mut Pool,
    arena: Arena,
}

impl Packer<'_> {
    fn pack<'r>(
        &mut self,
        ty: WeightType,
        shape: (usize, usize),
        row: &(dyn Fn(usize) -> &'r [u8] + Sync),
    ) -> PackedMatrix {
        PackedMatrix::pack_in(&mut self.arena, self.pool, ty, shape, row)
    }

    fn plain(&mut self, name: &str, shape: (usize, usize)) -> Result<PackedMatrix, WeightError> {
        let m = self.weights.matrix(name, shape)?;
        Ok(self.pack(m.ty, shape, &|r| m.row(r)))
    }

    /// Packs rows of several matrices as one; `pick(r)` names matrix and row.
    fn merged(
        &mut self,
        matrices: &[Matrix<'_>],
        pick: &(dyn Fn(usize) -> (usize, usize) + Sync),
    ) -> Result<PackedMatrix, WeightError> {
        let types: Vec<WeightType> = matrices.iter().map(|m| m.ty).collect();
        let shape = (matrices.iter().map(|m| m.rows).sum(), matrices[0].cols);
        let ty = merged_type(&types);
        if types.iter().all(|t| *t == ty) {
            let row = |r: usize| {
                let (m, r) = pick(r);
                matrices[m].row(r)
            };
            return Ok(self.pack(ty, shape, &row));
        }
        let rows: Vec<Vec<u8>> = (0..shape.0)
            .map(|r| {
                let (m, r) = pick(r);
                let mut values = vec![0.0; shape.1];
                matrices[m].ty.dequantize_row(matrices[m].row(r), &mut values);
                values.iter().flat_map(|x| x.to_le_bytes()).collect()
            })
            .collect();
        Ok(self.pack(ty, shape, &|r| &rows[r]))
    }

    fn layer(&mut self, i: usize) -> Result<Layer, WeightError> {
        let (c, w) = (self.config, self.weights);
        let name = |part: &str| format!("blk.{i}.{part}");
        let (hidden, q_rows, kv_rows) = (c.hidden, c.q_width(), c.kv_width());
        let order = |r: usize| if c.interleaved_qk { interleaved_row(r, c.head_dim) } else { r };
        let qkv = [
            w.matrix(&name("attn_q.weight"), (q_rows, hidden))?,
            w.matrix(&name("attn_k.weight"), (kv_rows, hidden))?,
            w.matrix(&name("attn_v.weight"), (kv_rows, hidden))?,
        ];
        let pick = |r: usize| match r.checked_sub(q_rows) {
            None => (0, order(r)),
            Some(r) if r < kv_rows => (1, order(r)),
            Some(r) => (2, r - kv_rows),
        };
        let gate_up =
            [w.matrix(&name("ffn_gate.weight"), (c.ffn, hidden))?, w.matrix(&name("ffn_up.weight"), (c.ffn, hidden))?];
        // Panels of sixteen rows alternate between the two.
        let alternate = |r: usize| (r / 16 % 2, r / 32 * 16 + r % 16);
        Ok(Layer {
            attn_norm: w.vector(&name("attn_norm.weight"), hidden)?,
            qkv: self.merged(&qkv, &pick)?,
            qkv_bias: self.qkv_bias(i, &pick)?,
            q_norm: w.optional_vector(&name("attn_q_norm.weight"), c.head_dim)?,
            k_norm: w.optional_vector(&name("attn_k_norm.weight"), c.head_dim)?,
            attn_out: self.plain(&name("attn_output.weight"), (hidden, q_rows))?,
            ffn_norm: w.vector(&name("ffn_norm.weight"), hidden)?,
            gate_up: self.merged(&gate_up, &alternate)?,
            down: self.plain(&name("ffn_down.weight"), (hidden, c.ffn))?,
        })
    }

    fn qkv_bias(&self, i: usize, pick: &dyn Fn(usize) -> (usize, usize)) -> Result<Option<Vec<f32>>, WeightError> {
        let c = self.config;
        let sizes = [("q", c.q_width()), ("k", c.kv_width()), ("v", c.kv_width())];
        let parts = sizes.map(|(n, len)| self.weights.optional_vector(&format!("blk.{i}.attn_{n}.bias"), len));
        let [q, k, v] = parts;
        let parts = [q?, k?, v?];
        if parts.iter().all(Option::is_none) {
            return Ok(None);
        }
        let value = |r: usize| {
            let (m, r) = pick(r);
            parts[m].as_ref().map_or(0.0, |b| b[r])
        };
        Ok(Some((0..c.q_width() + 2 * c.kv_width()).map(value).collect()))
    }
}
