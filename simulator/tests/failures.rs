//! A replica that breaks, under the product's own plan: it is started anew at once, its requests are
//! answered, and the count is what it was.

#![allow(clippy::unwrap_used)]

use stowage_planner::snapshot::{Policy as Constants, Room};
use stowage_simulator::cluster::{Cluster, Setting};
use stowage_simulator::engine::Request;
use stowage_simulator::planned::Stowage;
use stowage_simulator::policy::{Policy, Totals};
use stowage_simulator::run::Protocol;
use stowage_simulator::trace::Arrival;

const COLD_START: f64 = 30.0;

/// Twenty requests a second for ten minutes.
fn trace() -> Vec<Arrival> {
    let arrival = |n: u32| Arrival { at_s: f64::from(n) / 20.0, input_tokens: 1000, output_tokens: 200 };
    (0..12_000).map(arrival).collect()
}

fn request(arrival: &Arrival) -> Request {
    let Arrival { at_s, input_tokens, output_tokens } = *arrival;
    let (arrived, left, generated) = (at_s * 1000.0, 0, 0);
    Request { arrived, input: input_tokens, output: output_tokens, left, generated, ttft: None, finished: None }
}

#[test]
fn broken_replica_is_replaced_at_the_next_tick() {
    let (trace, protocol) = (trace(), Protocol::published(COLD_START));
    let setting = Setting {
        cost: protocol.cost,
        kv_capacity: protocol.kv_capacity,
        cold_start: COLD_START * 1000.0,
        max_replicas: protocol.max_replicas,
        gate: None,
    };
    let mut cluster = Cluster::new(setting, trace.iter().map(request).collect(), 4);
    let mut stowage = Stowage::new(&protocol, Room::Standard, Constants::default());
    let totals = Totals::of(&trace);
    let mut counts = Vec::new();
    for tick in 1..=130 {
        let now = f64::from(tick) * 5000.0;
        cluster.advance(now);
        if tick == 80 {
            counts.push(cluster.count());
            assert!(cluster.fail(0) > 0, "it had requests");
            counts.push(cluster.count());
        }
        cluster.apply(&stowage.decide(&cluster.observe(), &totals));
        if tick == 80 {
            counts.push(cluster.count());
        }
    }
    assert!(counts[1] == counts[0] - 1 && counts[2] == counts[0], "before, broken, planned: {counts:?}");
    assert!(cluster.done());
}
