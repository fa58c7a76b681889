//! Shared by the golden tests: running a sequence through an executor in several ways, and
//! comparing log-probabilities.

#![allow(dead_code, clippy::unwrap_used)]

use serde::Deserialize;
use stowage_engine_core::executor::{Executor, LogitsWanted, SeqStep, StepBatch};

/// Teacher-forced numbers of one sequence: entry `i` is about the token after `ids[i]`.
#[derive(Deserialize)]
pub struct Teacher {
    pub ids: Vec<u32>,
    pub target: Vec<f64>,
    pub top_ids: Vec<Vec<u32>>,
    pub top: Vec<Vec<f64>>,
}

impl Teacher {
    pub fn inputs(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }
}

pub fn testdata(name: &str) -> String {
    let path = format!("{}/../testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// How far a run is from its golden.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Mean |Δlogprob| of the tokens that follow.
    pub mean: f64,
    /// The same over the golden's likeliest tokens at every position.
    pub mean_top: f64,
    pub max: f64,
    /// Mean of what choosing our likeliest token loses in the golden's log-probability, as far as
    /// the golden lists it (else the difference to the last it lists).
    pub regret: f64,
}

/// Compares rows of logits, one per input, with the golden.
pub fn difference(golden: &Teacher, rows: &[Vec<f32>]) -> Difference {
    assert_eq!(rows.len(), golden.target.len(), "a row per input");
    let mut d = Difference { mean: 0.0, mean_top: 0.0, max: 0.0, regret: 0.0 };
    let n = rows.len() as f64;
    for (i, row) in rows.iter().enumerate() {
        let norm = log_sum_exp(row);
        let logprob = |id: u32| f64::from(row[id as usize]) - norm;
        let delta = (logprob(golden.ids[i + 1]) - golden.target[i]).abs();
        d.mean += delta / n;
        d.max = d.max.max(delta);
        for (id, want) in golden.top_ids[i].iter().zip(&golden.top[i]) {
            let delta = (logprob(*id) - want).abs();
            d.mean_top += delta / n / golden.top[i].len() as f64;
            d.max = d.max.max(delta);
        }
        let ours = argmax(row);
        let at = golden.top_ids[i].iter().position(|id| *id == ours);
        let at = at.unwrap_or(golden.top[i].len() - 1);
        d.regret += (golden.top[i][0] - golden.top[i][at]) / n;
    }
    d
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as u32
}

/// A table of blocks that are neither first nor in order.
pub fn table(tokens: usize, offset: u32) -> Vec<u32> {
    let n = tokens.div_ceil(16) as u32;
    (0..n).map(|i| offset + n - 1 - i).collect()
}

/// Logits of all of `ids`, computed in chunks of the given sizes (the last repeats).
pub fn run(model: &mut impl Executor, ids: &[u32], blocks: &[u32], chunks: &[usize]) -> Vec<Vec<f32>> {
    let (vocab, mut position, mut rows) = (model.info().vocab, 0, Vec::new());
    let mut sizes = chunks.iter().copied();
    let mut size = 0;
    while position < ids.len() {
        size = sizes.next().unwrap_or(size);
        let end = (position + size).min(ids.len());
        let seq = SeqStep { tokens: &ids[position..end], position, blocks, want_logits: LogitsWanted::All };
        let mut logits = Vec::new();
        model.step(&StepBatch { seqs: &[seq] }, &mut logits).unwrap();
        rows.extend(logits.chunks_exact(vocab).map(<[f32]>::to_vec));
        position = end;
    }
    rows
}

/// Continues `ids` by `new` of the likeliest tokens.
pub fn greedy(model: &mut impl Executor, ids: &[u32], new: usize) -> Vec<u32> {
    let blocks = table(ids.len() + new, 1);
    let (mut feed, mut position, mut out) = (ids.to_vec(), 0, Vec::new());
    while out.len() < new {
        let seq = SeqStep { tokens: &feed, position, blocks: &blocks, want_logits: LogitsWanted::Last };
        let mut logits = Vec::new();
        model.step(&StepBatch { seqs: &[seq] }, &mut logits).unwrap();
        position += feed.len();
        let next = argmax(&logits);
        out.push(next);
        feed = vec![next];
    }
    out
}
