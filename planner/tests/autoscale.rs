//! The autoscaling rule, one sentence a test. One replica of these tests carries 0.78 of its time.

#![allow(clippy::unwrap_used)]

use stowage_contracts::load::Coefficients;
use stowage_planner::demand::autoscale::{Measured, Wanted, wanted};
use stowage_planner::demand::{Frozen, Problem, Signal};
use stowage_planner::snapshot::{History, Memory, Objectives, Rule};

const OBJECTIVES: Objectives = Objectives { ttft_ms: 2000.0, itl_ms: 50.0 };
const TICK: f64 = 5.0;

/// Requests of 1,000 prompt and 200 answer tokens at `rate` a second, met by `count` ready replicas.
fn measured(at: f64, rate: f64, count: u32) -> Measured {
    let arrivals = (rate * TICK).round() as u64;
    Measured {
        at,
        interval: TICK,
        arrivals,
        sequences: arrivals,
        input_tokens: arrivals * 1000,
        mean_output_tokens: 200.0,
        queued_tokens: 0,
        unprefilled_tokens: 0,
        ready: count,
        count,
        kv_bound: 0,
        kv_used: 0.0,
        history: None,
        cost: Coefficients { a: 11.0, d: 0.05, k: 0.03, p: 45.0 },
        cold_start: 60.0,
    }
}

fn decide(memory: &mut Memory, measured: &Measured) -> Result<Wanted, Frozen> {
    wanted(memory, measured, OBJECTIVES, &Rule::STANDARD)
}

/// Follows the rule for `seconds` from `start`, and returns the count at each tick.
fn follow(memory: &mut Memory, start: f64, seconds: f64, mut count: u32, rate: impl Fn(f64) -> f64) -> Vec<u32> {
    let ticks = (seconds / TICK) as u32;
    let counts = (1..=ticks).map(|tick| {
        let at = start + f64::from(tick) * TICK;
        count = decide(memory, &measured(at, rate(at), count)).unwrap().replicas;
        count
    });
    counts.collect()
}

#[test]
fn steady_load_keeps_a_steady_count_that_can_carry_it() {
    let counts = follow(&mut Memory::default(), 0.0, 600.0, 5, |_| 30.0);
    let offered = decide(&mut Memory::default(), &measured(5.0, 30.0, 5)).unwrap().offered;
    let last = counts[counts.len() - 1];
    assert!(counts[20..].iter().all(|count| *count == last), "{counts:?}");
    assert!(f64::from(last) * 0.78 > offered, "{last} replicas for {offered}");
}

#[test]
fn burst_is_answered_at_the_first_tick_that_shows_it() {
    let mut memory = Memory::default();
    let before = *follow(&mut memory, 0.0, 300.0, 5, |_| 20.0).last().unwrap();
    let answer = decide(&mut memory, &measured(305.0, 100.0, before)).unwrap();
    assert!(answer.burst.is_some() && answer.replicas >= 2 * before, "{before} before, {answer:?}");
}

#[test]
fn count_goes_down_only_after_the_hold_window() {
    let mut memory = Memory::default();
    let before = *follow(&mut memory, 0.0, 300.0, 5, |_| 60.0).last().unwrap();
    let counts = follow(&mut memory, 300.0, 300.0, before, |_| 5.0);
    let hold = (Rule::STANDARD.hold / TICK) as usize;
    assert!(counts[..hold].iter().all(|count| *count == before), "{counts:?}");
    assert!(*counts.last().unwrap() < before, "{counts:?}");
}

#[test]
fn spike_that_is_no_burst_takes_no_replica_away_that_it_needs() {
    let mut memory = Memory::default();
    follow(&mut memory, 0.0, 295.0, 14, |_| 98.0);
    let answer = decide(&mut memory, &measured(300.0, 156.0, 14)).unwrap();
    assert!(answer.burst.is_none() && answer.needed < 13, "{answer:?}");
    assert_eq!((answer.running, answer.replicas), (13, 13));
}

#[test]
fn restart_does_not_scale_in_by_itself() {
    let answer = decide(&mut Memory::default(), &measured(5.0, 1.0, 9)).unwrap();
    assert_eq!((answer.replicas, answer.held.0), (9, 9));
}

#[test]
fn backlog_adds_replicas_beyond_what_the_ttft_objective_covers() {
    let with = |queued_tokens| {
        let measured = Measured { queued_tokens, ..measured(5.0, 20.0, 3) };
        decide(&mut Memory::default(), &measured).unwrap()
    };
    assert_eq!(with(60_000).backlog, 0.0);
    assert!(with(6_000_000).needed > with(0).needed);
}

#[test]
fn one_more_replica_is_wanted_when_all_are_bound_by_their_kv_cache() {
    let with =
        |kv_bound| decide(&mut Memory::default(), &Measured { kv_bound, ..measured(5.0, 20.0, 3) }).unwrap().needed;
    assert_eq!((with(2), with(3)), (with(0), with(0) + 1));
}

#[test]
fn as_many_replicas_stay_as_the_kv_caches_in_use_need() {
    let needed = |kv_used| {
        let mut memory = Memory::default();
        decide(&mut memory, &Measured { kv_used, ..measured(5.0, 0.0, 9) }).unwrap().needed
    };
    assert_eq!((needed(0.0), needed(0.9), needed(4.0)), (0, 1, 5));
}

#[test]
fn large_load_gets_at_least_what_its_objective_allows_per_replica() {
    let answer = decide(&mut Memory::default(), &measured(5.0, 1500.0, 9)).unwrap();
    assert!(answer.offered > 60.0 && f64::from(answer.needed) * 0.78 >= answer.offered, "{answer:?}");
}

#[test]
fn interval_that_was_counted_is_not_counted_again() {
    let mut memory = Memory::default();
    follow(&mut memory, 0.0, 60.0, 5, |_| 20.0);
    let next = measured(65.0, 80.0, 5);
    let first = decide(&mut memory, &next).unwrap();
    let remembered = memory.clone();
    for _ in 0..5 {
        assert_eq!(decide(&mut memory, &next).unwrap(), first);
    }
    assert_eq!(memory, remembered);
}

#[test]
fn each_sequence_of_a_request_makes_an_answer() {
    let of = |times: u64| {
        let one = measured(5.0, 20.0, 5);
        decide(&mut Memory::default(), &Measured { sequences: times * one.arrivals, ..one }).unwrap().offered
    };
    // 20 requests a second with answers of 200 tokens: 0.05 ms each, and what they read of the KV cache.
    assert!((of(4) - of(1) - 3.0 * 20.0 * 200.0 * 0.05 / 1000.0) > 0.0, "{} {}", of(4), of(1));
}

#[test]
fn mean_is_over_time_whatever_the_length_of_the_intervals() {
    let level = |lengths: &[f64]| {
        let (mut memory, mut at, mut answer) = (Memory::default(), 0.0, Wanted::default());
        for interval in lengths {
            at += interval;
            let arrivals = (20.0 * interval).round() as u64;
            let (sequences, input_tokens) = (arrivals, arrivals * 1000);
            let measured = Measured { interval: *interval, arrivals, sequences, input_tokens, ..measured(at, 0.0, 5) };
            answer = decide(&mut memory, &measured).unwrap();
        }
        answer
    };
    let (even, uneven) = (level(&[5.0; 6]), level(&[1.0, 9.0, 2.0, 8.0, 5.0, 5.0]));
    assert!((even.forecast - uneven.forecast).abs() < 1e-9, "{even:?} {uneven:?}");
}

#[test]
fn load_that_grew_at_this_minute_of_two_earlier_days_is_expected_to_grow() {
    let forecast = |now, ahead, periods| {
        let history = Some(History { now, ahead, periods });
        decide(&mut Memory::default(), &Measured { history, ..measured(5.0, 20.0, 5) }).unwrap().forecast
    };
    let level = forecast(0.0, 9.0, 7);
    assert_eq!(forecast(2.0, 3.0, 1), level, "one day is not enough");
    assert_eq!(forecast(2.0, 1.0, 2), level, "a load that fell is no reason to have less");
    assert!((forecast(2.0, 3.0, 2) / level - 1.5).abs() < 1e-9);
    assert!((forecast(2.0, 90.0, 2) / level - 2.0).abs() < 1e-9, "at most twice");
}

#[test]
fn clock_that_was_set_back_freezes_once_and_restarts_the_memory() {
    let mut memory = Memory::default();
    follow(&mut memory, 7200.0, 300.0, 5, |_| 20.0);
    let back = measured(3600.0, 1.0, 9);
    let problem = decide(&mut memory, &back).unwrap_err().problem;
    assert_eq!(problem, Problem::ClockBack { by_ms: 3_900_000 });
    let answer = decide(&mut memory, &measured(3605.0, 1.0, 9)).unwrap();
    assert_eq!((answer.replicas, answer.held.0), (9, 9), "as after a restart");
}

#[test]
fn absurd_signals_freeze_the_count_and_leave_the_memory_alone() {
    let good = measured(10.0, 20.0, 3);
    let cost = |a| Coefficients { a, ..good.cost };
    let history = |now| Some(History { now, ahead: 1.0, periods: 2 });
    let cases = [
        (Measured { mean_output_tokens: f64::NAN, ..good }, Signal::Gateway, Problem::NotANumber),
        (Measured { mean_output_tokens: -1.0, ..good }, Signal::Gateway, Problem::NotANumber),
        (Measured { at: f64::INFINITY, ..good }, Signal::Gateway, Problem::NotANumber),
        (Measured { input_tokens: u64::MAX, sequences: u64::MAX, ..good }, Signal::Gateway, Problem::Absurd),
        (Measured { queued_tokens: u64::MAX, ..good }, Signal::Gateway, Problem::Absurd),
        (Measured { interval: 0.0, ..good }, Signal::Gateway, Problem::Interval { length_ms: 0 }),
        (Measured { interval: f64::NAN, ..good }, Signal::Gateway, Problem::Interval { length_ms: 0 }),
        (Measured { interval: 3600.0, ..good }, Signal::Gateway, Problem::Interval { length_ms: 3_600_000 }),
        (Measured { at: 4.0, ..good }, Signal::Gateway, Problem::ClockBack { by_ms: 1000 }),
        (Measured { cost: cost(0.0), ..good }, Signal::Cost, Problem::Missing),
        (Measured { cost: cost(f64::NAN), ..good }, Signal::Cost, Problem::NotANumber),
        (Measured { cost: cost(50.0), ..good }, Signal::Objectives, Problem::TooTight),
        (Measured { kv_used: f64::NAN, ..good }, Signal::Engines, Problem::NotANumber),
        (Measured { history: history(f64::NAN), ..good }, Signal::History, Problem::NotANumber),
    ];
    for (bad, signal, problem) in cases {
        let want = Frozen { signal, problem };
        let mut memory = Memory::default();
        decide(&mut memory, &measured(5.0, 20.0, 3)).unwrap();
        let before = memory.clone();
        assert_eq!(decide(&mut memory, &bad), Err(want), "{bad:?}");
        assert_eq!(memory, before, "{bad:?}");
    }
}

#[test]
fn memory_survives_being_written_and_read() {
    let mut memory = Memory::default();
    follow(&mut memory, 0.0, 100.0, 5, |at| 20.0 + at);
    let mut read: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
    let next = measured(105.0, 50.0, 5);
    assert_eq!(decide(&mut read, &next), decide(&mut memory, &next));
}
