//! Measures one model on this machine: load, prefill, decode alone, decode in a crowd.
//!
//! `cargo run --release -p stowage-engine-models --example bench -- --model FILE [--json] [--threads N]
//! [--kv f32|bf16] [--streams N] [--seconds S]`. Each measurement is one line (JSON with `--json`), the last has
//! `"summary": true`. Rates are the best and the median of the repetitions that fit into the time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stowage_engine_core::executor::{Executor, LogitsWanted, SeqStep, StepBatch};
use stowage_engine_models::{CpuModel, LoadOptions, load};

struct Args {
    model: PathBuf,
    json: bool,
    streams: usize,
    seconds: f64,
    options: LoadOptions,
}

fn args() -> Result<Args, String> {
    let mut out =
        Args { model: PathBuf::new(), json: false, streams: 8, seconds: 3.0, options: LoadOptions::default() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--json" {
            out.json = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        let number = || value.parse::<usize>().map_err(|e| format!("{arg}: {e}"));
        match arg.as_str() {
            "--model" => out.model = value.into(),
            "--threads" => out.options.threads = Some(number()?),
            "--streams" => out.streams = number()?.max(1),
            "--seconds" => out.seconds = value.parse().map_err(|e| format!("{arg}: {e}"))?,
            "--kv" => out.options.kv_type = value.parse()?,
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    if out.model.as_os_str().is_empty() {
        return Err("--model FILE is needed".into());
    }
    Ok(out)
}

/// Seconds of repeated runs, sorted.
fn repeat(seconds: f64, mut run: impl FnMut() -> Duration) -> Vec<f64> {
    let (start, mut times) = (Instant::now(), Vec::new());
    run();
    while times.len() < 3 || (start.elapsed().as_secs_f64() < seconds && times.len() < 10_000) {
        times.push(run().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times
}

/// One step over `streams` sequences of `tokens` tokens each at `position`, every one in blocks of
/// its own.
fn step(model: &mut CpuModel, streams: usize, position: usize, tokens: usize, logits: &mut Vec<f32>) -> Duration {
    let per = (position + tokens).div_ceil(16);
    let tables: Vec<Vec<u32>> = (0..streams).map(|s| (0..per).map(|b| (s * per + b) as u32).collect()).collect();
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % 40_000 % model.info().vocab) as u32).collect();
    let seqs: Vec<SeqStep<'_>> = tables
        .iter()
        .map(|blocks| SeqStep { tokens: &ids, position, blocks, want_logits: LogitsWanted::Last })
        .collect();
    logits.clear();
    let start = Instant::now();
    if let Err(e) = model.step(&StepBatch { seqs: &seqs }, logits) {
        eprintln!("the step failed: {e}");
        std::process::exit(1);
    }
    start.elapsed()
}

fn main() {
    if let Err(message) = run() {
        eprintln!("bench: {message}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), String> {
    let Args { model: path, json, streams, seconds, options } = args()?;
    let start = Instant::now();
    let (mut model, _) = load(&path, &options).map_err(|e| e.to_string())?;
    let load_s = start.elapsed().as_secs_f64();
    let isa = model.info().isa;
    let mut fields: Vec<(String, f64)> = Vec::new();
    let mut report = |name: &str, tokens: usize, times: &[f64]| {
        let (best, median) = (tokens as f64 / times[0], tokens as f64 / times[times.len() / 2]);
        if json {
            println!(
                "{{\"bench\":\"engine\",\"name\":\"{name}\",\"isa\":\"{isa}\",\"tokens_per_s\":{median:.1},\"best_tokens_per_s\":{best:.1},\"repetitions\":{}}}",
                times.len()
            );
        } else {
            println!("{name:>18}: median {median:8.1} tok/s, best {best:8.1} ({} runs)", times.len());
        }
        fields.push((name.to_owned(), median));
    };
    let mut logits = Vec::new();
    let depth = 512.min(model.info().context_len.saturating_sub(1));
    let chunk = depth.min(model.info().max_step_tokens);
    let mut prefill = |m: &mut CpuModel| step(m, 1, 0, chunk, &mut logits);
    report("prefill_512", chunk, &repeat(seconds, || prefill(&mut model)));
    let mut logits = Vec::new();
    for (name, n, position) in [("decode_1", 1, 0), ("decode_1_at_512", 1, depth)] {
        report(name, n, &repeat(seconds, || step(&mut model, n, position, 1, &mut logits)));
    }
    let name = format!("decode_{streams}");
    report(&name, streams, &repeat(seconds, || step(&mut model, streams, 64, 1, &mut logits)));
    let name = format!("decode_{streams}_at_512");
    let needed = streams * (depth / 16 + 1);
    if needed <= model.info().num_blocks {
        report(&name, streams, &repeat(seconds, || step(&mut model, streams, depth, 1, &mut logits)));
    }
    if json {
        let rates: Vec<_> = fields.iter().map(|(n, v)| format!("\"{n}\":{v:.1}")).collect();
        println!(
            "{{\"bench\":\"engine\",\"summary\":true,\"isa\":\"{isa}\",\"kv\":\"{}\",\"load_s\":{load_s:.3},{}}}",
            model.info().kv_type,
            rates.join(",")
        );
    } else {
        println!("{:>18}: {load_s:.3} s ({isa}, {} KV)", "load", model.info().kv_type);
    }
    Ok(())
}
