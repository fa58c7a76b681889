//! The decision log: one record per thing done, and one per deployment that must wait.
//!
//! Follow-ups that decide nothing (a drain that has finished) are recorded too, so that the log can
//! be read alone. Records of equal decisions have equal fingerprints, whatever the time and the
//! ages; who keeps a log drops the repetitions.

use crate::decide::Draft;
use crate::decide::case::{Case, Create};
use crate::explain::render;
use crate::explain::report::{
    DecisionRecord, DeploymentReport, InputAge, NodeRefusal, Outcome, PlacementVerdict, RecordAction, RecordKind,
    ScaleVerdict, Trigger, TroubleKind,
};
use crate::lifecycle::{End, Resume};
use crate::plan::{CreateReason, EndReason, ResumeReason};
use crate::snapshot::{Phase, ReplicaId, Shared, TimeMs};

/// Nodes named in one record; the report has them all.
const MAX_REFUSALS: usize = 32;

pub(crate) fn records(draft: &Draft<'_>, reports: &[DeploymentReport], now: TimeMs) -> Vec<DecisionRecord> {
    let mut all = Vec::new();
    for (case, report) in draft.cases.iter().zip(reports) {
        all.extend(case.life.ends.iter().map(|end| ended(case, report, end, now)));
        all.extend(case.resumes.iter().map(|resume| resumed(report, resume)));
        all.extend(case.creates.iter().map(|create| created(draft, report, create)));
        all.extend(waits(draft, report));
        all.extend(frozen(report));
    }
    for (n, record) in all.iter_mut().enumerate() {
        record.time = now;
        record.id = format!("{now}-{n}");
        record.fingerprint = fingerprint(record);
    }
    all
}

fn blank(report: &DeploymentReport, kind: RecordKind, action: RecordAction, trigger: Trigger) -> DecisionRecord {
    DecisionRecord {
        id: String::new(),
        time: 0,
        kind,
        object: report.deployment.clone(),
        replica: None,
        trigger,
        action,
        message: String::new(),
        inputs: Vec::new(),
        counts: report.counts,
        candidates: Shared::default(),
        refusals: Vec::new(),
        winner: None,
        counterfactual: None,
        evidence: None,
        fingerprint: 0,
    }
}

fn ended(case: &Case<'_>, report: &DeploymentReport, end: &End, now: TimeMs) -> DecisionRecord {
    let action = if end.drain_until.is_some() { RecordAction::Drain } else { RecordAction::Remove };
    let kind = match end.reason {
        EndReason::ScaleIn | EndReason::Deleted | EndReason::Duplicate => RecordKind::Scale,
        EndReason::Drained | EndReason::DrainTimeout => RecordKind::Scale,
        EndReason::Rollout => RecordKind::Rollout,
        EndReason::Failed | EndReason::UnhealthyGpu | EndReason::NodeLost | EndReason::NodeCordoned => {
            RecordKind::Health
        }
        EndReason::Overshoot => RecordKind::Evict,
        EndReason::Reclaimed => RecordKind::Reclaim,
        EndReason::Unschedulable | EndReason::Unprepared | EndReason::Moved | EndReason::MoveTimeout => {
            RecordKind::Place
        }
    };
    let evidence = case.life.troubles.iter().find_map(|t| match &t.what {
        TroubleKind::Overshoot { evidence } if t.replica == end.replica => Some(evidence.clone()),
        _ => None,
    });
    let trouble = case.life.troubles.iter().find(|t| t.replica == end.replica);
    DecisionRecord {
        replica: Some(end.replica.clone()),
        message: match &end.claimant {
            Some(claimant) if goes_already(case, end) => {
                let left_ms = end.drain_until.map_or(0, |until| until.saturating_sub(now));
                render::reclaimed_sooner(&end.pod, left_ms, claimant)
            }
            Some(claimant) => render::reclaimed(&end.pod, action, claimant),
            None => with_reason(
                render::ended(&end.pod, action, end.reason, trouble),
                report,
                end.reason == EndReason::ScaleIn,
            ),
        },
        evidence,
        ..blank(report, kind, action, Trigger::Ended(end.reason))
    }
}

/// Whether the pod was on its way out before this plan.
fn goes_already(case: &Case<'_>, end: &End) -> bool {
    let going =
        case.d.replicas.iter().filter(|r| matches!(r.phase, Phase::Draining { .. } | Phase::Terminating { .. }));
    going.map(|r| (r.index, r.incarnation)).any(|id| id == (end.replica.index, end.replica.incarnation))
}

fn resumed(report: &DeploymentReport, resume: &Resume) -> DecisionRecord {
    let trigger = Trigger::Resumed(ResumeReason::WantedAgain);
    DecisionRecord {
        replica: Some(resume.replica.clone()),
        message: with_reason(render::resumed(&resume.pod), report, true),
        ..blank(report, RecordKind::Scale, RecordAction::Resume, trigger)
    }
}

fn created(draft: &Draft<'_>, report: &DeploymentReport, create: &Create) -> DecisionRecord {
    let kind = match create.reason {
        CreateReason::Rollout => RecordKind::Rollout,
        CreateReason::ScaleOut | CreateReason::Replace | CreateReason::Move => RecordKind::Place,
    };
    DecisionRecord {
        replica: Some(create.replica.clone()),
        message: with_reason(
            render::placed(create.replica.index, create.reason, &create.verdict, create.moved_for.as_ref()),
            report,
            create.reason == CreateReason::ScaleOut,
        ),
        ..about(draft, blank(report, kind, RecordAction::Create, Trigger::Created(create.reason)), &create.verdict)
    }
}

/// With why the rule wants so many, where that is what made the change.
fn with_reason(message: String, report: &DeploymentReport, scales: bool) -> String {
    if scales && matches!(report.scale, ScaleVerdict::Active { .. }) {
        return format!("{message} Wanted are {}: {}.", report.counts.wanted, render::why_wanted(&report.scale));
    }
    message
}

/// The rule cannot answer.
fn frozen(report: &DeploymentReport) -> Option<DecisionRecord> {
    let ScaleVerdict::Frozen { cause, .. } = &report.scale else { return None };
    let why = render::why_wanted(&report.scale);
    let message = format!("Wanted are {}: {why}.", report.counts.wanted);
    Some(DecisionRecord {
        message,
        ..blank(report, RecordKind::Scale, RecordAction::Wait, Trigger::Frozen(cause.signal))
    })
}

fn waits(draft: &Draft<'_>, report: &DeploymentReport) -> Option<DecisionRecord> {
    let kind = match report.outcome {
        Outcome::WaitingForGPU | Outcome::StaleInput => RecordKind::Place,
        Outcome::WaitingForQuota | Outcome::NoTenant => RecordKind::Scale,
        Outcome::BackOff | Outcome::Refused => RecordKind::Health,
        Outcome::OnTarget | Outcome::Starting | Outcome::Progressing | Outcome::Draining => return None,
    };
    let record = blank(report, kind, RecordAction::Wait, Trigger::Waits(report.outcome));
    let failed = report.placements.iter().find(|v| v.winner.is_none());
    let record = match failed {
        Some(verdict) => about(draft, record, verdict),
        None => record,
    };
    Some(DecisionRecord {
        replica: None::<ReplicaId>,
        message: render::condition_message(report),
        counterfactual: report.counterfactuals.first().cloned(),
        ..record
    })
}

fn about(draft: &Draft<'_>, record: DecisionRecord, verdict: &PlacementVerdict) -> DecisionRecord {
    let looked_at = verdict.candidates.iter().map(|c| &c.node);
    let inputs = looked_at
        .chain(verdict.refusals.iter().flat_map(|g| &g.examples).map(|r| &r.node))
        .take(MAX_REFUSALS)
        .filter_map(|n| Some(InputAge { source: format!("node/{n}"), age_ms: draft.placer.index.age_ms(n)? }))
        .collect();
    let refusals: Vec<NodeRefusal> =
        verdict.refusals.iter().flat_map(|g| &g.examples).take(MAX_REFUSALS).cloned().collect();
    DecisionRecord {
        inputs,
        refusals,
        candidates: verdict.candidates.clone(),
        winner: verdict.winner.clone(),
        ..record
    }
}

/// FNV-1a over what was decided: who, what, why and where, but not when or how old.
fn fingerprint(record: &DecisionRecord) -> u64 {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    let winner = record.winner.as_ref().map(|w| &w.placement);
    let reasons: Vec<_> = record.refusals.iter().map(|r| (&r.node, label(r))).collect();
    let what = format!(
        "{:?}|{}|{:?}|{:?}|{:?}|{:?}|{:?}|{:?}",
        record.kind,
        record.object,
        record.replica,
        record.trigger,
        record.action,
        (record.counts.wanted, record.counts.desired),
        winner,
        reasons
    );
    hash.write(what.as_bytes());
    hash.0
}

/// The refusal's variant name.
fn label(refusal: &NodeRefusal) -> &'static str {
    render::refusal_label(&refusal.reason)
}

struct Fnv(u64);

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
