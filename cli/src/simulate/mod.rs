//! `simulate`: what the product's own planner would do on a trace of requests. Needs no cluster.
//!
//! The manifest is read by the functions with which the operator reads it, and each decision is one `plan()` of the
//! operator's on simulated nodes; engines, queue and the policies for comparison are the simulator's.

mod chart;
mod given;
mod manifest;
mod page;
mod report;
#[cfg(test)]
mod tests;
mod text;

use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use stowage_planner::snapshot::Room;
use stowage_simulator::contender::Contender;
use stowage_simulator::record::Recording;
use stowage_simulator::trace::{self, Limits, Trace};

use crate::out::{self, Format, Paint};
use crate::{Answer, Failure, plan};
use given::Given;
use report::Report;

/// Policies beside the product's.
const MAX_COMPARED: usize = 8;
/// Columns that the text needs.
const LEAST_WIDTH: u16 = 40;
/// A run that takes longer than this says how far it is.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// CSV file, plain or gzip, with the columns t_s, input_tokens and output_tokens (or TIMESTAMP, ContextTokens and
    /// GeneratedTokens); - for standard input.
    #[arg(long)]
    trace: String,
    /// File with an InferenceDeployment (and GpuClass and GpuNodes for its price), - for standard input; defaults
    /// otherwise.
    #[arg(short, long)]
    filename: Option<String>,
    /// As if scaling.mode were Active.
    #[arg(long)]
    active: bool,
    /// From a decision to a replica that serves, in seconds.
    #[arg(long, default_value = "120")]
    cold_start: String,
    /// Cost of a step in ms: a (each), d (per sequence), k and p (per 1,000 KV and prompt tokens), each above zero;
    /// built-in figures of Llama-3.1-70B FP8 on four H100 otherwise.
    #[arg(long, value_name = "A,D,K,P")]
    cost: Option<String>,
    /// Tokens of a replica's KV cache.
    #[arg(long, default_value_t = 650_000, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    kv_tokens: u64,
    /// Price of a replica per hour; that of its GpuClass in the file otherwise.
    #[arg(long)]
    price: Option<String>,
    /// Objective for the time to first token, for example 800ms, instead of the manifest's.
    #[arg(long)]
    ttft: Option<String>,
    /// Objective for the mean time between two tokens, instead of the manifest's.
    #[arg(long)]
    itl: Option<String>,
    /// Fewest replicas, instead of the manifest's; 0 allows scale to zero.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1000))]
    min_replicas: Option<u32>,
    /// Most replicas, instead of the manifest's.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_replicas: Option<u32>,
    /// Replicas that serve at the start; the mean load at 60 % each otherwise.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1000))]
    start: Option<u32>,
    /// Policies beside it: hpa[:SHARE], kpa[:SHARE:COOLDOWN], static:N, oracle.
    #[arg(long, value_delimiter = ',')]
    compare: Vec<String>,
    /// Decisions that are shown; -o json has all.
    #[arg(long, default_value_t = 20)]
    decisions: usize,
    /// Write a page with plots to this file.
    #[arg(long)]
    html: Option<String>,
}

pub(crate) fn run(args: &Args, format: Option<Format>, paint: Paint) -> Result<Answer, Failure> {
    if args.trace == "-" && args.filename.as_deref() == Some("-") {
        return Err(Failure::Usage("trace and manifest cannot both be standard input".to_owned()));
    }
    let compared = compared(&args.compare)?;
    let manifest = args.filename.as_deref().map(read_manifest).transpose()?;
    let given = Given::read(args, manifest.as_ref(), &compared).map_err(Failure::Usage)?;
    let report = simulate(given, &read_trace(&args.trace)?, &compared);
    if let Some(file) = &args.html {
        let written = std::fs::write(file, page::page(&report));
        written
            .map_err(|e| Failure::Usage(format!("write {file}: {e}; name a file in a folder that may be written")))?;
    }
    let style = text::Style { width: out::width().max(LEAST_WIDTH).into(), unicode: out::unicode(), paint };
    let text = out::machine(format, &report).unwrap_or_else(|| text::text(&report, args.decisions, style));
    Ok(Answer { text, yes: report.frozen.is_none() })
}

fn compared(names: &[String]) -> Result<Vec<Contender>, Failure> {
    if names.len() > MAX_COMPARED {
        return Err(Failure::Usage(format!("--compare: {} policies are more than {MAX_COMPARED}", names.len())));
    }
    let read = |name: &String| name.parse().map_err(|why| Failure::Usage(format!("--compare: {why}")));
    names.iter().map(read).collect()
}

fn read_manifest(filename: &str) -> Result<manifest::Manifest, Failure> {
    let text = plan::read(filename, manifest::MAX_BYTES)?;
    manifest::read(&text).map_err(|why| Failure::Usage(format!("{}: {why}", plan::shown(filename))))
}

fn read_trace(filename: &str) -> Result<Trace, Failure> {
    let failed = |why: String| Failure::Usage(format!("{}: {why}", plan::shown(filename)));
    if filename == "-" {
        return trace::read(std::io::stdin().lock(), &Limits::STANDARD).map_err(|e| failed(e.to_string()));
    }
    let file = std::fs::File::open(filename).map_err(|e| failed(format!("open the trace: {e}")))?;
    trace::read(file, &Limits::STANDARD).map_err(|e| failed(e.to_string()))
}

/// On the clock of the trace, if it has one.
fn simulate(mut given: Given, trace: &Trace, compared: &[Contender]) -> Report {
    if let Some(starts_ms) = trace.starts_ms {
        given.scenario.subject.starts_ms = starts_ms;
    }
    Report::new(&given, trace, &record(&given, trace, compared))
}

/// The product's run, then those beside it.
fn record(given: &Given, trace: &Trace, compared: &[Contender]) -> Vec<(Contender, Recording)> {
    let all: Vec<Contender> =
        std::iter::once(Contender::Stowage(Room::Standard)).chain(compared.iter().copied()).collect();
    let end = trace.arrivals.last().map_or(1.0, |arrival| arrival.at_s.max(1.0));
    let (runs, mut progress) = (all.len() as f64, Progress::new());
    let mut recordings = Vec::new();
    for (done, contender) in all.into_iter().enumerate() {
        let mut tell = |at_s: f64| progress.tell((done as f64 + (at_s / end).min(1.0)) / runs);
        recordings.push((contender, given.scenario.record(&trace.arrivals, contender, &mut tell)));
    }
    progress.end();
    recordings
}

/// How far a long run is, on a terminal's standard error.
struct Progress {
    start: Instant,
    next: Duration,
    on: bool,
    reported: bool,
}

impl Progress {
    fn new() -> Self {
        Self { start: Instant::now(), next: QUIET, on: std::io::stderr().is_terminal(), reported: false }
    }

    fn tell(&mut self, part: f64) {
        let elapsed = self.start.elapsed();
        if !self.on || elapsed < self.next {
            return;
        }
        (self.next, self.reported) = (elapsed + QUIET, true);
        let left = elapsed.as_secs_f64() * (1.0 - part) / part.max(1e-6);
        let _ = write!(std::io::stderr(), "\rsimulating: {:3.0} %, about {left:.0} s left    ", part * 100.0);
    }

    /// Takes the line away.
    fn end(&self) {
        if self.reported {
            let _ = write!(std::io::stderr(), "\r{:50}\r", "");
        }
    }
}
