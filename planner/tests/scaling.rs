//! Properties of autoscaling through `plan` over long random histories of load: a cluster of sixteen GPUs
//! in which pods start after their cold start and drains end, and signals that may fail.
#![allow(clippy::unwrap_used)]

mod common;

use common::NOW;
use common::random::{apply, vanish};
use common::scaling::counted;
use proptest::prelude::*;
use stowage_planner::check::check;
use stowage_planner::demand::{Problem, ScaleVerdict, Signal};
use stowage_planner::plan::{Action, CreateReason, EndReason};
use stowage_planner::snapshot::*;
use stowage_planner::{Plan, plan};

const TICK_MS: u64 = 5_000;
const COLD_START_MS: u64 = 30_000;
/// Of a request of 1,000 prompt tokens and 200 of answer, in seconds of one replica; 0.78 of a replica's
/// time is what its ITL objective allows.
const WORK: f64 = (1000.0 * 45.0 / 1000.0 + 200.0 * (0.05 + 0.03 * (1000.0 + 100.0) / 1000.0)) / 1000.0;

/// What the load and the signals do for some ticks.
#[derive(Clone, Debug)]
struct Part {
    ticks: u32,
    rate: u64,
    signals: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Stale,
    Missing,
    NotANumber,
}

fn history() -> impl Strategy<Value = Vec<Part>> {
    let fault = prop_oneof![6 => Just(Fault::None), 1 => Just(Fault::Stale), 1 => Just(Fault::Missing), 1 => Just(Fault::NotANumber)];
    let rate = prop_oneof![4 => 0..60u64, 1 => Just(0u64), 1 => 60..300u64];
    let part = (1..40u32, rate, fault).prop_map(|(ticks, rate, signals)| Part { ticks, rate, signals });
    prop::collection::vec(part, 1..12)
}

fn cluster(min: u32) -> Snapshot {
    common::parse(&format!(
        "class h100\nnode n1 gpu=h100*8\nnode n2 gpu=h100*8\ntenant t ns=t h100=16\n\
         deployment t/chat want=0 ask=h100*1 drain=5000\nscale t/chat Active min={min} max=16 hold=60000\n\
         cost t/chat only fitted\ncold t/chat remote={COLD_START_MS}"
    ))
}

/// One tick: pods start and end, signals come, a plan is made and carried out.
struct World {
    s: Snapshot,
    now: u64,
}

impl World {
    fn new(min: u32) -> Self {
        World { s: cluster(min), now: NOW }
    }

    fn d(&self) -> &Deployment {
        &self.s.deployments[0]
    }

    fn live(&self) -> u32 {
        self.d().replicas.iter().filter(|r| matches!(r.phase, Phase::Starting | Phase::Ready)).count() as u32
    }

    fn tick(&mut self, part: &Part) -> (Plan, ScaleVerdict) {
        self.now += TICK_MS;
        let now = self.now;
        while let Some(at) = self.d().replicas.iter().position(|r| r.phase.is_terminating()) {
            vanish(&mut self.s, 0, at);
        }
        let d = &mut self.s.deployments[0];
        for r in &mut d.replicas {
            if r.phase == Phase::Starting && now >= r.created_ms + COLD_START_MS {
                r.phase = Phase::Ready;
            }
        }
        let mut gateway = counted(now, part.rate, 0, 0);
        let ready = d.replicas.iter().filter(|r| r.phase == Phase::Ready).count();
        (gateway.queued, gateway.held) = if ready == 0 { (gateway.arrivals, gateway.arrivals) } else { (0, 0) };
        d.signals.engines = Some(EngineSignals { at_ms: now, ..EngineSignals::default() });
        match part.signals {
            Fault::None => d.signals.gateway = Some(gateway),
            Fault::Stale => d.signals.gateway = Some(counted(now - 60_000, 0, 0, 0)),
            Fault::Missing => d.signals.gateway = None,
            Fault::NotANumber => {
                d.signals.gateway = Some(GatewaySignals { mean_output_tokens: f64::NAN, ..gateway });
            }
        }
        let (made, report) = plan(&self.s, &Policy::default(), now);
        assert_eq!(check(&self.s, &made), []);
        apply(&mut self.s, &made.actions, now);
        for (_, memory) in &made.memory {
            self.s.deployments[0].memory = memory.clone();
        }
        (made, report.deployments[0].scale.clone())
    }
}

fn hold_ms() -> u64 {
    (Rule::STANDARD.hold * 1000.0) as u64
}

fn scales_in(plan: &Plan) -> bool {
    let by = |a: &Action| match a {
        Action::Drain { reason, .. } | Action::Remove { reason, .. } => *reason == EndReason::ScaleIn,
        Action::Create { .. } | Action::Resume { .. } => false,
    };
    plan.actions.iter().any(by)
}

fn scales_out(plan: &Plan) -> bool {
    plan.actions.iter().any(|a| matches!(a, Action::Create { reason: CreateReason::ScaleOut, .. }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn history_of_load_scales_in_only_what_the_load_does_not_need(parts in history(), min in 0..3u32) {
        let mut world = World::new(min);
        let (mut last_out, mut needs) = (None, Vec::new());
        for part in &parts {
            for _ in 0..part.ticks {
                let before = world.live();
                let (made, verdict) = world.tick(part);
                let (after, now) = (world.live(), world.now);
                prop_assert!(after <= 16);
                match &verdict {
                    ScaleVerdict::Active { advice } => {
                        prop_assert_eq!(part.signals, Fault::None);
                        needs.push((now, advice.needed));
                    }
                    ScaleVerdict::Frozen { replicas, cause, .. } => {
                        prop_assert!(part.signals != Fault::None, "{cause:?}");
                        prop_assert!(*replicas >= before, "{before} before, frozen at {replicas}");
                        prop_assert!(after >= before && after >= min);
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
                if scales_in(&made) {
                    let offered = part.rate as f64 * WORK;
                    prop_assert!(f64::from(after) * 0.78 >= offered, "{after} replicas for {offered}");
                    // What an answer asked for may be created a turn after it.
                    prop_assert!(last_out.is_none_or(|out| now - out >= hold_ms()), "scaled out {last_out:?}, in at {now}");
                    let idle = after == 0;
                    let held = needs.iter().filter(|(at, _)| now - at < hold_ms()).map(|(_, n)| *n).max();
                    prop_assert!(idle || held.is_none_or(|held| after >= held.min(16)), "{after} although {held:?}");
                }
                if scales_out(&made) { last_out = Some(now); }
            }
        }
    }

    #[test]
    fn memory_that_was_written_and_read_gives_the_same_plan(parts in history()) {
        let (mut one, mut other) = (World::new(1), World::new(1));
        for part in &parts {
            for _ in 0..part.ticks {
                let text = serde_json::to_string(&other.s.deployments[0].memory).unwrap();
                other.s.deployments[0].memory = serde_json::from_str(&text).unwrap();
                // Text keeps a float to its last but one digit.
                let ((one, of_one), (other, of_other)) = (one.tick(part), other.tick(part));
                prop_assert_eq!((one.actions, of_one), (other.actions, of_other));
            }
        }
    }

    #[test]
    fn steady_load_moves_nothing_once_the_hold_window_has_passed(rate in 0..150u64, before in 0..150u64) {
        let mut world = World::new(1);
        let steady = |rate, ticks| Part { ticks, rate, signals: Fault::None };
        for part in [steady(before, 60), steady(rate, 600)] {
            (0..part.ticks).for_each(|_| drop(world.tick(&part)));
        }
        for _ in 0..60 {
            let (made, verdict) = world.tick(&steady(rate, 1));
            prop_assert!(made.actions.is_empty(), "{:?} for {verdict:?}", made.actions);
        }
    }
}

#[test]
fn deployment_goes_to_zero_when_idle_and_wakes_with_the_first_request() {
    let mut world = World::new(0);
    let part = |rate| Part { ticks: 1, rate, signals: Fault::None };
    (0..20).for_each(|_| drop(world.tick(&part(5))));
    assert!(world.live() > 0);
    let idle_ticks = (0..)
        .take_while(|_| {
            world.tick(&part(0));
            world.live() > 0
        })
        .count() as u64;
    assert_eq!(idle_ticks * TICK_MS / 1000, 295, "five minutes without a request");
    (0..200).for_each(|_| assert!(!scales_out(&world.tick(&part(0)).0)));
    let (made, _) = world.tick(&part(1));
    assert!(scales_out(&made), "{:?}", made.actions);
}

#[test]
fn scale_to_zero_waits_for_signals_that_show_that_nothing_runs() {
    let mut world = World::new(0);
    let part = |rate, signals| Part { ticks: 1, rate, signals };
    (0..20).for_each(|_| drop(world.tick(&part(5, Fault::None))));
    let before = world.live();
    for _ in 0..500 {
        let (_, verdict) = world.tick(&part(0, Fault::Stale));
        let ScaleVerdict::Frozen { cause, .. } = verdict else { panic!("{verdict:?}") };
        assert_eq!(
            (cause.signal, cause.problem),
            (Signal::Gateway, Problem::Stale { age_ms: 60_000, limit_ms: 15_000 })
        );
    }
    assert_eq!(world.live(), before);
}

#[test]
fn deployment_that_still_serves_is_not_idle() {
    let parse = |extra: &str, kv: u32, unprefilled: u32| {
        common::parse(&format!(
            "class h100\nnode n1 gpu=h100*8\ntenant t ns=t h100=8\ndeployment t/chat ask=h100*1\n\
             scale t/chat Active min=0 hold=60000 idle=60000\ncost t/chat only\ncold t/chat remote=30000\n\
             replica t/chat 0 n1 0 ready {extra}\nearlier t/chat rate=0 for=90\n\
             signals t/chat rate=0 kv={kv} unprefilled={unprefilled}"
        ))
    };
    let wanted = |s: &Snapshot| plan(s, &Policy::default(), NOW).1.deployments[0].counts.wanted;
    assert_eq!(wanted(&parse("serves=0", 0, 0)), 0);
    let serving = [parse("serves=1", 0, 0), parse("serves=0", 10, 0), parse("serves=0", 0, 5)];
    assert_eq!(serving.each_ref().map(wanted), [1, 1, 1]);
}

#[test]
fn two_replicas_of_different_load_lose_the_less_loaded_one() {
    let mut s = common::parse(
        "class h100\nnode n1 gpu=h100*8\ntenant t ns=t h100=8\ndeployment t/chat want=1 ask=h100*1\n\
         replica t/chat 0 n1 0 ready serves=3\nreplica t/chat 1 n1 1 ready serves=8",
    );
    let ended = |s: &Snapshot| {
        let (made, _) = plan(s, &Policy::default(), NOW);
        made.actions.iter().map(|a| a.replica().index).collect::<Vec<_>>()
    };
    assert_eq!(ended(&s), [0]);
    s.deployments[0].replicas[0].in_flight = None;
    assert_eq!(ended(&s), [1], "a load that is not known counts as the highest");
}
