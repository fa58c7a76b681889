//! `cargo xtask bench autoscaling`: one trace, one policy, one JSON line.

use std::process::ExitCode;
use stowage_planner::snapshot::{Policy as Constants, Room, Rule};
use stowage_simulator::contender::Contender;
use stowage_simulator::run::{Protocol, run};
use stowage_simulator::site::Subject;
use stowage_simulator::trace::{self, Limits, Trace};

const USAGE: &str = "usage: bench_autoscaling --arrivals FILE --cold-start SECONDS [--policy NAME] [--no-gate]";

struct Options {
    arrivals: String,
    cold_start: f64,
    policy: String,
    gate: bool,
    rule: Rule,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| bench(&options)) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        arrivals: String::new(),
        cold_start: 120.0,
        policy: "stowage".into(),
        gate: true,
        rule: Rule::STANDARD,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value; {USAGE}"));
        match word.as_str() {
            "--arrivals" => options.arrivals = value()?,
            "--cold-start" => options.cold_start = number(&value()?)?,
            "--policy" => options.policy = value()?,
            "--no-gate" => options.gate = false,
            // Constants other than the product's, to see what each is worth.
            "--rule" => options.rule = serde_json::from_str(&value()?).map_err(|err| err.to_string())?,
            _ => return Err(format!("unknown option {word}; {USAGE}")),
        }
    }
    if options.arrivals.is_empty() { Err(USAGE.into()) } else { Ok(options) }
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0).ok_or_else(|| format!("{text:?} is no number"))
}

fn bench(options: &Options) -> Result<String, String> {
    let file = std::fs::File::open(&options.arrivals).map_err(|err| format!("open {}: {err}", options.arrivals))?;
    let Trace { arrivals, .. } =
        trace::read(file, &Limits::NONE).map_err(|err| format!("{}: {err}", options.arrivals))?;
    let protocol = Protocol { gate: options.gate, ..Protocol::published(options.cold_start) };
    let contender: Contender = options.policy.parse()?;
    let constants = Constants { standard_rule: options.rule, ..Constants::default() };
    let subject = Subject::published(&protocol, Room::Standard);
    let mut policy = contender.policy(&arrivals, &protocol, &subject, constants);
    let start = contender.replicas_at_start(protocol.replicas_at_start(&arrivals));
    let outcome = run(&arrivals, &mut *policy, &protocol, start);
    let line = serde_json::json!({
        "bench": "autoscaling", "summary": true, "policy": options.policy, "cold_start_s": options.cold_start,
        "slo_percent": (outcome.slo_percent * 1000.0).round() / 1000.0, "replica_hours": (outcome.replica_hours * 1000.0).round() / 1000.0,
        "requests": outcome.requests, "ttft_p50_s": outcome.ttft_p50, "ttft_p99_s": outcome.ttft_p99,
        "peak": outcome.peak, "changes": outcome.changes,
    });
    Ok(line.to_string())
}
