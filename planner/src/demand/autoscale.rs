//! How many replicas the measured load needs, in `Active` and `Advisory` mode.
//!
//! Load is counted in engine-seconds per second, which is the number of replicas that would be busy
//! all the time. The rule forecasts it over the cold start, adds room for what varies,
//! reacts to a burst at once, adds what the backlog needs, and goes down only to the largest answer of
//! the hold window. The constants are one set; `docs/simulator.md` has the rule and its figures.
//!
//! [`wanted`] is a pure function: what must be remembered between two calls is a value, [`Memory`],
//! that the caller keeps. A caller without memory (it has just started) passes the default, and the
//! current count then stands for the hold window, so that a restart never scales in by itself.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use stowage_contracts::load::Coefficients;

/// Constants of the rule. Times are seconds, loads replicas that would be busy all the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Load per replica that is planned with, as a multiple of what the ITL objective allows. It may
    /// exceed 1, because the room below comes on top.
    pub density: f64,
    /// Replicas of room per square root of the planned load: a small load varies more for its size.
    pub room: f64,
    /// Window whose mean is the level of the load.
    pub level_window: f64,
    /// Window that shows a burst, and the multiple of the level that makes it one.
    pub burst_window: f64,
    /// As above.
    pub burst_factor: f64,
    /// Weight of the trend, and the longest time over which it is continued.
    pub trend_weight: f64,
    /// As above.
    pub trend_limit: f64,
    /// Shortest hold window before a scale-in; longer when a cold start takes longer.
    pub hold: f64,
    /// Shortest time in which a backlog may be worked off; longer when a cold start takes longer.
    pub drain: f64,
}

impl Rule {
    /// What runs unless a deployment asks for more room.
    pub const STANDARD: Self = Self {
        density: 1.25,
        room: 1.45,
        level_window: 30.0,
        burst_window: 5.0,
        burst_factor: 2.0,
        trend_weight: 0.3,
        trend_limit: 180.0,
        hold: 60.0,
        drain: 30.0,
    };
    /// For objectives that must hold through bursts.
    pub const TIGHT: Self = Self { room: 2.2, ..Self::STANDARD };
}

/// What a deployment promises its clients. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// Time to first token.
    pub ttft_ms: f64,
    /// Mean time between two tokens.
    pub itl_ms: f64,
}

/// What was measured since the last call, and now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Seconds on any clock that does not go back.
    pub at: f64,
    /// Seconds since the call before.
    pub interval: f64,
    /// Requests that arrived in the interval.
    pub arrivals: u64,
    /// Their prompt tokens that no prefix cache held.
    pub input_tokens: u64,
    /// Mean tokens of recent answers; 0 is unknown.
    pub mean_output_tokens: f64,
    /// Prompt tokens in the gateways' queues.
    pub queued_tokens: u64,
    /// Prompt tokens that engines have accepted and not computed.
    pub unprefilled_tokens: u64,
    /// Replicas that serve.
    pub ready: u32,
    /// Replicas that serve or start.
    pub count: u32,
    /// Ready replicas whose KV cache is more than nine tenths reserved.
    pub kv_bound: u32,
    /// Of one replica.
    pub cost: Coefficients,
    /// Seconds from a decision to a serving replica.
    pub cold_start: f64,
}

/// The answer, with what it was made of. Loads are replicas that would be busy all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Replicas to have, starting ones included.
    pub replicas: u32,
    /// Replicas that the load alone needs now, before the hold window and the bounds.
    pub needed: u32,
    /// Offered load of the interval.
    pub offered: f64,
    /// Forecast over the cold start.
    pub forecast: f64,
    /// Replicas of room for what varies.
    pub room: f64,
    /// The burst window's load, if it is a burst.
    pub burst: Option<f64>,
    /// Seconds of work that is late.
    pub backlog: f64,
    /// Load per replica that is planned with.
    pub load_per_replica: f64,
    /// The hold window keeps more replicas than needed.
    pub held: bool,
}

/// Why the count stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Frozen {
    /// A figure is not a number, negative or beyond anything a GPU can do.
    AbsurdSignals,
    /// The clock did not advance.
    ClockBack,
    /// The cost of a token is not known yet.
    CostUnknown,
    /// One replica alone is slower than the ITL objective, whatever the load.
    ObjectiveTooTight,
}

/// What the rule remembers between two calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Offered load per interval, within the level window: (at, load).
    offered: VecDeque<(f64, f64)>,
    level: Option<f64>,
    trend: f64,
    /// Answers within the hold window: (at, replicas).
    answers: VecDeque<(f64, u32)>,
    last: Option<f64>,
}

/// Time constants of the smoothed load and its trend.
const LEVEL_SECONDS: f64 = 60.0;
const TREND_SECONDS: f64 = 300.0;
/// Below this level a burst is measured against it: from almost nothing everything would be one.
const LEAST_LEVEL: f64 = 0.1;
/// Beyond this an offered load is taken for a broken counter.
const ABSURD_LOAD: f64 = 1e6;

/// Decides once. The memory is brought up to date unless the answer is [`Frozen`].
pub fn wanted(
    memory: &mut Memory,
    measured: &Measured,
    objective: Objective,
    (min, max): (u32, u32),
    rule: &Rule,
) -> Result<Wanted, Frozen> {
    let capacity = capacity(measured, objective)?;
    let offered = offered(measured)?;
    if memory.last.is_some_and(|last| measured.at <= last) {
        return Err(Frozen::ClockBack);
    }
    let load = memory.follow(measured, offered, rule);
    let backlog = backlog(measured, objective);
    let per_replica = rule.density * capacity;
    let planned = load.forecast.max(load.burst.unwrap_or(0.0));
    let room = rule.room * planned.sqrt();
    let late = backlog / rule.drain.max(measured.cold_start);
    let kv_bound = measured.ready > 0 && measured.kv_bound >= measured.ready;
    let needed = (planned / per_replica + room + late).ceil() as u32 + u32::from(kv_bound);
    let held = memory.hold(measured, needed, rule);
    let replicas = if needed >= measured.count { needed } else { held.min(measured.count) };
    Ok(Wanted {
        replicas: replicas.max(min).min(max.max(min)),
        needed,
        offered,
        forecast: load.forecast,
        room,
        burst: load.burst,
        backlog,
        load_per_replica: per_replica,
        held: replicas > needed,
    })
}

/// Load that one replica can carry within the ITL objective, 0 to 1.
fn capacity(measured: &Measured, objective: Objective) -> Result<f64, Frozen> {
    let Coefficients { a, d, k, p } = measured.cost;
    let figures = [a, d, k, p, objective.ttft_ms, objective.itl_ms, measured.cold_start, measured.mean_output_tokens];
    if figures.iter().any(|figure| !figure.is_finite() || *figure < 0.0) || !measured.at.is_finite() {
        return Err(Frozen::AbsurdSignals);
    }
    if a == 0.0 || p == 0.0 || objective.itl_ms == 0.0 {
        return Err(Frozen::CostUnknown);
    }
    let capacity = 1.0 - a / objective.itl_ms;
    if capacity <= 0.0 { Err(Frozen::ObjectiveTooTight) } else { Ok(capacity) }
}

/// Engine-seconds per second that arrived in the interval.
fn offered(measured: &Measured) -> Result<f64, Frozen> {
    if !measured.interval.is_finite() || measured.interval <= 0.0 {
        return Err(Frozen::ClockBack);
    }
    let Coefficients { d, k, p, .. } = measured.cost;
    let (requests, output) = (measured.arrivals as f64, measured.mean_output_tokens);
    let input = measured.input_tokens as f64;
    let prefill = input * p / 1000.0;
    let decode = output * (requests * d + k * (input + requests * output / 2.0) / 1000.0);
    let load = (prefill + decode) / 1000.0 / measured.interval;
    if load.is_finite() && load <= ABSURD_LOAD { Ok(load) } else { Err(Frozen::AbsurdSignals) }
}

/// Seconds of prefill that the TTFT objective does not cover.
fn backlog(measured: &Measured, objective: Objective) -> f64 {
    let tokens = measured.queued_tokens.saturating_add(measured.unprefilled_tokens) as f64;
    let work = tokens * measured.cost.p / 1e6;
    (work - f64::from(measured.ready) * objective.ttft_ms / 1000.0 / 2.0).max(0.0)
}

struct Followed {
    forecast: f64,
    burst: Option<f64>,
}

impl Memory {
    fn follow(&mut self, measured: &Measured, offered: f64, rule: &Rule) -> Followed {
        let (at, interval) = (measured.at, measured.interval);
        self.last = Some(at);
        self.offered.push_back((at, offered));
        forget(&mut self.offered, at - rule.level_window);
        let level = mean(self.offered.iter().map(|(_, load)| *load));
        let recent = self.offered.iter().filter(|(when, _)| *when > at - rule.burst_window);
        let recent = mean(recent.map(|(_, load)| *load));
        self.follow_trend(offered, level, interval);
        let horizon = measured.cold_start + interval;
        let forecast = level.max(level + rule.trend_weight * self.trend * horizon.min(rule.trend_limit));
        let burst = (recent > rule.burst_factor * level.max(LEAST_LEVEL)).then_some(recent);
        Followed { forecast, burst }
    }

    /// Holt's linear trend of the offered load.
    fn follow_trend(&mut self, offered: f64, start: f64, interval: f64) {
        let before = self.level.unwrap_or(start);
        let weight = 1.0 - (-interval / LEVEL_SECONDS).exp();
        let level = weight * offered + (1.0 - weight) * (before + self.trend * interval);
        let weight = 1.0 - (-interval / TREND_SECONDS).exp();
        self.trend = weight * ((level - before) / interval) + (1.0 - weight) * self.trend;
        self.level = Some(level);
    }

    /// The largest answer of the hold window, this one included.
    fn hold(&mut self, measured: &Measured, needed: u32, rule: &Rule) -> u32 {
        if self.answers.is_empty() {
            self.answers.push_back((measured.at, measured.count));
        }
        self.answers.push_back((measured.at, needed));
        forget(&mut self.answers, measured.at - rule.hold.max(measured.cold_start));
        self.answers.iter().map(|(_, replicas)| *replicas).max().unwrap_or(needed)
    }
}

fn forget<T>(window: &mut VecDeque<(f64, T)>, before: f64) {
    while window.front().is_some_and(|(at, _)| *at < before) {
        window.pop_front();
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}
