//! How long one plan takes: the demo's snapshot, and larger ones. One JSON line per measurement and
//! a last one with `"summary": true`.
//!
//! ```text
//! cargo run --release -p stowage-planner --example bench_plan
//! ```
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fmt::Write as _;
use std::time::Instant;

use stowage_planner::snapshot::{Policy, Snapshot};
use stowage_planner::{check::check, plan};

/// `deployments` of one replica each on `nodes` of eight GPUs; every other one runs already, and the
/// last wants more than any GPU has.
fn scene(nodes: u32, deployments: u32) -> Snapshot {
    let mut text = String::from("class h100-80g soft\ntenant team-a ns=team-a h100-80g=100000\n");
    for n in 0..nodes {
        let _ = writeln!(text, "node node{n:04} gpu=h100-80g*8 cpu=128 mem=512Gi");
    }
    for d in 0..deployments {
        let want = if d % 2 == 0 { 1 } else { 2 };
        let _ = writeln!(text, "deployment team-a/d{d:04} want={want} ask=h100-80g*1,{}Gi,10", 2 + d % 30);
        let _ = writeln!(text, "replica team-a/d{d:04} 0 node{:04} {} ready", d / 16 % nodes, d / 2 % 8);
    }
    let _ = writeln!(text, "deployment team-a/huge want=1 ask=h100-80g*1,90Gi,10");
    common::parse(&text)
}

/// `deployments` of one tenant whose quota covers two of them: the others wait, each with its reason.
fn crowd(nodes: u32, deployments: u32) -> Snapshot {
    let mut text = String::from("class h100-80g soft\ntenant team-a ns=team-a h100-80g=0.11\n");
    for n in 0..nodes {
        let _ = writeln!(text, "node node{n:04} gpu=h100-80g*8 cpu=128 mem=512Gi");
    }
    for d in 0..deployments {
        let _ = writeln!(text, "deployment team-a/d{d:04} want=1 ask=h100-80g*1,4Gi,5");
    }
    let _ = writeln!(text, "replica team-a/d0000 0 node0000 0 ready\nreplica team-a/d0001 0 node0000 0 ready");
    common::parse(&text)
}

fn main() {
    let policy = Policy::default();
    let mut demo_ms = 0.0;
    let scenes = [("demo", 3, 2, 200), ("crowd", 2, 200, 20), ("team", 30, 100, 5), ("fleet", 1000, 1000, 1)];
    for (name, nodes, deployments, rounds) in scenes {
        let snapshot = if name == "crowd" { crowd(nodes, deployments) } else { scene(nodes, deployments) };
        let mut best = f64::INFINITY;
        let mut actions = 0;
        for _ in 0..rounds {
            let start = Instant::now();
            let (plan, report) = plan(&snapshot, &policy, common::NOW);
            best = best.min(start.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(report.deployments.len(), snapshot.deployments.len());
            assert_eq!(check(&snapshot, &plan), []);
            actions = plan.actions.len();
        }
        if name == "demo" {
            demo_ms = best;
        }
        println!(
            "{{\"bench\":\"plan\",\"scene\":\"{name}\",\"nodes\":{nodes},\"gpus\":{},\"deployments\":{},\"actions\":{actions},\"best_ms\":{best:.3}}}",
            nodes * 8,
            snapshot.deployments.len()
        );
    }
    println!(
        "{{\"bench\":\"plan\",\"summary\":true,\"demo_ms\":{demo_ms:.3},\"limit_ms\":5.0,\"ok\":{}}}",
        demo_ms <= 5.0
    );
}
