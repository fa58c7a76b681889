//! A replica that moves has two pods for a while, and is one replica: it is charged, kept and taken back as one.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use stowage_planner::check::{Violation, check};
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::report::{MoveVerdict, Outcome};
use stowage_planner::snapshot::*;
use stowage_planner::{DecisionReport, Plan, Prepared, plan};

use crate::common;
use crate::common::random::*;
use crate::{busy, decided, moved, moving, verdicts, with};

/// The pod that serves is on n1, the one that takes over from it starts on n2. Tenant c of the same cohort has a
/// replica that needs a whole GPU.
const PAIR: &str = "
    class h soft
    node n1 gpu=h*1
    node n2 gpu=h*1
    tenant a ns=a cohort=p h=0.25
    tenant c ns=c cohort=p h=1
    deployment a/small want=1 ask=h*1,20Gi,20
    deployment c/whole want=1 ask=h*1
    replica a/small 0 n1 0 ready
    replica a/small 0 n2 0 starting inc=1 takesover created=49990000
";

fn ends(made: &Plan) -> Vec<(&str, EndReason)> {
    let ends = made.actions.iter().filter_map(|action| match action {
        Action::Drain { pod, reason, .. } | Action::Remove { pod, reason, .. } => Some((pod.as_str(), *reason)),
        Action::Create { .. } | Action::Resume { .. } => None,
    });
    ends.collect()
}

/// What the tenant is charged after the plan, in thousandths of a GPU.
fn held(report: &DecisionReport, tenant: &str) -> u64 {
    let of = report.tenants.iter().find(|t| t.tenant.0 == tenant).unwrap();
    of.usage.iter().map(|usage| usage.held_milli).sum()
}

#[test]
fn replica_within_its_nominal_quota_is_not_reclaimed_while_it_moves() {
    let (made, report) = decided(PAIR, &moving());
    assert_eq!(ends(&made), []);
    assert_eq!(held(&report, "a"), 250);
}

#[test]
fn moving_replica_is_charged_for_one_pod_until_the_other_is_gone() {
    for (why, old, new) in [
        ("as it is made", "ready", "starting"),
        ("as the old one cannot answer for a moment", "unready", "starting"),
        ("as the old one finishes its requests", "draining inflight=1", "ready"),
        ("as the old one ends", "terminating", "ready"),
        ("as the new one has failed", "ready", "failed"),
        ("as the new one ends", "ready", "terminating"),
        ("as both end", "draining inflight=1", "terminating"),
    ] {
        let want = if why == "as both end" { "small want=0" } else { "small want=1" };
        let pair = PAIR.replace("small want=1", want);
        let pair = pair.replace("n1 0 ready", &format!("n1 0 {old}")).replace("n2 0 starting", &format!("n2 0 {new}"));
        assert_eq!(held(&decided(&pair, &moving()).1, "a"), 250, "{why}");
        let cordoned = pair.replace("node n1 gpu=h*1", "node n1 gpu=h*1 cordoned").replace("takesover", "");
        assert_eq!(held(&decided(&cordoned, &moving()).1, "a"), 250, "off a cordoned node, {why}");
    }
    let rollout = PAIR.replace("n1 0 ready", "n1 0 ready hash=v0").replace("takesover", "");
    assert_eq!(held(&decided(&rollout, &moving()).1, "a"), 500, "a rollout is charged for both");
}

#[test]
fn move_leaves_its_tenants_quota_for_other_replicas() {
    let text = format!("{PAIR}\ndeployment a/more want=1 ask=h*1,20Gi,20")
        .replace("tenant a ns=a cohort=p h=0.25", "tenant a ns=a h=0.5");
    let (made, report) = decided(&text, &moving());
    assert_eq!(report.of(&DeploymentId::new("a", "more")).unwrap().counts.desired, 1, "{:?}", made.actions);
    assert_eq!(held(&report, "a"), 500);
    // The end of the old pod gives nothing back.
    let (_, report) = decided(&text.replace("ns=a h=0.5", "ns=a h=0.25"), &moving());
    assert_eq!(report.of(&DeploymentId::new("a", "more")).unwrap().outcome, Outcome::WaitingForQuota);
    // The plan that makes the move charges for one pod, too.
    let (made, report) = decided(&with(&[]), &moving());
    assert_eq!((moved(&made), held(&report, "a")), (vec!["a/small#0.1".to_owned()], 500));
}

#[test]
fn borrowed_replica_that_moves_is_reclaimed_as_a_whole() {
    let borrowed = PAIR.replace("tenant a ns=a cohort=p h=0.25", "tenant a ns=a cohort=p h=0");
    let (made, report) = decided(&borrowed, &moving());
    assert_eq!(ends(&made), [("small-00", EndReason::Reclaimed), ("small-01", EndReason::Reclaimed)]);
    assert_eq!(report.of(&DeploymentId::new("c", "whole")).unwrap().outcome, Outcome::Progressing);
    let counts = report.of(&DeploymentId::new("a", "small")).unwrap().counts;
    assert_eq!((counts.current, counts.ready), (0, 0));
    let young = borrowed.replace("n1 0 ready", "n1 0 ready created=49900000");
    assert_eq!(ends(&decided(&young, &moving()).0), [], "it has not run for long enough");
    let one_node = borrowed.replace("replica a/small 0 n2 0", "replica a/small 0 n1 0") + "\nforeign n2 0 10Gi 10";
    let (made, _) = decided(&one_node, &moving());
    assert_eq!(ends(&made), [("small-00", EndReason::Reclaimed), ("small-01", EndReason::Reclaimed)], "on one node");
    let two = one_node.replace("n1 gpu=h*1", "n1 gpu=h*2").replace("c/whole want=1 ask=h*1", "c/whole want=1 ask=h*2");
    let two = two.replace("cohort=p h=1", "cohort=p h=2") + "\ndeployment a/z want=1 ask=h*1\nreplica a/z 0 n1 1 ready";
    let ended: Vec<_> = ends(&decided(&two, &moving()).0).into_iter().map(|(pod, _)| pod.to_owned()).collect();
    assert_eq!(ended, ["small-00", "small-01", "z-00"], "beside another one");
    // What finishes its requests after a move is a pod on its way out, which may be brought forward.
    let leaving = borrowed.replace("n1 0 ready", "n1 0 draining inflight=1 until=3600000").replace("starting", "ready");
    let leaving = leaving + "\nforeign n2 0 10Gi 10";
    assert_eq!(ends(&decided(&leaving, &moving()).0), [("small-00", EndReason::Reclaimed)]);
}

#[test]
fn end_of_half_a_moving_replica_is_a_violation() {
    let s = common::parse(PAIR);
    let (made, _) = decided(PAIR, &moving());
    let id = |incarnation| ReplicaId { deployment: DeploymentId::new("a", "small"), index: 0, incarnation };
    let end = |incarnation: u32, reason| {
        let pod = format!("small-0{incarnation}");
        Action::Remove { replica: id(incarnation), pod, reason, exclude: None }
    };
    let wrong = |s: &Snapshot, actions: Vec<Action>| {
        let found = check(s, &Plan { actions, ..made.clone() });
        found.into_iter().any(|v| matches!(v, Violation::WrongMove { .. }))
    };
    for reason in [EndReason::Reclaimed, EndReason::ScaleIn, EndReason::Duplicate, EndReason::NodeCordoned] {
        assert!(wrong(&s, vec![end(0, reason)]), "{reason:?}");
        assert!(!wrong(&s, vec![end(0, reason), end(1, reason)]), "{reason:?} of the whole replica");
    }
    for reason in [EndReason::Failed, EndReason::NodeLost, EndReason::UnhealthyGpu, EndReason::Overshoot] {
        assert!(!wrong(&s, vec![end(0, reason)]), "{reason:?}: it cannot go on");
    }
    assert!(wrong(&s, vec![end(1, EndReason::Reclaimed)]), "the other half");
    let cordoned = PAIR.replace("node n1 gpu=h*1", "node n1 gpu=h*1 cordoned").replace("takesover", "");
    assert!(wrong(&common::parse(&cordoned), vec![end(0, EndReason::Reclaimed)]), "off a cordoned node");
    let begins = cordoned.replace("replica a/small 0 n2 0 starting inc=1", "node n3 gpu=h*1\n# ");
    let mut begun = decided(&begins, &moving()).0;
    assert!(begun.actions.iter().all(|a| matches!(a, Action::Create { .. })) && begun.actions.len() == 2);
    assert_eq!(check(&common::parse(&begins), &begun), []);
    begun.actions.push(end(0, EndReason::Reclaimed));
    assert!(wrong(&common::parse(&begins), begun.actions), "off a cordoned node, as its replacement begins");
    assert!(wrong(&s, vec![end(0, EndReason::MoveTimeout)]), "no other pod goes on");
    assert!(!wrong(&s, vec![end(1, EndReason::MoveTimeout)]));
    let ready = common::parse(&PAIR.replace("starting", "ready"));
    assert!(!wrong(&ready, vec![end(0, EndReason::Moved)]), "the other one has taken over");
}

#[test]
fn old_pod_that_cannot_answer_for_a_moment_stays_until_its_replacement_is_ready() {
    let unready = PAIR.replace("n1 0 ready", "n1 0 unready");
    let cordoned = unready.replace("node n1 gpu=h*1", "node n1 gpu=h*1 cordoned").replace("takesover", "");
    assert_eq!(ends(&decided(&unready, &moving()).0), []);
    assert_eq!(ends(&decided(&cordoned, &moving()).0), []);
    let over = |text: &str| text.replace("starting", "ready");
    assert_eq!(ends(&decided(&over(&unready), &moving()).0), [("small-00", EndReason::Moved)]);
    assert_eq!(ends(&decided(&over(&cordoned), &moving()).0), [("small-00", EndReason::NodeCordoned)]);
    let failed = PAIR.replace("n1 0 ready", "n1 0 failed");
    assert_eq!(ends(&decided(&failed, &moving()).0), [("small-00", EndReason::Failed)]);
    let rollout = unready.replace("unready", "unready hash=v0").replace("takesover", "");
    assert_eq!(
        ends(&decided(&rollout, &moving()).0),
        [("small-00", EndReason::Rollout)],
        "outdated, and serves nothing"
    );
}

#[test]
fn of_two_pods_on_cordoned_nodes_one_that_serves_stays_and_moves_on() {
    let text = "class h soft
        node n1 gpu=h*1 cordoned
        node n2 gpu=h*1 cordoned
        node n3 gpu=h*1
        tenant a ns=a h=0.25
        deployment a/small want=1 ask=h*1,20Gi,20
        replica a/small 0 n1 0 OLD
        replica a/small 0 n2 0 NEW inc=1";
    for (old, new, ended) in
        [("ready", "ready", "small-00"), ("unready", "ready", "small-00"), ("ready", "unready", "small-01")]
    {
        let (made, report) = decided(&text.replace("OLD", old).replace("NEW", new), &Policy::default());
        assert_eq!(ends(&made), [(ended, EndReason::Duplicate)], "{old}, {new}");
        assert_eq!(made.actions.len(), 2, "{old}, {new}: {:?}", made.actions);
        assert_eq!(held(&report, "a"), 250, "{old}, {new}");
    }
}

#[test]
fn changed_spec_during_a_move_leaves_the_pod_that_serves() {
    let before = PAIR.replace("n1 0 ready", "n1 0 ready hash=v0").replace("inc=1 takesover", "inc=1 hash=v0");
    let before = before.replace("cohort=p h=0.25", "h=1");
    let cordoned = before.replace("node n1 gpu=h*1", "node n1 gpu=h*1 cordoned");
    for text in [before.replace("hash=v0 created", "hash=v0 takesover created"), cordoned] {
        assert_eq!(ends(&decided(&text, &moving()).0), [("small-01", EndReason::Duplicate)], "{text}");
    }
}

/// Its replacement has started for as long as it may.
const OVERDUE: &str = "+replica a/small 0 n2 0 starting inc=1 takesover created=49400000";

#[test]
fn replacement_that_does_not_become_ready_in_time_is_ended_and_the_old_pod_goes_on() {
    let other = "+slot a/other 0 failures=1";
    for old in ["ready", "unready"] {
        let text = with(&[OVERDUE, other, &format!("replica a/small 0 n1 0 {old}")]);
        let (made, _) = decided(&text, &moving());
        let ended: Vec<_> = ends(&made).into_iter().map(|(pod, reason)| (pod, reason.name())).collect();
        assert_eq!(ended, [("small-01", "MoveTimeout".to_owned())], "the old one is {old}");
        assert_eq!(moved(&made), [""; 0]);
    }
    let in_time = OVERDUE.replace("49400000", "49400001");
    let (made, report) = decided(&with(&[&in_time]), &moving());
    assert_eq!((ends(&made), report.wake_at), (vec![], Some(common::NOW + 1)));
    // Off a cordoned node it has to go in any case.
    let cordoned = with(&[OVERDUE, "node n1 gpu=h*2 cordoned"]);
    assert_eq!(ends(&decided(&cordoned, &moving()).0), []);
}

#[test]
fn overdue_replacement_leaves_its_turn_to_another_move() {
    let text = with(&[
        "tenant a ns=a h=1",
        "+node n3 gpu=h*1",
        "+deployment a/third want=1 ask=h*1,20Gi,20",
        "+replica a/third 0 n3 0 ready",
        "+replica a/third 0 n2 0 starting inc=1 takesover created=49400000",
    ]);
    let (made, _) = decided(&text, &Policy { max_moves: 1, ..Policy::default() });
    assert_eq!(moved(&made), ["a/small#0.1"]);
    assert_eq!(ends(&made).len(), 1);
}

// === histories ===

/// Slices and larger replicas of two tenants that borrow from a third one, which takes back what is its own. One of the
/// first moves.
fn lending() -> impl Strategy<Value = Snapshot> {
    let nodes = prop::collection::vec(1..=3u32, 2..4);
    let want = (0..3usize, 0..=2u32, prop::sample::select(vec![1u32, 1, 2]), prop::option::weighted(0.7, 10..=50u64));
    let nominal = (prop::sample::select(vec![0, 1, 2]), prop::sample::select(vec![4, 8]));
    (nodes, prop::collection::vec(want, 4..8), nominal, any::<bool>()).prop_map(
        |(nodes, wants, (few, many), cordoned)| {
            let mut text = format!("class h soft\ntenant t0 ns=t0 cohort=c h={few}\ntenant t1 ns=t1 cohort=c h=2\n");
            text.push_str(&format!("tenant t2 ns=t2 cohort=c h={many}\n"));
            let (cordoned, mark) = if cordoned { ("cordoned", "") } else { ("", "takesover") };
            for (n, gpus) in nodes.iter().enumerate() {
                text.push_str(&format!("node n{n} gpu=h*{gpus} {}\n", if n == 0 { cordoned } else { "" }));
            }
            for (n, (tenant, want, gpus, size)) in wants.iter().enumerate() {
                let part = size.map_or(String::new(), |size| format!(",{size}Gi,{size}"));
                text.push_str(&format!("deployment t{tenant}/d{n} want={want} ask=h*{gpus}{part} drain=5000\n"));
            }
            text.push_str("deployment t0/moves want=1 ask=h*1,40Gi,40 drain=5000\n");
            text.push_str("replica t0/moves 0 n0 0 ready\n");
            text.push_str(&format!("replica t0/moves 0 n1 0 starting inc=1 {mark} created=49990000\n"));
            common::parse(&text)
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Happens(Event),
    Unready(usize),
    Recovers(usize),
    Cordons(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => busy().prop_map(Step::Happens),
        1 => (0..20usize).prop_map(Step::Unready),
        4 => (0..20usize).prop_map(Step::Recovers),
        2 => (0..4usize, prop::bool::weighted(0.3)).prop_map(|(n, cordoned)| Step::Cordons(n, cordoned)),
    ]
}

/// The `n`th pod in this phase is in another.
fn turn(s: &mut Snapshot, n: usize, from: &Phase, to: Phase) {
    let all = s.deployments.iter().flat_map(|d| &d.replicas).filter(|r| r.phase == *from).count();
    let mut of = s.deployments.iter_mut().flat_map(|d| &mut d.replicas).filter(|r| r.phase == *from);
    of.nth(n % all.max(1)).into_iter().for_each(|r| r.phase = to.clone());
}

fn make(s: &mut Snapshot, step: &Step) {
    match step {
        Step::Happens(event) => happen(s, event),
        Step::Unready(n) => turn(s, *n, &Phase::Ready, Phase::Unready),
        Step::Recovers(n) => turn(s, *n, &Phase::Unready, Phase::Ready),
        Step::Cordons(n, cordoned) => s.nodes.get_mut(*n).into_iter().for_each(|n| n.cordoned = *cordoned),
    }
}

/// Slots with a pod that serves and a later one of its specification that starts: those that make room, or all.
fn in_motion(s: &Snapshot, all: bool) -> Vec<(DeploymentId, u32)> {
    let of = |d: &Shared<Deployment>| {
        let starts = d.replicas.iter().filter(|r| (all || r.takes_over) && r.phase == Phase::Starting);
        let serves = |new: &&Replica| {
            d.replicas.iter().any(|r| (r.index, &r.phase, &r.spec_hash) == (new.index, &Phase::Ready, &new.spec_hash))
        };
        starts.filter(serves).map(|r| (d.id.clone(), r.index)).collect::<Vec<_>>()
    };
    s.deployments.iter().flat_map(of).collect()
}

/// Moves, replacements that were given up, and moving replicas that were reclaimed.
fn judge(mut s: Snapshot, steps: &[Step]) -> [usize; 3] {
    let policy = Policy {
        max_moves: 1,
        min_runtime_ms: 120_000,
        move_patience_ms: 200_000,
        move_window_ms: 600_000,
        ..Policy::default()
    };
    let (mut now, mut prepared, mut seen) = (common::NOW, Prepared::default(), [0; 3]);
    for step in steps {
        make(&mut s, step);
        now += 40_000;
        s.sequence += 1;
        let (made, report) = prepared.plan(&s, &policy, now);
        assert_eq!(check(&s, &made), [], "after {step:?}");
        let reclaimed = |(d, index): &(DeploymentId, u32)| {
            let of = made.actions.iter().filter(|a| (&a.replica().deployment, a.replica().index) == (d, *index));
            let why = |a: &Action| match a {
                Action::Drain { reason, .. } | Action::Remove { reason, .. } => Some(*reason),
                Action::Create { .. } | Action::Resume { .. } => None,
            };
            let ended: Vec<_> = of.filter_map(why).collect();
            let reclaimed = ended.iter().filter(|reason| **reason == EndReason::Reclaimed).count();
            assert!(reclaimed == 0 || ended.len() == 2, "half of a moving replica is reclaimed: {ended:?}");
            reclaimed == 2
        };
        seen[0] += moved(&made).len();
        seen[1] += ends(&made).iter().filter(|(_, reason)| *reason == EndReason::MoveTimeout).count();
        seen[2] += in_motion(&s, true).iter().filter(|slot| reclaimed(slot)).count();
        apply(&mut s, &made.actions, now);
        assert!(in_motion(&s, false).len() <= 1, "one at a time");
        (s.waiting, s.recent_moves) = (report.waiting, report.recent_moves);
    }
    seen
}

#[test]
fn over_random_histories_of_lenders_a_moving_replica_is_one() {
    let mut runner = TestRunner::deterministic();
    let histories = (lending(), prop::collection::vec(step(), 120));
    let mut seen = [0; 3];
    for _ in 0..300 {
        let (s, steps) = histories.new_tree(&mut runner).unwrap().current();
        let of = judge(s, &steps);
        (0..3).for_each(|n| seen[n] += of[n]);
    }
    assert!(seen[0] >= 30 && seen[1] >= 20 && seen[2] >= 10, "{seen:?} say little");
}

// === for whom ===

#[test]
fn replicas_move_only_for_what_is_their_claimants_own_quota() {
    let claims = |nominal: u32| {
        let b = format!("tenant b ns=b cohort=p h={nominal}");
        decided(&with(&[&b, "+tenant d ns=d cohort=p h=8"]), &moving())
    };
    assert_eq!(moved(&claims(2).0), ["a/small#0.1"]);
    let (made, report) = claims(1);
    assert_eq!(moved(&made), [""; 0], "it would borrow");
    assert_eq!(format!("{:?}", verdicts(&report)), "[WouldBorrow]");
}

#[test]
fn replica_of_a_higher_priority_does_not_move() {
    let other = "+slot a/other 0 failures=1";
    let prios = |mover: i32, claimant: i32| {
        let mover = format!("deployment a/small want=1 ask=h*1,20Gi,20 prio={mover}");
        let claimant = format!("deployment b/large want=1 ask=h*2 prio={claimant}");
        moved(&decided(&with(&[&mover, &claimant, other]), &moving()).0)
    };
    assert_eq!(prios(1, 0), [""; 0]);
    assert_eq!(prios(1, 1), ["a/small#0.1"]);
    assert_eq!(prios(0, 1), ["a/small#0.1"]);
}

#[test]
fn tenant_has_few_replicas_move_within_an_hour() {
    let after = |ages: [u64; 4]| {
        let moved = ages.map(|ago| format!("+moved b a/gone {ago} ago={ago}"));
        let changes: Vec<&str> = moved.iter().map(String::as_str).collect();
        decided(&with(&changes), &moving())
    };
    let (made, report) = after([3_599_999, 3, 2, 1]);
    assert_eq!(moved(&made), [""; 0]);
    let at_ms = common::NOW + 1;
    assert_eq!(verdicts(&report), [&MoveVerdict::BudgetSpent { at_ms }]);
    assert_eq!((report.wake_at, report.recent_moves.len()), (Some(at_ms), 4));
    let (made, report) = after([3_600_000, 3, 2, 1]);
    assert_eq!((moved(&made), report.recent_moves.len()), (vec!["a/small#0.1".to_owned()], 4));
    let last = report.recent_moves.last().unwrap();
    assert_eq!((last.claimant.0.as_str(), last.deployment.name.as_str(), last.at_ms), ("b", "small", common::NOW));
    let others = with(&["+moved c a/gone 1", "+moved c a/gone 2", "+moved c a/gone 3", "+moved c a/gone 4"]);
    assert_eq!(moved(&decided(&others, &moving()).0), ["a/small#0.1"], "each tenant has its own");
    let three = ["+moved b a/gone 1", "+moved b a/gone 2", "+moved b a/gone 3"];
    assert_eq!(moved(&decided(&with(&three), &moving()).0), ["a/small#0.1"]);
    // Only two of one node make room.
    let beside = ["+replica a/other 0 n1 1 ready", "+node n3 gpu=h*1"];
    let both = |changes: &[&str]| with(changes).replace("replica a/other 0 n2 0 ready", "foreign n2 0 10Gi 10");
    assert_eq!(moved(&decided(&both(&beside), &moving()).0).len(), 2);
    assert_eq!(moved(&decided(&both(&[&beside[..], &three].concat()), &moving()).0).len(), 0);
}

#[test]
fn tenant_with_many_replicas_that_wait_keeps_nobody_from_being_looked_at() {
    // Three GPUs are too many for any node, and each of these is within the tenant's own quota.
    let many: Vec<String> =
        (0..20).map(|n| format!("+deployment c/d{n} want=1 ask=h*3 prio=1\n waiting c/d{n} 0 for=900000")).collect();
    let text = |tenant: &str| {
        let changes: Vec<&str> = std::iter::once(tenant).chain(many.iter().map(String::as_str)).collect();
        with(&changes)
    };
    for tenant in ["+tenant c ns=c h=60", "+tenant c ns=c h=3", "+tenant c ns=c h=1"] {
        assert_eq!(moved(&decided(&text(tenant), &moving()).0), ["a/small#0.1"], "{tenant}");
    }
}

#[test]
fn slot_that_moved_of_late_does_not_move_again_whether_or_not_that_succeeded() {
    let other = "+slot a/other 0 failures=1";
    let after = |ago: u64| moved(&decided(&with(&[other, &format!("+moved c a/small 0 ago={ago}")]), &moving()).0);
    assert_eq!(after(3_599_999), [""; 0]);
    assert_eq!(after(3_600_000), ["a/small#0.1"]);
}

#[test]
fn replacement_that_never_becomes_ready_is_tried_again_after_an_hour() {
    let mut s = common::parse(&with(&["+slot a/other 0 failures=1"]));
    let (mut now, mut moves) = (common::NOW, Vec::new());
    for _ in 0..400 {
        let (made, report) = plan(&s, &moving(), now);
        assert_eq!(check(&s, &made), []);
        moves.extend(moved(&made).iter().map(|_| (now - common::NOW) / 60_000));
        let serves = |r: &Replica| r.incarnation == 0 && r.phase == Phase::Ready;
        assert!(s.deployments[0].replicas.iter().any(serves), "the old pod goes on");
        apply(&mut s, &made.actions, now);
        let gone = s.deployments[0].replicas.iter().position(|r| r.phase.is_terminating());
        gone.into_iter().for_each(|at| vanish(&mut s, 0, at));
        (s.waiting, s.recent_moves, now) = (report.waiting, report.recent_moves, now + 20_000);
    }
    assert_eq!(moves, [0, 60, 120]);
}
