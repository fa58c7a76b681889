//! The stopwatch of `cargo xtask bench engine`: loads one model, reports it, and then answers every line
//! of standard input with a line of JSON.
//!
//!     decode STREAMS DEPTH SECONDS   steps of one token for each of so many sequences of that length
//!     prefill TOKENS SECONDS         prompts of that length, one after the other, from nothing
//!     fidelity GOLDEN                the golden's text, teacher-forced: how far its log-probabilities are off
//!
//! The first two repeat until the time is over, at least once, and answer `tokens`, `wall_s` and `cpu_s` (user
//! and system, all threads). A step always computes the same: what it wrote is written again. The caller
//! decides about rounds; `engine/tools/bench_llama_cpp.py` answers the same lines for llama.cpp.
//!
//! `cargo run -p stowage-engine-models --example bench -- --model FILE [--threads N] [--kv f32|bf16]`

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use stowage_engine_core::executor::{BLOCK_TOKENS, Executor, LogitsWanted, SeqStep, StepBatch};
use stowage_engine_models::{LoadOptions, load};

type Error = Box<dyn std::error::Error>;

/// Blocks set aside for each sequence: room for 1,024 tokens.
const STRIDE: usize = 64;

fn main() {
    if let Err(e) = run() {
        eprintln!("bench: {e}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), Error> {
    let (path, options) = args()?;
    let start = Instant::now();
    let (model, _) = load(&path, &options)?;
    let load_s = start.elapsed().as_secs_f64();
    println!("{}", json!({"load_s": load_s, "isa": model.info().isa, "kv": model.info().kv_type}));
    let mut bench = Bench { model, filled: 0, logits: Vec::new() };
    for line in std::io::stdin().lock().lines() {
        println!("{}", bench.answer(&line?)?);
    }
    Ok(())
}

fn args() -> Result<(PathBuf, LoadOptions), Error> {
    let (mut model, mut options) = (None, LoadOptions::default());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--model" => model = Some(value.into()),
            "--threads" => options.threads = Some(value.parse()?),
            "--kv" => options.kv_type = value.parse()?,
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    Ok((model.ok_or("--model FILE is needed")?, options))
}

struct Bench {
    model: Box<dyn Executor>,
    /// Sequences, from the first, whose blocks hold a whole stride of tokens.
    filled: usize,
    logits: Vec<f32>,
}

// === impl Bench ===

impl Bench {
    fn answer(&mut self, line: &str) -> Result<Value, Error> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["decode", streams, depth, seconds] => {
                let (streams, depth) = (streams.parse()?, depth.parse()?);
                self.fill(streams)?;
                self.repeat(streams, depth, 1, seconds.parse()?)
            }
            ["prefill", tokens, seconds] => self.repeat(1, 0, tokens.parse()?, seconds.parse()?),
            ["fidelity", golden] => self.fidelity(golden),
            _ => Err(format!("not a measurement: {line}").into()),
        }
    }

    /// Gives the sequences real keys and values: memory that was never written reads from one page.
    fn fill(&mut self, streams: usize) -> Result<(), Error> {
        if self.filled >= streams {
            return Ok(());
        }
        let (blocks, context) = (self.model.info().num_blocks, self.model.info().context_len);
        let tokens = STRIDE * BLOCK_TOKENS;
        if streams * STRIDE > blocks || tokens > context {
            let need = format!("{streams} streams need {} KV blocks and a context of {tokens}", streams * STRIDE);
            return Err(format!("{need}, the model has {blocks} and {context}").into());
        }
        // Steps of 256 tokens over all sequences, at most 128 sequences.
        let piece = (256 / streams).max(2);
        for position in (0..tokens).step_by(piece) {
            self.step(streams, position, piece.min(tokens - position))?;
        }
        self.filled = streams;
        Ok(())
    }

    fn repeat(&mut self, streams: usize, position: usize, tokens: usize, seconds: f64) -> Result<Value, Error> {
        let (wall, cpu, mut steps) = (Instant::now(), cpu_seconds(), 0);
        while steps == 0 || wall.elapsed().as_secs_f64() < seconds {
            self.step(streams, position, tokens)?;
            steps += 1;
        }
        let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        Ok(json!({"tokens": steps * streams * tokens, "wall_s": wall, "cpu_s": cpu}))
    }

    fn step(&mut self, streams: usize, position: usize, tokens: usize) -> Result<(), Error> {
        let vocab = self.model.info().vocab;
        let ids: Vec<u32> = (position..position + tokens).map(|i| (i * 7919 % 40_000 % vocab) as u32).collect();
        let table = |s: usize| ((s * STRIDE) as u32..((s + 1) * STRIDE) as u32).collect();
        let tables: Vec<Vec<u32>> = (0..streams).map(table).collect();
        let seq = |blocks| SeqStep { tokens: &ids, position, blocks, want_logits: LogitsWanted::Last };
        let seqs: Vec<_> = tables.iter().map(|blocks| seq(blocks)).collect();
        Ok(self.model.step(&StepBatch { seqs: &seqs }, &mut self.logits)?)
    }

    fn fidelity(&mut self, golden: &str) -> Result<Value, Error> {
        #[derive(serde::Deserialize)]
        struct Golden {
            passage: common::Teacher,
        }
        let golden: Golden = serde_json::from_slice(&std::fs::read(golden)?)?;
        let ids = golden.passage.inputs();
        let rows = common::run(&mut self.model, ids, &common::table(ids.len(), 0), &[128]);
        self.filled = 0;
        let d = common::difference(&golden.passage, &rows);
        Ok(json!({"tokens": ids.len(), "mean_abs_dlogprob": d.mean, "mean_abs_dlogprob_top": d.mean_top}))
    }
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
