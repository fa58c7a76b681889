//! The mixed protocol of `docs/design/mixed-protocol.md`: replicas of all sizes that come and go, three tenants of
//! one cohort, priorities. One JSON line per seed, the last one with `"summary": true`.
//!
//! ```text
//! cargo run --release -p stowage-planner --example bench_mixed -- --seeds 1..4 --hours 24 --load 1.1 --policy stowage
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../tests/common/h100.rs"]
mod h100;
#[path = "support/kueue.rs"]
mod kueue;
#[path = "support/mixed.rs"]
mod mixed;

use mixed::{Options, TICK_S, World};
use stowage_planner::check::check;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::snapshot::Policy;
use stowage_planner::{DecisionReport, Prepared};

/// What one run reached.
#[derive(Default)]
struct Run {
    lost_gpu_hours: f64,
    p50_s: f64,
    p99_s: f64,
    own_p50_s: f64,
    own_p99_s: f64,
    own_lent_p99_s: f64,
    evictions: f64,
    placed: f64,
    violations: f64,
}

fn main() {
    let options = Options::parse();
    let mut runs = Vec::new();
    for seed in options.seeds.clone() {
        let run = run(&options, seed);
        println!("{{\"bench\":\"mixed\",\"policy\":\"{}\",\"seed\":{seed},{}}}", options.policy, figures(&run));
        runs.push(run);
    }
    let n = runs.len().max(1) as f64;
    let mean = |of: fn(&Run) -> f64| runs.iter().map(of).sum::<f64>() / n;
    let mean = Run {
        lost_gpu_hours: mean(|r| r.lost_gpu_hours),
        p50_s: mean(|r| r.p50_s),
        p99_s: mean(|r| r.p99_s),
        own_p50_s: mean(|r| r.own_p50_s),
        own_p99_s: mean(|r| r.own_p99_s),
        own_lent_p99_s: mean(|r| r.own_lent_p99_s),
        evictions: mean(|r| r.evictions),
        placed: mean(|r| r.placed),
        violations: mean(|r| r.violations),
    };
    println!(
        "{{\"bench\":\"mixed\",\"summary\":true,\"policy\":\"{}\",\"seeds\":{},{}}}",
        options.policy,
        runs.len(),
        figures(&mean)
    );
}

fn figures(r: &Run) -> String {
    let Run { lost_gpu_hours, p50_s, p99_s, own_p50_s, own_p99_s, own_lent_p99_s, evictions, placed, violations } = r;
    format!(
        "\"lost_gpu_hours\":{lost_gpu_hours:.1},\"pending_p50_s\":{p50_s:.0},\"pending_p99_s\":{p99_s:.0},\"own_p50_s\":{own_p50_s:.0},\"own_p99_s\":{own_p99_s:.0},\"own_lent_p99_s\":{own_lent_p99_s:.0},\"evictions\":{evictions:.1},\"placed\":{placed:.1},\"violations\":{violations:.1}"
    )
}

fn run(options: &Options, seed: u64) -> Run {
    let mut world = World::new(options, seed);
    let mut prepared = Prepared::default();
    let mut queues = kueue::Queues::default();
    let (mut evictions, mut violations, mut lost_milli_s) = (0u32, 0usize, 0u64);
    while world.now_s < options.hours * 3600 {
        world.tick();
        if options.policy == "stowage" {
            let (ends, wrong) = stowage(&mut world, &mut prepared);
            (evictions, violations) = (evictions + ends, violations + wrong);
        } else {
            evictions += queues.cycle(&mut world);
        }
        world.note_lent();
        lost_milli_s += world.free_milli().min(world.waiting_milli()) * TICK_S;
    }
    let [all, own, lent] = world.waits();
    let at = |of: &[u64], part: f64| of.get(((of.len() as f64 - 1.0) * part) as usize).copied().unwrap_or(0) as f64;
    Run {
        lost_gpu_hours: lost_milli_s as f64 / 3_600_000.0,
        p50_s: at(&all, 0.5),
        p99_s: at(&all, 0.99),
        own_p50_s: at(&own, 0.5),
        own_p99_s: at(&own, 0.99),
        own_lent_p99_s: at(&lent, 0.99),
        evictions: evictions.into(),
        placed: world.placed.into(),
        violations: violations as f64,
    }
}

/// One plan, carried out: how many replicas it takes back, and what `check` finds.
fn stowage(world: &mut World, prepared: &mut Prepared) -> (u32, usize) {
    let (plan, report): (_, DecisionReport) = prepared.plan(&world.snapshot, &Policy::default(), world.now_s * 1000);
    let wrong = check(&world.snapshot, &plan).len();
    world.snapshot.shares = report.shares;
    let mut evictions = 0;
    for action in &plan.actions {
        match action {
            Action::Create { replica, placement, .. } => world.place(replica.clone(), placement.clone()),
            Action::Resume { replica, .. } => world.resume(replica),
            Action::Drain { replica, reason, deadline_ms, .. } => {
                evictions += u32::from(*reason == EndReason::Reclaimed);
                world.drain(replica, *deadline_ms, *reason == EndReason::Reclaimed);
            }
            Action::Remove { replica, reason, .. } => {
                evictions += u32::from(*reason == EndReason::Reclaimed);
                world.remove(replica);
            }
        }
    }
    (evictions, wrong)
}
