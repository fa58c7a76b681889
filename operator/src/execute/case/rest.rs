//! Deployments at rest: nothing is left to write for them, and their status says all. Of thousands few change between two
//! plans; the others are not looked at again while everything about them is the same.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use stowage_planner::report::DeploymentReport;

use super::Case;
use crate::translate::snapshot::replicas::serves;

/// Looked at again after one to two of these whatever is the same: no deadline is known, and one that is overlooked ends
/// here. Not all at once.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// A deployment as it was when nothing was left to do for it.
#[derive(Debug)]
pub struct Rest {
    case: Case,
    report: Option<DeploymentReport>,
    until: Timestamp,
}

impl Rest {
    /// `None`: something about it ends by itself.
    pub fn begin(case: Case, report: Option<DeploymentReport>, now: Timestamp) -> Option<Self> {
        let spread = case.stored.uid().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let more = LOOK_AGAIN * i32::try_from(spread % 64).unwrap_or(0) / 64;
        let until = now.checked_add(LOOK_AGAIN + more).ok()?;
        is_still(&case).then_some(Self { case, report, until })
    }

    /// Whether everything is as it was.
    pub fn holds(&self, case: &Case, report: Option<&DeploymentReport>, now: Timestamp) -> bool {
        now < self.until && same(&self.case, case) && self.report.as_ref() == report
    }
}

/// Whether nothing is under way: all replicas serve, nothing ends, nothing is fetched.
fn is_still(case: &Case) -> bool {
    case.actions.is_empty()
        && case.drains.is_empty()
        && case.fetches.is_empty()
        && case.orphans.is_empty()
        && !case.orphaning
        && !case.stored.deleting()
        && case.pods.iter().all(|pod| serves(pod))
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
