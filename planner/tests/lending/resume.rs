//! Drains that are cancelled: which, and never one whose claimant still waits.

use crate::common;
use crate::common::random::*;
use proptest::prelude::*;
use stowage_planner::plan::Action;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check, plan};

const TENANTS: &str = "class h\nnode n1 gpu=h*2 cpu=64\ntenant a ns=a cohort=c h=2\ntenant b ns=b cohort=c h=0\n";

/// What is done, by kind: resumed pods, drains and removals, creates.
fn check_plan(rest: &str, want: (&[&str], usize, usize)) {
    let s = common::parse(&format!("{TENANTS}{rest}"));
    let (p, report) = plan(&s, &Policy::default(), common::NOW);
    assert_eq!(check(&s, &p), [], "{rest}");
    let resumed: Vec<&str> =
        p.actions.iter().filter_map(|a| if let Action::Resume { pod, .. } = a { Some(&**pod) } else { None }).collect();
    let ends = p.actions.iter().filter(|a| matches!(a, Action::Drain { .. } | Action::Remove { .. })).count();
    let creates = p.actions.iter().filter(|a| matches!(a, Action::Create { .. })).count();
    assert_eq!((resumed.as_slice(), ends, creates), want, "{rest}");
    let noted = report.records.iter().filter(|r| r.message.contains("goes on")).count();
    assert_eq!(noted, resumed.len(), "{rest}");
}

#[test]
fn drain_is_cancelled_only_where_the_pod_is_as_wanted() {
    let own = |drain: &str| format!("deployment a/d want=1 ask=h*1\nreplica a/d 0 n1 0 draining {drain}");
    check_plan(&own("inflight=1 resumable"), (&["d-00"], 0, 0));
    check_plan(&own("resumable"), (&["d-00"], 0, 0));
    // Its drain had another reason, it is over, or the pod is not what is wanted.
    check_plan(&own("inflight=1"), (&[], 0, 1));
    check_plan(&own("inflight=0 resumable"), (&[], 1, 1));
    check_plan(&own("inflight=1 resumable until=0"), (&[], 1, 1));
    check_plan(&own("inflight=1 resumable hash=old"), (&[], 0, 1));
    check_plan(&own("inflight=1 resumable\nhealth n1 0 unhealthy Xid 79"), (&[], 0, 1));
    // Fewer are wanted still.
    check_plan("deployment a/d want=0 ask=h*1\nreplica a/d 0 n1 0 draining inflight=1 resumable", (&[], 0, 0));
    // Another pod has the slot.
    let twice = "deployment a/d want=1 ask=h*1\nreplica a/d 0 n1 0 draining inflight=1 resumable\nreplica a/d 0 n1 1 ready inc=1";
    check_plan(twice, (&[], 0, 0));
}

#[test]
fn drain_for_a_claimant_goes_on_while_that_one_waits() {
    let lent = |claim: &str| {
        format!(
            "deployment a/d want={claim} ask=h*2 created=9\ndeployment b/d want=2 ask=h*1 created=1\n\
             replica b/d 0 n1 0 draining until=20000 inflight=1 resumable\n\
             replica b/d 1 n1 1 draining until=20000 inflight=1 resumable"
        )
    };
    check_plan(&lent("1"), (&[], 0, 0));
    check_plan(&lent("0"), (&["d-00", "d-10"], 0, 0));
}

#[test]
fn own_replica_goes_on_although_its_quota_covers_no_other() {
    let full =
        "deployment a/d want=2 ask=h*1\nreplica a/d 0 n1 0 ready\nreplica a/d 1 n1 1 draining inflight=1 resumable";
    check_plan(full, (&["d-10"], 0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Scale(usize, u32),
    Ends(usize),
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4usize, 0..4u32).prop_map(|(d, n)| Step::Scale(d, n)),
        2 => (0..16usize).prop_map(Step::Ends),
        2 => (0..700_000u64).prop_map(Step::Passes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Drains last until their deadline, or until their requests end.
    #[test]
    fn what_is_resumed_serves_in_its_slot_alone_and_no_claimant_waits_for_it(
        gpus in prop::collection::vec(1..=3u32, 1..4),
        wants in prop::collection::vec((0..2usize, 1..=2u32), 4),
        nominal in 0..=4u32,
        steps in prop::collection::vec(step(), 60),
    ) {
        let mut text = String::from("class h\n");
        for (n, gpus) in gpus.iter().enumerate() {
            text += &format!("node n{n} gpu=h*{gpus} cpu=64\n");
        }
        text += &format!("tenant t0 ns=t0 cohort=c h={nominal}\ntenant t1 ns=t1 cohort=c h=1\n");
        for (n, (t, ask)) in wants.iter().enumerate() {
            text += &format!("deployment t{t}/d{n} want=1 ask=h*{ask} created={n}\n");
        }
        let mut s = common::parse(&text);
        let mut prepared = Prepared::default();
        let mut now = common::NOW;
        for step in &steps {
            match step {
                Step::Scale(d, n) => s.deployments[*d].wanted = *n,
                Step::Passes(ms) => now += ms,
                Step::Ends(n) => {
                    let draining = s.deployments.iter_mut().flat_map(|d| d.replicas.iter_mut()).filter_map(|r| match &mut r.phase {
                        Phase::Draining { in_flight, .. } => Some(in_flight),
                        _ => None,
                    });
                    let mut draining: Vec<_> = draining.collect();
                    let count = draining.len().max(1);
                    if let Some(in_flight) = draining.get_mut(n % count) {
                        **in_flight = Some(0);
                    }
                }
            }
            now += 3_000;
            s.sequence += 1;
            let (p, report) = prepared.plan(&s, &Policy::default(), now);
            let (cold, _) = plan(&s, &Policy::default(), now);
            prop_assert_eq!(&p, &cold);
            prop_assert_eq!(check(&s, &p), []);
            for a in &p.actions {
                let Action::Resume { replica, .. } = a else { continue };
                let d = s.deployments.iter().find(|d| d.id == replica.deployment).unwrap();
                let serving = d.replicas.iter().filter(|r| !matches!(r.phase, Phase::Draining { .. } | Phase::Terminating { .. })).count();
                let created = p.actions.iter().filter(|a| matches!(a, Action::Create { replica: c, .. } if c.deployment == d.id)).count();
                let resumed = p.actions.iter().filter(|a| matches!(a, Action::Resume { replica: r, .. } if r.deployment == d.id)).count();
                prop_assert!(serving + created + resumed <= d.wanted as usize, "{replica} is one too many");
                let same_slot = p.actions.iter().filter(|a| a.replica().deployment == d.id && a.replica().index == replica.index);
                prop_assert_eq!(same_slot.count(), 1, "{} has its slot alone", replica);
            }
            s.shares = report.shares;
            apply(&mut s, &p.actions, now);
            for d in 0..s.deployments.len() {
                for r in &mut s.deployments[d].replicas {
                    if let Phase::Draining { since_ms, in_flight, .. } = &mut r.phase
                        && *since_ms == now
                    {
                        *in_flight = Some(1);
                    }
                }
            }
            settle(&mut s);
        }
    }
}
