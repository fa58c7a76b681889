//! Carries plans out: one task per deployment at a time, fair between namespaces.
//!
//! A deployment whose last task still runs is passed over; the next plan finds what is left to do.
//! Each namespace has a few lanes of its own, so that two hundred deployments of one tenant do not
//! stand before a single one of another. A deployment whose writes fail waits, longer each time, so
//! that an API server in trouble is asked a bounded number of times a minute.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use stowage_planner::DecisionReport;
use stowage_planner::plan::{Action, Plan};
use stowage_planner::report::{DecisionRecord, DeploymentReport, RecordAction, Trigger};
use stowage_planner::snapshot::DeploymentId;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};

use crate::execute::apply::{Applied, Applier};
use crate::execute::build::{Prepared, prepare};
use crate::execute::case::{Case, cases};
use crate::execute::cluster::ClusterStatus;
use crate::execute::events::{Event, emit};
use crate::execute::status;
use crate::execute::update_status;
use crate::execute::write::{WriteError, Writer};
use crate::lead::Term;
use crate::observe::Sources;
use crate::observe::journal::Journals;
use crate::observe::view::View;
use crate::serve::metrics::Metrics;
use crate::translate::Built;
use crate::translate::validate::Verdict;

/// Writes in flight, of one tenant and of all.
const LANES_PER_TENANT: usize = 4;
const LANES: usize = 32;
/// A slice that waited longer than this for its lane is refused: the world has moved on.
const STALE: Duration = Duration::from_secs(10);
/// After a failure without any progress: 0.5 s, doubled up to this.
const MAX_WAIT: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A status that was written is not written again while the watch has yet to show it.
const STATUS_ECHO: Duration = Duration::from_secs(5);
/// A deployment that waits for the same reason says so again after this.
const WAIT_EVENTS: Duration = Duration::from_secs(300);
/// Sentences whose numbers moved are written anew at most this often.
const STATUS_REFRESH: Duration = Duration::from_secs(30);

/// One deployment's part of one plan, with all that is needed to carry it out and to tell about it.
pub struct Slice {
    term: Term,
    case: Case,
    verdict: Arc<Verdict>,
    report: Option<DeploymentReport>,
    fresh: Vec<DecisionRecord>,
}

#[derive(Default)]
pub struct Desk {
    tasks: JoinSet<Done>,
    running: HashMap<Id, DeploymentId>,
    waits: HashMap<DeploymentId, Wait>,
    /// What could not be written, for the conditions, until it could.
    failures: BTreeMap<DeploymentId, Vec<String>>,
    /// Events that a busy or waiting deployment still has to emit.
    events: HashMap<DeploymentId, Vec<Event>>,
    /// When a deployment was last said to wait, by why.
    waited: HashMap<(DeploymentId, Trigger), Instant>,
    told: HashMap<String, (Value, Instant)>,
    carried_out: Vec<CarriedOut>,
    lanes: HashMap<String, Arc<Semaphore>>,
    all: Option<Arc<Semaphore>>,
}

struct Wait {
    failures: u32,
    until: Instant,
}

/// What a finished task leaves.
#[derive(Debug, Default)]
struct Done {
    id: DeploymentId,
    failures: Vec<String>,
    retryable: bool,
    /// Some writes went through: the trouble is not with all of them.
    progress: bool,
    not_leader: bool,
    assumed: Vec<(String, String)>,
    status: Option<(String, Value)>,
    carried_out: Option<CarriedOut>,
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

/// All slices of one plan.
pub fn slices<'a>(
    view: &'a View,
    built: &'a Built,
    plan: &Plan,
    report: &'a DecisionReport,
    fresh: &[DecisionRecord],
    term: Term,
) -> impl Iterator<Item = Slice> + 'a {
    let reports: BTreeMap<&DeploymentId, &DeploymentReport> =
        report.deployments.iter().map(|report| (&report.deployment, report)).collect();
    let mut news: BTreeMap<DeploymentId, Vec<DecisionRecord>> = BTreeMap::new();
    for record in fresh {
        news.entry(record.object.clone()).or_default().push(record.clone());
    }
    cases(view, built, plan).map(move |case| Slice {
        term,
        verdict: built.verdicts.get(&case.id).cloned().unwrap_or_else(|| Arc::new(Verdict::unknown())),
        report: reports.get(&case.id).map(|report| (*report).clone()),
        fresh: news.remove(&case.id).unwrap_or_default(),
        case,
    })
}

impl Desk {
    /// Starts what the slice needs, if anything and if its deployment is not busy.
    pub fn dispatch(
        &mut self,
        slice: Slice,
        writer: &Writer,
        journals: &Arc<Journals>,
        sources: &Arc<Sources>,
        now: Timestamp,
    ) {
        let id = slice.case.id.clone();
        self.news(&slice);
        if self.running.values().any(|busy| *busy == id)
            || self.waits.get(&id).is_some_and(|wait| wait.until > Instant::now())
        {
            return;
        }
        let prepared = prepare(&slice.case, slice.verdict.wanted(), now);
        let status = self.status(&slice, now);
        let events = self.events.remove(&id).unwrap_or_default();
        if prepared.is_empty() && status.is_none() && events.is_empty() {
            return;
        }
        let assumed = assume(&prepared, journals);
        let lanes = (self.lane(slice.case.tenant.as_ref().unwrap_or(&id.namespace)), self.global());
        let task = Task {
            slice,
            prepared,
            status,
            events,
            assumed,
            previous: self.failures.get(&id).cloned().unwrap_or_default(),
            writer: writer.clone(),
            journals: journals.clone(),
            sources: sources.clone(),
            made: Instant::now(),
            now,
        };
        let handle = self.tasks.spawn(task.run(lanes));
        self.running.insert(handle.id(), id);
    }

    /// Keeps the events that the slice's new decisions make. That something still waits, with other
    /// numbers, is no news: the condition and the decision log tell it.
    fn news(&mut self, slice: &Slice) {
        let id = &slice.case.id;
        for record in &slice.fresh {
            if record.action == RecordAction::Wait {
                let why = (id.clone(), record.trigger);
                if self.waited.get(&why).is_some_and(|at| at.elapsed() < WAIT_EVENTS) {
                    continue;
                }
                self.waited.insert(why, Instant::now());
            }
            self.events.entry(id.clone()).or_default().push(Event::of(&slice.case, record));
        }
    }

    /// Statuses of cluster-scoped kinds, one task for all of them.
    pub fn dispatch_cluster(&mut self, statuses: Vec<ClusterStatus>, writer: &Writer) {
        let id = DeploymentId::default();
        let due: Vec<_> = statuses.into_iter().filter(|status| self.untold(&status.key(), &status.status)).collect();
        let waiting = self.waits.get(&id).is_some_and(|wait| wait.until > Instant::now());
        if due.is_empty() || waiting || self.running.values().any(|busy| *busy == id) {
            return;
        }
        for status in &due {
            self.told.insert(status.key(), (status.status.clone(), Instant::now()));
        }
        let writer = writer.clone();
        let handle = self.tasks.spawn(async move {
            let mut done = Done::default();
            for status in due {
                if let Err(err) = status.write(&writer).await {
                    tracing::warn!(object = status.key(), %err, "cannot write the status");
                    done.retryable = true;
                }
            }
            done
        });
        self.running.insert(handle.id(), id);
    }

    /// Waits until a task has finished and takes in what it left. Pending for ever while none runs.
    pub async fn finished(&mut self, journals: &Journals, metrics: &Metrics) -> Option<()> {
        match self.tasks.join_next_with_id().await {
            Some(result) => self.take(result, journals, metrics),
            None => std::future::pending().await,
        }
        Some(())
    }

    /// Takes in all tasks that have finished by now.
    pub fn drain_finished(&mut self, journals: &Journals, metrics: &Metrics) {
        while let Some(result) = self.tasks.try_join_next_with_id() {
            self.take(result, journals, metrics);
        }
    }

    /// When the next deployment that waits after a failure, and waited at that time, may be tried again.
    pub fn next_try(&self, waited: Instant) -> Option<Instant> {
        self.waits.values().map(|wait| wait.until).filter(|until| *until > waited).min()
    }

    /// What was carried out since it was asked last.
    pub fn carried_out(&mut self) -> Vec<CarriedOut> {
        std::mem::take(&mut self.carried_out)
    }

    /// Lets what runs come to its end: each task is a few writes.
    pub async fn finish(&mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(3), all).await.is_err() {
            self.tasks.abort_all();
        }
    }

    /// Ends everything at once: we do not lead, or lead anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn take(&mut self, result: Result<(Id, Done), tokio::task::JoinError>, journals: &Journals, metrics: &Metrics) {
        let done = match result {
            Ok((task, done)) => {
                self.running.remove(&task);
                done
            }
            Err(err) => {
                let id = self.running.remove(&err.id()).unwrap_or_default();
                tracing::error!(deployment = %id, %err, "a task ended abnormally");
                Done { id, retryable: true, ..Done::default() }
            }
        };
        for key in &done.assumed {
            journals.pods().forget_assumed(key);
            journals.claims().forget_assumed(&(key.0.clone(), stowage_crds::names::CLAIM_PREFIX.to_owned() + &key.1));
        }
        metrics.write_outcome(if done.failures.is_empty() && !done.retryable { "ok" } else { "failed" });
        self.carried_out.extend(done.carried_out);
        if let Some((key, status)) = done.status {
            self.told.insert(key, (status, Instant::now()));
        }
        if done.not_leader || (done.failures.is_empty() && !done.retryable) {
            self.waits.remove(&done.id);
            self.failures.remove(&done.id);
            return;
        }
        let wait = self.waits.entry(done.id.clone()).or_insert(Wait { failures: 0, until: Instant::now() });
        wait.failures = if done.progress { 1 } else { wait.failures.saturating_add(1) };
        wait.until = Instant::now() + (FIRST_WAIT * 2u32.saturating_pow(wait.failures - 1)).min(MAX_WAIT);
        if !done.failures.is_empty() {
            self.failures.insert(done.id, done.failures);
        }
    }

    /// The status to write, if it says something that the stored one does not.
    fn status(&self, slice: &Slice, now: Timestamp) -> Option<Value> {
        let failures = self.failures.get(&slice.case.id).map(Vec::as_slice).unwrap_or_default();
        let status = status::render(&slice.case, &slice.verdict, slice.report.as_ref(), failures, &slice.fresh, now);
        let (stored, key) = (&slice.case.stored.raw_status, slice.case.id.to_string());
        if !status::differs(stored, &status) {
            return None;
        }
        let due = status::differs_materially(stored, &status)
            || self.told.get(&key).is_none_or(|(_, at)| at.elapsed() > STATUS_REFRESH);
        (due && self.untold(&key, &status)).then_some(status)
    }

    fn untold(&self, key: &str, status: &Value) -> bool {
        self.told.get(key).is_none_or(|(told, at)| told != status || at.elapsed() > STATUS_ECHO)
    }

    /// Of a tenant, however many namespaces it has; without a tenant, of the namespace.
    fn lane(&mut self, payer: &str) -> Arc<Semaphore> {
        self.lanes.entry(payer.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(LANES_PER_TENANT))).clone()
    }

    fn global(&mut self) -> Arc<Semaphore> {
        self.all.get_or_insert_with(|| Arc::new(Semaphore::new(LANES))).clone()
    }
}

/// Creations count as existing from now on, so that the next plan cannot give their place away.
fn assume(prepared: &Prepared, journals: &Journals) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    for replica in &prepared.create {
        journals.pods().assume(replica.pod.clone());
        if let Some(claim) = &replica.claim {
            journals.claims().assume(claim.clone());
        }
        let meta = &replica.pod.metadata;
        keys.push((meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()));
    }
    keys
}

/// The reconciliation of one deployment: apply, then tell, whatever became of the writes.
struct Task {
    slice: Slice,
    prepared: Prepared,
    status: Option<Value>,
    events: Vec<Event>,
    assumed: Vec<(String, String)>,
    /// What the status already tells of earlier failures.
    previous: Vec<String>,
    writer: Writer,
    journals: Arc<Journals>,
    sources: Arc<Sources>,
    made: Instant,
    now: Timestamp,
}

impl Task {
    async fn run(self, (lane, all): (Arc<Semaphore>, Arc<Semaphore>)) -> Done {
        let mut done = Done { id: self.slice.case.id.clone(), assumed: self.assumed.clone(), ..Done::default() };
        // The semaphores are never closed.
        let (Ok(_lane), Ok(_all)) = (lane.acquire_owned().await, all.acquire_owned().await) else { return done };
        if let Err(why) = self.still_right() {
            tracing::debug!(deployment = %done.id, why, "a stale slice is refused");
            return done;
        }
        let Self { slice, prepared, status, events, previous, writer, journals, now, .. } = self;
        let applied = Applier::new(&writer, &journals, &slice.case.id, &slice.case.stored).run(prepared).await;
        done.not_leader = applied.failures.iter().any(|failure| matches!(failure.error, WriteError::NotLeader(_)));
        if done.not_leader {
            return done;
        }
        done.retryable = !applied.failures.is_empty();
        done.progress = applied.writes > 0;
        // A decision of which nothing could be written was none.
        if done.progress || applied.failures.is_empty() {
            let (uid, actions) = (slice.case.stored.uid().to_owned(), slice.case.actions.clone());
            done.carried_out = Some(CarriedOut { uid, actions, at: now });
        }
        done.failures = told_failures(&applied);
        let status = if done.failures == previous {
            status
        } else {
            Some(status::render(&slice.case, &slice.verdict, slice.report.as_ref(), &done.failures, &slice.fresh, now))
        };
        if let Some(status) = status {
            match update_status::write(&writer, &slice.case, &status, &applied).await {
                Ok(()) => {
                    done.progress = true;
                    done.status = Some((slice.case.id.to_string(), status));
                }
                Err(WriteError::NotFound) => {}
                Err(err) => {
                    tracing::warn!(deployment = %done.id, %err, "cannot write the status");
                    done.retryable = true;
                }
            }
        }
        emit(&writer, &slice.case.id.namespace, events).await;
        done
    }

    /// A slice of an older spec, or of a term that is over, is not carried out.
    fn still_right(&self) -> Result<(), &'static str> {
        let stored = &self.slice.case.stored;
        if self.made.elapsed() > STALE {
            return Err("it waited too long");
        }
        if self.writer.term() != Some(self.slice.term) {
            return Err("its term is over");
        }
        match self.sources.deployments.get(stored.namespace(), stored.name()) {
            Some(present) if present.uid() != stored.uid() => Err("the deployment was made anew"),
            Some(present) if present.generation() != stored.generation() => Err("the spec changed meanwhile"),
            Some(present) if present.deleting() != stored.deleting() => Err("the deployment is being deleted"),
            Some(_) => Ok(()),
            None => Err("the deployment is gone"),
        }
    }
}

/// Failures that a person should see; those of the moment are in the log.
fn told_failures(applied: &Applied) -> Vec<String> {
    let lasting = |error: &WriteError| {
        !matches!(error, WriteError::Conflict(_) | WriteError::NotFound | WriteError::AlreadyExists)
    };
    applied.failures.iter().filter(|failure| lasting(&failure.error)).map(ToString::to_string).collect()
}
