//! Deployments at rest: nothing is left to write for them, and their status says all. Of thousands few change between two
//! plans; the others are not looked at again while everything about them is the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stowage_crds::conditions::types;
use stowage_planner::report::DeploymentReport;

use super::Case;
use crate::translate::snapshot::replicas::serves;

/// Looked at again after one to two of these whatever is the same, should something have been overlooked. Not all at once.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A deployment as it was when nothing was left to do for it.
#[derive(Debug)]
pub struct Rest {
    case: Case,
    report: Option<DeploymentReport>,
    until: Instant,
}

impl Rest {
    /// `None`: something about it ends by itself.
    pub fn begin(case: Case, report: Option<DeploymentReport>, now: Instant) -> Option<Self> {
        let spread = case.stored.uid().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let until = now + LOOK_AGAIN + LOOK_AGAIN * (spread % 64) / 64;
        is_still(&case).then_some(Self { case, report, until })
    }

    /// Whether everything is as it was.
    pub fn holds(&self, case: &Case, report: Option<&DeploymentReport>, now: Instant) -> bool {
        now < self.until && same(&self.case, case) && self.report.as_ref() == report
    }
}

/// Whether nothing is under way: all replicas serve, nothing ends, nothing is fetched, and no condition ends by itself.
fn is_still(case: &Case) -> bool {
    let mut conditions = case.stored.status.iter().flat_map(|status| &status.conditions);
    case.actions.is_empty()
        && case.drains.is_empty()
        && case.fetches.is_empty()
        && case.orphans.is_empty()
        && !case.orphaning
        && !case.stored.deleting()
        && case.pods.iter().all(|pod| serves(pod))
        && conditions.all(|condition| condition.type_ != types::DEGRADED)
}

/// Whether two cases are made of the very same objects and say the same.
fn same(then: &Case, now: &Case) -> bool {
    let Case {
        id,
        stored,
        judged,
        tenant,
        orphaning,
        pods,
        claims,
        orphans,
        service,
        policy,
        budget,
        replicas,
        actions,
        charge,
        over_quota,
        fetches,
        drains,
        scrapers,
        cold_start,
        commit,
        bottleneck,
        preloaded,
    } = now;
    Arc::ptr_eq(&then.stored, stored)
        && Arc::ptr_eq(&then.judged, judged)
        && Arc::ptr_eq(&then.scrapers, scrapers)
        && all_same(&then.pods, pods)
        && all_same(&then.claims, claims)
        && all_same(&then.orphans.pods, &orphans.pods)
        && all_same(&then.orphans.claims, &orphans.claims)
        && all_same(then.service.as_slice(), service.as_slice())
        && all_same(then.policy.as_slice(), policy.as_slice())
        && all_same(then.budget.as_slice(), budget.as_slice())
        && then.id == *id
        && then.tenant == *tenant
        && then.orphaning == *orphaning
        && then.replicas == *replicas
        && then.actions == *actions
        && then.charge == *charge
        && then.over_quota == *over_quota
        && then.fetches == *fetches
        && then.drains == *drains
        && then.cold_start == *cold_start
        && then.commit == *commit
        && then.bottleneck == *bottleneck
        && then.preloaded == *preloaded
}

fn all_same<T>(then: &[Arc<T>], now: &[Arc<T>]) -> bool {
    then.len() == now.len() && then.iter().zip(now).all(|(then, now)| Arc::ptr_eq(then, now))
}
