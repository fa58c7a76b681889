//! The simulator against the reference simulator of the protocol, on a trace that both made from the
//! same numbers: 40 minutes at 15 requests a second, four times as many for five minutes and eight
//! times as many for 30 seconds. To ±0.2 point of the objectives and ±2 % of the hours.

#![allow(clippy::unwrap_used)]

use stowage_planner::snapshot::{Policy as Constants, Room};
use stowage_simulator::planned::Stowage;
use stowage_simulator::policy::{Hpa, Kpa, Oracle, Policy, Static};
use stowage_simulator::run::{Outcome, Protocol, run};
use stowage_simulator::trace::Arrival;

const COLD_START: f64 = 30.0;

fn protocol(gate: bool) -> Protocol {
    Protocol { gate, ..Protocol::published(COLD_START) }
}

/// A linear congruence, so that another language makes the same trace.
struct Numbers(u64);

impl Numbers {
    /// From 0 up to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn trace() -> Vec<Arrival> {
    let mut numbers = Numbers(42);
    let (mut at, mut trace) = (0.0, Vec::new());
    while at < 2400.0 {
        let rate = match at {
            600.0..900.0 => 60.0,
            1500.0..1530.0 => 120.0,
            _ => 15.0,
        };
        at += -(1.0 - numbers.next()).ln() / rate;
        let input_tokens = 200 + (numbers.next() * 2500.0) as u32;
        trace.push(Arrival { at_s: at, input_tokens, output_tokens: 10 + (numbers.next() * 400.0) as u32 });
    }
    trace
}

fn outcome(protocol: &Protocol, policy: &mut dyn Policy) -> Outcome {
    let trace = trace();
    run(&trace, policy, protocol, protocol.replicas_at_start(&trace))
}

/// With the gate and without: per cent of the objectives kept, and replica-hours of the reference.
#[track_caller]
fn check(policy: &dyn Fn() -> Box<dyn Policy>, with_gate: (f64, f64), without: (f64, f64)) {
    for (gate, (slo_percent, replica_hours)) in [(true, with_gate), (false, without)] {
        let found = outcome(&protocol(gate), &mut *policy());
        assert!((found.slo_percent - slo_percent).abs() <= 0.2, "{found:?}, reference {slo_percent} %");
        assert!((found.replica_hours / replica_hours - 1.0).abs() <= 0.02, "{found:?}, reference {replica_hours} h");
    }
}

fn kpa(share: f64, cooldown: f64) -> Box<dyn Policy> {
    Box::new(Kpa::new(share * protocol(true).concurrency(&trace()), cooldown))
}

#[test]
fn fixed_count_reaches_the_reference_figures() {
    check(&|| Box::new(Static(6)), (76.2, 4.006), (55.1, 4.006));
}

#[test]
fn horizontal_pod_autoscaler_reaches_the_reference_figures() {
    check(&|| Box::new(Hpa::new(0.6)), (100.0, 25.447), (100.0, 25.447));
}

#[test]
fn knative_autoscaler_reaches_the_reference_figures() {
    check(&|| kpa(0.4, 300.0), (92.2, 13.032), (88.2, 13.734));
    check(&|| kpa(0.3, 0.0), (90.7, 5.208), (86.4, 5.252));
}

#[test]
fn oracle_reaches_the_reference_figures() {
    let Protocol { cost, objective, .. } = protocol(true);
    let oracle = || -> Box<dyn Policy> { Box::new(Oracle::new(&trace(), &cost, objective, COLD_START, 0.8)) };
    check(&oracle, (99.8, 2.914), (99.8, 2.914));
}

#[test]
fn rule_of_the_product_needs_a_third_of_the_hours_at_the_objectives_of_the_best_published_one() {
    let mut stowage = Stowage::new(&protocol(true), Room::Standard, Constants::default());
    let ours = outcome(&protocol(true), &mut stowage);
    let theirs = outcome(&protocol(true), &mut *kpa(0.4, 300.0));
    let close = ours.slo_percent > theirs.slo_percent - 3.0;
    assert!(close && ours.replica_hours < theirs.replica_hours / 3.0, "{ours:?} {theirs:?}");
}

#[test]
fn same_input_gives_the_same_outcome() {
    let run = || outcome(&protocol(true), &mut Static(6));
    assert_eq!(run(), run());
}
