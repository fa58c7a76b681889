//! A claimant that needs the room of several borrowed replicas gets it: places that become free one after another
//! are kept for it, and replacing replicas before they may be reclaimed does not put it off.

use crate::common;
use crate::common::random::*;
use proptest::prelude::*;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::report::{DecisionReport, Refusal};
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check, plan};

const MIN_RUNTIME: u64 = 600_000;
const TICK: u64 = 30_000;

fn replicas<'a>(s: &'a Snapshot, namespace: &str) -> Vec<&'a Replica> {
    s.deployments.iter().filter(|d| d.id.namespace == namespace).flat_map(|d| &d.replicas).collect()
}

/// A plan, carried out.
fn turn(s: &mut Snapshot, now: u64) -> (Vec<Action>, DecisionReport) {
    let (p, report) = plan(s, &Policy::default(), now);
    assert_eq!(check(s, &p), []);
    s.shares.clone_from(&report.shares);
    apply(s, &p.actions, now);
    (p.actions, report)
}

fn pass(s: &mut Snapshot, now: u64) {
    drop(turn(s, now));
}

fn creates(actions: &[Action]) -> Vec<String> {
    let created = actions.iter().filter(|a| matches!(a, Action::Create { .. }));
    created.map(|a| a.replica().deployment.namespace.clone()).collect()
}

/// The first pod of b that ends, with its claim.
fn one_ends(s: &mut Snapshot) {
    let b = s.deployments.iter().position(|d| d.id.namespace == "b").unwrap();
    let at = s.deployments[b].replicas.iter().position(|r| r.phase.is_terminating()).unwrap();
    vanish(s, b, at);
}

/// b has borrowed both GPUs of the node; the second replica since `young_ms` ago.
fn lent(claim: &str, young_ms: u64) -> Snapshot {
    common::parse(&format!(
        "class h\nnode n1 gpu=h*2 cpu=64\ntenant a ns=a cohort=c h=2\ntenant b ns=b cohort=c h=0\n\
         deployment b/d want=2 ask=h*1 created=1\nreplica b/d 0 n1 0 ready\nreplica b/d 1 n1 1 ready created={}\n\
         deployment a/d ask={claim} created=2",
        common::NOW - young_ms
    ))
}

#[test]
fn drained_replica_does_not_get_the_first_of_two_places_back() {
    let mut s = lent("h*2", 2 * MIN_RUNTIME);
    let (drains, _) = turn(&mut s, common::NOW);
    assert_eq!(drains.iter().filter(|a| matches!(a, Action::Drain { .. })).count(), 2);
    pass(&mut s, common::NOW + 1000);
    one_ends(&mut s);
    let (between, report) = turn(&mut s, common::NOW + 2000);
    assert_eq!(creates(&between), [""; 0], "one place is free and the claimant needs two");
    let b = report.deployments.iter().find(|d| d.deployment.namespace == "b").unwrap();
    let reasons: Vec<&Refusal> =
        b.placements.iter().flat_map(|p| &p.refusals).flat_map(|g| &g.examples).map(|r| &r.reason).collect();
    assert!(reasons.iter().all(|r| !matches!(r, Refusal::NoData)), "{reasons:?}");
    one_ends(&mut s);
    assert_eq!(creates(&turn(&mut s, common::NOW + 3000).0), ["a"]);
}

#[test]
fn place_that_a_borrower_gives_up_is_kept_until_its_young_replica_may_be_reclaimed() {
    let mut s = lent("h*2", 1000);
    assert_eq!(turn(&mut s, common::NOW).0, [], "the second replica is young");
    let id = s.deployments[0].id.clone();
    let id = ReplicaId { deployment: id, index: 0, incarnation: 0 };
    replica(&mut s.deployments[0], &id).phase = Phase::Failed { reason: "exit 1".into() };
    pass(&mut s, common::NOW + 1000);
    settle(&mut s);
    let (actions, report) = turn(&mut s, common::NOW + 2000);
    assert_eq!(creates(&actions), [""; 0], "its tenant may not borrow the place again");
    let b = report.deployments.iter().find(|d| d.deployment.namespace == "b").unwrap();
    let held = b.placements.iter().flat_map(|p| &p.refusals).flat_map(|g| &g.examples);
    assert!(held.into_iter().any(|r| matches!(&r.reason, Refusal::Held { claimant } if claimant.0 == "a")));
    assert_eq!(report.wake_at, Some(common::NOW - 1000 + MIN_RUNTIME));
    let now = common::NOW - 1000 + MIN_RUNTIME;
    let (actions, _) = turn(&mut s, now);
    assert!(matches!(&actions[..], [Action::Drain { reason: EndReason::Reclaimed, .. }]), "{actions:?}");
    pass(&mut s, now + 1000);
    settle(&mut s);
    assert_eq!(creates(&turn(&mut s, now + 2000).0), ["a"]);
}

#[test]
fn nothing_is_kept_for_a_claimant_that_no_reclaim_can_help() {
    let mut s = lent("h*3", 1000);
    s.tenants[0].quotas[0].nominal_milli = 3000;
    let id = s.deployments[0].id.clone();
    let id = ReplicaId { deployment: id, index: 0, incarnation: 0 };
    replica(&mut s.deployments[0], &id).phase = Phase::Failed { reason: "exit 1".into() };
    pass(&mut s, common::NOW);
    settle(&mut s);
    assert_eq!(creates(&turn(&mut s, common::NOW + 1000).0), ["b"], "three GPUs are on no node");
}

#[test]
fn who_has_nominal_quota_of_another_class_does_not_borrow_before_its_turn() {
    // b may have l as its own; on h it would borrow, which it prefers for the price, and it is the older.
    let mut s = common::parse(
        "class h\nclass l\nnode n1 gpu=h*1 cpu=64\nnode n2 gpu=l*1 cpu=64\n\
         tenant a ns=a cohort=c h=1 l=0\ntenant b ns=b cohort=c h=0 l=1\n\
         deployment b/d ask=h*1|l*1 goal=Cost created=1\ndeployment a/d ask=h*1 created=2",
    );
    for (class, price) in s.classes.iter_mut().zip([1_000_000, 2_000_000]) {
        class.price_per_hour_micros = Some(price);
    }
    let (actions, _) = turn(&mut s, common::NOW);
    let mut placed = actions.iter().filter_map(|a| match a {
        Action::Create { replica, placement, .. } => {
            Some((replica.deployment.namespace.as_str(), placement.node.as_str()))
        }
        _ => None,
    });
    assert!(placed.clone().any(|p| p == ("a", "n1")) && placed.any(|p| p == ("b", "n2")), "{actions:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn borrower_that_replaces_its_replicas_all_the_time_gives_back_in_time(
        nodes in prop::collection::vec(2..=4u32, 1..4),
        ask in 2..=4u32,
        churn in prop::collection::vec((0..16usize, any::<bool>()), 120),
    ) {
        let largest = nodes.iter().max().copied().unwrap();
        let total: u32 = nodes.iter().sum();
        let mut text = String::from("class h\n");
        for (n, gpus) in nodes.iter().enumerate() {
            text += &format!("node n{n} gpu=h*{gpus} cpu=64\n");
        }
        text += &format!("tenant a ns=a cohort=c h={total}\ntenant b ns=b cohort=c h=0\n");
        text += &format!("deployment b/d want={total} ask=h*1 created=1 prio=1\n");
        text += &format!("deployment a/d want=0 ask=h*{} created=2\n", ask.min(largest));
        let mut s = common::parse(&text);
        let mut prepared = Prepared::default();
        let mut now = common::NOW;
        let mut churn = churn.into_iter();
        let mut step = |s: &mut Snapshot, now: u64| {
            s.sequence += 1;
            let (p, report) = prepared.plan(s, &Policy::default(), now);
            let (cold, _) = plan(s, &Policy::default(), now);
            assert_eq!(p, cold, "a warm plan is the cold one");
            assert_eq!(check(s, &p), []);
            s.shares = report.shares;
            apply(s, &p.actions, now);
            settle(s);
            let (which, new_spec) = churn.next().unwrap();
            let b = s.deployments.iter_mut().find(|d| d.id.namespace == "b").unwrap();
            let running: Vec<usize> = (0..b.replicas.len()).filter(|at| b.replicas[*at].phase == Phase::Ready).collect();
            if new_spec {
                b.spec_hash = format!("v{now}");
                b.generation += 1;
            } else if let Some(at) = running.get(which % running.len().max(1)) {
                b.replicas[*at].phase = Phase::Failed { reason: "exit 1".into() };
            }
        };
        for _ in 0..40 {
            step(&mut s, now);
            now += TICK;
        }
        s.deployments.iter_mut().find(|d| d.id.namespace == "a").unwrap().wanted = 1;
        let claimed = now;
        while replicas(&s, "a").is_empty() {
            prop_assert!(now - claimed <= MIN_RUNTIME + 8 * TICK, "the claimant has waited for {} s", (now - claimed) / 1000);
            step(&mut s, now);
            now += TICK;
        }
    }
}

/// One GPU of the node is c's own, b has borrowed the other three. `hopeless` deployments of a ask for all four.
fn crowded(hopeless: usize, rest: &str) -> Snapshot {
    let asks: String = (0..hopeless).map(|n| format!("deployment a/x{n:03} ask=h*4 created=2\n")).collect();
    common::parse(&format!(
        "class h\nnode n1 gpu=h*4 cpu=64\ntenant a ns=a cohort=c h=400\ntenant b ns=b cohort=c h=0\ntenant c ns=c cohort=c h=2\n\
         deployment c/own want=1 ask=h*1 created=1\nreplica c/own 0 n1 0 ready\n\
         deployment b/d want=3 ask=h*1 created=1\nreplica b/d 0 n1 1 ready\nreplica b/d 1 n1 2 ready\nreplica b/d 2 n1 3 ready\n\
         {asks}{rest}"
    ))
}

fn drains(s: &mut Snapshot) -> usize {
    let (actions, _) = turn(s, common::NOW);
    let reclaimed = |a: &&Action| matches!(a, Action::Drain { reason: EndReason::Reclaimed, .. });
    actions.iter().filter(reclaimed).count()
}

#[test]
fn claims_that_nothing_can_fill_keep_nobody_else_from_theirs() {
    assert_eq!(drains(&mut crowded(40, "")), 0);
    assert_eq!(drains(&mut crowded(40, "deployment c/late ask=h*1 created=3")), 1);
    // The tenant's own next one too, as long as there are few of them.
    assert_eq!(drains(&mut crowded(10, "deployment a/y ask=h*1 created=3")), 1);
    assert_eq!(drains(&mut crowded(40, "deployment a/y ask=h*1 created=3")), 0);
    // What no node could ever take costs no search.
    let never = "deployment a/y ask=h*1 created=3";
    let mut s = crowded(40, never);
    for d in s.deployments.iter_mut().filter(|d| d.id.name.starts_with('x')) {
        d.node_selector.insert("pool".to_owned(), "none".to_owned());
    }
    assert_eq!(drains(&mut s), 1);
}
