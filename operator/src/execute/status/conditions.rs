//! Conditions from facts. Accepted, QuotaReserved, Placed and Ready always stand; the others only
//! while they are true. The words about quota and placement are the planner's own renderings.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use stowage_crds::conditions::{reasons, types};
use stowage_crds::quantity::milli_quantity;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::render;
use stowage_planner::report::{DeploymentReport, Outcome, QuotaBinding, QuotaVerdict, TroubleKind};

use super::Live;
use crate::execute::case::Case;
use crate::translate::snapshot::startup::{Startup, startup};
use crate::translate::validate::Verdict;

/// All that conditions are made from.
pub struct Facts<'a> {
    pub case: &'a Case,
    pub verdict: &'a Verdict,
    /// `None`: the planner did not consider the deployment, because it was refused.
    pub report: Option<&'a DeploymentReport>,
    pub live: &'a Live,
    /// What could not be written.
    pub failures: &'a [String],
    pub previous: &'a [Condition],
    pub now: Timestamp,
}

/// One condition before it gets its times.
struct Said {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

pub fn all(facts: &Facts<'_>) -> Vec<Condition> {
    let troubles = troubles(facts);
    let mut said = vec![accepted(facts), quota(facts), placed(facts), ready(facts, &troubles)];
    said.extend(reconciling(facts));
    said.extend(stalled(facts, &troubles));
    said.extend(limited(facts));
    said.extend(degraded(facts, &troubles).or_else(|| evicted_lately(facts.previous, facts.now)));
    said.extend(draining(facts));
    let finish = |said: Said| {
        condition(
            said.kind,
            said.holds,
            said.reason,
            said.message,
            facts.case.stored.generation(),
            facts.previous,
            facts.now,
        )
    };
    said.into_iter().map(finish).collect()
}

/// A condition whose transition time is carried over unless its status changed.
pub fn condition(
    kind: &str,
    holds: bool,
    reason: &str,
    message: String,
    generation: i64,
    previous: &[Condition],
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let before = previous.iter().find(|condition| condition.type_ == kind && condition.status == status);
    // Kubernetes keeps seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time: before.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    }
}

fn say(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Said {
    Said { kind, holds, reason, message: message.into() }
}

fn accepted(facts: &Facts<'_>) -> Said {
    match facts.verdict {
        Verdict::Accepted(_) => {
            say(types::ACCEPTED, true, reasons::ACCEPTED, "The spec is understood and honoured in full.")
        }
        Verdict::Refused { reason, message } => say(types::ACCEPTED, false, reason, message),
    }
}

fn quota(facts: &Facts<'_>) -> Said {
    let Some(report) = facts.report else { return refused(types::QUOTA_RESERVED) };
    let message = quota_message(report);
    let (holds, reason) = match &report.quota {
        QuotaVerdict::Granted { borrowed_milli: 0 } | QuotaVerdict::NotNeeded => (true, reasons::WITHIN_NOMINAL),
        QuotaVerdict::Granted { .. } => (true, reasons::BORROWING),
        QuotaVerdict::Partial { limit, .. } if limit.binding == QuotaBinding::CohortExhausted => {
            (false, reasons::NOTHING_TO_BORROW)
        }
        QuotaVerdict::Partial { .. } => (false, reasons::OVER_QUOTA),
        QuotaVerdict::NoTenant { .. } => (false, reasons::NO_TENANT),
    };
    say(types::QUOTA_RESERVED, holds, reason, message)
}

fn quota_message(report: &DeploymentReport) -> String {
    match &report.quota {
        QuotaVerdict::NotNeeded => "No GPU is needed.".into(),
        QuotaVerdict::Granted { borrowed_milli: 0 } => {
            format!("The guaranteed quota covers {} replicas.", report.counts.granted)
        }
        QuotaVerdict::Granted { borrowed_milli } => {
            format!(
                "The quota covers {} replicas, {} GPU of it borrowed from the cohort.",
                report.counts.granted,
                milli_quantity(*borrowed_milli).0
            )
        }
        QuotaVerdict::Partial { .. } | QuotaVerdict::NoTenant { .. } => render::condition_message(report),
    }
}

fn placed(facts: &Facts<'_>) -> Said {
    let Some(report) = facts.report else { return refused(types::PLACED) };
    let message = render::condition_message(report);
    let missing = report.counts.wanted > facts.live.current;
    let unscheduled = report.troubles.iter().any(|trouble| matches!(trouble.what, TroubleKind::Unscheduled { .. }));
    let reason = match report.outcome {
        Outcome::Draining => reasons::DELETING,
        Outcome::NoTenant => reasons::NO_TENANT,
        Outcome::WaitingForQuota => reasons::WAITING_FOR_QUOTA,
        Outcome::WaitingForGPU => reasons::WAITING_FOR_GPU,
        Outcome::StaleInput => reasons::STALE_INPUT,
        _ if report.counts.wanted == 0 => reasons::SCALED_TO_ZERO,
        _ if unscheduled => reasons::SCHEDULER_REFUSED,
        _ if missing && !facts.failures.is_empty() => {
            return say(types::PLACED, false, reasons::API_REFUSED, facts.failures.join("; "));
        }
        _ if missing => reasons::STARTING,
        _ => reasons::PLACED,
    };
    say(types::PLACED, matches!(reason, reasons::PLACED | reasons::SCALED_TO_ZERO), reason, message)
}

fn ready(facts: &Facts<'_>, troubles: &[Told]) -> Said {
    if facts.case.stored.deleting() {
        return say(
            types::READY,
            false,
            reasons::DELETING,
            format!("Being deleted; {} replicas still end.", facts.live.placements.len()),
        );
    }
    let Some(report) = facts.report else {
        let message = format!(
            "The spec was refused, see Accepted; {} of {} replicas go on as they are.",
            facts.live.ready, facts.live.current
        );
        return say(types::READY, false, reasons::NOT_ACCEPTED, message);
    };
    let (wanted, ready) = (report.counts.wanted, facts.live.ready);
    match report.outcome {
        _ if wanted == 0 => say(types::READY, false, reasons::SCALED_TO_ZERO, "No replica is wanted."),
        _ if ready >= wanted => {
            say(types::READY, true, reasons::ON_TARGET, format!("{ready} of {wanted} replicas take requests."))
        }
        _ if troubles.iter().any(|told| told.stops) => {
            let told = troubles.iter().find(|told| told.stops);
            let (reason, words) =
                told.map_or((reasons::STARTING, String::new()), |told| (told.reason, told.message.clone()));
            say(types::READY, false, reason, format!("{ready} of {wanted} replicas take requests. {words}"))
        }
        Outcome::WaitingForGPU => say(types::READY, false, reasons::WAITING_FOR_GPU, render::condition_message(report)),
        Outcome::WaitingForQuota => {
            say(types::READY, false, reasons::WAITING_FOR_QUOTA, render::condition_message(report))
        }
        Outcome::NoTenant => say(types::READY, false, reasons::NO_TENANT, render::condition_message(report)),
        Outcome::StaleInput => say(types::READY, false, reasons::STALE_INPUT, render::condition_message(report)),
        _ if ready > 0 => say(
            types::READY,
            false,
            reasons::PARTLY_READY,
            format!("{ready} of {wanted} replicas take requests; the others start."),
        ),
        _ => say(
            types::READY,
            false,
            reasons::STARTING,
            format!("0 of {wanted} replicas take requests; {} start.", facts.live.current),
        ),
    }
}

/// Only while something changes by our doing.
fn reconciling(facts: &Facts<'_>) -> Option<Said> {
    let report = facts.report?;
    let doing = |reason, message: String| Some(say(types::RECONCILING, true, reason, message));
    let ends = |wanted: EndReason| {
        facts.case.actions.iter().any(|action| matches!(action, Action::Remove { reason, .. } | Action::Drain { reason, .. } if *reason == wanted))
    };
    if facts.case.stored.deleting() {
        return doing(reasons::DELETING, "Replicas finish their requests and end.".into());
    }
    if report.counts.ready > report.counts.updated_ready || ends(EndReason::Rollout) {
        return doing(
            reasons::ROLLING_OUT,
            format!("{} of {} replicas are of the present spec.", report.counts.updated_ready, report.counts.wanted),
        );
    }
    if !facts.case.actions.is_empty() || matches!(report.outcome, Outcome::Progressing | Outcome::Starting) {
        return doing(
            reasons::SCALING,
            format!("{} replicas exist, {} are wanted.", facts.live.current, report.counts.wanted),
        );
    }
    None
}

/// Only while nothing will change by itself.
fn stalled(facts: &Facts<'_>, troubles: &[Told]) -> Option<Said> {
    if let Some(told) = troubles.iter().find(|told| told.stalls) {
        return Some(say(types::STALLED, true, told.reason, told.message.clone()));
    }
    let refused = facts.failures.iter().find(|failure| failure.contains("refused by the API server"));
    refused.map(|failure| say(types::STALLED, true, reasons::API_REFUSED, failure.clone()))
}

fn limited(facts: &Facts<'_>) -> Option<Said> {
    let report = facts.report?;
    let by = match report.outcome {
        Outcome::WaitingForQuota | Outcome::NoTenant => reasons::LIMITED_BY_QUOTA,
        Outcome::WaitingForGPU | Outcome::StaleInput => reasons::LIMITED_BY_CAPACITY,
        _ => return None,
    };
    Some(say(types::SCALING_LIMITED, true, by, render::condition_message(report)))
}

fn degraded(facts: &Facts<'_>, troubles: &[Told]) -> Option<Said> {
    let report = facts.report?;
    if facts.live.ready == 0 && !troubles.iter().any(|told| told.degrades) {
        return None;
    }
    if let Some(told) = troubles.first() {
        return Some(say(types::DEGRADED, true, told.reason, told.message.clone()));
    }
    let short = facts.live.ready < report.counts.wanted
        && matches!(report.outcome, Outcome::WaitingForGPU | Outcome::WaitingForQuota);
    let message = format!("{} of {} replicas take requests.", facts.live.ready, report.counts.wanted);
    short.then(|| say(types::DEGRADED, true, reasons::PARTLY_READY, message))
}

/// An eviction is over in seconds, and people look later: it stays told for a while.
fn evicted_lately(previous: &[Condition], now: Timestamp) -> Option<Said> {
    const TOLD_SECONDS: i64 = 600;
    let told = previous.iter().find(|condition| {
        condition.type_ == types::DEGRADED
            && condition.reason == reasons::OVERSHOOT_EVICTED
            && now.as_second() - condition.last_transition_time.0.as_second() < TOLD_SECONDS
    })?;
    Some(say(types::DEGRADED, true, reasons::OVERSHOOT_EVICTED, told.message.clone()))
}

fn draining(facts: &Facts<'_>) -> Option<Said> {
    if facts.live.draining == 0 {
        return None;
    }
    let reason = if facts.case.stored.deleting() { reasons::DELETING } else { reasons::SCALING_IN };
    let overshoots = facts.report.is_some_and(|report| {
        report.troubles.iter().any(|trouble| matches!(trouble.what, TroubleKind::Overshoot { .. }))
    });
    let reason = if overshoots { reasons::OVERSHOOT } else { reason };
    Some(say(
        types::DRAINING,
        true,
        reason,
        format!("{} replicas finish their requests before they end.", facts.live.draining),
    ))
}

fn refused(kind: &'static str) -> Said {
    say(kind, false, reasons::NOT_ACCEPTED, "The spec was refused, see Accepted; nothing new is placed.")
}

/// A trouble of a replica, for whichever condition it concerns.
struct Told {
    reason: &'static str,
    message: String,
    /// It keeps the replica from serving.
    stops: bool,
    /// Waiting does not help.
    stalls: bool,
    /// Told even when nothing serves any more.
    degrades: bool,
}

fn troubles(facts: &Facts<'_>) -> Vec<Told> {
    let mut told = Vec::new();
    for pod in &facts.case.pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Startup::Trouble { reason, message, model_refused, .. } = startup(pod) {
            let message = format!("{name} {message}. {}", next_step(reason));
            told.push(Told { reason, message, stops: true, stalls: model_refused, degrades: false });
        }
    }
    for trouble in facts.report.iter().flat_map(|report| &report.troubles) {
        let reason = match &trouble.what {
            TroubleKind::UnhealthyGpu { .. } => reasons::GPU_UNHEALTHY,
            TroubleKind::NodeLost { .. } => reasons::NODE_LOST,
            TroubleKind::Overshoot { .. } => reasons::OVERSHOOT_EVICTED,
            TroubleKind::Failed { .. } => reasons::CRASH_LOOP,
            TroubleKind::Unprepared { .. } => reasons::NODE_CANNOT_PREPARE,
            TroubleKind::Unscheduled { .. } | TroubleKind::Unready => continue,
        };
        told.push(Told { reason, message: render::trouble(trouble), stops: true, stalls: false, degrades: true });
    }
    told
}

fn next_step(reason: &str) -> &'static str {
    match reason {
        reasons::MODEL_REFUSED => {
            "Correct spec.model or the file; the kubelet tries again with growing pauses (up to 5 min)"
        }
        reasons::IMAGE_PULL_FAILED => {
            "Check the image reference and spec.podTemplate.imagePullSecrets; the kubelet tries again with growing pauses"
        }
        _ => "The kubelet starts it again with growing pauses (up to 5 min); see `kubectl logs --previous`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn degraded_at(second: i64) -> Vec<Condition> {
        vec![condition(
            types::DEGRADED,
            true,
            reasons::OVERSHOOT_EVICTED,
            "it held 3 GiB of 2".into(),
            1,
            &[],
            at(second),
        )]
    }

    #[test]
    fn an_eviction_stays_told_for_ten_minutes_and_no_longer() {
        let told = evicted_lately(&degraded_at(1000), at(1599)).unwrap();
        assert_eq!((told.reason, told.message.as_str()), (reasons::OVERSHOOT_EVICTED, "it held 3 GiB of 2"));
        assert!(evicted_lately(&degraded_at(1000), at(1600)).is_none());
        assert!(evicted_lately(&[], at(1000)).is_none());
    }

    #[test]
    fn the_transition_time_moves_with_the_status_and_not_with_the_words() {
        let before = vec![condition(types::READY, true, reasons::ON_TARGET, "1 of 1".into(), 1, &[], at(10))];
        let moved = |holds| {
            condition(types::READY, holds, reasons::STARTING, "other words".into(), 2, &before, at(20))
                .last_transition_time
                .0
        };
        assert_eq!((moved(true), moved(false)), (at(10), at(20)));
    }
}
