//! Which tensors a decoder consists of.
//!
//! One table is used for the check of a file, for packing and for the count of bytes. A tensor that
//! is in the file and not in the table would be left out of the computation, and the answers would
//! be wrong without a sign of it: such a file is refused.

use std::collections::BTreeSet;

use crate::config::{ModelConfig, Presence};
use crate::weights::{WeightError, Weights};

/// A tensor by GGUF name. Vectors have one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub presence: Presence,
}

/// The matrices of a layer, in the order of [`layer_matrices`].
pub(crate) const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// Rows and columns of each of [`MATRICES`].
fn layer_matrices(c: &ModelConfig) -> [(usize, usize); 7] {
    let (q, kv, hidden) = (c.q_width(), c.kv_width(), c.hidden);
    [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (c.ffn, hidden), (c.ffn, hidden), (hidden, c.ffn)]
}

/// Every tensor that the configuration has a use for.
pub(crate) fn expected(c: &ModelConfig) -> Vec<Expected> {
    let mut all = Vec::new();
    let mut add = |name: String, (rows, cols): (usize, usize), presence: Presence| {
        if presence != Presence::Absent {
            all.push(Expected { name, rows, cols, presence });
        }
    };
    add("token_embd.weight".into(), (c.vocab, c.hidden), Presence::Required);
    add("output.weight".into(), (c.vocab, c.hidden), c.head);
    add("output_norm.weight".into(), (1, c.hidden), Presence::Required);
    let shapes = layer_matrices(c);
    let biases = [c.biases.qkv, c.biases.qkv, c.biases.qkv, c.biases.out, c.biases.ffn, c.biases.ffn, c.biases.ffn];
    for i in 0..c.layers {
        for ((name, shape), bias) in MATRICES.iter().zip(shapes).zip(biases) {
            add(format!("blk.{i}.{name}.weight"), shape, Presence::Required);
            add(format!("blk.{i}.{name}.bias"), (1, shape.0), bias);
        }
        for (name, len, presence) in [
            ("attn_norm", c.hidden, Presence::Required),
            ("ffn_norm", c.hidden, Presence::Required),
            ("attn_q_norm", c.head_dim, c.qk_norm),
            ("attn_k_norm", c.head_dim, c.qk_norm),
        ] {
            add(format!("blk.{i}.{name}.weight"), (1, len), presence);
        }
    }
    all
}

/// Compares the file with the table: what is required is there in its shape, and nothing is there that
/// would not be used. Done before anything is computed from the configuration, so that its numbers
/// are known to be no larger than the file.
pub(crate) fn check(c: &ModelConfig, w: &Weights) -> Result<(), WeightError> {
    // A layer has at least nine tensors; without this a small file could claim millions of layers.
    if c.layers > w.tensors.len() {
        let name = format!("blk.{}.attn_norm.weight", w.tensors.len());
        return Err(WeightError::Missing(w.shown_name(&name)));
    }
    let expected = expected(c);
    for tensor in &expected {
        if tensor.presence == Presence::Required || w.has(&tensor.name) {
            w.entry(&tensor.name, (tensor.rows, tensor.cols))?;
        }
    }
    let known: BTreeSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    match w.tensors.keys().find(|name| !known.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => Err(WeightError::Unused { name: w.shown_name(name), architecture: c.architecture.clone() }),
    }
}
