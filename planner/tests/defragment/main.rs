//! Which replicas move so that one that waits fits, and when none does.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod pairs;

use std::collections::{BTreeMap, BTreeSet};

use common::random::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use stowage_planner::check::{Violation, check};
use stowage_planner::plan::{Action, CreateReason, EndReason};
use stowage_planner::report::{MoveVerdict, Outcome};
use stowage_planner::snapshot::*;
use stowage_planner::{DecisionReport, Plan, Prepared, plan};

/// Three GPUs are free, and no two on one node. Both slices are old enough to move.
const BASE: &str = "
    class h soft
    node n1 gpu=h*2
    node n2 gpu=h*2
    tenant a ns=a h=0.5
    tenant b ns=b h=2
    deployment a/small want=1 ask=h*1,20Gi,20
    deployment a/other want=1 ask=h*1,20Gi,20 created=2000
    deployment b/large want=1 ask=h*2
    replica a/small 0 n1 0 ready
    replica a/other 0 n2 0 ready
    waiting b/large 0 for=300000
";

/// By default nothing moves.
fn moving() -> Policy {
    Policy { max_moves: 4, ..Policy::default() }
}

fn decided(text: &str, policy: &Policy) -> (Plan, DecisionReport) {
    let s = common::parse(text);
    let (made, report) = plan(&s, policy, common::NOW);
    assert_eq!(check(&s, &made), [], "{text}");
    (made, report)
}

/// The replicas that are to take over, by name.
fn moved(plan: &Plan) -> Vec<String> {
    let moves = plan.actions.iter().filter_map(|action| match action {
        Action::Create { replica, reason: CreateReason::Move, .. } => Some(replica.to_string()),
        _ => None,
    });
    moves.collect()
}

/// What the report says of the replicas that wait.
fn verdicts(report: &DecisionReport) -> Vec<&MoveVerdict> {
    report.deployments.iter().filter_map(|d| d.moves.as_ref()).collect()
}

/// Each of these lines in place of the first word's, or, with a `+`, beside what is there.
fn with(changes: &[&str]) -> String {
    let mut lines: Vec<String> = BASE.lines().map(str::to_owned).collect();
    for change in changes {
        match change.strip_prefix('+') {
            Some(more) => lines.push(more.to_owned()),
            None => {
                let key: Vec<&str> = change.split_whitespace().take(2).collect();
                let same = |line: &&mut String| line.split_whitespace().take(2).eq(key.iter().copied());
                **lines.iter_mut().find(same).as_mut().unwrap() = (*change).to_owned();
            }
        }
    }
    lines.join("\n")
}

#[test]
fn replica_in_the_way_moves_where_that_helps_and_pays() {
    let small: &[&str] = &["a/small#0.1"];
    for (why, changes, expect) in [
        ("as it is", &[][..], small),
        ("no room elsewhere", &["+foreign n2 0 60Gi 80", "+foreign n2 1 80Gi 100", "+foreign n1 1 10Gi 10"], &[]),
        (
            "only degraded GPUs elsewhere",
            &["+health n2 0 degraded Xid", "+health n2 1 degraded Xid", "+slot a/other 0 failures=1"],
            &[],
        ),
        ("others than replicas are in the way, too", &["+foreign n1 1 10Gi 10", "+foreign n2 1 10Gi 10"], &[]),
        (
            "old enough to the millisecond",
            &["replica a/small 0 n1 0 ready created=49400000", "replica a/other 0 n2 0 ready created=49400001"],
            small,
        ),
        (
            "too young",
            &["replica a/small 0 n1 0 ready created=49400001", "replica a/other 0 n2 0 ready created=49400001"],
            &[],
        ),
        ("young for its tenant's minimum runtime", &["tenant a ns=a h=0.5 minruntime=60000000"], &[]),
        ("has waited for a cold start", &["waiting b/large 0 for=120000"], small),
        ("has not waited for a cold start", &["waiting b/large 0 for=119999"], &[]),
        ("another slot has waited", &["waiting b/large 1 for=300000"], &[]),
        ("its deployment is younger than the wait", &["deployment b/large want=1 ask=h*2 created=49900000"], &[]),
        ("quota refuses it", &["tenant b ns=b h=1"], &[]),
        ("it has room", &["+node n3 gpu=h*2"], &[]),
        ("quota covers the one in the way once", &["tenant a ns=a h=0.5"], small),
        ("quota does not cover the one in the way", &["tenant a ns=a h=0.4"], &[]),
    ] {
        let (made, _) = decided(&with(changes), &moving());
        assert_eq!(moved(&made), expect, "{why}");
        assert!(made.actions.iter().all(|a| matches!(a, Action::Create { .. })), "{why}: nothing ends: {made:?}");
    }
}

#[test]
fn replica_moves_only_where_its_deployment_is_at_rest() {
    for (why, changes) in [
        (
            "being deleted",
            &["deployment a/small want=1 ask=h*1,20Gi,20 deleting", "replica a/small 0 n1 0 draining inflight=1"][..],
        ),
        ("rolling out", &["replica a/small 0 n1 0 ready hash=v0"]),
        ("scaled in", &["deployment a/small want=0 ask=h*1,20Gi,20"]),
        ("short of a replica", &["deployment a/small want=2 ask=h*1,20Gi,20", "tenant a ns=a h=0.5"]),
        ("starting", &["replica a/small 0 n1 0 starting"]),
        ("not Ready any more", &["replica a/small 0 n1 0 unready"]),
        ("moved already", &["tenant a ns=a h=1", "+replica a/small 0 n1 1 starting inc=1 takesover created=49300000"]),
        ("failed of late", &["+slot a/small 0 failures=1"]),
        ("frozen for want of signals", &["+scale a/small Active min=1 max=4 ttft=2000 itl=50"]),
        (
            "leaving a cordoned node",
            &[
                "tenant a ns=a h=1",
                "deployment a/small want=2 ask=h*1,20Gi,20",
                "+node n3 gpu=h*1 cordoned",
                "+replica a/small 1 n3 0 ready",
            ],
        ),
    ] {
        // The other one cannot move in any case.
        let other = ["+slot a/other 0 failures=1"];
        let (made, _) = decided(&with(&[changes, &other].concat()), &moving());
        assert_eq!(moved(&made), [""; 0], "{why}");
    }
    let mut s = common::parse(&with(&["+slot a/other 0 failures=1"]));
    assert_eq!(moved(&plan(&s, &moving(), common::NOW).0), ["a/small#0.1"]);
    s.deployments[0].held = Some(Hold { until_ms: common::NOW + 1, message: "a policy".into() });
    assert_eq!(moved(&plan(&s, &moving(), common::NOW).0), [""; 0], "held");
}

#[test]
fn move_that_costs_more_than_waiting_is_not_made_yet() {
    // 0.25 GPUs for 120 s and 3,600 s are 930 GPU·s; two GPUs have waited for that after 465 s.
    let slow = |waited: &str| {
        let waiting = format!("waiting b/large 0 for={waited}");
        let changes = [
            "deployment a/small want=1 ask=h*1,20Gi,20 drain=3600000",
            "deployment a/other want=1 ask=h*1,20Gi,20 drain=3600000",
            &waiting,
        ];
        decided(&with(&changes), &moving())
    };
    let (made, report) = slow("464999");
    assert_eq!(moved(&made), [""; 0]);
    let at_ms = common::NOW + 1;
    assert_eq!(verdicts(&report), [&MoveVerdict::NotYet { pods: vec!["small-00".into()], at_ms }]);
    assert_eq!(report.wake_at, Some(at_ms));
    let (made, report) = slow("465000");
    assert_eq!(moved(&made), ["a/small#0.1"]);
    let [MoveVerdict::Moves { cost_milli_gpu_s, gain_milli_gpu_s, .. }] = verdicts(&report)[..] else { panic!() };
    assert_eq!((*cost_milli_gpu_s, *gain_milli_gpu_s), (930_000, 930_000));
}

#[test]
fn one_that_starts_soon_moves_after_the_shortest_wait() {
    let waits = |ms: u64| {
        let waiting = format!("waiting b/large 0 for={ms}");
        let cold = "+cold a/small remote=5000 starts=9";
        moved(&decided(&with(&[&waiting, cold]), &moving()).0)
    };
    assert_eq!(waits(59_999), [""; 0]);
    assert_eq!(waits(60_000), ["a/small#0.1"]);
}

#[test]
fn two_of_one_node_move_together_but_not_two_of_one_deployment() {
    let beside = "+replica a/other 0 n1 1 ready";
    let text = with(&[beside, "+node n3 gpu=h*1"]).replace("replica a/other 0 n2 0 ready", "foreign n2 0 10Gi 10");
    assert_eq!(moved(&decided(&text, &moving()).0), ["a/other#0.1", "a/small#0.1"]);
    let policy = Policy { max_moves: 1, ..Policy::default() };
    assert_eq!(moved(&decided(&text, &policy).0), [""; 0], "more than may move at a time");
    let text = text.replace("a/small want=1", "a/small want=2").replace("replica a/other 0 n1", "replica a/small 1 n1");
    let text = text.replace("a/other want=1", "a/other want=0");
    assert_eq!(moved(&decided(&text, &moving()).0), [""; 0], "two of one deployment");
}

#[test]
fn of_two_that_wait_for_one_room_the_first_in_turn_gets_it() {
    let text = with(&["+tenant c ns=c h=2", "+deployment c/large want=1 ask=h*2", "+waiting c/large 0 for=900000"]);
    let (made, report) = decided(&text, &moving());
    assert_eq!(moved(&made), ["a/small#0.1"]);
    let outcome = |name: &str| report.of(&DeploymentId::new(name, "large")).unwrap().outcome;
    assert_eq!((outcome("b"), outcome("c")), (Outcome::Progressing, Outcome::WaitingForGPU));
    assert_eq!(report.waiting.iter().map(|w| w.deployment.namespace.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn one_replica_of_a_deployment_moves_at_a_time() {
    // n1 and n2 have CPUs for one pod; n3 has room for both that are in the way.
    let text = with(&[
        "tenant a ns=a h=4",
        "tenant b ns=b h=4",
        "node n1 gpu=h*2 cpu=1",
        "node n2 gpu=h*2 cpu=1",
        "deployment a/small want=2 ask=h*1,20Gi,20",
        "deployment b/large want=1 ask=h*2",
        "+node n3 gpu=h*1",
        "+deployment b/second want=1 ask=h*2",
        "+waiting b/second 0 for=300000",
    ]);
    let text = text.replace("replica a/other 0 n2", "replica a/small 1 n2").replace("a/other want=1", "a/other want=0");
    assert_eq!(moved(&decided(&text, &moving()).0), ["a/small#0.1"]);
    // Of two deployments both move.
    let text = text.replace("replica a/small 1 n2", "replica a/other 0 n2").replace("a/other want=0", "a/other want=1");
    let text = text.replace("a/small want=2", "a/small want=1");
    assert_eq!(moved(&decided(&text, &moving()).0), ["a/other#0.1", "a/small#0.1"]);
}

#[test]
fn pod_that_takes_over_on_a_node_cordoned_since_is_given_up() {
    for phase in ["starting", "ready"] {
        let text = with(&["node n2 gpu=h*2 cordoned", "tenant a ns=a h=2"]);
        let text = format!("{text}\nreplica a/small 0 n2 0 {phase} inc=1 takesover");
        let (made, _) = decided(&text, &moving());
        let ends = made.actions.iter().filter(|a| matches!(a, Action::Drain { .. } | Action::Remove { .. }));
        let pods: Vec<_> = ends.map(|a| (a.replica().index, a.replica().incarnation)).collect();
        assert_eq!(pods, [(0, 1)], "{phase}: the one that need not move stays");
    }
}

#[test]
fn wait_counts_for_the_slot_that_is_refused_still() {
    let reported = |changes: &[&str]| {
        let (_, report) = decided(&with(changes), &Policy { max_moves: 0, ..Policy::default() });
        report.waiting.iter().map(|w| (w.index, common::NOW - w.since_ms)).collect::<Vec<_>>()
    };
    assert_eq!(reported(&[]), [(0, 300_000)]);
    assert_eq!(reported(&["waiting b/large 3 for=300000"]), [(0, 0)], "another slot");
    assert_eq!(reported(&["deployment b/large want=1 ask=h*2 created=49999000"]), [(0, 1_000)], "made anew");
    assert_eq!(reported(&["tenant b ns=b h=1"]), [], "it waits for quota");
    assert_eq!(reported(&["+node n3 gpu=h*2"]), [], "it is placed");
    assert_eq!(reported(&["deployment b/large want=0 ask=h*2"]), [], "it is not wanted");
}

#[test]
fn nothing_moves_while_as_many_move_as_may() {
    let text = with(&[
        "tenant a ns=a h=1",
        "+node n3 gpu=h*1",
        "+deployment a/third want=1 ask=h*1,20Gi,20",
        "+replica a/third 0 n3 0 ready",
        "+replica a/third 0 n2 0 starting inc=1 takesover created=49990000",
    ]);
    let with_limit = |max_moves| {
        let (made, report) = decided(&text, &Policy { max_moves, ..Policy::default() });
        (moved(&made), verdicts(&report).into_iter().cloned().collect::<Vec<_>>())
    };
    assert_eq!(with_limit(1), (vec![], vec![MoveVerdict::TooManyMove { moving: 1 }]));
    assert_eq!(with_limit(2).0, ["a/small#0.1"]);
}

#[test]
fn one_that_was_to_be_placed_by_time_alone_keeps_its_place() {
    // What is free on GPU 1 of n2, and what comes free there, is just enough for the one that waits for it.
    let changes = [
        "tenant b ns=b h=4",
        "node n2 gpu=h*2 label=zone:b",
        "+foreign n2 0 60Gi 80",
        "+foreign n2 1 40Gi 40",
        "+deployment b/gone want=0 ask=h*1,20Gi,20",
        "+replica b/gone 0 n2 1 draining inflight=1",
        "+deployment b/next want=1 ask=h*1,40Gi,40 select=zone:b",
    ];
    let (made, report) = decided(&with(&changes), &moving());
    assert_eq!(report.of(&DeploymentId::new("b", "next")).unwrap().outcome, Outcome::Progressing);
    assert_eq!(moved(&made), [""; 0]);
    assert_eq!(moved(&decided(&with(&changes[..6]), &moving()).0), ["a/small#0.1"]);
}

#[test]
fn replica_does_not_move_to_where_more_of_its_deployment_are_than_their_part() {
    let with_spread = |spread: &str| {
        let deployment = format!("deployment a/small want=2 ask=h*1,20Gi,20 {spread}");
        let text = with(&[
            "tenant a ns=a h=1",
            "node n1 gpu=h*2 label=zone:a",
            "node n2 gpu=h*2 label=zone:b",
            &deployment,
            "+replica a/small 1 n2 0 ready",
            "+slot a/small 1 failures=1",
            "+slot a/other 0 failures=1",
        ]);
        moved(&decided(&text, &moving()).0)
    };
    assert_eq!(with_spread(""), ["a/small#0.1"]);
    assert_eq!(with_spread("spread=zone:1"), [""; 0]);
}

#[test]
fn pod_that_takes_over_too_slowly_is_not_counted_on() {
    let young = "+replica a/small 0 n2 0 starting inc=1 takesover created=";
    let waits = |created: u64| {
        let other = "+slot a/other 0 failures=1";
        let (made, report) = decided(&with(&[&format!("{young}{created}"), other]), &moving());
        assert_eq!(moved(&made), [""; 0], "its deployment is not at rest");
        report.of(&DeploymentId::new("b", "large")).unwrap().outcome
    };
    assert_eq!(waits(common::NOW - 599_999), Outcome::Progressing);
    assert_eq!(waits(common::NOW - 600_000), Outcome::WaitingForGPU);
}

#[test]
fn old_pod_ends_once_the_one_that_takes_over_is_ready_and_not_before() {
    let then = |phase: &str, hash: &str| {
        let later = format!("+replica a/small 0 n2 0 {phase} inc=1 takesover created=49990000");
        let now = format!("deployment a/small want=1 ask=h*1,20Gi,20 hash={hash}");
        let text = with(&[&later, &now, "tenant a ns=a h=1"])
            .replace("+replica", "replica")
            .replace("0 n1 0 ready", "0 n1 0 ready hash=v1");
        let text = text.replace("inc=1 takesover", "inc=1 takesover hash=v1");
        let (made, _) = decided(&text, &moving());
        let ends = made.actions.iter().filter_map(|action| match action {
            Action::Drain { pod, reason, .. } | Action::Remove { pod, reason, .. } => Some((pod.clone(), *reason)),
            _ => None,
        });
        ends.collect::<Vec<_>>()
    };
    assert_eq!(then("starting", "v1"), []);
    assert_eq!(then("unready", "v1"), []);
    let neither = with(&["replica a/small 0 n1 0 unready", "+replica a/small 0 n2 0 starting inc=1 takesover"]);
    let (made, _) = decided(&neither, &moving());
    assert!(!made.actions.iter().any(|a| matches!(a, Action::Remove { reason: EndReason::Moved, .. })));
    assert!(!made.actions.iter().any(|a| matches!(a, Action::Drain { reason: EndReason::Moved, .. })));
    assert_eq!(then("ready", "v1"), [("small-00".to_owned(), EndReason::Moved)]);
    assert_eq!(then("failed", "v1"), [("small-01".to_owned(), EndReason::Failed)]);
    // A new specification replaces both: the one that serves stays for it.
    assert_eq!(then("starting", "v2"), [("small-01".to_owned(), EndReason::Duplicate)]);
}

#[test]
fn move_that_would_cost_a_replica_is_a_violation() {
    let s = common::parse(&with(&[]));
    let (made, _) = plan(&s, &moving(), common::NOW);
    let judged = |change: &dyn Fn(&mut Deployment)| {
        let mut other = s.clone();
        change(&mut other.deployments[0]);
        check(&other, &made).iter().any(|v| matches!(v, Violation::WrongMove { .. }))
    };
    assert!(!judged(&|_| ()));
    assert!(judged(&|d| d.replicas[0].phase = Phase::Unready));
    assert!(judged(&|d| d.replicas[0].spec_hash = "v0".into()));
    assert!(judged(&|d| d.deleting = true));
    let second = Replica { incarnation: 7, ..s.deployments[0].replicas[0].clone() };
    assert!(judged(&|d| d.replicas.push(second.clone())), "a third pod of the slot");
    let [Action::Create { replica, .. }] = &made.actions[..] else { panic!() };
    let old = ReplicaId { incarnation: 0, ..replica.clone() };
    let mut both = made.clone();
    both.actions.push(Action::Remove {
        replica: old.clone(),
        pod: "small-00".into(),
        reason: EndReason::ScaleIn,
        exclude: None,
    });
    let wrong = Violation::WrongMove { replica: replica.clone() };
    assert!(check(&s, &both).contains(&wrong), "it ends although its replacement only begins");
    let ends = |s: &Snapshot| {
        let deadline_ms = common::NOW + 1;
        let drain =
            Action::Drain { replica: old.clone(), pod: "small-00".into(), deadline_ms, reason: EndReason::Moved };
        check(s, &Plan { actions: vec![drain], ..made.clone() })
    };
    assert_eq!(ends(&s), [Violation::WrongMove { replica: old.clone() }], "nothing takes over from it");
    let mut later = s.clone();
    later.deployments[0].replicas.push(Replica { incarnation: 1, takes_over: true, ..second.clone() });
    assert_eq!(ends(&later), []);
}

// === histories ===

/// Full of slices, with replicas of several GPUs that come and go.
fn crowded() -> impl Strategy<Value = Snapshot> {
    let site = || (2..=4u32, 1..=2u32);
    let want =
        || (0..2usize, 0..=2u32, prop::sample::select(vec![1u32, 1, 2]), prop::option::weighted(0.6, 10..=50u64));
    (prop::collection::vec(site(), 2..4), prop::collection::vec(want(), 3..7)).prop_map(|(sites, wants)| {
        let nodes =
            sites.iter().enumerate().map(|(n, (gpus, islands))| format!("node n{n} gpu=h*{gpus} islands={islands}"));
        let deployments = wants.iter().enumerate().map(|(n, (tenant, want, gpus, size))| {
            let part = size.map_or(String::new(), |size| format!(",{size}Gi,{size}"));
            format!("deployment t{tenant}/d{n} want={want} ask=h*{gpus}{part} drain=5000")
        });
        let lines: Vec<String> = nodes.chain(deployments).collect();
        common::parse(&format!("class h soft\ntenant t0 ns=t0 h=20\ntenant t1 ns=t1 h=20\n{}", lines.join("\n")))
    })
}

fn busy() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..6usize, 0..3u32).prop_map(|(d, n)| Event::Scale(d, n)),
        1 => (0..20usize).prop_map(Event::Crash),
        1 => (0..6usize, 0..2u8).prop_map(|(d, n)| Event::NewSpec(d, n)),
        8 => (0..20usize).prop_map(Event::Ready),
        8 => (0..20usize).prop_map(Event::Gone),
    ]
}

/// Slots with a Ready pod that does not end.
fn serving(s: &Snapshot, ended: &BTreeSet<(DeploymentId, u32, u32)>) -> BTreeSet<(DeploymentId, u32)> {
    let of = |d: &Shared<Deployment>| {
        let ready = d.replicas.iter().filter(|r| r.phase == Phase::Ready);
        let stays = ready.filter(|r| !ended.contains(&(d.id.clone(), r.index, r.incarnation)));
        stays.map(|r| (d.id.clone(), r.index)).collect::<Vec<_>>()
    };
    s.deployments.iter().flat_map(of).collect()
}

/// Moves that the history saw.
fn judge(mut s: Snapshot, events: &[Event], policy: &Policy) -> usize {
    let mut now = common::NOW;
    let mut last: BTreeMap<(DeploymentId, u32), TimeMs> = BTreeMap::new();
    let (mut moves, mut prepared) = (0, Prepared::default());
    for event in events {
        happen(&mut s, event);
        now += 40_000;
        s.sequence += 1;
        let (made, report) = plan(&s, policy, now);
        assert_eq!(check(&s, &made), []);
        let text = |made: &(Plan, DecisionReport)| serde_json::to_string(made).unwrap();
        assert_eq!(text(&prepared.plan(&s, policy, now)), text(&(made.clone(), report.clone())), "warm and cold");
        for action in &made.actions {
            let id = action.replica();
            let slot = (id.deployment.clone(), id.index);
            if matches!(action, Action::Create { reason: CreateReason::Move, .. }) {
                moves += 1;
                let before = last.insert(slot.clone(), now);
                assert!(before.is_none_or(|at| now - at >= policy.min_runtime_ms), "{slot:?} moved twice");
            }
            if let Action::Drain { reason: EndReason::Moved, .. } | Action::Remove { reason: EndReason::Moved, .. } =
                action
            {
                let ended = BTreeSet::from([(id.deployment.clone(), id.index, id.incarnation)]);
                assert!(serving(&s, &ended).contains(&slot), "{slot:?} ends before another serves");
            }
        }
        apply(&mut s, &made.actions, now);
        let moving = |d: &Deployment| d.replicas.iter().filter(|r| r.takes_over && r.phase == Phase::Starting).count();
        assert!(s.deployments.iter().all(|d| moving(d) <= 1), "one of a deployment at a time");
        assert!(s.deployments.iter().map(|d| moving(d)).sum::<usize>() <= policy.max_moves as usize);
        (s.waiting, s.recent_moves) = (report.waiting, report.recent_moves);
    }
    moves
}

#[test]
fn over_random_histories_nothing_moves_twice_in_its_minimum_runtime_and_no_replica_is_lost() {
    let mut runner = TestRunner::deterministic();
    let histories = (crowded(), prop::collection::vec(busy(), 120));
    let mut moves = 0;
    for history in 0..200 {
        let (s, events) = histories.new_tree(&mut runner).unwrap().current();
        moves += judge(s, &events, &Policy { max_moves: 1 + history % 4, ..Policy::default() });
    }
    assert!(moves >= 40, "{moves} moves say little");
}

#[test]
fn cluster_in_which_replicas_move_comes_to_rest_and_places_what_waited() {
    let mut s = common::parse(&with(&[]));
    let mut now = common::NOW;
    for _ in 0..8 {
        let (made, report) = plan(&s, &moving(), now);
        assert_eq!(check(&s, &made), []);
        apply(&mut s, &made.actions, now);
        settle(&mut s);
        (s.waiting, now) = (report.waiting, now + 5_000);
    }
    assert_eq!(plan(&s, &moving(), now).0.actions, []);
    let names: Vec<_> = s
        .deployments
        .iter()
        .flat_map(|d| &d.replicas)
        .map(|r| (r.placement.as_ref().unwrap().node.as_str(), &r.phase))
        .collect();
    assert_eq!(names, [("n2", &Phase::Ready), ("n2", &Phase::Ready), ("n1", &Phase::Ready)]);
}
