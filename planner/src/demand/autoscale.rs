//! How many replicas the measured load needs, in `Active` and `Advisory` mode.
//!
//! Load is counted in engine-seconds per second, which is the number of replicas that would be busy
//! all the time. The rule forecasts it over the cold start, adds room for what varies,
//! reacts to a burst at once, adds what the backlog needs, and goes down only to the largest answer of
//! the hold window. The constants are one set; `docs/simulator.md` has the rule and its figures.
//!
//! [`wanted`] is a pure function: what must be remembered between two calls is a value, [`Memory`],
//! that the caller keeps.

use stowage_contracts::load::Coefficients;

use crate::demand::CLOCK_WAS_SET_MS;
use crate::demand::verdict::{Frozen, Problem, Signal};
use crate::snapshot::{Followed, History, Memory, Objectives, Offered, Rule};

/// What was measured since the last call, and now. Times are seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// End of the interval, on any clock that does not go back.
    pub at: f64,
    /// Its length.
    pub interval: f64,
    /// Requests that arrived in the interval.
    pub arrivals: u64,
    /// Sequences that they ask for.
    pub sequences: u64,
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
    /// KV cache in use, in caches of one replica.
    pub kv_used: f64,
    /// Of one replica.
    pub cost: Coefficients,
    /// From a decision to a serving replica.
    pub cold_start: f64,
    /// Of earlier days or weeks.
    pub history: Option<History>,
}

/// The answer, with what it was made of. Loads are replicas that would be busy all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Replicas to have, starting ones included, before the bounds.
    pub replicas: u32,
    /// Replicas that the load alone needs now, before the hold window.
    pub needed: u32,
    /// Replicas below which no scale-in goes, because the load of the last interval needs them.
    pub running: u32,
    /// Offered load of the interval.
    pub offered: f64,
    /// Forecast over the cold start.
    pub forecast: f64,
    /// By how much the load grew then on earlier days; 1: not known, or it did not.
    pub growth: f64,
    /// Replicas of room for what varies.
    pub room: f64,
    /// The burst window's load, if it is a burst.
    pub burst: Option<f64>,
    /// Seconds of work that is late.
    pub backlog: f64,
    /// One more, because every KV cache is full, or as many as the KV caches in use need.
    pub kv_bound: bool,
    /// Load per replica that is planned with.
    pub load_per_replica: f64,
    /// The hold window's largest answer, and when it leaves the window.
    pub held: (u32, f64),
}

/// Time constants of the smoothed load and its trend.
const LEVEL_SECONDS: f64 = 60.0;
const TREND_SECONDS: f64 = 300.0;
/// Below this level a burst is measured against it: from almost nothing everything would be one.
const LEAST_LEVEL: f64 = 0.1;
/// Beyond this an offered load is taken for a broken counter.
const ABSURD_LOAD: f64 = 1e6;
/// The same for the seconds of work that wait.
const ABSURD_WORK: f64 = 1e8;
/// Longest interval whose mean is taken for the present load.
const LONGEST_INTERVAL: f64 = 60.0;
/// Share of a KV cache that may be in use.
const KV_LIMIT: f64 = 0.9;
/// Tokens of an answer until one has ended: the mean of the public conversation trace.
pub(super) const ASSUMED_OUTPUT: f64 = 211.0;
/// Days or weeks that a history must hold, and the most that it may multiply the load by.
const LEAST_PERIODS: u32 = 2;
const MOST_GROWTH: f64 = 2.0;

/// Decides once. The memory is brought up to date unless the answer is [`Frozen`]; an interval that it
/// has already counted is not counted again.
pub fn wanted(memory: &mut Memory, measured: &Measured, objectives: Objectives, rule: &Rule) -> Result<Wanted, Frozen> {
    let capacity = capacity(measured, objectives)?;
    let offered = offered(measured)?;
    let growth = growth(measured.history)?;
    let backlog = backlog(measured, objectives)?;
    memory.is_next(measured)?;
    let load = memory.follow(measured, offered, growth, rule);
    let per_replica = rule.density * capacity;
    let planned = load.forecast.max(load.burst.unwrap_or(0.0));
    let room = rule.room * planned.sqrt() + rule.spread * load.spread;
    let late = backlog / rule.drain.max(measured.cold_start);
    // However large the room is meant to be: never more load on a replica than its objective allows.
    let by_load = whole((planned / per_replica + room).max(planned / capacity) + late);
    let full = measured.ready > 0 && measured.kv_bound >= measured.ready;
    let by_kv = whole(measured.kv_used / KV_LIMIT).max(if full { by_load.saturating_add(1) } else { 0 });
    let needed = by_load.max(by_kv);
    let held = memory.hold(measured, needed, rule);
    // A spike that is no burst adds nothing, and takes nothing away either.
    let running = whole(offered / capacity);
    let kept = held.0.max(running).min(measured.count);
    Ok(Wanted {
        replicas: if needed >= measured.count { needed } else { kept },
        needed,
        running,
        offered,
        forecast: load.forecast,
        growth,
        room,
        burst: load.burst,
        backlog,
        kv_bound: by_kv > by_load,
        load_per_replica: per_replica,
        held,
    })
}

/// Rounded up, unless what is above a whole number is a rounding error itself.
fn whole(replicas: f64) -> u32 {
    (replicas - 1e-6).ceil().max(0.0) as u32
}

/// Load that one replica can carry within the ITL objective, 0 to 1.
fn capacity(measured: &Measured, objectives: Objectives) -> Result<f64, Frozen> {
    let Coefficients { a, d, k, p } = measured.cost;
    are_numbers(Signal::Objectives, &[objectives.ttft_ms, objectives.itl_ms])?;
    are_numbers(Signal::Cost, &[a, d, k, p])?;
    are_numbers(Signal::Gateway, &[measured.mean_output_tokens, measured.at])?;
    are_numbers(Signal::Engines, &[measured.kv_used, measured.cold_start])?;
    if a == 0.0 || p == 0.0 {
        return Err(Frozen { signal: Signal::Cost, problem: Problem::Missing });
    }
    let capacity = 1.0 - a / objectives.itl_ms;
    let too_tight = Frozen { signal: Signal::Objectives, problem: Problem::TooTight };
    if capacity > 0.0 { Ok(capacity) } else { Err(too_tight) }
}

fn are_numbers(signal: Signal, figures: &[f64]) -> Result<(), Frozen> {
    let is_number = |figure: &f64| figure.is_finite() && *figure >= 0.0;
    if figures.iter().all(is_number) { Ok(()) } else { Err(Frozen { signal, problem: Problem::NotANumber }) }
}

/// Engine-seconds per second that arrived in the interval. Each sequence reads its part of the input: several choices of
/// one prompt read all of it, which is more than is counted here.
fn offered(measured: &Measured) -> Result<f64, Frozen> {
    let interval = measured.interval;
    if !interval.is_finite() || interval <= 0.0 || interval > LONGEST_INTERVAL {
        let length_ms = (interval * 1000.0) as u64;
        return Err(Frozen { signal: Signal::Gateway, problem: Problem::Interval { length_ms } });
    }
    let Coefficients { d, k, p, .. } = measured.cost;
    let known = measured.mean_output_tokens;
    let (sequences, output) = (measured.sequences as f64, if known > 0.0 { known } else { ASSUMED_OUTPUT });
    let input = measured.input_tokens as f64;
    let prefill = input * p / 1000.0;
    let decode = output * (sequences * d + k * (input + sequences * output / 2.0) / 1000.0);
    let load = (prefill + decode) / 1000.0 / interval;
    let absurd = Frozen { signal: Signal::Gateway, problem: Problem::Absurd };
    if load.is_finite() && load <= ABSURD_LOAD { Ok(load) } else { Err(absurd) }
}

/// By how much the load grew over a cold start at this minute of earlier days or weeks; 1: not known.
fn growth(history: Option<History>) -> Result<f64, Frozen> {
    let Some(History { now, ahead, periods }) = history else { return Ok(1.0) };
    are_numbers(Signal::History, &[now, ahead])?;
    if periods < LEAST_PERIODS || now == 0.0 { Ok(1.0) } else { Ok((ahead / now).clamp(1.0, MOST_GROWTH)) }
}

/// Seconds of prefill that the TTFT objective does not cover.
fn backlog(measured: &Measured, objectives: Objectives) -> Result<f64, Frozen> {
    let tokens = measured.queued_tokens.saturating_add(measured.unprefilled_tokens) as f64;
    let work = tokens * measured.cost.p / 1e6;
    if work > ABSURD_WORK {
        return Err(Frozen { signal: Signal::Gateway, problem: Problem::Absurd });
    }
    Ok((work - f64::from(measured.ready) * objectives.ttft_ms / 1000.0 / 2.0).max(0.0))
}

impl Memory {
    /// Refuses an interval that ends before the last one. A clock that was set back restarts the memory.
    fn is_next(&mut self, measured: &Measured) -> Result<(), Frozen> {
        let back = self.last.map_or(0.0, |last| last - measured.at);
        if back <= 0.0 {
            return Ok(());
        }
        // The memory before is of no use.
        if back * 1000.0 > CLOCK_WAS_SET_MS as f64 {
            self.restart();
        }
        Err(Frozen { signal: Signal::Gateway, problem: Problem::ClockBack { by_ms: (back * 1000.0) as u64 } })
    }

    /// Forgets what was measured of the load, as after a restart, and keeps the count and what was learnt.
    fn restart(&mut self) {
        let Memory { target, gaps, fits, .. } = std::mem::take(self);
        *self = Memory { target, gaps, fits, ..Memory::default() };
    }

    fn follow(&mut self, measured: &Measured, offered: f64, growth: f64, rule: &Rule) -> Followed {
        let (at, interval) = (measured.at, measured.interval);
        if self.last == Some(at) {
            return self.followed;
        }
        self.last = Some(at);
        self.offered.push_back(Offered { at, interval, load: offered });
        while self.offered.front().is_some_and(|o| o.at < at - rule.level_window) {
            self.offered.pop_front();
        }
        let level = mean(self.offered.iter());
        let last = |window: f64| mean(self.offered.iter().filter(|o| o.at > at - window));
        let (recent, varies) = (last(rule.burst_window), last(rule.spread_of));
        self.follow_trend(offered, level, interval);
        let horizon = (measured.cold_start + interval).min(rule.trend_limit);
        let forecast = level.max(level + rule.trend_weight * self.trend * horizon).max(level * growth);
        // Exactly so many times the level is no burst, however the last digit was rounded.
        let limit = rule.burst_factor * level.max(LEAST_LEVEL) * (1.0 + 1e-9);
        let burst = (recent > limit).then_some(recent);
        let spread = self.follow_spread(varies - level, interval, rule);
        self.followed = Followed { offered, forecast, burst, spread };
        self.followed
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

    /// How far the load rises above its level: the root of the mean square.
    fn follow_spread(&mut self, above: f64, interval: f64, rule: &Rule) -> f64 {
        let keep = (-interval / rule.spread_window.max(interval)).exp();
        self.variance = keep * self.variance + (1.0 - keep) * above.max(0.0).powi(2);
        self.variance.sqrt()
    }

    /// The largest answer of the hold window, this one included, and when it leaves the window.
    fn hold(&mut self, measured: &Measured, needed: u32, rule: &Rule) -> (u32, f64) {
        let (at, window) = (measured.at, rule.hold.max(measured.cold_start));
        while self.answers.front().is_some_and(|(when, _)| *when < at - window) {
            self.answers.pop_front();
        }
        if self.answers.is_empty() {
            self.answers.push_back((at, measured.count));
        }
        // An answer that is followed by a larger one is never the largest again.
        while self.answers.back().is_some_and(|(_, replicas)| *replicas <= needed) {
            self.answers.pop_back();
        }
        self.answers.push_back((at, needed));
        self.answers.front().map_or((needed, at), |(when, replicas)| (*replicas, when + window))
    }
}

/// Over time, so that intervals of different length count for what they are.
fn mean<'a>(loads: impl Iterator<Item = &'a Offered>) -> f64 {
    let (sum, time) = loads.fold((0.0, 0.0), |(sum, time), o| (sum + o.load * o.interval, time + o.interval));
    if time > 0.0 { sum / time } else { 0.0 }
}
