//! Tensors out of the file and into the panels that kernels read.

use stowage_engine_kernels::cpu::PackedMatrix;
use stowage_engine_kernels::mem::Arena;
use stowage_engine_kernels::pool::Pool;
use stowage_engine_kernels::quant::WeightType;

use super::plan::merged_type;
use crate::config::ModelConfig;
use crate::weights::{Matrix, WeightError, Weights, interleaved_row};

/// The weights of one layer.
pub(super) struct Layer {
    pub(super) attn_norm: Vec<f32>,
    /// Q, then K, then V.
    pub(super) qkv: PackedMatrix,
    pub(super) qkv_bias: Option<Vec<f32>>,
    pub(super) q_norm: Option<Vec<f32>>,
    pub(super) k_norm: Option<Vec<f32>>,
    pub(super) attn_out: PackedMatrix,
    pub(super) attn_out_bias: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    /// Panels of gate and up alternate.
    pub(super) gate_up: PackedMatrix,
    /// In the order of the panels.
    pub(super) gate_up_bias: Option<Vec<f32>>,
    pub(super) down: PackedMatrix,
    pub(super) down_bias: Option<Vec<f32>>,
}

/// Takes tensors out of the file and into panels.
pub(super) struct Packer<'a> {
    pub(super) weights: &'a Weights,
    pub(super) config: &'a ModelConfig,
    pub(super) pool: &'a mut Pool,
    pub(super) arena: Arena,
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

    pub(super) fn plain(&mut self, name: &str, shape: (usize, usize)) -> Result<PackedMatrix, WeightError> {
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

    pub(super) fn layer(&mut self, i: usize) -> Result<Layer, WeightError> {
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
            qkv_bias: self.bias(i, [("attn_q", q_rows), ("attn_k", kv_rows), ("attn_v", kv_rows)], &pick)?,
            q_norm: w.optional_vector(&name("attn_q_norm.weight"), c.head_dim)?,
            k_norm: w.optional_vector(&name("attn_k_norm.weight"), c.head_dim)?,
            attn_out: self.plain(&name("attn_output.weight"), (hidden, q_rows))?,
            attn_out_bias: w.optional_vector(&name("attn_output.bias"), hidden)?,
            ffn_norm: w.vector(&name("ffn_norm.weight"), hidden)?,
            gate_up: self.merged(&gate_up, &alternate)?,
            gate_up_bias: self.bias(i, [("ffn_gate", c.ffn), ("ffn_up", c.ffn)], &alternate)?,
            down: self.plain(&name("ffn_down.weight"), (hidden, c.ffn))?,
            down_bias: w.optional_vector(&name("ffn_down.bias"), hidden)?,
        })
    }

    /// The biases of matrices that are merged, as one; zeros where one of several is missing.
    fn bias<const N: usize>(
        &self,
        layer: usize,
        parts: [(&str, usize); N],
        pick: &dyn Fn(usize) -> (usize, usize),
    ) -> Result<Option<Vec<f32>>, WeightError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let vector =
            |(name, rows): (&str, usize)| self.weights.optional_vector(&format!("blk.{layer}.{name}.bias"), rows);
        let parts = parts.into_iter().map(vector).collect::<Result<Vec<_>, _>>()?;
        if parts.iter().all(Option::is_none) {
            return Ok(None);
        }
        let value = |r: usize| {
            let (m, r) = pick(r);
            parts[m].as_ref().map_or(0.0, |b| b[r])
        };
        Ok(Some((0..rows).map(value).collect()))
    }
}
