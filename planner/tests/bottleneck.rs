//! What limits a deployment, from a minute of equal signals each. `simulator/tests/bottlenecks.rs` has signals that vary.
#![allow(clippy::unwrap_used)]

mod common;

use common::{NOW, scaling::counted};
use stowage_planner::demand::bottleneck::{Bottleneck, FaultyGpus, Means, RequestStage, Suggestion, Verdict};
use stowage_planner::snapshot::*;

/// Signals of the same kind, interval by interval. The objectives are 2 s and 50 ms, the cost is the reference row's, and
/// a request has a prompt of 1,000 tokens and an answer of 200.
#[derive(Clone, Copy)]
struct Traffic {
    rate: u64,
    queued: u64,
    /// On each Ready replica.
    running: u32,
    unprefilled: u64,
    /// Replicas whose KV cache is full.
    kv_bound: u32,
}

const QUIET: Traffic = Traffic { rate: 8, queued: 0, running: 12, unprefilled: 200, kv_bound: 0 };

const TWO: &str = "class h100\nnode n1 gpu=h100*8\ntenant t ns=t h100=8\ndeployment t/chat want=2 ask=h100*1\n\
    scale t/chat Advisory ttft=2000 itl=50\ncost t/chat only fitted\n\
    replica t/chat 0 n1 0 ready\nreplica t/chat 1 n1 1 ready";

/// After a minute, but for what `change` makes of the deployment each time.
fn verdict(world: &str, traffic: Traffic, change: impl Fn(&mut Deployment)) -> Verdict {
    let mut s = common::parse(world);
    let faulty = FaultyGpus::of(&s.nodes);
    let mut means = Means::since(NOW - 55_000);
    let mut found = Verdict::TooEarly;
    for tick in (0..12).rev() {
        let now = NOW - tick * 5_000;
        let d = &mut *s.deployments[0];
        d.signals.gateway = Some(counted(now, traffic.rate, traffic.queued, 0));
        d.signals.engines = Some(EngineSignals {
            at_ms: now,
            unprefilled_tokens: traffic.unprefilled,
            kv_bound: traffic.kv_bound,
            ..EngineSignals::default()
        });
        d.replicas.iter_mut().filter(|r| r.phase == Phase::Ready).for_each(|r| r.in_flight = Some(traffic.running));
        change(d);
        means.observe(d, &faulty);
        found = means.verdict(d, &faulty, now);
    }
    found
}

fn found(world: &str, traffic: Traffic, change: impl Fn(&mut Deployment)) -> Bottleneck {
    match verdict(world, traffic, change) {
        Verdict::Found(found) => *found,
        other => panic!("nothing found: {other:?}"),
    }
}

/// The only replica that reports a cost: so many times the reference row's.
fn reports(d: &mut Deployment, replica: usize, times: f64) {
    let all = Deployment::clone(d);
    let coefficients = all.signals.costs[0].coefficients;
    let slow = |value: f64| value * times;
    let coefficients = stowage_contracts::load::Coefficients {
        a: slow(coefficients.a),
        d: slow(coefficients.d),
        k: slow(coefficients.k),
        p: slow(coefficients.p),
    };
    let replica = all.replicas[replica].name.clone();
    d.signals.engines.as_mut().unwrap().replicas.push(ReplicaCost { replica, coefficients });
}

#[test]
fn stage_that_requests_wait_for_is_named_where_an_objective_is_missed() {
    let late = Traffic { queued: 40, ..QUIET };
    for (case, traffic, stage) in [
        ("nothing waits", QUIET, None),
        ("few wait, and the objective is kept", Traffic { queued: 4, ..QUIET }, None),
        ("requests wait for a replica", late, Some(RequestStage::Queue)),
        ("requests wait for room in the KV caches", Traffic { kv_bound: 2, ..late }, Some(RequestStage::KvCache)),
        ("one cache of two is full", Traffic { kv_bound: 1, ..late }, Some(RequestStage::KvCache)),
        ("tokens come too slowly", Traffic { rate: 2, running: 25, ..QUIET }, Some(RequestStage::Decode)),
    ] {
        let found = found(TWO, traffic, |_| {});
        assert_eq!(found.stage, stage, "{case}: {found:?}");
        assert_eq!(found.suggestion.is_some(), stage.is_some(), "{case}");
    }
    let short_answers = |d: &mut Deployment| d.signals.gateway.as_mut().unwrap().mean_output_tokens = 20.0;
    let prompts = found(TWO, Traffic { rate: 40, queued: 200, ..late }, short_answers);
    assert_eq!(prompts.stage, Some(RequestStage::Prefill), "prompts are most of the work: {prompts:?}");
}

#[test]
fn shares_are_those_of_the_counts() {
    // Of 64 requests 40 wait; the two engines have 24, of which a fifth of one has its prompt computed.
    let found = found(TWO, Traffic { queued: 40, ..QUIET }, |_| {});
    let shares = found.shares;
    assert!((58..=63).contains(&shares.queue), "{shares:?}");
    assert_eq!((shares.kv_cache, shares.gpu_health), (0, 0));
    assert!((99..=101).contains(&(shares.queue + shares.prefill + shares.decode)), "{shares:?}");
    let load = found.load;
    assert_eq!((load.requests_milli, load.running_milli, load.waiting_milli), (8_000, 24_000, 40_000));
    // 40.2 requests without a first token at 8 a second; 23.8 that decode 199 tokens each.
    assert!((5_000_000..5_050_000).contains(&load.ttft_us), "{load:?}");
    assert!((14_800..15_100).contains(&load.itl_us), "{load:?}");
}

#[test]
fn gpu_is_named_where_it_is_slow_and_healthy_ones_would_carry_the_load() {
    let world = |health: &str| format!("{TWO}\n{health}");
    let degraded = world("health n1 1 degraded Throttled");
    let late = Traffic { queued: 40, ..QUIET };
    let named = |world: &str, traffic: Traffic, times: f64| {
        found(world, traffic, |d| {
            reports(d, 0, 1.0);
            reports(d, 1, times);
        })
        .stage
    };
    assert_eq!(named(&degraded, late, 4.0), Some(RequestStage::GpuHealth));
    assert_eq!(named(&degraded, late, 1.1), Some(RequestStage::Queue), "it is not slow");
    assert_eq!(named(TWO, late, 4.0), Some(RequestStage::Queue), "it is not reported as faulty");
    let heavy = Traffic { rate: 30, queued: 300, ..QUIET };
    assert_ne!(named(&degraded, heavy, 4.0), Some(RequestStage::GpuHealth), "two healthy ones would not do");
    assert_eq!(named(&degraded, QUIET, 1.0), None);
    assert_eq!(named(&degraded, QUIET, 6.0), Some(RequestStage::GpuHealth), "tokens of its requests are late");
}

#[test]
fn gpu_that_took_a_replica_away_is_named_with_its_reason() {
    let world =
        TWO.replace("replica t/chat 1 n1 1 ready", "replica t/chat 1 n1 1 draining\nhealth n1 1 unhealthy Xid 79");
    let traffic = Traffic { rate: 9, queued: 40, ..QUIET };
    let found = found(&world, traffic, |_| {});
    assert_eq!(found.stage, Some(RequestStage::GpuHealth));
    let Some(Suggestion::LeaveGpu { gpu, expected: Some(_) }) = found.suggestion else { panic!("{found:?}") };
    assert_eq!((gpu.node.as_str(), gpu.reason.as_str()), ("n1", "Xid 79"));
}

#[test]
fn replicas_are_suggested_that_hold_the_objectives_and_none_where_they_start_already() {
    let late = Traffic { rate: 24, queued: 100, running: 60, ..QUIET };
    let Some(Suggestion::Replicas { from, to, mode, expected, .. }) = found(TWO, late, |_| {}).suggestion else {
        panic!("no replicas suggested")
    };
    assert_eq!((from, mode), (2, ScalingMode::Advisory));
    assert!((3..=4).contains(&to) && expected.itl_us <= 50_000 && expected.ttft_us <= 1_000_000, "{to} {expected:?}");
    let starts = format!("{TWO}\nreplica t/chat 2 n1 2 starting\nreplica t/chat 3 n1 3 starting");
    let waits = found(&starts, late, |_| {}).suggestion;
    assert!(matches!(waits, Some(Suggestion::Wait { starting: 2, expected: Some(_) })), "{waits:?}");
    let tight = |d: &mut Deployment| d.scaling.objectives = Some(Objectives { ttft_ms: 2000.0, itl_ms: 10.0 });
    let alone = found(TWO, QUIET, tight);
    assert_eq!(alone.stage, Some(RequestStage::Decode));
    assert!(matches!(alone.suggestion, Some(Suggestion::Faster { .. })), "{alone:?}");
}

#[test]
fn requests_that_get_no_place_are_no_started_ones() {
    let shed = Traffic { rate: 100, queued: 4, ..QUIET };
    let places =
        |part: u64| move |d: &mut Deployment| d.signals.gateway.as_mut().unwrap().placed = Some(500 * part / 100);
    let refused = found(TWO, shed, places(10));
    assert_eq!((refused.stage, refused.load.unplaced_percent), (Some(RequestStage::Queue), 90), "{refused:?}");
    // Some four requests without a first token, at ten a second.
    assert!((400_000..450_000).contains(&refused.load.ttft_us), "{:?}", refused.load);
    assert!((11_000..13_000).contains(&refused.load.itl_us), "{:?}", refused.load);
    assert_eq!(found(TWO, shed, places(94)).stage, Some(RequestStage::Queue));
    assert_eq!(found(TWO, shed, places(96)).stage, None, "the percentile leaves out so many");
    let all = found(TWO, shed, |_| {});
    assert_eq!((all.stage, all.load.unplaced_percent), (None, 0), "gateways do not say how many got a place");
}

#[test]
fn times_between_tokens_are_those_of_one_sequence() {
    let traffic = Traffic { rate: 2, running: 25, ..QUIET };
    let of = |each: u64| found(TWO, traffic, |d| d.signals.gateway.as_mut().unwrap().sequences = Some(10 * each));
    let (one, four) = (of(1), of(4));
    assert_eq!((one.stage, four.stage), (Some(RequestStage::Decode), None));
    // 50 sequences, of which some wait for their prompt, at eight a second with 199 gaps each.
    assert!((30_500..31_500).contains(&four.load.itl_us), "{:?}", four.load);
    assert_eq!((four.load.running_milli, four.load.requests_milli), (50_000, 2_000));
}

#[test]
fn replicas_that_are_asked_for_already_are_not_suggested() {
    let late = Traffic { rate: 24, queued: 100, running: 60, ..QUIET };
    let suggested = |mode, asked: u32, max: u32| {
        let asks = move |d: &mut Deployment| {
            (d.scaling.mode, d.scaling.max_replicas, d.wanted) = (mode, max, asked);
            d.memory = serde_json::from_value(serde_json::json!({"target": asked})).unwrap();
        };
        match found(TWO, late, asks).suggestion {
            Some(Suggestion::Replicas { from, to, max, .. }) => Some((from, to > max)),
            None => None,
            other => panic!("{other:?}"),
        }
    };
    let (manual, active) = (ScalingMode::Manual, ScalingMode::Active);
    assert_eq!(suggested(manual, 2, 9), Some((2, false)));
    assert_eq!(suggested(manual, 4, 9), None, "two of four are refused a place");
    assert_eq!(suggested(active, 2, 9), Some((2, false)), "the rule has not asked for more");
    assert_eq!(suggested(active, 2, 2), Some((2, true)));
    assert_eq!(suggested(active, 3, 9), None);
}

#[test]
fn nothing_is_said_of_too_little() {
    let none = |_: &mut Deployment| {};
    assert_eq!(verdict(TWO, Traffic { rate: 0, ..QUIET }, none), Verdict::TooLittle);
    assert_eq!(verdict(TWO, QUIET, |d| d.signals.costs.clear()), Verdict::TooLittle);
    assert_eq!(verdict(TWO, QUIET, |d| d.scaling.objectives = None), Verdict::TooLittle);
    assert_eq!(verdict(TWO, QUIET, |d| d.signals.engines = None), Verdict::TooEarly, "no engine ever reported");
    assert_eq!(verdict(TWO, QUIET, |d| d.signals.gateway = None), Verdict::TooEarly);
    for absurd in [f64::NAN, -1.0, f64::INFINITY] {
        let wrong = |d: &mut Deployment| d.signals.gateway.as_mut().unwrap().mean_output_tokens = absurd;
        assert_eq!(verdict(TWO, QUIET, wrong), Verdict::TooEarly);
    }
}

#[test]
fn signals_that_grow_old_say_nothing_and_a_gap_begins_anew() {
    let s = common::parse(TWO);
    let (mut d, faulty, mut means) = (s.deployments[0].clone(), FaultyGpus::default(), Means::default());
    let mut at = |means: &mut Means, now: TimeMs| {
        d.signals.gateway = Some(counted(now, 8, 0, 0));
        d.signals.engines = Some(EngineSignals { at_ms: now, ..EngineSignals::default() });
        means.observe(&d, &faulty);
        means.verdict(&d, &faulty, now)
    };
    for tick in 0..6 {
        at(&mut means, NOW + tick * 5_000);
    }
    let last = NOW + 25_000;
    assert!(matches!(means.verdict(&s.deployments[0], &faulty, last + 15_000), Verdict::Found(_)));
    assert_eq!(means.verdict(&s.deployments[0], &faulty, last + 15_001), Verdict::TooLittle);
    assert_eq!(at(&mut means, last + 60_000), Verdict::TooEarly);
}

#[test]
fn engines_that_stop_reporting_leave_no_verdict_however_gateways_report() {
    let s = common::parse(TWO);
    let (mut d, faulty, mut means) = (s.deployments[0].clone(), FaultyGpus::default(), Means::since(NOW));
    let mut at = |seconds: u64, reports: bool| {
        let now = NOW + seconds * 1_000;
        d.signals.gateway = Some(counted(now, 8, 0, 0));
        d.signals.engines = reports.then(|| EngineSignals { at_ms: now, ..EngineSignals::default() });
        means.observe(&d, &faulty);
        means.verdict(&d, &faulty, now)
    };
    for seconds in [5, 10, 15] {
        assert_eq!(at(seconds, true), Verdict::TooEarly);
    }
    assert!(matches!(at(20, true), Verdict::Found(_)));
    assert!(matches!(at(35, false), Verdict::Found(_)), "within what a report may be late");
    assert_eq!(at(40, false), Verdict::TooLittle);
}

#[test]
fn what_was_said_before_holds_for_a_minute_without_signals() {
    let (s, faulty) = (common::parse(TWO), FaultyGpus::default());
    let mut means = Means::since(NOW);
    let silent = |means: &Means, now| means.verdict(&s.deployments[0], &faulty, now);
    assert_eq!(silent(&means, NOW + 59_999), Verdict::TooEarly);
    assert_eq!(silent(&means, NOW + 60_000), Verdict::TooLittle, "no gateway reports");
    let mut d = s.deployments[0].clone();
    for tick in 1..=12 {
        d.signals.gateway = Some(counted(NOW + tick * 5_000, 8, 0, 0));
        means.observe(&d, &faulty);
    }
    assert_eq!(silent(&means, NOW + 59_999), Verdict::TooEarly);
    assert_eq!(silent(&means, NOW + 60_000), Verdict::TooLittle, "no engine reports");
    assert_eq!(Verdict::default(), Verdict::TooLittle, "of a deployment that is not looked at");
}
