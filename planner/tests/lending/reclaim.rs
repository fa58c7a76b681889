//! What is reclaimed, over random histories: only what is borrowed, only for a replica that fits then, never
//! what has just started; and everybody gets its own.

use crate::common;
use crate::common::random::*;
use proptest::prelude::*;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::report::Wait;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check};

const MIN_RUNTIME: u64 = 600_000;

fn reclaimed(actions: &[Action]) -> impl Iterator<Item = &ReplicaId> {
    actions.iter().filter_map(|a| match a {
        Action::Drain { replica, reason, .. } | Action::Remove { replica, reason, .. } => {
            (*reason == EndReason::Reclaimed).then_some(replica)
        }
        Action::Create { .. } | Action::Resume { .. } => None,
    })
}

fn created_ms(s: &Snapshot, id: &ReplicaId) -> u64 {
    let d = s.deployments.iter().find(|d| d.id == id.deployment).unwrap();
    d.replicas.iter().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap().created_ms
}

/// What tenants want changes; no pod fails.
#[derive(Clone, Debug)]
enum Step {
    Scale(usize, u32),
    Quota(usize, u64),
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5usize, 0..5u32).prop_map(|(d, n)| Step::Scale(d, n)),
        1 => (0..3usize, 0..=4u64).prop_map(|(t, q)| Step::Quota(t, q * 1000)),
        4 => (0..900_000u64).prop_map(Step::Passes),
    ]
}

/// Whole GPUs and halves of three tenants in one cohort, on healthy nodes.
fn cluster() -> impl Strategy<Value = Snapshot> {
    (
        prop::collection::vec(1..=4u32, 1..4),
        prop::collection::vec((0..3usize, 0..=4u32, prop::bool::ANY, -1..=1i32), 2..6),
        prop::collection::vec(0..=3u64, 3),
    )
        .prop_map(|(nodes, wants, quotas)| {
            let mut s = common::parse("class h soft");
            for (n, gpus) in nodes.iter().enumerate() {
                s.nodes.extend(common::parse(&format!("node n{n} gpu=h*{gpus} cpu=64")).nodes);
            }
            for (t, nominal) in quotas.iter().enumerate() {
                s.tenants.extend(common::parse(&format!("tenant t{t} ns=t{t} cohort=c h={nominal}")).tenants);
            }
            for (n, (t, want, half, prio)) in wants.iter().enumerate() {
                let ask = if *half { "h*1,40Gi,50" } else { "h*1" };
                let line =
                    format!("tenant t{t} ns=t{t}\ndeployment t{t}/d{n} want={want} ask={ask} prio={prio} created={n}");
                s.deployments.extend(common::parse(&line).deployments);
            }
            s
        })
}

/// A plan, carried out; invariants of what it reclaims.
fn turn(s: &mut Snapshot, prepared: &mut Prepared, now: u64) -> Vec<Action> {
    s.sequence += 1;
    let (p, report) = prepared.plan(s, &Policy::default(), now);
    assert_eq!(check(s, &p), []);
    let named: Vec<&String> = report
        .deployments
        .iter()
        .flat_map(|r| &r.waits)
        .filter_map(|w| if let Wait::Reclaiming { pods, .. } = w { Some(pods) } else { None })
        .flatten()
        .collect();
    for id in reclaimed(&p.actions) {
        assert!(now - created_ms(s, id) >= MIN_RUNTIME, "{id} has just started");
        assert!(named.contains(&&id.to_string()), "{id} gives back, and nobody is named who gets it");
    }
    s.shares = report.shares;
    apply(s, &p.actions, now);
    p.actions
}

fn held(s: &Snapshot, tenant: &TenantId) -> u64 {
    let slices = s.nodes.iter().flat_map(|n| &n.gpus).flat_map(|g| g.slices.iter().map(move |x| (g, x)));
    let of = slices.filter(|(_, x)| x.tenant.as_ref() == Some(tenant));
    of.map(|(g, x)| (x.promise.memory_bytes * 1000).div_ceil(g.memory_bytes).max(u64::from(x.promise.sm_percent) * 10))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lenders_regain_their_own_and_nothing_moves_back_and_forth(s in cluster(), steps in prop::collection::vec(step(), 40)) {
        let mut s = s;
        let mut now = common::NOW;
        let mut prepared = Prepared::default();
        for step in &steps {
            match step {
                Step::Scale(d, n) => if let Some(d) = s.deployments.get_mut(*d) { d.wanted = *n },
                Step::Quota(t, q) => s.tenants[*t].quotas[0].nominal_milli = *q,
                Step::Passes(ms) => now += ms,
            }
            turn(&mut s, &mut prepared, now);
            settle(&mut s);
            now += 3_000;
        }
        // Everything borrowed has run long enough; then all comes to rest within a few drains.
        now += MIN_RUNTIME;
        let mut quiet = 0;
        for round in 0.. {
            prop_assert!(round < 60, "the cluster does not come to rest");
            let actions = turn(&mut s, &mut prepared, now);
            settle(&mut s);
            now += 3_000;
            quiet = if actions.is_empty() { quiet + 1 } else { 0 };
            if quiet == 3 { break; }
        }
        now += MIN_RUNTIME;
        prop_assert!(turn(&mut s, &mut prepared, now).is_empty() || quiet == 3);
        for d in &s.deployments {
            let tenant = d.tenant.clone().unwrap();
            let t = s.tenants.iter().find(|t| t.id == tenant).unwrap();
            let whole = matches!(d.variants[0].accelerator, Accelerator::Gpu { partition: Partition::WHOLE, .. });
            let charge = if whole { 1000 } else { 500 };
            let own = held(&s, &tenant) + charge <= t.quotas[0].nominal_milli;
            if (d.replicas.len() as u32) < d.wanted && own {
                // Not even one borrowed replica that would make room is left with anybody.
                for other in s.deployments.iter().filter(|o| o.tenant != d.tenant) {
                    let of = other.tenant.as_ref().unwrap();
                    let nominal = s.tenants.iter().find(|t| &t.id == of).unwrap().quotas[0].nominal_milli;
                    for r in &other.replicas {
                        let own_charge: u64 = if r.placement.as_ref().unwrap().gpus[0].promise.sm_percent == 100 { 1000 } else { 500 };
                        let may_give = held(&s, of) >= nominal + own_charge && now - r.created_ms >= MIN_RUNTIME;
                        prop_assert!(!(may_give && own_charge >= charge), "{} waits while {} borrows", d.id, r.name);
                    }
                }
            }
        }
    }
}
