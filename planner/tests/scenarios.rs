//! Scenario goldens: `tests/scenarios/*.in` is a snapshot in the language of `common`, `*.out` what
//! the planner does about it and how it explains it. `UPDATE_GOLDEN=1` writes the `.out` files anew;
//! read the diff.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::path::Path;

use stowage_planner::check::{Violation, check};
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::snapshot::{Policy, ReplicaId};
use stowage_planner::{plan, render};

/// In a scenario in which replicas may move.
const MOVES: &str = "# Policy: maxMoves = 4";

fn rendered(text: &str) -> String {
    let snapshot = common::parse(text);
    // By default nothing moves so that another fits.
    let max_moves = if text.contains(MOVES) { 4 } else { 0 };
    let policy = Policy { max_moves, ..Policy::default() };
    let (plan, report) = plan(&snapshot, &policy, common::NOW);
    assert_eq!(check(&snapshot, &plan), []);
    let mut out = String::new();
    for a in &plan.actions {
        let _ = match a {
            Action::Create { replica, placement, reason, .. } => {
                writeln!(out, "create {replica} {reason:?} on {}", render::placement(placement))
            }
            Action::Resume { replica, pod } => writeln!(out, "resume {replica} {pod}"),
            Action::Drain { replica, pod, deadline_ms, reason } => {
                writeln!(out, "drain  {replica} {reason:?} {pod} for {} ms", deadline_ms - common::NOW)
            }
            Action::Remove { replica, pod, reason, exclude } => {
                let except = exclude
                    .as_ref()
                    .map_or(String::new(), |e| format!(", not on {} for {} ms", e.node, e.until_ms - common::NOW));
                writeln!(out, "remove {replica} {reason:?} {pod}{except}")
            }
        };
    }
    for r in &report.deployments {
        let tenant = report.tenants.iter().find(|t| Some(&t.tenant) == r.tenant.as_ref());
        let history: Vec<_> = report.records.iter().filter(|h| h.object == r.deployment).cloned().collect();
        let _ = writeln!(out, "\n{}", render::explain(r, tenant, report.at, &history).trim_end());
        let _ = writeln!(out, "condition  {}", render::condition_message(r));
    }
    if let Some(at) = report.wake_at {
        let _ = writeln!(out, "\nlooks again in {} ms", at - common::NOW);
    }
    out
}

#[test]
fn every_scenario_is_decided_and_explained_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "in"))
        .collect();
    names.sort();
    assert!(names.len() >= 10);
    let mut different = Vec::new();
    for path in names {
        let got = rendered(&std::fs::read_to_string(&path).unwrap());
        let golden = path.with_extension("out");
        if update {
            std::fs::write(&golden, &got).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != got {
            different.push(format!("{}\n{got}", golden.display()));
        }
    }
    assert!(different.is_empty(), "changed (UPDATE_GOLDEN=1 accepts):\n{}", different.join("\n"));
}

#[test]
fn plan_that_borrows_what_the_cohort_does_not_have_is_a_violation() {
    let with = |lender: u32| {
        common::parse(&format!(
            "class h100\nnode n1 gpu=h100*4\ntenant a ns=a cohort=p h100=1+8\ntenant b ns=b cohort=p h100={lender}\n\
             deployment a/chat want=3 ask=h100*1"
        ))
    };
    let (plan_made, _) = plan(&with(2), &Policy::default(), common::NOW);
    assert_eq!(plan_made.actions.len(), 3);
    assert_eq!(check(&with(2), &plan_made), []);
    let found = check(&with(1), &plan_made);
    let expected = Violation::CohortExhausted { cohort: "p".to_owned(), class: "h100".to_owned(), missing: 1000 };
    assert_eq!(found, [expected]);
}

#[test]
fn second_drain_is_a_violation_unless_a_reclaim_ends_it_sooner() {
    let judged = |phase: &str, reason: EndReason, in_ms: u64| {
        let s = common::parse(&format!(
            "class h100\nnode n1 gpu=h100*1\ntenant a ns=a cohort=p h100=0\ntenant b ns=b cohort=p h100=1\n\
             deployment a/chat want=0 ask=h100*1\nreplica a/chat 0 n1 0 {phase}"
        ));
        let (mut made, _) = plan(&s, &Policy::default(), common::NOW);
        let replica = ReplicaId { deployment: s.deployments[0].id.clone(), index: 0, incarnation: 0 };
        made.actions = vec![Action::Drain { replica, pod: "chat-00".into(), deadline_ms: common::NOW + in_ms, reason }];
        check(&s, &made).is_empty()
    };
    for phase in ["draining inflight=1 until=60000", "draining inflight=1", "terminating until=60000"] {
        assert!(judged(phase, EndReason::Reclaimed, 30_000), "{phase}");
        assert!(!judged(phase, EndReason::Reclaimed, 60_000), "{phase}: no sooner");
        assert!(!judged(phase, EndReason::ScaleIn, 30_000), "{phase}: no reclaim");
    }
    assert!(!judged("terminating", EndReason::Reclaimed, 30_000), "when it ends is not known");
}
