//! Borrowed replicas that are on their way out already and would take long: their time is cut, by the rules of any
//! reclaim, so that a lender has its own within the grace period.

use crate::common;
use crate::common::random::*;
use proptest::prelude::*;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::report::Wait;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check, plan};

const MIN_RUNTIME: u64 = 600_000;
const GRACE: u64 = 30_000;
const DAY: u64 = 86_400_000;
const TICK: u64 = 5_000;

/// Three GPUs; a wants one of its own, and b and c hold all of them. What is reclaimed, and for how long it may go on.
fn check_reclaim(tenants: &str, replicas: &str, want: &[(&str, u64)]) {
    let text = format!(
        "class h\nnode n1 gpu=h*3 cpu=64\n{tenants}\ndeployment a/d want=1 ask=h*1\n\
         deployment b/d want=0 ask=h*1\ndeployment c/d want=2 ask=h*1\n{replicas}"
    );
    let s = common::parse(&text);
    let (p, report) = plan(&s, &Policy::default(), common::NOW);
    assert_eq!(check(&s, &p), [], "{text}");
    let drains = p.actions.iter().filter_map(|a| match a {
        Action::Drain { pod, deadline_ms, reason: EndReason::Reclaimed, replica } => {
            Some((format!("{}/{pod}", replica.deployment.namespace), deadline_ms - common::NOW))
        }
        _ => None,
    });
    let drains: Vec<(String, u64)> = drains.collect();
    let want: Vec<(String, u64)> = want.iter().map(|(pod, ms)| ((*pod).to_owned(), *ms)).collect();
    assert_eq!(drains, want, "{text}");
    let a = report.deployments.iter().find(|d| d.deployment.namespace == "a").unwrap();
    let named = a.waits.iter().any(|w| matches!(w, Wait::Reclaiming { .. }));
    assert_eq!(named, !want.is_empty(), "{:?}", a.waits);
}

const LENT: &str = "tenant a ns=a cohort=p h=3\ntenant b ns=b cohort=p h=0\ntenant c ns=c cohort=p h=0";
const RUN: &str = "replica c/d 0 n1 1 ready\nreplica c/d 1 n1 2 ready";

#[test]
fn what_is_on_its_way_out_is_cut_to_the_grace_period_before_a_replica_is_taken() {
    for phase in ["draining inflight=3 until=86400000", "terminating until=86400000", "draining inflight=3"] {
        check_reclaim(LENT, &format!("replica b/d 0 n1 0 {phase}\n{RUN}"), &[("b/d-00", GRACE)]);
    }
}

#[test]
fn what_ends_in_time_is_waited_for() {
    for phase in ["draining inflight=3 until=30000", "terminating until=29000", "terminating"] {
        check_reclaim(LENT, &format!("replica b/d 0 n1 0 {phase}\n{RUN}"), &[]);
    }
}

#[test]
fn young_or_own_replica_on_its_way_out_is_left_alone_and_another_borrower_is_asked() {
    let young = format!("replica b/d 0 n1 0 draining inflight=3 until=86400000 created={}\n{RUN}", common::NOW - 1);
    check_reclaim(LENT, &young, &[("c/d-00", GRACE)]);
    let own = "tenant a ns=a cohort=p h=2\ntenant b ns=b cohort=p h=1\ntenant c ns=c cohort=p h=0";
    let leaves = "replica b/d 0 n1 0 draining inflight=3 until=86400000";
    check_reclaim(own, &format!("{leaves}\n{RUN}"), &[("c/d-00", GRACE)]);
    // Of two that leave, one is its own.
    let two = "replica b/d 1 n1 1 draining inflight=3 until=86400000\nreplica c/d 1 n1 2 ready created=49999999";
    check_reclaim(own, &format!("{leaves}\n{two}"), &[("b/d-00", GRACE)]);
}

#[test]
fn deployment_waits_for_its_own_drain() {
    let drains = "replica a/d 0 n1 0 draining inflight=3 until=86400000";
    check_reclaim(LENT, &format!("{drains}\n{RUN}"), &[]);
}

/// Where the room is kept and what is reclaimed are one place, also if the other borrower is the older.
#[test]
fn drain_that_a_claimant_needs_is_cut_and_not_cancelled() {
    let s = common::parse(
        "class h\nnode n1 gpu=h*1 cpu=64\nnode n2 gpu=h*1 cpu=64\n\
         tenant a ns=a cohort=p h=2\ntenant c ns=c cohort=p h=0\n\
         deployment a/d want=1 ask=h*1\ndeployment c/d want=2 ask=h*1\n\
         replica c/d 0 n1 0 ready created=1000000\n\
         replica c/d 1 n2 0 draining inflight=1 resumable created=2000000",
    );
    let (p, _) = plan(&s, &Policy::default(), common::NOW);
    assert_eq!(check(&s, &p), []);
    let cut = |a: &Action| matches!(a, Action::Drain { pod, deadline_ms, .. } if pod == "d-10" && *deadline_ms == common::NOW + GRACE);
    assert!(p.actions.len() == 1 && cut(&p.actions[0]), "{:?}", p.actions);
}

#[derive(Clone, Debug)]
enum Step {
    Scale(usize, u32),
    /// Somebody deletes a pod, which may take a day.
    Deleted(usize),
    Ends(usize),
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, 0..6u32).prop_map(|(d, n)| Step::Scale(d, n)),
        1 => (0..16usize).prop_map(Step::Deleted),
        2 => (0..16usize).prop_map(Step::Ends),
        2 => (0..900_000u64).prop_map(Step::Passes),
    ]
}

fn pods(s: &Snapshot, which: fn(&Phase) -> bool) -> Vec<(usize, usize)> {
    let of = |(d, x): (usize, &Shared<Deployment>)| {
        let at = x.replicas.iter().enumerate().filter(|(_, r)| which(&r.phase)).map(move |(i, _)| (d, i));
        at.collect::<Vec<_>>()
    };
    s.deployments.iter().enumerate().flat_map(of).collect()
}

/// A plan, carried out: what drains has requests, deleted pods go when their time is over.
fn turn(s: &mut Snapshot, prepared: &mut Prepared, now: u64) {
    s.sequence += 1;
    let (p, report) = prepared.plan(s, &Policy::default(), now);
    let (cold, _) = plan(s, &Policy::default(), now);
    assert_eq!(p, cold, "a warm plan is the cold one");
    assert_eq!(check(s, &p), []);
    for action in &p.actions {
        let Action::Drain { replica: id, reason: EndReason::Reclaimed, deadline_ms, .. } = action else { continue };
        let d = s.deployments.iter().find(|d| d.id == id.deployment).unwrap();
        let r = d.replicas.iter().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap();
        assert!(now - r.created_ms >= MIN_RUNTIME, "{id} has just started");
        assert!(r.phase.ends_ms(d.drain_timeout_ms).is_none_or(|end| end > *deadline_ms), "{id} gets more time");
    }
    s.shares = report.shares;
    apply(s, &p.actions, now);
    for (d, at) in pods(s, |phase| matches!(phase, Phase::Draining { .. })) {
        if let Phase::Draining { since_ms, in_flight, .. } = &mut s.deployments[d].replicas[at].phase
            && *since_ms == now
        {
            *in_flight = Some(1);
        }
    }
    let over = |phase: &Phase| matches!(phase, Phase::Terminating { until_ms } if until_ms.is_none_or(|at| at <= now));
    for d in 0..s.deployments.len() {
        while let Some(at) = s.deployments[d].replicas.iter().position(|r| over(&r.phase)) {
            vanish(s, d, at);
        }
        let starting = |r: &&mut Replica| r.phase == Phase::Starting;
        s.deployments[d].replicas.iter_mut().filter(starting).for_each(|r| r.phase = Phase::Ready);
    }
}

fn happen(s: &mut Snapshot, step: &Step, now: &mut u64) {
    match step {
        Step::Scale(d, n) => s.deployments[*d].wanted = *n,
        Step::Passes(ms) => *now += ms,
        Step::Deleted(n) => {
            let all = pods(s, |phase| matches!(phase, Phase::Ready | Phase::Draining { .. }));
            if let Some((d, at)) = all.get(n % all.len().max(1)) {
                s.deployments[*d].replicas[*at].phase = Phase::Terminating { until_ms: Some(*now + DAY) };
            }
        }
        Step::Ends(n) => {
            let all = pods(s, |phase| matches!(phase, Phase::Draining { .. } | Phase::Terminating { .. }));
            if let Some((d, at)) = all.get(n % all.len().max(1)) {
                vanish(s, *d, *at);
            }
        }
    }
}

/// How long a/late waits for what is its tenant's own, after these steps.
fn waits(gpus: &[u32], part: u32, steps: &[Step]) -> u64 {
    let total: u32 = gpus.iter().sum();
    let own = part.min(total);
    let mut text = String::from("class h\n");
    for (n, gpus) in gpus.iter().enumerate() {
        text += &format!("node n{n} gpu=h*{gpus} cpu=64\n");
    }
    text += &format!("tenant a ns=a cohort=p h={own}\ntenant b ns=b cohort=p h={}\n", total - own);
    text += "tenant c ns=c cohort=p h=0\n";
    for (n, name) in ["a/early", "b/d", "c/d", "a/late"].iter().enumerate() {
        text += &format!("deployment {name} want=0 ask=h*1 created={n}\n");
    }
    let mut s = common::parse(&text);
    s.deployments.iter_mut().for_each(|d| d.drain_timeout_ms = DAY);
    let mut prepared = Prepared::default();
    let mut now = common::NOW;
    for step in steps {
        happen(&mut s, step, &mut now);
        turn(&mut s, &mut prepared, now);
        now += TICK;
    }
    s.deployments[0].wanted = 0;
    turn(&mut s, &mut prepared, now);
    // All that is borrowed has run long enough.
    now += MIN_RUNTIME;
    let held = s.deployments[0].replicas.len() as u32;
    s.deployments[3].wanted = own.saturating_sub(held);
    let claimed = now;
    while (s.deployments[3].replicas.len() as u32) < s.deployments[3].wanted && now - claimed < 2 * MIN_RUNTIME {
        turn(&mut s, &mut prepared, now);
        now += TICK;
    }
    now - claimed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Drains and deletions may take a day. a/late has had no replica before, so that none of its own ends.
    #[test]
    fn lender_has_its_own_within_the_grace_period_whatever_is_on_its_way_out(
        gpus in prop::collection::vec(1..=3u32, 1..4),
        part in 0..=8u32,
        steps in prop::collection::vec(step(), 40),
    ) {
        let waited = waits(&gpus, part, &steps);
        prop_assert!(waited <= GRACE + 3 * TICK, "{} s have passed", waited / 1000);
    }
}
