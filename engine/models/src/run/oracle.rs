//! The decoder written as plainly as possible: f32 on exactly dequantised weights, one token at a
//! time, no cache layout, no packing, no threads. It is what the fast path is held against, and
//! what is itself held against an independent implementation's numbers.

use std::path::Path;

use stowage_engine_kernels::reference;

use super::rope::frequencies;
use crate::config::ModelConfig;
use crate::read::error::LoadError;
use crate::read::{Opened, open};
use crate::weights::{WeightError, interleaved_row};

struct Layer {
    attn_norm: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: [Option<Vec<f32>>; 3],
    norms: [Option<Vec<f32>>; 2],
    out: Vec<f32>,
    ffn_norm: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    /// Of output, gate, up and down.
    more_biases: [Option<Vec<f32>>; 4],
}

/// K and V of one layer, a row per token.
#[derive(Default)]
struct History {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

pub struct Oracle {
    config: ModelConfig,
    frequencies: Vec<f32>,
    embedding: Vec<f32>,
    head: Option<Vec<f32>>,
    output_norm: Vec<f32>,
    layers: Vec<Layer>,
    history: Vec<History>,
    position: usize,
}

impl Oracle {
    pub fn load(path: &Path) -> Result<Oracle, LoadError> {
        let opened = open(path)?;
        Oracle::build(&opened).map_err(|source| LoadError::Weights { path: path.into(), source })
    }

    fn build(opened: &Opened) -> Result<Oracle, WeightError> {
        let (c, w) = (&opened.config, &opened.weights);
        let matrix = |name: &str, rows: usize, cols: usize, permuted: bool| {
            let m = w.matrix(name, (rows, cols))?;
            let mut out = vec![0.0; rows * cols];
            for (r, out) in out.chunks_exact_mut(cols).enumerate() {
                let from = if permuted { interleaved_row(r, c.head_dim) } else { r };
                m.ty.dequantize_row(m.row(from), out);
            }
            Ok(out)
        };
        let bias = |i: usize, part: &str, len: usize, permuted: bool| {
            let b = w.optional_vector(&format!("blk.{i}.{part}.bias"), len)?;
            let order = |r| if permuted { interleaved_row(r, c.head_dim) } else { r };
            Ok(b.map(|b| (0..len).map(|r| b[order(r)]).collect()))
        };
        let (hidden, q, kv, swap) = (c.hidden, c.q_width(), c.kv_width(), c.interleaved_qk);
        let layer = |i: usize| {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            Ok(Layer {
                attn_norm: w.vector(&name("attn_norm"), hidden)?,
                q: matrix(&name("attn_q"), q, hidden, swap)?,
                k: matrix(&name("attn_k"), kv, hidden, swap)?,
                v: matrix(&name("attn_v"), kv, hidden, false)?,
                bias: [bias(i, "attn_q", q, swap)?, bias(i, "attn_k", kv, swap)?, bias(i, "attn_v", kv, false)?],
                norms: [
                    w.optional_vector(&name("attn_q_norm"), c.head_dim)?,
                    w.optional_vector(&name("attn_k_norm"), c.head_dim)?,
                ],
                out: matrix(&name("attn_output"), hidden, q, false)?,
                ffn_norm: w.vector(&name("ffn_norm"), hidden)?,
                gate: matrix(&name("ffn_gate"), c.ffn, hidden, false)?,
                up: matrix(&name("ffn_up"), c.ffn, hidden, false)?,
                down: matrix(&name("ffn_down"), hidden, c.ffn, false)?,
                more_biases: [
                    bias(i, "attn_output", hidden, false)?,
                    bias(i, "ffn_gate", c.ffn, false)?,
                    bias(i, "ffn_up", c.ffn, false)?,
                    bias(i, "ffn_down", hidden, false)?,
                ],
            })
        };
        let head = w.has("output.weight");
        Ok(Oracle {
            frequencies: frequencies(c),
            embedding: matrix("token_embd.weight", c.vocab, hidden, false)?,
            head: head.then(|| matrix("output.weight", c.vocab, hidden, false)).transpose()?,
            output_norm: w.vector("output_norm.weight", hidden)?,
            layers: (0..c.layers).map(layer).collect::<Result<_, WeightError>>()?,
            history: (0..c.layers).map(|_| History::default()).collect(),
            position: 0,
            config: c.clone(),
        })
    }

    pub fn vocab(&self) -> usize {
        self.config.vocab
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.history.iter_mut().for_each(|h| *h = History::default());
        self.position = 0;
    }

    /// The logits after one more token.
    pub fn next(&mut self, token: u32) -> Vec<f32> {
        let c = &self.config;
        let mut x = self.embedding[token as usize * c.hidden..][..c.hidden].to_vec();
        for (layer, history) in self.layers.iter().zip(&mut self.history) {
            attention(c, layer, history, (self.position, &self.frequencies), &mut x);
            feed_forward(c, layer, &mut x);
        }
        self.position += 1;
        let x = reference::rms_norm(&x, &self.output_norm, c.rms_eps);
        product(self.head.as_ref().unwrap_or(&self.embedding), &x)
    }
}

fn product(w: &[f32], x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; w.len() / x.len()];
    reference::matvec(w, x, &mut out);
    out
}

fn biased(mut out: Vec<f32>, bias: &Option<Vec<f32>>) -> Vec<f32> {
    out.iter_mut().zip(bias.iter().flatten()).for_each(|(o, b)| *o += b);
    out
}

fn attention(
    c: &ModelConfig,
    layer: &Layer,
    history: &mut History,
    (position, frequencies): (usize, &[f32]),
    x: &mut [f32],
) {
    let input = reference::rms_norm(x, &layer.attn_norm, c.rms_eps);
    let [mut q, mut k, v] =
        [(&layer.q, 0), (&layer.k, 1), (&layer.v, 2)].map(|(w, i)| biased(product(w, &input), &layer.bias[i]));
    for (heads, norm) in [(&mut q, &layer.norms[0]), (&mut k, &layer.norms[1])] {
        for head in heads.chunks_exact_mut(c.head_dim) {
            if let Some(norm) = norm {
                head.copy_from_slice(&reference::rms_norm(head, norm, c.rms_eps));
            }
            reference::rope(head, position, frequencies);
        }
    }
    history.keys.push(k);
    history.values.push(v);
    let mut mixed = Vec::with_capacity(c.q_width());
    for (head, q) in q.chunks_exact(c.head_dim).enumerate() {
        let at = head / (c.heads / c.kv_heads) * c.head_dim;
        let part =
            |rows: &'_ [Vec<f32>]| -> Vec<Vec<f32>> { rows.iter().map(|r| r[at..at + c.head_dim].to_vec()).collect() };
        let (keys, values) = (part(&history.keys), part(&history.values));
        let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        mixed.extend(reference::attention(q, &keys, &values));
    }
    let out = biased(product(&layer.out, &mixed), &layer.more_biases[0]);
    x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
}

fn feed_forward(c: &ModelConfig, layer: &Layer, x: &mut [f32]) {
    let input = reference::rms_norm(x, &layer.ffn_norm, c.rms_eps);
    let [_, gate_bias, up_bias, down_bias] = &layer.more_biases;
    let (gate, up) = (biased(product(&layer.gate, &input), gate_bias), biased(product(&layer.up, &input), up_bias));
    let inner: Vec<f32> = gate.iter().zip(up).map(|(g, u)| reference::silu(*g) * u).collect();
    let out = biased(product(&layer.down, &inner), down_bias);
    x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
}
