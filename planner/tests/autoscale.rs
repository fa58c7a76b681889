//! The autoscaling rule, one sentence a test. One replica of these tests carries 0.78 of its time.

#![allow(clippy::unwrap_used)]

use stowage_contracts::load::Coefficients;
use stowage_planner::demand::autoscale::{Frozen, Measured, Memory, Objective, Rule, Wanted, wanted};

const OBJECTIVE: Objective = Objective { ttft_ms: 2000.0, itl_ms: 50.0 };
const TICK: f64 = 5.0;

/// Requests of 1,000 prompt and 200 answer tokens at `rate` a second, met by `count` ready replicas.
fn measured(at: f64, rate: f64, count: u32) -> Measured {
    let arrivals = (rate * TICK).round() as u64;
    Measured {
        at,
        interval: TICK,
        arrivals,
        input_tokens: arrivals * 1000,
        mean_output_tokens: 200.0,
        queued_tokens: 0,
        unprefilled_tokens: 0,
        ready: count,
        count,
        kv_bound: 0,
        cost: Coefficients { a: 11.0, d: 0.05, k: 0.03, p: 45.0 },
        cold_start: 60.0,
    }
}

fn decide(memory: &mut Memory, measured: &Measured) -> Result<Wanted, Frozen> {
    wanted(memory, measured, OBJECTIVE, (1, 100), &Rule::STANDARD)
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
fn restart_does_not_scale_in_by_itself() {
    let answer = decide(&mut Memory::default(), &measured(5.0, 1.0, 9)).unwrap();
    assert_eq!((answer.replicas, answer.held), (9, true));
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
fn answer_stays_within_the_bounds() {
    let bounded = |bounds, rate| {
        wanted(&mut Memory::default(), &measured(5.0, rate, 1), OBJECTIVE, bounds, &Rule::STANDARD).unwrap().replicas
    };
    assert_eq!((bounded((2, 4), 0.0), bounded((1, 4), 500.0)), (2, 4));
}

#[test]
fn absurd_signals_freeze_the_count_and_leave_the_memory_alone() {
    let good = measured(10.0, 20.0, 3);
    let cost = |a| Coefficients { a, ..good.cost };
    let cases = [
        (Measured { mean_output_tokens: f64::NAN, ..good }, Frozen::AbsurdSignals),
        (Measured { mean_output_tokens: -1.0, ..good }, Frozen::AbsurdSignals),
        (Measured { at: f64::INFINITY, ..good }, Frozen::AbsurdSignals),
        (Measured { input_tokens: u64::MAX, arrivals: u64::MAX, ..good }, Frozen::AbsurdSignals),
        (Measured { interval: 0.0, ..good }, Frozen::ClockBack),
        (Measured { interval: f64::NAN, ..good }, Frozen::ClockBack),
        (Measured { at: 4.0, ..good }, Frozen::ClockBack),
        (Measured { cost: cost(0.0), ..good }, Frozen::CostUnknown),
        (Measured { cost: cost(50.0), ..good }, Frozen::ObjectiveTooTight),
    ];
    for (bad, want) in cases {
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
