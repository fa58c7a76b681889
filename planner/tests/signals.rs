//! Signals that no program should send: whatever they are, `plan` answers, and what cannot be believed
//! changes nothing.
#![allow(clippy::unwrap_used)]

mod common;

use common::NOW;
use proptest::prelude::*;
use stowage_contracts::load::Coefficients;
use stowage_planner::check::check;
use stowage_planner::demand::{Problem, ScaleReason, ScaleVerdict, Signal};
use stowage_planner::plan;
use stowage_planner::snapshot::*;

fn snapshot() -> Snapshot {
    common::parse(
        "class h100\nnode n1 gpu=h100*8\ntenant t ns=t h100=8\ndeployment t/chat want=3 ask=h100*1\n\
         scale t/chat Active min=0 max=8 hold=60000\ncost t/chat only fitted\ncold t/chat remote=30000\n\
         replica t/chat 0 n1 0 ready\nreplica t/chat 1 n1 1 ready\nreplica t/chat 2 n1 2 starting\n\
         signals t/chat rate=20",
    )
}

fn verdict(change: impl FnOnce(&mut Deployment)) -> ScaleVerdict {
    let mut s = snapshot();
    change(&mut s.deployments[0]);
    let (made, report) = plan(&s, &Policy::default(), NOW);
    assert_eq!(check(&s, &made), []);
    report.deployments[0].scale.clone()
}

#[track_caller]
fn frozen(change: impl FnOnce(&mut Deployment), signal: Signal, problem: Problem) {
    match verdict(change) {
        ScaleVerdict::Frozen { replicas, cause, .. } => {
            assert_eq!((replicas, cause.signal, cause.problem), (3, signal, problem));
        }
        other => panic!("not frozen: {other:?}"),
    }
}

fn gateway(d: &mut Deployment) -> &mut GatewaySignals {
    d.signals.gateway.as_mut().unwrap()
}

fn engines(d: &mut Deployment) -> &mut EngineSignals {
    d.signals.engines.as_mut().unwrap()
}

#[test]
fn signal_that_cannot_be_believed_freezes_the_count_by_its_name() {
    let stale = |age_ms| Problem::Stale { age_ms, limit_ms: 15_000 };
    frozen(|d| d.signals.gateway = None, Signal::Gateway, Problem::Missing);
    frozen(|d| gateway(d).to_ms = NOW - 15_001, Signal::Gateway, stale(15_001));
    frozen(|d| gateway(d).to_ms = NOW + 9_000, Signal::Gateway, Problem::FromTheFuture { by_ms: 9_000 });
    frozen(|d| gateway(d).from_ms = NOW, Signal::Gateway, Problem::Interval { length_ms: 0 });
    frozen(|d| gateway(d).from_ms = 0, Signal::Gateway, Problem::Interval { length_ms: NOW - 1200 });
    frozen(|d| gateway(d).cached_tokens = u64::MAX, Signal::Gateway, Problem::Absurd);
    frozen(|d| gateway(d).held = 1, Signal::Gateway, Problem::Absurd);
    frozen(|d| gateway(d).mean_output_tokens = 1e9, Signal::Gateway, Problem::Absurd);
    frozen(|d| gateway(d).mean_output_tokens = f64::NAN, Signal::Gateway, Problem::NotANumber);
    frozen(|d| gateway(d).arrivals = u64::MAX, Signal::Gateway, Problem::Absurd);
    frozen(|d| d.signals.engines = None, Signal::Engines, Problem::Missing);
    frozen(|d| engines(d).at_ms = NOW - 20_000, Signal::Engines, stale(20_000));
    frozen(|d| engines(d).kv_used_milli = 50_000, Signal::Engines, Problem::Absurd);
    frozen(|d| d.signals.costs.clear(), Signal::Cost, Problem::Missing);
    frozen(|d| d.signals.costs[0].coefficients.p = 0.0, Signal::Cost, Problem::Missing);
    frozen(|d| d.signals.costs[0].coefficients.a = f64::NAN, Signal::Cost, Problem::NotANumber);
    frozen(|d| d.scaling.objectives = None, Signal::Objectives, Problem::Missing);
    let itl_ms = 5.0;
    let tight = move |d: &mut Deployment| d.scaling.objectives = Some(Objectives { ttft_ms: 1.0, itl_ms });
    frozen(tight, Signal::Objectives, Problem::TooTight);
    let history = History { now: 1.0, ahead: f64::INFINITY, periods: 7 };
    frozen(|d| d.signals.history = Some(history), Signal::History, Problem::NotANumber);
}

/// What `plan` says of one idle replica after the clock was set, tick by tick of five seconds.
fn idle_after_a_step(by_ms: i64) -> Vec<bool> {
    let s = common::parse(
        "class h100\nnode n1 gpu=h100*8\ntenant t ns=t h100=8\ndeployment t/chat want=1 ask=h100*1\n\
         scale t/chat Active min=0 max=8 hold=60000 idle=20000\ncost t/chat only fitted\ncold t/chat remote=3000\n\
         replica t/chat 0 n1 0 ready\nsignals t/chat rate=1",
    );
    idle(s, by_ms)
}

fn idle(mut s: Snapshot, by_ms: i64) -> Vec<bool> {
    let mut seen = Vec::new();
    for tick in 0..8u64 {
        let now = if tick == 0 { NOW } else { NOW.saturating_add_signed(by_ms) + tick * 5_000 };
        let d = &mut s.deployments[0];
        let from_ms = if tick < 2 { now - 5_000 } else { gateway(d).to_ms };
        let arrivals = u64::from(tick == 0);
        *gateway(d) = GatewaySignals { from_ms, to_ms: now, arrivals, input_tokens: arrivals, ..*gateway(d) };
        engines(d).at_ms = now;
        let (made, report) = plan(&s, &Policy::default(), now);
        let scale = &report.deployments[0].scale;
        seen.push(matches!(scale, ScaleVerdict::Active { advice } if advice.reason == ScaleReason::Idle));
        s.deployments[0].memory = made.memory[0].1.clone();
    }
    seen
}

#[test]
fn clock_that_is_set_makes_no_idle_time() {
    let want = [false, false, false, false, false, true, true, true];
    assert_eq!(idle_after_a_step(3_600_000), want, "the idle time begins anew");
    assert_eq!(idle_after_a_step(0)[4..6], [true, true], "without a step it began with the request");
}

#[test]
fn model_that_is_slower_than_its_objectives_rests_all_the_same() {
    let s = common::parse(
        "class h100\nnode n1 gpu=h100*8\ntenant t ns=t h100=8\ndeployment t/chat want=1 ask=h100*1\n\
         scale t/chat Active min=0 max=8 hold=60000 idle=20000 itl=1\ncost t/chat only fitted\ncold t/chat remote=3000\n\
         replica t/chat 0 n1 0 ready\nsignals t/chat rate=1",
    );
    assert_eq!(idle(s, 0), [false, false, false, false, true, true, true, true]);
}

#[test]
fn engines_that_do_not_report_are_not_needed_while_none_is_ready() {
    let answer = verdict(|d| {
        d.signals.engines = None;
        d.replicas.iter_mut().for_each(|r| r.phase = Phase::Starting);
    });
    assert!(matches!(answer, ScaleVerdict::Active { .. }), "{answer:?}");
}

#[test]
fn unknown_cost_of_decoding_is_not_free() {
    let needed = |d: f64, k: f64| match verdict(|deployment| {
        deployment.signals.costs[0].coefficients = Coefficients { a: 11.02, d, k, p: 44.571 };
    }) {
        ScaleVerdict::Active { advice } => advice.load.offered_milli,
        other => panic!("{other:?}"),
    };
    let Coefficients { d, k, .. } = Coefficients::REFERENCE;
    assert_eq!(needed(0.0, 0.0), needed(d, k));
}

#[test]
fn cost_is_fitted_to_the_steps_of_replicas_and_the_same_reports_are_counted_once() {
    let mut s = snapshot();
    let truth = Coefficients { a: 20.0, d: 0.5, k: 0.1, p: 90.0 };
    let origin = |s: &Snapshot| match &plan(s, &Policy::default(), NOW).1.deployments[0].scale {
        ScaleVerdict::Active { advice } => (advice.inputs.cost_origin, advice.load.offered_milli),
        other => panic!("{other:?}"),
    };
    s.deployments[0].signals.costs[0].origin = CostOrigin::Table;
    let (before, by_table) = origin(&s);
    assert_eq!(before, Some(CostOrigin::Table));
    for turn in 0..4u64 {
        let steps = (0..100u64).map(|n| {
            let (decodes, kv_tokens, prefill_tokens) =
                (n * 7 % 50, n * 997 % 60_000, if n % 3 == 0 { n * 31 } else { 0 });
            let millis = truth.a
                + truth.d * decodes as f64
                + (truth.k * kv_tokens as f64 + truth.p * prefill_tokens as f64) / 1e3;
            StepSample { variant: "only".into(), decodes, kv_tokens, prefill_tokens, millis }
        });
        *engines(&mut s.deployments[0]) =
            EngineSignals { at_ms: NOW - 4_000 + turn * 1_000, steps: steps.collect(), ..EngineSignals::default() };
        for _ in 0..2 {
            let (made, _) = plan(&s, &Policy::default(), NOW);
            let remembered = made.memory[0].1.clone();
            if s.deployments[0].memory == remembered {
                break;
            }
            s.deployments[0].memory = remembered;
        }
        let found = origin(&s).0;
        assert_eq!(
            found == Some(CostOrigin::Fitted),
            turn >= 1,
            "200 steps after the second turn, found {found:?} at {turn}"
        );
    }
    assert!(origin(&s).1 > 2 * by_table, "twice the cost is twice the load");
}

/// As the first release wrote it: without scaling, signals, memory, prices and weights.
#[test]
fn snapshot_of_an_older_version_is_read_and_planned() {
    let text = r#"{"sequence":1,"deployments":[{"id":{"namespace":"t","name":"d"},"uid":"u","generation":1,
        "tenant":"t","createdMs":0,"wanted":2,"variants":[],"needs":{"cpuMilli":1,"memoryBytes":1},
        "specHash":"v","drainTimeoutMs":0}]}"#;
    let s: Snapshot = serde_json::from_str(text).unwrap();
    let (made, report) = plan(&s, &Policy::default(), NOW);
    assert_eq!(report.deployments[0].scale, ScaleVerdict::Manual { replicas: 2 });
    assert!(made.memory.is_empty());
    let newer = text.replace("\"wanted\"", "\"forecast\":1,\"wanted\"");
    let refused = serde_json::from_str::<Snapshot>(&newer).unwrap_err().to_string();
    assert!(refused.starts_with("unknown field `forecast`"), "{refused}");
}

/// Active, then Manual, then Active again: what the rule settled on long ago does not come back.
#[test]
fn number_set_by_hand_is_where_the_rule_goes_on() {
    let text = r#"{"sequence":1,"deployments":[{"id":{"namespace":"t","name":"d"},"uid":"u","generation":1,
        "tenant":"t","createdMs":0,"wanted":2,"variants":[],"needs":{"cpuMilli":1,"memoryBytes":1},
        "specHash":"v","drainTimeoutMs":0}]}"#;
    let mut s: Snapshot = serde_json::from_str(text).unwrap();
    for (mode, wanted) in [(ScalingMode::Active, 7), (ScalingMode::Manual, 2), (ScalingMode::Active, 2)] {
        s.deployments[0].scaling = Scaling { mode, max_replicas: 9, ..Scaling::default() };
        s.deployments[0].wanted = wanted;
        let (made, report) = plan(&s, &Policy::default(), NOW);
        assert_eq!(report.deployments[0].scale.replicas(), wanted, "{mode:?}");
        for (_, memory) in &made.memory {
            s.deployments[0].memory = memory.clone();
        }
    }
}

fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), Just(f64::MAX), Just(1e-300), 0.0..1e4f64]
}

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), Just(u64::MAX), Just(1u64 << 62), 0..1_000_000u64]
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), Just(u64::MAX), NOW - 30_000..NOW + 30_000]
}

prop_compose! {
    fn any_signals()(
        times in prop::array::uniform3(any_time()),
        counts in prop::array::uniform7(any_count()),
        engine in prop::array::uniform3(any_count()),
        floats in prop::array::uniform7(any_float()),
        present in prop::array::uniform3(any::<bool>()),
        cold in prop::option::of(any_count()),
    ) -> Signals {
        let gateway = GatewaySignals {
            from_ms: times[0], to_ms: times[1], arrivals: counts[0], input_tokens: counts[1], cached_tokens: counts[2],
            mean_output_tokens: floats[0], queued: counts[3], queued_tokens: counts[4], held: counts[5],
            sequences: Some(counts[6]), placed: Some(counts[0]),
        };
        let steps = vec![StepSample {
            variant: "only".into(), decodes: counts[6], kv_tokens: counts[0], prefill_tokens: counts[1], millis: floats[1],
        }];
        let engines = EngineSignals {
            at_ms: times[2], unprefilled_tokens: engine[0], kv_used_milli: engine[1], kv_bound: engine[2] as u32, steps,
            replicas: Vec::new(),
        };
        let [_, _, a, d, k, p, now] = floats;
        let cost = VariantCost {
            variant: "only".into(), coefficients: Coefficients { a, d, k, p }, origin: CostOrigin::Fitted, at_ms: times[0],
        };
        Signals {
            gateway: present[0].then_some(gateway),
            engines: present[1].then_some(engines),
            costs: vec![cost],
            cold_start: ColdStart { remote_ms: cold, ..ColdStart::default() },
            history: present[2].then_some(History { now, ahead: a, periods: 3 }),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Only the rule itself ends replicas, and only for a reason that it names.
    #[test]
    fn plan_answers_whatever_the_signals_are(signals in prop::collection::vec(any_signals(), 1..4)) {
        let mut s = snapshot();
        for signals in signals {
            s.deployments[0].signals = signals;
            let (made, report) = plan(&s, &Policy::default(), NOW);
            prop_assert_eq!(check(&s, &made), vec![]);
            let r = &report.deployments[0];
            match &r.scale {
                ScaleVerdict::Frozen { replicas, .. } => prop_assert_eq!(*replicas, r.counts.wanted),
                ScaleVerdict::Active { advice } => {
                    prop_assert!(advice.wanted <= 8);
                    prop_assert!(advice.wanted > 0 || matches!(advice.reason, ScaleReason::Idle | ScaleReason::Asleep));
                }
                other => prop_assert!(false, "{other:?}"),
            }
            prop_assert!(!stowage_planner::render::explain(r, None, NOW, &report.records).is_empty());
            s.deployments[0].memory = made.memory[0].1.clone();
        }
    }
}
