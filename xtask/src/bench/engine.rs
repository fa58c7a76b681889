//! `cargo xtask bench engine`: our engine, alone or in turn with llama.cpp.
//!
//! Machines that run this are shared, and their speed drifts. So everything is measured in short rounds,
//! each in the opposite order of the one before (A B, B A, …), and compared within a round: a ratio is
//! the median of the rounds' ratios. Rates are per second of wall clock and per second of CPU time; the
//! second is the cost of a token even while others use the cores.

use super::stopwatch::{Sample, Setup, Stopwatch};
use crate::product;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A model file; the demo's when not given
    #[arg(long)]
    model: Option<PathBuf>,
    /// Threads of the engine (and of its peer)
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// KV type of our engine
    #[arg(long, default_value = "auto")]
    kv: String,
    /// Sequences of the crowd
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Rounds of all measurements
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Seconds of each measurement, all rounds together
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Measure another engine too, in turn with ours, and report which is nearer to the exact weights
    #[arg(long, value_enum)]
    vs: Option<Peer>,
    /// Only report which is nearer to the exact weights, ours or llama.cpp
    #[arg(long)]
    fidelity: bool,
    /// What is printed is JSON in any case
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum Peer {
    /// llama-cpp-python; compiled for this machine when first asked for
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// What is measured: its name, and the stopwatch's line but for the seconds.
struct Work {
    name: String,
    line: String,
}

/// The samples of one work on one side, by round.
type Rounds = Vec<Sample>;

/// A figure over the rounds.
#[derive(Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0 && args.streams > 1, "a bench has at least one round, and a crowd two streams");
    let model = args.model.clone().map_or_else(demo_model, Ok)?;
    let setup = Setup { model: &model, threads: args.threads, kv: &args.kv };
    let mut sides = vec![Stopwatch::ours(&setup)?];
    if args.vs.is_some() || args.fidelity {
        sides.push(Stopwatch::llama_cpp(&setup)?);
    }
    let mut summary = json!({"bench": "engine", "summary": true, "threads": args.threads});
    add(&mut summary, sides[0].ready.clone());
    if let [_, peer] = &sides[..] {
        summary["peer"] = peer.ready.clone();
    }
    if !args.fidelity {
        add(&mut summary, speed(args, &mut sides)?);
    }
    let mut nearer = true;
    if let [ours, peer] = &mut sides[..] {
        let (ours, peer) = (ours.distance()?, peer.distance()?);
        nearer = ours < peer;
        let figures = json!({"mean_abs_dlogprob": ours, "peer_mean_abs_dlogprob": peer});
        print("fidelity", figures.clone());
        summary["fidelity"] = figures;
    }
    println!("{summary}");
    ensure!(nearer, "llama.cpp is nearer to the exact weights than we are");
    Ok(())
}

fn demo_model() -> Result<PathBuf> {
    let output = product::own(&["model"])?;
    let model = output.lines().find(|l| l.ends_with(".gguf")).context("`cargo xtask model` named no model")?;
    Ok(model.into())
}

/// Pairs of one stream and a crowd, and the prompt.
fn works(streams: usize) -> Vec<Work> {
    let work = |name: &str, line: String| Work { name: name.into(), line };
    vec![
        work("decode_1", "decode 1 0".into()),
        work(&format!("decode_{streams}"), format!("decode {streams} 64")),
        work("decode_1_at_512", "decode 1 512".into()),
        work(&format!("decode_{streams}_at_512"), format!("decode {streams} 512")),
        work("prefill_512", "prefill 512".into()),
    ]
}

/// Measures, prints a line of each work, and returns the summary's part.
fn speed(args: &Args, sides: &mut [Stopwatch]) -> Result<Value> {
    let works = works(args.streams);
    let samples = measure(args, sides, &works)?;
    let mut summary = json!({});
    for (work, of_sides) in works.iter().zip(&samples) {
        let mut line = rates(&of_sides[0]);
        summary[&work.name] = line["tokens_per_s"].clone();
        if let [ours, peer] = &of_sides[..] {
            line["peer"] = rates(peer);
            add(&mut line, ratios(ours, peer));
            summary[format!("{}_vs_peer", work.name)] = line["ratio"]["median"].clone();
        }
        print(&work.name, line);
    }
    for (one, crowd) in [(0, 1), (2, 3)] {
        let mut line = ratios(&samples[crowd][0], &samples[one][0]);
        let name = format!("{}_over_one", works[crowd].name);
        summary[&name] = line["ratio"]["median"].clone();
        if let (Some(one), Some(crowd)) = (samples[one].get(1), samples[crowd].get(1)) {
            line["peer"] = ratios(crowd, one);
        }
        print(&name, line);
    }
    Ok(summary)
}

/// By work and side.
fn measure(args: &Args, sides: &mut [Stopwatch], works: &[Work]) -> Result<Vec<Vec<Rounds>>> {
    let mut samples = vec![vec![Rounds::new(); sides.len()]; works.len()];
    let mut order: Vec<_> = (0..works.len()).flat_map(|w| (0..sides.len()).map(move |s| (w, s))).collect();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for (w, s) in &order {
            let sample = sides[*s].measure(&works[*w].line, args.seconds / args.rounds as f64)?;
            samples[*w][*s].push(sample);
        }
        order.reverse();
    }
    Ok(samples)
}

fn per_wall(s: &Sample) -> f64 {
    s.tokens / s.wall_s
}

fn per_cpu(s: &Sample) -> f64 {
    s.tokens / s.cpu_s
}

fn rates(rounds: &[Sample]) -> Value {
    let (wall, cpu) = (Spread::of(rounds.iter().map(per_wall)), Spread::of(rounds.iter().map(per_cpu)));
    json!({"tokens_per_s": wall.median, "best_tokens_per_s": wall.max, "tokens_per_cpu_s": cpu.median})
}

/// Of rates, round by round.
fn ratios(a: &[Sample], b: &[Sample]) -> Value {
    let of = |rate: fn(&Sample) -> f64| Spread::of(a.iter().zip(b).map(|(a, b)| rate(a) / rate(b)));
    json!({"ratio": of(per_wall), "cpu_ratio": of(per_cpu)})
}

// === impl Spread ===

impl Spread {
    /// Of at least one value; to two digits after the point, more would be noise.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.collect();
        all.sort_by(f64::total_cmp);
        let round = |v: f64| (v * 100.0).round() / 100.0;
        let median = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0;
        Self { median: round(median), min: round(all[0]), max: round(all[all.len() - 1]) }
    }
}

fn print(name: &str, figures: Value) {
    let mut line = json!({"bench": "engine", "name": name});
    add(&mut line, figures);
    println!("{line}");
}

/// Puts the fields of one object into another.
fn add(to: &mut Value, from: Value) {
    if let (Value::Object(to), Value::Object(from)) = (to, from) {
        to.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(tokens: &[f64]) -> Rounds {
        tokens.iter().map(|t| Sample { tokens: *t, wall_s: 2.0, cpu_s: 4.0 }).collect()
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        // The machine was ten times slower in the second round: for both.
        let r = ratios(&rounds(&[200.0, 20.0, 220.0]), &rounds(&[100.0, 10.0, 100.0]));
        assert_eq!(r["ratio"], json!({"median": 2.0, "min": 2.0, "max": 2.2}));
        assert_eq!(r["cpu_ratio"], r["ratio"]);
    }

    #[test]
    fn rates_are_per_second_of_wall_clock_and_of_cpu_time() {
        let r = rates(&rounds(&[100.0, 300.0]));
        assert_eq!(r, json!({"tokens_per_s": 100.0, "best_tokens_per_s": 150.0, "tokens_per_cpu_s": 50.0}));
    }

    #[test]
    fn a_crowd_is_compared_with_one_stream_at_its_side() {
        let names: Vec<_> = works(8).into_iter().map(|w| w.name).collect();
        assert_eq!(names, ["decode_1", "decode_8", "decode_1_at_512", "decode_8_at_512", "prefill_512"]);
    }
}
