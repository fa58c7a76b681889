//! What was decided about an instance, and what it costs in bytes.

use stowage_engine_kernels::cpu::{KvLayout, KvType, PackedMatrix, PackedX};
use stowage_engine_kernels::isa::Isa;
use stowage_engine_kernels::quant::WeightType;

use super::rope::Rotations;
use crate::config::ModelConfig;
use crate::tensors::{MATRICES, expected};
use crate::weights::Weights;

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

/// The memory of an instance, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub weights: u64,
    /// Activations and the packed rows of one step.
    pub scratch: u64,
    /// The KV cache.
    pub kv: u64,
}

impl Memory {
    /// `weights` as [`weight_bytes`] counts them; the KV cache has the plan's blocks.
    pub(crate) fn of(config: &ModelConfig, weights: usize, plan: &Plan) -> Memory {
        Memory {
            weights: weights as u64,
            scratch: scratch_bytes(config, plan) as u64,
            kv: plan.num_blocks as u64 * plan.kv_layout(config).block_bytes() as u64,
        }
    }

    pub fn total(&self) -> u64 {
        self.weights + self.scratch + self.kv
    }
}

/// The type in which matrices that are merged are packed: their own if they share it. If not,
/// f32, which holds any of them exactly.
pub(super) fn merged_type(types: &[WeightType]) -> WeightType {
    if types.iter().all(|t| *t == types[0]) { types[0] } else { WeightType::F32 }
}

/// Bytes of the weights, known before packing.
pub(crate) fn weight_bytes(c: &ModelConfig, w: &Weights) -> usize {
    let vectors = expected(c).into_iter().filter(|t| t.rows == 1 && w.has(&t.name));
    matrix_bytes(c, w) + vectors.map(|t| t.cols * 4).sum::<usize>()
}

/// Bytes of the packed matrices among them.
pub(super) fn matrix_bytes(c: &ModelConfig, w: &Weights) -> usize {
    let ty = |name: &str| w.tensors.get(name).map_or(WeightType::F32, |t| t.ty);
    let layer = |i: usize| {
        let [q, k, v, o, gate, up, down] = MATRICES.map(|n| ty(&format!("blk.{i}.{n}.weight")));
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
pub(super) fn scratch_bytes(config: &ModelConfig, plan: &Plan) -> usize {
    let c = config;
    let row = c.hidden + c.q_width() + 2 * c.kv_width() + c.q_width() + c.ffn;
    plan.max_step_tokens * row * 4
        + PackedX::bytes_for(plan.max_step_tokens, widest(c))
        + Rotations::bytes_for(c, plan.max_step_tokens)
}

/// The longest row that is ever packed.
pub(super) fn widest(c: &ModelConfig) -> usize {
    c.hidden.max(c.q_width()).max(c.ffn)
}
