//! Conditions from facts. Accepted, QuotaReserved, Placed and Ready always stand; the others only
//! while they are true. The words about quota and placement are the planner's own renderings.
//!
//! Read as kstatus reads them: `Stalled` stands where only a person can help and never beside
//! `Reconciling`; a deployment of which no replica is wanted is Ready.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use stowage_contracts::summary::{FetchPhase, ModelFetch};
use stowage_crds::conditions::{reasons, types};
use stowage_crds::quantity::milli_quantity;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::render;
use stowage_planner::report::{
    DeploymentReport, LimitedBy, Outcome, QuotaBinding, QuotaVerdict, Trouble as ReplicaTrouble, TroubleKind,
};

use super::Live;
use crate::execute::backoff::{Failing, Part};
use crate::execute::case::Case;
use crate::execute::refusal::Obstacle;
use crate::observe::drains::DrainState;
use crate::translate::snapshot::startup::{Startup, startup};
use crate::translate::validate::Verdict;

/// A gateway takes a draining replica out of routing, and reports it, within this time.
const ROUTED_SECONDS: i64 = 5;

/// All that conditions are made from.
pub struct Facts<'a> {
    pub case: &'a Case,
    /// `None`: nothing is planned for the deployment, because it was refused.
    pub report: Option<&'a DeploymentReport>,
    /// Of its replicas.
    pub troubles: &'a [ReplicaTrouble],
    pub live: &'a Live,
    /// Writes that are not carried out at present.
    pub obstacles: &'a [Obstacle],
    pub previous: &'a [Condition],
    pub now: Timestamp,
}

/// One condition before it gets its times.
struct Statement {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// All conditions that stand.
pub fn all(facts: &Facts<'_>) -> Vec<Condition> {
    let troubles = troubles(facts);
    let stalled = stalled(facts, &troubles);
    let mut all = vec![accepted(facts), quota(facts), placed(facts), ready(facts, &troubles)];
    all.extend(reconciling(facts).filter(|_| stalled.is_none()));
    all.extend(stalled);
    all.extend(limited(facts));
    all.extend(degraded(facts, &troubles).or_else(|| lately(facts.previous, facts.now)));
    all.extend(draining(facts));
    let finish = |statement: Statement| {
        condition(
            statement.kind,
            statement.holds,
            statement.reason,
            statement.message,
            facts.case.stored.generation(),
            facts.previous,
            facts.now,
        )
    };
    all.into_iter().map(finish).collect()
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

fn state(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Statement {
    Statement { kind, holds, reason, message: message.into() }
}

/// Why the deployment is not accepted; `None`: it is.
fn refusal(facts: &Facts<'_>) -> Option<(&'static str, String)> {
    match &facts.case.judged.verdict {
        Verdict::Refused { reason, message } => Some((reason, message.clone())),
        Verdict::Accepted(_) if facts.case.tenant.is_none() => Some((reasons::NO_TENANT, no_tenant(facts))),
        Verdict::Accepted(_) => None,
    }
}

fn no_tenant(facts: &Facts<'_>) -> String {
    let namespace = &facts.case.id.namespace;
    let what = format!("Namespace {namespace} belongs to no TenantQuota");
    let step = "ask for one that lists it in spec.namespaces";
    match facts.live.current {
        0 => format!("{what}, so nothing is placed; {step}."),
        running => {
            format!("{what} any more: {running} replicas go on, take no requests and are not replaced; {step}.")
        }
    }
}

fn accepted(facts: &Facts<'_>) -> Statement {
    match refusal(facts) {
        None => state(types::ACCEPTED, true, reasons::ACCEPTED, "The spec is understood and honoured in full."),
        Some((reason, message)) => state(types::ACCEPTED, false, reason, message),
    }
}

fn quota(facts: &Facts<'_>) -> Statement {
    let Some(report) = facts.report else { return refused(types::QUOTA_RESERVED) };
    if let Some(over) = &facts.case.over_quota {
        return state(types::QUOTA_RESERVED, false, reasons::OVER_QUOTA, over.clone());
    }
    let message = quota_message(report);
    let (holds, reason) = match &report.quota {
        QuotaVerdict::Granted { borrowed_milli: 0 } | QuotaVerdict::NotNeeded => (true, reasons::WITHIN_NOMINAL),
        QuotaVerdict::Granted { .. } => (true, reasons::BORROWING),
        QuotaVerdict::Partial { limit, .. } if limit.binding == QuotaBinding::CohortExhausted => {
            (false, reasons::NOTHING_TO_BORROW)
        }
        QuotaVerdict::Partial { .. } => (false, reasons::OVER_QUOTA),
        QuotaVerdict::NoTenant { .. } => {
            return state(types::QUOTA_RESERVED, false, reasons::NO_TENANT, no_tenant(facts));
        }
    };
    state(types::QUOTA_RESERVED, holds, reason, message)
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

fn placed(facts: &Facts<'_>) -> Statement {
    let Some(report) = facts.report else { return refused(types::PLACED) };
    let message = render::condition_message(report);
    let missing = report.counts.wanted > facts.live.current;
    if let Some(obstacle) = obstacle(facts).filter(|_| missing) {
        return state(types::PLACED, false, obstacle_reason(obstacle), obstacle.message.clone());
    }
    let unscheduled = report
        .troubles
        .iter()
        .any(|trouble| matches!(&trouble.what, TroubleKind::Unscheduled { message, .. } if !message.is_empty()));
    let reason = match report.outcome {
        Outcome::Draining => reasons::DELETING,
        Outcome::NoTenant => reasons::NO_TENANT,
        Outcome::WaitingForQuota => reasons::WAITING_FOR_QUOTA,
        Outcome::WaitingForGPU if !missing && report.moves() => reasons::NODE_CORDONED,
        Outcome::WaitingForGPU => reasons::WAITING_FOR_GPU,
        Outcome::StaleInput => reasons::STALE_INPUT,
        Outcome::Refused if missing => reasons::API_REFUSED,
        _ if report.counts.wanted == 0 => reasons::SCALED_TO_ZERO,
        _ if unscheduled => reasons::SCHEDULER_REFUSED,
        _ if missing => reasons::STARTING,
        _ => reasons::PLACED,
    };
    state(types::PLACED, matches!(reason, reasons::PLACED | reasons::SCALED_TO_ZERO), reason, message)
}

fn ready(facts: &Facts<'_>, troubles: &[Trouble]) -> Statement {
    let say = |holds, reason, message: String| state(types::READY, holds, reason, message);
    let live = facts.live;
    if facts.case.stored.deleting() {
        let message = format!("Being deleted; {} replicas still end.", live.placements.len());
        return say(false, reasons::DELETING, message);
    }
    if facts.case.tenant.is_none() && facts.case.wanted().is_some() {
        return say(false, reasons::NO_TENANT, no_tenant(facts));
    }
    let Some(report) = facts.report else {
        let message = format!(
            "The spec was refused, see Accepted; {} of {} replicas go on as they are.",
            live.ready, live.current
        );
        return say(false, reasons::NOT_ACCEPTED, message);
    };
    let wanted = report.counts.wanted;
    let counted = format!("{} of {wanted} replicas take requests", live.ready);
    if wanted == 0 {
        return say(true, reasons::SCALED_TO_ZERO, "No replica is wanted.".into());
    }
    if live.ready >= wanted {
        return say(true, reasons::ON_TARGET, format!("{counted}."));
    }
    if let Some(obstacle) = obstacle(facts) {
        return say(false, obstacle_reason(obstacle), format!("{counted}. {}", obstacle.message));
    }
    if let Some(trouble) = troubles.iter().find(|trouble| trouble.stops) {
        return say(false, trouble.reason, format!("{counted}. {}", trouble.message));
    }
    let reason = match report.outcome {
        Outcome::WaitingForGPU => Some(reasons::WAITING_FOR_GPU),
        Outcome::WaitingForQuota => Some(reasons::WAITING_FOR_QUOTA),
        Outcome::NoTenant => Some(reasons::NO_TENANT),
        Outcome::StaleInput => Some(reasons::STALE_INPUT),
        Outcome::Refused => Some(reasons::API_REFUSED),
        Outcome::OnTarget | Outcome::Starting | Outcome::Progressing | Outcome::BackOff | Outcome::Draining => None,
    };
    match reason {
        Some(reason) => say(false, reason, render::condition_message(report)),
        None if live.ready > 0 => say(false, reasons::PARTLY_READY, format!("{counted}; the others start.")),
        None => say(false, reasons::STARTING, format!("{counted}; {} start.", live.current)),
    }
}

/// Only while something changes by our doing.
fn reconciling(facts: &Facts<'_>) -> Option<Statement> {
    let asked = refusal(facts).filter(|(reason, _)| *reason == reasons::ESTIMATING_MEMORY);
    if let Some((reason, message)) = asked {
        return Some(state(types::RECONCILING, true, reason, message));
    }
    let report = facts.report?;
    let doing = |reason, message: String| Some(state(types::RECONCILING, true, reason, message));
    let ends = |wanted: EndReason| {
        let ended = |action: &Action| match action {
            Action::Remove { reason, .. } | Action::Drain { reason, .. } => *reason == wanted,
            Action::Create { .. } | Action::Resume { .. } => false,
        };
        facts.case.actions.iter().any(ended)
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

/// Only while nothing will change until a person does something.
fn stalled(facts: &Facts<'_>, troubles: &[Trouble]) -> Option<Statement> {
    if facts.case.stored.deleting() {
        return None;
    }
    let (reason, message) = refusal(facts)
        .filter(|(reason, _)| *reason != reasons::ESTIMATING_MEMORY)
        .or_else(|| {
            let trouble = troubles.iter().find(|trouble| trouble.stalls)?;
            Some((trouble.reason, trouble.message.clone()))
        })
        .or_else(|| {
            let obstacle = obstacle(facts).filter(|obstacle| obstacle.failing != Failing::Transient)?;
            Some((obstacle_reason(obstacle), obstacle.message.clone()))
        })?;
    Some(state(types::STALLED, true, reason, message))
}

/// What keeps missing objects from being made, the lasting before the transient; else what keeps others from ending.
fn obstacle<'a>(facts: &Facts<'a>) -> Option<&'a Obstacle> {
    let order = |obstacle: &&Obstacle| (obstacle.failing == Failing::Transient, obstacle.part == Part::End);
    facts.obstacles.iter().min_by_key(order)
}

fn obstacle_reason(obstacle: &Obstacle) -> &'static str {
    match obstacle.failing {
        Failing::Refused => reasons::API_REFUSED,
        Failing::Clash => reasons::NAME_CLASH,
        Failing::Transient => reasons::STARTING,
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn limited(facts: &Facts<'_>) -> Option<Statement> {
    let report = facts.report?;
    let reason = match report.limited_by()? {
        LimitedBy::Quota => reasons::LIMITED_BY_QUOTA,
        LimitedBy::Capacity => reasons::LIMITED_BY_CAPACITY,
        LimitedBy::MaxReplicas => reasons::LIMITED_BY_MAXIMUM,
        LimitedBy::Signals => reasons::LIMITED_BY_SIGNALS,
    };
    let message = match report.rule_limited_by() {
        Some(_) => format!("{}.", capital(&render::why_wanted(&report.scale))),
        None => render::condition_message(report),
    };
    Some(state(types::SCALING_LIMITED, true, reason, message))
}

fn degraded(facts: &Facts<'_>, troubles: &[Trouble]) -> Option<Statement> {
    let report = facts.report?;
    if facts.live.ready == 0 && !troubles.iter().any(|trouble| trouble.degrades) {
        return None;
    }
    if let Some(trouble) = troubles.first() {
        return Some(state(types::DEGRADED, true, trouble.reason, trouble.message.clone()));
    }
    let short = facts.live.ready < report.counts.wanted
        && matches!(report.outcome, Outcome::WaitingForGPU | Outcome::WaitingForQuota);
    let message = format!("{} of {} replicas take requests.", facts.live.ready, report.counts.wanted);
    short.then(|| state(types::DEGRADED, true, reasons::PARTLY_READY, message))
}

/// A replica that was ended for what it did is gone in seconds, and people look later: the condition
/// stands for a while.
fn lately(previous: &[Condition], now: Timestamp) -> Option<Statement> {
    const SHOWN_SECONDS: i64 = 600;
    let shown = |condition: &&Condition| {
        condition.type_ == types::DEGRADED
            && now.as_second() - condition.last_transition_time.0.as_second() < SHOWN_SECONDS
    };
    [reasons::OVERSHOOT_EVICTED, reasons::POD_CHANGED].into_iter().find_map(|reason| {
        let found = previous.iter().filter(shown).find(|condition| condition.reason == reason)?;
        Some(state(types::DEGRADED, true, reason, found.message.clone()))
    })
}

fn draining(facts: &Facts<'_>) -> Option<Statement> {
    if facts.live.draining == 0 {
        return None;
    }
    let reason = if facts.case.stored.deleting() { reasons::DELETING } else { reasons::SCALING_IN };
    let overshoots = facts.troubles.iter().any(|trouble| matches!(trouble.what, TroubleKind::Overshoot { .. }));
    let reason = if overshoots { reasons::OVERSHOOT } else { reason };
    let mut message = format!("{} replicas finish their requests before they end.", facts.live.draining);
    for drain in &facts.case.drains {
        let left = facts.case.drain_left(&drain.pod, facts.now).map(i64::from);
        let until = Timestamp::from_second(facts.now.as_second() + left.unwrap_or(0)).unwrap_or(facts.now);
        let age = facts.now.as_second() - drain.since.as_second();
        message.extend(drain_note(&drain.state, age, until).map(|note| format!(" {} {note}.", drain.pod)));
    }
    Some(state(types::DRAINING, true, reason, message))
}

/// What keeps a draining replica from ending; `None`: nothing, or what passes within seconds.
fn drain_note(state: &DrainState, age_seconds: i64, until: Timestamp) -> Option<String> {
    match state {
        DrainState::Counted(0) | DrainState::EngineIdle => None,
        DrainState::Counted(count) => Some(format!("has {count} requests in flight until {until} at the latest")),
        DrainState::Unread { gateway, why } => Some(format!(
            "ends when its engine reports that nothing runs there, or at {until}, because requests in flight are not \
             known: gateway {gateway} cannot be asked: {why}"
        )),
        DrainState::Routed { .. } if age_seconds < ROUTED_SECONDS => None,
        DrainState::Routed { gateway } => Some(format!(
            "ends when its engine reports that nothing runs there, or at {until}: gateway {gateway} has not taken it out \
             of routing; see whether the gateway reaches the API server"
        )),
    }
}

fn refused(kind: &'static str) -> Statement {
    state(kind, false, reasons::NOT_ACCEPTED, "The spec was refused, see Accepted; nothing new is placed.")
}

/// A trouble of a replica, for whichever condition it concerns.
struct Trouble {
    reason: &'static str,
    message: String,
    /// It keeps the replica from serving.
    stops: bool,
    /// Waiting does not help.
    stalls: bool,
    /// Shown even when no replica serves any more.
    degrades: bool,
}

fn troubles(facts: &Facts<'_>) -> Vec<Trouble> {
    let mut all = Vec::new();
    for pod in &facts.case.pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Startup::Trouble { reason, message, .. } = startup(pod) {
            let message = format!("{name} {message}. {}", next_step(reason));
            let stalls = matches!(reason, reasons::MODEL_REFUSED | reasons::IMAGE_PULL_FAILED);
            all.push(Trouble { reason, message, stops: true, stalls, degrades: false });
        }
    }
    all.extend(facts.case.fetches.iter().map(fetch));
    for trouble in facts.troubles {
        let reason = match &trouble.what {
            TroubleKind::UnhealthyGpu { .. } => reasons::GPU_UNHEALTHY,
            TroubleKind::NodeLost { .. } => reasons::NODE_LOST,
            TroubleKind::Overshoot { .. } => reasons::OVERSHOOT_EVICTED,
            TroubleKind::Failed { .. } if facts.case.changed(&trouble.pod).is_some() => reasons::POD_CHANGED,
            TroubleKind::Failed { .. } => reasons::CRASH_LOOP,
            TroubleKind::Unprepared { .. } => reasons::NODE_CANNOT_PREPARE,
            TroubleKind::Unscheduled { .. } | TroubleKind::Unready => continue,
        };
        all.push(Trouble { reason, message: render::trouble(trouble), stops: true, stalls: false, degrades: true });
    }
    all
}

/// A model that is still to come.
fn fetch((node, fetch): &(String, ModelFetch)) -> Trouble {
    let reason = match fetch.phase {
        FetchPhase::Failed => reasons::MODEL_FETCH_FAILED,
        FetchPhase::Queued | FetchPhase::Fetching | FetchPhase::Verifying => reasons::FETCHING_MODEL,
    };
    let message = format!("{node} {}", progress(fetch));
    Trouble { reason, message, stops: true, stalls: false, degrades: reason == reasons::MODEL_FETCH_FAILED }
}

fn progress(fetch: &ModelFetch) -> String {
    let ModelFetch { model: _, claims: _, phase, bytes, total_bytes, bytes_per_second, error } = fetch;
    let of = format!("{} of {}", render::bytes(*bytes), render::bytes(*total_bytes));
    match phase {
        FetchPhase::Failed => {
            format!("cannot fetch the model: {}. It tries again", error.as_deref().unwrap_or("no reason given"))
        }
        FetchPhase::Queued => "fetches other models first".into(),
        FetchPhase::Verifying => format!("verifies the model ({})", render::bytes(*total_bytes)),
        FetchPhase::Fetching if *total_bytes == 0 => "asks for the model".into(),
        FetchPhase::Fetching => {
            let percent = bytes.saturating_mul(100) / total_bytes;
            let left = total_bytes.saturating_sub(*bytes).checked_div(*bytes_per_second);
            let rate = left.map_or_else(String::new, |seconds| {
                format!(", {}/s, {seconds} s left", render::bytes(*bytes_per_second))
            });
            format!("fetches the model: {percent} % ({of}{rate})")
        }
    }
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

    #[test]
    fn progress_of_a_model_has_bytes_rate_and_time_left() {
        let fetch = |phase, bytes, bytes_per_second, error: Option<&str>| ModelFetch {
            model: Default::default(),
            claims: vec![],
            phase,
            bytes,
            total_bytes: 4 << 30,
            bytes_per_second,
            error: error.map(str::to_owned),
        };
        for (fetch, text) in [
            (fetch(FetchPhase::Queued, 0, 0, None), "fetches other models first"),
            (fetch(FetchPhase::Fetching, 1 << 30, 0, None), "fetches the model: 25 % (1 GiB of 4 GiB)"),
            (
                fetch(FetchPhase::Fetching, 1 << 30, 256 << 20, None),
                "fetches the model: 25 % (1 GiB of 4 GiB, 256 MiB/s, 12 s left)",
            ),
            (fetch(FetchPhase::Verifying, 4 << 30, 1, None), "verifies the model (4 GiB)"),
            (fetch(FetchPhase::Failed, 0, 0, Some("no")), "cannot fetch the model: no. It tries again"),
        ] {
            assert_eq!(progress(&fetch), text);
        }
        let unknown = ModelFetch { total_bytes: 0, ..fetch(FetchPhase::Fetching, 0, 0, None) };
        assert_eq!(progress(&unknown), "asks for the model");
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
    fn drain_that_waits_names_what_for_and_until_when() {
        let note = |state, age| drain_note(&state, age, at(0)).unwrap_or_default();
        let routed = |gateway: &str| DrainState::Routed { gateway: gateway.into() };
        assert_eq!(note(DrainState::Counted(0), 9), "");
        assert_eq!(note(DrainState::EngineIdle, 9), "");
        assert_eq!(note(routed("g"), 4), "");
        assert!(note(routed("g"), 5).contains("gateway g has not taken it out of routing"));
        let counted = note(DrainState::Counted(2), 0);
        assert_eq!(counted, "has 2 requests in flight until 1970-01-01T00:00:00Z at the latest");
        let unread = note(DrainState::Unread { gateway: "g".into(), why: "refused".into() }, 0);
        assert!(unread.ends_with("gateway g cannot be asked: refused"), "{unread}");
    }

    #[test]
    fn an_eviction_is_shown_for_ten_minutes_and_no_longer() {
        let shown = lately(&degraded_at(1000), at(1599)).unwrap();
        assert_eq!((shown.reason, shown.message.as_str()), (reasons::OVERSHOOT_EVICTED, "it held 3 GiB of 2"));
        assert!(lately(&degraded_at(1000), at(1600)).is_none());
        assert!(lately(&[], at(1000)).is_none());
    }

    #[test]
    fn the_transition_time_moves_with_the_status_and_not_with_the_message() {
        let before = vec![condition(types::READY, true, reasons::ON_TARGET, "1 of 1".into(), 1, &[], at(10))];
        let moved = |holds| {
            condition(types::READY, holds, reasons::STARTING, "another message".into(), 2, &before, at(20))
                .last_transition_time
                .0
        };
        assert_eq!((moved(true), moved(false)), (at(10), at(20)));
    }
}
