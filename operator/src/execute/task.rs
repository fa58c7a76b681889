//! The reconciliation of one deployment: apply what was prepared, then report what became of it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use stowage_crds::conditions::reasons;
use stowage_planner::plan::Action;
use stowage_planner::report::{DecisionRecord, DeploymentReport, Outcome, RecordAction, Trigger};
use tokio::sync::Semaphore;

use super::apply::{Applied, Applier};
use super::backoff::{Failing, Part};
use super::build::Prepared;
use super::case::Case;
use super::events::{Event, emit};
use super::refusal::Obstacle;
use super::status::{self, Gate};
use super::update_status;
use super::write::{WriteError, Writer};
use crate::lead::Term;
use crate::observe::Sources;
use crate::observe::journal::Journals;

/// A task that waited longer than this for its lane is given up: the cluster may have changed.
const STALE: Duration = Duration::from_secs(10);

/// One deployment's part of one plan, with all that is needed to carry it out and to report on it.
pub struct Share<'a> {
    pub term: Term,
    pub case: Case,
    pub report: Option<Cow<'a, DeploymentReport>>,
    /// Decisions that are new with this plan.
    pub fresh: Vec<DecisionRecord>,
    /// When the plan was made.
    pub now: Timestamp,
}

/// What one task works with.
pub struct Task {
    pub share: Share<'static>,
    pub prepared: Prepared,
    /// Obstacles of the parts that are not tried now.
    pub held: Vec<Obstacle>,
    /// All obstacles that stood before this attempt.
    pub before: Vec<Obstacle>,
    pub gate: Gate,
    /// Decisions whose events are to be emitted.
    pub records: Vec<DecisionRecord>,
    /// Obstacles (by key) of which an event was emitted.
    pub reported: BTreeSet<String>,
    /// Notices of which an event was emitted and which stood since.
    pub noticed: BTreeSet<&'static str>,
    pub writer: Writer,
    pub journals: Arc<Journals>,
    pub sources: Arc<Sources>,
    pub made: Instant,
}

/// What a finished task leaves.
#[derive(Debug, Default)]
pub struct Done {
    /// Not tried at all: its turn came too late, or another one leads.
    pub given_up: bool,
    /// What failed, part by part.
    pub failed: Vec<(Part, Failing)>,
    /// Parts that were tried and in which nothing failed.
    pub succeeded: Vec<Part>,
    /// Some writes went through.
    pub progress: bool,
    /// What stands in the way now; `None`: as before.
    pub obstacles: Option<Vec<Obstacle>>,
    pub reported: BTreeSet<String>,
    /// Notices that stand now.
    pub noticed: BTreeSet<&'static str>,
    /// What was written, and the object's version after it.
    pub status: Option<(Value, Option<u64>)>,
    pub carried_out: Option<CarriedOut>,
    /// Decisions that are not carried out yet, whose events wait.
    pub unsent: Vec<DecisionRecord>,
}

/// Actions that were written, for the memory.
#[derive(Debug)]
pub struct CarriedOut {
    /// Of the deployment.
    pub uid: String,
    pub actions: Vec<Action>,
    /// When they were decided.
    pub at: Timestamp,
}

impl Task {
    pub async fn run(self, (lane, all): (Arc<Semaphore>, Arc<Semaphore>)) -> Done {
        let given_up = |records| Done { given_up: true, unsent: records, ..Done::default() };
        // The semaphores are never closed.
        let (Ok(_lane), Ok(_all)) = (lane.acquire_owned().await, all.acquire_owned().await) else {
            return given_up(self.records);
        };
        if let Err(why) = self.still_right() {
            tracing::debug!(deployment = %self.share.case.id, why, "an outdated part of a plan is not carried out");
            return given_up(self.records);
        }
        let Self { share, prepared, held, before, gate, records, reported, noticed, writer, journals, .. } = self;
        let tried: Vec<Part> = [Part::End, Part::Make].into_iter().filter(|part| prepared.has(*part)).collect();
        let applied = Applier::new(&writer, &journals, &share.case, held).run(prepared).await;
        if applied.failures.iter().any(|failure| matches!(failure.error, WriteError::NotLeader(_))) {
            return given_up(records);
        }
        let mut done = Done::of(&share, &applied, &tried);
        done.report(&share, &applied, &records, &before, &gate, &writer).await;
        let mut events = done.events(&share, &applied, records, &reported);
        events.extend(done.notices(&share, &noticed));
        emit(&writer, &share.case.id.namespace, events).await;
        done
    }

    /// A part of a plan for an older spec, or of a term that is over, is not carried out.
    fn still_right(&self) -> Result<(), &'static str> {
        let stored = &self.share.case.stored;
        if self.made.elapsed() > STALE {
            return Err("it waited too long");
        }
        if self.writer.term() != Some(self.share.term) {
            return Err("its term is over");
        }
        match self.sources.deployments.get(stored.namespace(), stored.name()) {
            Some(present) if present.uid() != stored.uid() => Err("the deployment was recreated"),
            Some(present) if present.generation() != stored.generation() => Err("the spec changed meanwhile"),
            Some(present) if present.deleting() != stored.deleting() => Err("the deployment is being deleted"),
            Some(_) => Ok(()),
            None => Err("the deployment is gone"),
        }
    }
}

impl Done {
    fn of(share: &Share<'_>, applied: &Applied, tried: &[Part]) -> Self {
        let failed: Vec<(Part, Failing)> =
            applied.failures.iter().map(|failure| (failure.part, Failing::of(&failure.error))).collect();
        let succeeded = tried.iter().copied().filter(|part| !failed.iter().any(|(other, _)| other == part)).collect();
        let actions = applied.carried_out(&share.case.actions);
        let uid = share.case.stored.uid().to_owned();
        Self {
            failed,
            succeeded,
            progress: applied.writes > 0,
            obstacles: Some(applied.obstacles()),
            carried_out: Some(CarriedOut { uid, actions, at: share.now }).filter(|done| !done.actions.is_empty()),
            ..Self::default()
        }
    }

    /// Writes the status that follows from what was applied, if it says something new.
    /// `before`: what stood in the way before this attempt.
    async fn report(
        &mut self,
        share: &Share<'_>,
        applied: &Applied,
        records: &[DecisionRecord],
        before: &[Obstacle],
        gate: &Gate,
        writer: &Writer,
    ) {
        if applied.writes == 0 && !applied.failures.is_empty() && applied.obstacles() == before {
            // Refused as before: the stored status says so, and what else it says holds while nothing is tried.
            return;
        }
        let Some(status) = gate.due(&share.case.stored.raw_status(), share.render(applied, records), Instant::now())
        else {
            return;
        };
        match update_status::write(writer, &share.case, &status).await {
            Ok(version) => {
                self.progress = true;
                self.status = Some((status, version));
            }
            Err(WriteError::NotFound) => {}
            Err(err) => {
                tracing::warn!(deployment = %share.case.id, %err, "cannot write the status");
                self.failed.push((Part::End, Failing::Transient));
            }
        }
    }

    /// The events of what was carried out and of obstacles that are new. A creation that did not
    /// happen has no event; it keeps its record while it is still planned.
    fn events(
        &mut self,
        share: &Share<'_>,
        applied: &Applied,
        records: Vec<DecisionRecord>,
        reported: &BTreeSet<String>,
    ) -> Vec<Event> {
        let planned = |record: &DecisionRecord| {
            share.case.actions.iter().any(|action| record.replica.as_ref() == Some(action.replica()))
        };
        let mut events = Vec::new();
        for record in records {
            let created = record.replica.as_ref().is_some_and(|replica| applied.created.contains(replica));
            if record.action != RecordAction::Create || created {
                events.push(Event::of(&share.case, &record));
            } else if planned(&record) {
                self.unsent.push(record);
            }
        }
        let obstacles = applied.obstacles();
        let lasting = obstacles.iter().filter(|obstacle| obstacle.failing != Failing::Transient);
        for obstacle in lasting.filter(|obstacle| !reported.contains(&obstacle.key())) {
            events.push(Event::refused(&share.case, obstacle, share.now));
            self.reported.insert(obstacle.key());
        }
        events
    }

    /// The events of what changed around the deployment: its tenant is gone, its quota was lowered.
    fn notices(&mut self, share: &Share<'_>, noticed: &BTreeSet<&'static str>) -> Vec<Event> {
        let case = &share.case;
        let lost = (case.tenant.is_none() && case.anything_exists()).then(|| {
            let namespace = &case.id.namespace;
            let message = format!(
                "Namespace {namespace} belongs to no TenantQuota any more: its replicas go on, take no requests and \
                 are not replaced"
            );
            (reasons::NO_TENANT, message)
        });
        let over = case.over_quota.clone().map(|message| (reasons::OVER_QUOTA, message));
        let standing: Vec<_> = lost.into_iter().chain(over).collect();
        self.noticed = standing.iter().map(|(reason, _)| *reason).collect();
        let new = standing.into_iter().filter(|(reason, _)| !noticed.contains(reason));
        new.map(|(reason, message)| {
            let key = share.now.as_second().to_string();
            Event::warning(case, reason, &key, &message, share.now)
        })
        .collect()
    }
}

impl Share<'_> {
    /// For a task that outlives the plan.
    pub fn owned(self) -> Share<'static> {
        Share { report: self.report.map(|report| Cow::Owned(report.into_owned())), ..self }
    }

    /// The status as it follows from what was applied. `waiting`: decisions, of earlier plans too, whose task this is.
    pub fn render(&self, applied: &Applied, waiting: &[DecisionRecord]) -> Value {
        let last = self.fresh.iter().rev().chain(waiting.iter().rev()).find(|record| match record.action {
            RecordAction::Create => record.replica.as_ref().is_some_and(|replica| applied.created.contains(replica)),
            RecordAction::Wait => record.trigger != Trigger::Waits(Outcome::Refused),
            RecordAction::Resume | RecordAction::Drain | RecordAction::Remove => true,
        });
        status::render(&self.case, self.report.as_deref(), &applied.obstacles(), last, self.now)
    }
}
