//! Words for scaling:
//!
//! ```text
//! scale a/chat Active min=1 max=8 ttft=2000 itl=50 idle=300000 hold=120000 tight
//! cost a/chat only fitted
//! cold a/chat cached=30000 remote=90000 starts=5 schedule=1000 pull=4000 load=25000
//! earlier a/chat rate=20 for=300
//! signals a/chat rate=80 queued=12 held=0 age=1200 unprefilled=0 kv=0 engines=800
//! ```
//!
//! A replica carries 0.78 of its time, four of a variant with `slower=4` as much as one. A request has 1,000 prompt tokens and 200 of answer. `earlier` carries out plans every five seconds
//! for so long, up to five seconds before now, and keeps what they remember.
#![allow(clippy::unwrap_used, dead_code)]

use super::{NOW, number, r_id, value};
use stowage_contracts::load::Coefficients;
use stowage_planner::plan;
use stowage_planner::snapshot::*;

const TICK_MS: u64 = 5_000;

/// Whether the line was one of these words.
pub fn line(s: &mut Snapshot, w: &[&str]) -> bool {
    match w[0] {
        "scale" => scale(of(s, w), w),
        "cost" => of(s, w).signals.costs.push(VariantCost {
            variant: w[2].into(),
            coefficients: coefficients(w),
            origin: if w.contains(&"fitted") { CostOrigin::Fitted } else { CostOrigin::Table },
            at_ms: 0,
        }),
        "cold" => {
            of(s, w).signals.cold_start = ColdStart {
                cached_ms: value(w, "cached").map(|ms| ms.parse().unwrap()),
                remote_ms: value(w, "remote").map(|ms| ms.parse().unwrap()),
                starts: number(w, "starts", 0) as u32,
                stages: value(w, "load").map(|ms| StartStages {
                    schedule_ms: number(w, "schedule", 0),
                    pull_ms: number(w, "pull", 0),
                    load_ms: ms.parse().unwrap(),
                }),
                ..ColdStart::default()
            }
        }
        "earlier" => earlier(s, w),
        "signals" => signals(of(s, w), w),
        _ => return false,
    }
    true
}

/// `slower=4`: four times as slow.
fn coefficients(w: &[&str]) -> Coefficients {
    let slower = number(w, "slower", 1) as f64;
    Coefficients { a: 11.0, d: 0.05 * slower, k: 0.03 * slower, p: 45.0 * slower }
}

fn of<'a>(s: &'a mut Snapshot, w: &[&str]) -> &'a mut Deployment {
    s.deployments.iter_mut().find(|d| d.id == r_id(w)).unwrap()
}

fn scale(d: &mut Deployment, w: &[&str]) {
    d.scaling = Scaling {
        mode: match w[2] {
            "Active" => ScalingMode::Active,
            "Advisory" => ScalingMode::Advisory,
            other => panic!("unknown mode {other}"),
        },
        min_replicas: number(w, "min", 1) as u32,
        max_replicas: number(w, "max", 10) as u32,
        objectives: Some(Objectives { ttft_ms: number(w, "ttft", 2000) as f64, itl_ms: number(w, "itl", 50) as f64 }),
        room: if w.contains(&"tight") { Room::Tight } else { Room::Standard },
        idle_after_ms: value(w, "idle").map(|ms| ms.parse().unwrap()),
        cold_start_hold_ms: value(w, "hold").map(|ms| ms.parse().unwrap()),
    };
}

fn signals(d: &mut Deployment, w: &[&str]) {
    let at = NOW - number(w, "age", 1200);
    let engines = EngineSignals {
        at_ms: NOW - number(w, "engines", 800),
        unprefilled_tokens: number(w, "unprefilled", 0),
        kv_used_milli: number(w, "kv", 0),
        kv_bound: number(w, "bound", 0) as u32,
        steps: Vec::new(),
        replicas: Vec::new(),
    };
    d.signals.gateway = Some(counted(at, number(w, "rate", 0), number(w, "queued", 0), number(w, "held", 0)));
    d.signals.engines = (!w.contains(&"silent")).then_some(engines);
}

/// What a gateway counts in one interval at `rate` requests a second.
pub fn counted(to_ms: u64, rate: u64, queued: u64, held: u64) -> GatewaySignals {
    let arrivals = rate * TICK_MS / 1000;
    GatewaySignals {
        from_ms: to_ms - TICK_MS,
        to_ms,
        arrivals,
        input_tokens: arrivals * 1000,
        cached_tokens: 0,
        mean_output_tokens: 200.0,
        queued: queued.max(held),
        queued_tokens: queued.max(held) * 1000,
        held,
        ..GatewaySignals::default()
    }
}

fn earlier(s: &mut Snapshot, w: &[&str]) {
    let ticks = number(w, "for", 60) * 1000 / TICK_MS;
    for tick in (1..=ticks).rev() {
        let now = NOW - tick * TICK_MS;
        let d = of(s, w);
        d.signals.gateway = Some(counted(now - 1200, number(w, "rate", 0), 0, 0));
        d.signals.engines = Some(EngineSignals { at_ms: now, ..EngineSignals::default() });
        let (plan, _report) = plan(s, &Policy::default(), now);
        let d = of(s, w);
        d.memory = plan.memory.into_iter().find(|(id, _)| *id == d.id).unwrap().1;
    }
}
