//! What a simulation found, as `-o json` prints it and text and page show it.

use serde::Serialize;
use stowage_contracts::load::Coefficients;
use stowage_planner::render;
use stowage_planner::snapshot::ScalingMode;
use stowage_simulator::contender::Contender;
use stowage_simulator::record::{Decided, Recording, Sample};
use stowage_simulator::trace::{Arrival, Trace};

use super::given::Given;

/// Points of the series; more would not be seen.
const MAX_POINTS: usize = 1000;
/// A request that took longer to its first token was not served.
const UNSERVED_S: f64 = 1e6;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub deployment: String,
    pub trace: Requests,
    pub assumed: Assumed,
    /// The product's first.
    pub results: Vec<Figures>,
    /// Of the product.
    pub series: Vec<Sample>,
    pub decisions: Vec<Decided>,
    /// Why the planner could not decide at the end.
    pub frozen: Option<String>,
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Requests {
    pub requests: usize,
    pub seconds: f64,
    pub mean_input_tokens: f64,
    pub mean_output_tokens: f64,
    /// Of the first request, milliseconds since 1970, where the trace has dates.
    pub starts_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Assumed {
    pub mode: ScalingMode,
    pub min_replicas: u32,
    pub max_replicas: u32,
    /// In mode Manual.
    pub replicas: u32,
    pub replica: String,
    pub ttft_ms: f64,
    pub itl_ms: f64,
    pub cold_start_s: f64,
    pub cost: Coefficients,
    pub kv_tokens: u64,
    pub price_per_hour_micros: Option<u64>,
    pub currency: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    pub policy: String,
    pub objectives_percent: f64,
    pub replica_hours: f64,
    pub cost_micros: Option<u64>,
    pub replicas_at_start: usize,
    pub most_replicas: usize,
    pub scale_outs: usize,
    pub scale_ins: usize,
    /// Requests that arrived while no replica served.
    pub held_at_zero: usize,
    /// Seconds; absent: that many were not served within an hour of the end.
    pub ttft_p50_s: Option<f64>,
    pub ttft_p99_s: Option<f64>,
}

impl Report {
    pub fn new(given: &Given, trace: &Trace, recordings: &[(Contender, Recording)]) -> Self {
        let product = recordings.first().map(|(_, recording)| recording);
        Self {
            deployment: given.name.clone(),
            trace: requests(trace),
            assumed: assumed(given),
            results: recordings.iter().map(|(contender, recording)| figures(given, *contender, recording)).collect(),
            series: product.map(|recording| thinned(&recording.samples, MAX_POINTS)).unwrap_or_default(),
            decisions: product.map(|recording| recording.decisions.clone()).unwrap_or_default(),
            frozen: product.and_then(|recording| recording.frozen.clone()),
            notes: given.notes.clone(),
        }
    }
}

fn requests(trace: &Trace) -> Requests {
    let arrivals = &trace.arrivals;
    let mean = |tokens: fn(&Arrival) -> u32| {
        arrivals.iter().map(|arrival| f64::from(tokens(arrival))).sum::<f64>() / arrivals.len().max(1) as f64
    };
    Requests {
        requests: arrivals.len(),
        seconds: arrivals.last().map_or(0.0, |arrival| arrival.at_s),
        mean_input_tokens: mean(|arrival| arrival.input_tokens),
        mean_output_tokens: mean(|arrival| arrival.output_tokens),
        starts_ms: trace.starts_ms,
    }
}

fn assumed(given: &Given) -> Assumed {
    let (protocol, subject) = (&given.scenario.protocol, &given.scenario.subject);
    Assumed {
        mode: subject.scaling.mode,
        min_replicas: subject.scaling.min_replicas,
        max_replicas: subject.scaling.max_replicas,
        replicas: subject.replicas,
        replica: given.slice(),
        ttft_ms: protocol.objective.ttft_ms,
        itl_ms: protocol.objective.itl_ms,
        cold_start_s: protocol.cold_start,
        cost: protocol.cost,
        kv_tokens: protocol.kv_capacity,
        price_per_hour_micros: given.price.as_ref().map(|(micros, _)| *micros),
        currency: given.price.as_ref().map(|(_, currency)| currency.clone()).unwrap_or_default(),
    }
}

fn figures(given: &Given, contender: Contender, recording: &Recording) -> Figures {
    let outcome = &recording.outcome;
    let served = |seconds: f64| (seconds < UNSERVED_S).then_some(seconds);
    let cost = given.price.as_ref().map(|(micros, _)| (*micros as f64 * outcome.replica_hours).round() as u64);
    Figures {
        policy: contender.to_string(),
        objectives_percent: outcome.slo_percent,
        replica_hours: outcome.replica_hours,
        cost_micros: cost,
        replicas_at_start: recording.start,
        most_replicas: outcome.peak,
        scale_outs: outcome.scale_outs,
        scale_ins: outcome.scale_ins,
        held_at_zero: outcome.held,
        ttft_p50_s: served(outcome.ttft_p50),
        ttft_p99_s: served(outcome.ttft_p99),
    }
}

/// At most so many samples, each for a stretch of equal length: the mean load, the most replicas, and of these the
/// fewest that served.
pub(super) fn thinned(samples: &[Sample], points: usize) -> Vec<Sample> {
    let points = points.min(samples.len());
    let stretch = |n: usize| &samples[n * samples.len() / points..(n + 1) * samples.len() / points];
    (0..points).filter_map(|n| merged(stretch(n))).collect()
}

fn merged(samples: &[Sample]) -> Option<Sample> {
    let replicas = samples.iter().map(|sample| sample.replicas).max()?;
    let at_most = samples.iter().filter(|sample| sample.replicas == replicas);
    Some(Sample {
        at_s: samples.last()?.at_s,
        load: samples.iter().map(|sample| sample.load).sum::<f64>() / samples.len() as f64,
        replicas,
        ready: at_most.map(|sample| sample.ready).min()?,
        queued: samples.iter().map(|sample| sample.queued).max()?,
    })
}

impl Report {
    /// Each figure of the policies: its name, and the text for each of them.
    pub fn rows(&self) -> Vec<(&'static str, Vec<String>)> {
        let all = |text: &dyn Fn(&Figures) -> String| self.results.iter().map(text).collect::<Vec<_>>();
        let mut rows = vec![
            ("objectives kept", all(&|f| format!("{:.1} %", f.objectives_percent))),
            ("replica-hours", all(&|f| format!("{:.2}", f.replica_hours))),
        ];
        if self.assumed.price_per_hour_micros.is_some() {
            let currency = &self.assumed.currency;
            let cost = |f: &Figures| f.cost_micros.map_or_else(String::new, render::price);
            rows.push(("cost", all(&|f| format!("{} {currency}", cost(f)).trim().to_owned())));
        }
        rows.extend([
            ("most replicas", all(&|f| f.most_replicas.to_string())),
            ("scale-outs", all(&|f| f.scale_outs.to_string())),
            ("scale-ins", all(&|f| f.scale_ins.to_string())),
            ("held at zero", all(&|f| f.held_at_zero.to_string())),
            ("TTFT median", all(&|f| latency(f.ttft_p50_s))),
            ("TTFT p99", all(&|f| latency(f.ttft_p99_s))),
        ]);
        rows
    }

    /// What was simulated: labels and text.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let Requests { requests, seconds, mean_input_tokens, mean_output_tokens, starts_ms: _ } = &self.trace;
        let rate = *requests as f64 / seconds.max(1.0);
        let a = &self.assumed;
        let bounds = match a.mode {
            ScalingMode::Manual => format!("Manual, {} replicas", a.replicas),
            _ => format!("Active, {} to {} replicas", a.min_replicas, a.max_replicas),
        };
        let start = self.results.first().map_or(0, |figures| figures.replicas_at_start);
        let price =
            a.price_per_hour_micros.map(|micros| format!(", {} {} per hour", render::price(micros), a.currency));
        let Coefficients { a: step, d, k, p } = a.cost;
        vec![
            (
                "trace",
                format!(
                    "{requests} requests in {}, {rate:.2} per second; on average {mean_input_tokens:.0} prompt and {mean_output_tokens:.0} answer tokens",
                    render::age((seconds * 1000.0) as u64)
                ),
            ),
            (
                "scaling",
                format!("{bounds} of {}{}; {start} at the start", a.replica, price.unwrap_or_default().trim_end()),
            ),
            ("objectives", format!("time to first token {}, between tokens {}", millis(a.ttft_ms), millis(a.itl_ms))),
            (
                "assumed",
                format!(
                    "cold start {}; a step takes {step} ms + {d} per sequence + {k} and {p} per 1,000 KV and prompt tokens; {} KV tokens",
                    render::age((a.cold_start_s * 1000.0) as u64),
                    a.kv_tokens
                ),
            ),
        ]
    }
}

fn millis(ms: f64) -> String {
    render::latency((ms * 1000.0).round() as u64)
}

fn latency(seconds: Option<f64>) -> String {
    seconds.map_or("not served".to_owned(), |s| render::latency((s * 1e6).round() as u64))
}

impl Report {
    /// Time of day on the clock of the trace, which starts at midnight where it has no dates; days from the second on.
    pub fn time(&self, at_s: f64) -> String {
        let start_s = self.trace.starts_ms.map_or(0, |ms| ms / 1000 % 86_400);
        let s = start_s + at_s.round() as u64;
        let (day, hour, minute, second) = (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60);
        let days = if day > 0 { format!("{day}d ") } else { String::new() };
        format!("{days}{hour:02}:{minute:02}:{second:02}")
    }
}
