//! How long one turn of the operator takes without its writes: objects → snapshot → plan → what each
//! deployment still needs and is reported to have. One JSON line per scene and a last one with `"summary": true`.
//!
//! With `--nodes` a second scene: a fleet on which everything runs, and one deployment after another gets a replica more.
//! Its turns follow one another as in the operator, with what it remembers from one to the next.
//!
//! ```text
//! cargo run --release -p stowage-operator --example bench_turn -- [DEPLOYMENTS…]
//! cargo run --release -p stowage-operator --example bench_turn -- --nodes 5000 --deployments 5000 --replicas 4
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/fleet.rs"]
mod fleet;
#[path = "../tests/support/objects.rs"]
mod objects;

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stowage_operator::execute::build::{Prepared, prepare};
use stowage_operator::execute::status;
use stowage_operator::observe::view::View;
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::snapshot::Policy;

/// Rounds of which the quickest counts.
const ROUNDS: usize = 10;

/// `deployments` like the quickstart's in one namespace, of which the one node has room for some.
fn crowd(deployments: usize) -> View {
    let mut view = objects::view(include_str!("../tests/golden/quickstart.in.yaml"));
    let (key, one) = view.deployments.iter().find(|(key, _)| key.1 == "chat").unwrap();
    let (namespace, one) = (key.0.clone(), one.as_ref().clone());
    view.deployments.clear();
    for n in 0..deployments {
        let mut next = one.clone();
        next.meta.name = Some(format!("one-{n:04}"));
        next.meta.uid = Some(format!("7f1d3c1e-0000-4000-8000-{n:012}"));
        next.spec.as_mut().unwrap().model.name = None;
        view.deployments.insert((namespace.clone(), format!("one-{n:04}")), Arc::new(next));
    }
    view
}

/// Milliseconds of one turn's parts, and what it wants to write.
struct Turn {
    build: f64,
    plan: f64,
    report: f64,
    prepared: Vec<Prepared>,
}

fn turn(view: &View) -> Turn {
    let start = Instant::now();
    let built = build(view, &Memory::default(), 1);
    let build = start.elapsed();
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    let planned = start.elapsed();
    let cases = stowage_operator::execute::case::cases(view, &built, &plan, &report);
    let prepared = cases.map(|case| {
        let status = status::render(&case, report.of(&case.id), &[], None, view.now);
        assert!(status::differs(&case.stored.raw_status(), &status));
        prepare(&case, view.now)
    });
    let prepared = prepared.collect();
    let reported = start.elapsed();
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    Turn { build: ms(build), plan: ms(planned - build), report: ms(reported - planned), prepared }
}

/// The objects exist from now on, as the API server would have stored them.
fn write(view: &mut View, prepared: Vec<Prepared>) {
    let key = |meta: &ObjectMeta| (meta.namespace.clone().unwrap(), meta.name.clone().unwrap());
    for due in prepared {
        for replica in due.make.create {
            let claim = replica.claim.unwrap();
            view.pods.insert(key(&replica.pod.metadata), Arc::new(replica.pod.into()));
            view.claims.insert(key(&claim.metadata), Arc::new(claim.into()));
        }
        // What exists already is made once.
        let (service, policy, budget) = (due.make.service, due.make.policy, due.make.budget);
        view.services.extend(service.map(|made| (key(&made.object.metadata), Arc::new(made.object))));
        view.policies.extend(policy.map(|made| (key(&made.object.metadata), Arc::new(made.object))));
        view.budgets.extend(budget.map(|made| (key(&made.object.metadata), Arc::new(made.object))));
    }
}

fn main() {
    if std::env::args().any(|arg| arg == "--nodes") {
        return fleet::main();
    }
    let asked: Vec<usize> = std::env::args().skip(1).map(|n| n.parse().expect("DEPLOYMENTS are numbers")).collect();
    let sizes = if asked.is_empty() { vec![1, 200, 1000] } else { asked };
    let mut last = 0.0;
    for deployments in sizes {
        let mut view = crowd(deployments);
        let first = turn(&view);
        let created: usize = first.prepared.iter().map(|due| due.make.create.len()).sum();
        write(&mut view, first.prepared);
        let turns: Vec<Turn> = (0..ROUNDS).map(|_| turn(&view)).collect();
        let best = |part: fn(&Turn) -> f64| turns.iter().map(part).fold(f64::INFINITY, f64::min);
        let (build, plan, report) = (best(|t| t.build), best(|t| t.plan), best(|t| t.report));
        last = (build + plan + report) / deployments as f64;
        println!(
            "{{\"bench\":\"turn\",\"deployments\":{deployments},\"running\":{created},\"build_ms\":{build:.2},\"plan_ms\":{plan:.2},\"report_ms\":{report:.2}}}"
        );
    }
    println!("{{\"bench\":\"turn\",\"summary\":true,\"ms_per_deployment\":{last:.4}}}");
}
