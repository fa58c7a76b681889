//! Decides which deployment's writes are carried out next: one task per deployment at a time, fair
//! between tenants.
//!
//! A deployment whose last task still runs is passed over; the next plan finds what is left to do.
//! Each tenant has a few lanes of its own, however many namespaces it has, so that two hundred
//! deployments of one tenant do not delay a single one of another. What failed waits, as
//! [`Backoff`] says.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stowage_planner::DecisionReport;
use stowage_planner::demand::bottleneck::Verdict;
use stowage_planner::plan::Plan;
use stowage_planner::report::{DecisionRecord, Outcome, RecordAction, Trigger};
use stowage_planner::snapshot::DeploymentId;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};

use super::apply::Applied;
use super::backoff::{Backoff, Failing, Part};
use super::build::{End, Make, Prepared, ending, making};
use super::capacity;
use super::case::rest::Rest;
use super::case::{Case, cases};
use super::cluster::ClusterStatus;
use super::refusal::Obstacle;
use super::status::{self, Gate};
use super::strays;
use super::task::{CarriedOut, Done, Share, Task};
use super::write::Writer;
use crate::lead::Term;
use crate::observe::Sources;
use crate::observe::journal::Journals;
use crate::observe::view::View;
use crate::serve::metrics::Metrics;
use crate::translate::Built;
use crate::translate::preloads;
use crate::translate::snapshot::strays::Stray;

/// Tasks at work, of one tenant and of all; as many again where replicas end.
const LANES_PER_TENANT: usize = 4;
const LANES: usize = 32;
/// Tasks of one tenant at work or waiting for a lane: each holds what it will write. The next plan finds the rest.
const TASKS_PER_TENANT: usize = 2 * LANES_PER_TENANT;
/// A deployment that waits for the same reason has another event after this.
const WAIT_EVENTS: Duration = Duration::from_secs(300);
/// Distinct refusals of one deployment that are remembered as reported.
const MAX_REPORTED: usize = 32;

/// What a task is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    Deployment(DeploymentId),
    /// The statuses of the cluster-scoped kinds.
    ClusterStatuses,
    /// Pods and claims that no deployment owns.
    Strays,
    CapacityPods,
}

/// Whose lanes a task uses: a tenant's, however many namespaces it has; without a tenant, the namespace's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Payer {
    Tenant(String),
    Namespace(String),
}

impl Payer {
    fn of(case: &Case) -> Self {
        match &case.tenant {
            Some(tenant) => Payer::Tenant(tenant.clone()),
            None => Payer::Namespace(case.id.namespace.clone()),
        }
    }
}

/// What is remembered of one subject between its tasks.
#[derive(Default)]
struct Entry {
    busy: bool,
    backoff: Backoff,
    /// What stands in the way, until it is tried again.
    obstacles: Vec<Obstacle>,
    /// Obstacles of which an event was emitted.
    reported: BTreeSet<String>,
    /// Notices that stood after the last task.
    noticed: BTreeSet<&'static str>,
    /// Decisions whose events wait for a task.
    records: Vec<DecisionRecord>,
    /// When the deployment was last reported to wait, by why.
    waited: HashMap<Trigger, Instant>,
    gate: Gate,
    /// As it was when nothing was left to do.
    rest: Option<Rest>,
    /// Creations that count as existing while the task runs.
    assumed: Vec<(String, String)>,
}

/// What carries plans out needs besides the plan.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    pub writer: &'a Writer,
    pub journals: &'a Arc<Journals>,
    pub sources: &'a Arc<Sources>,
}

pub struct Desk {
    tasks: JoinSet<Done>,
    running: HashMap<Id, Subject>,
    /// Tasks of each payer, and whose each one is.
    of_payer: HashMap<Payer, usize>,
    payers: HashMap<Id, Payer>,
    entries: BTreeMap<Subject, Entry>,
    /// The last written statuses of cluster-scoped objects.
    cluster_gates: HashMap<String, Gate>,
    carried_out: Vec<CarriedOut>,
    /// Those in which replicas end are their own: what is created does not hold them up.
    lanes: HashMap<(Payer, bool), Arc<Semaphore>>,
    /// Of all tenants together; the second one where replicas end.
    all: [Arc<Semaphore>; 2],
}

/// A refusal of creations, for the planner: nothing is planned for the deployment until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub until: Instant,
    pub message: String,
}

/// What one turn of the loop decided and found.
pub struct Decided<'a> {
    pub plan: &'a Plan,
    pub report: &'a DecisionReport,
    /// Decisions that are new with this plan.
    pub fresh: &'a [DecisionRecord],
    pub bottlenecks: BTreeMap<DeploymentId, Verdict>,
    /// What of `model.preload` is on nodes.
    pub held: BTreeMap<DeploymentId, preloads::Held>,
}

/// All deployments' shares of one plan.
pub fn shares<'a>(
    view: &'a View,
    built: &'a Built,
    decided: Decided<'a>,
    term: Term,
) -> impl Iterator<Item = Share<'a>> + 'a {
    let Decided { plan, report, fresh, mut bottlenecks, mut held } = decided;
    let reports = report.by_deployment();
    let mut by_object: BTreeMap<DeploymentId, Vec<DecisionRecord>> = BTreeMap::new();
    for record in fresh {
        by_object.entry(record.object.clone()).or_default().push(record.clone());
    }
    cases(view, built, plan, report).map(move |case| Share {
        term,
        report: reports.get(&case.id).map(|report| Cow::Borrowed(*report)),
        fresh: by_object.remove(&case.id).unwrap_or_default(),
        now: view.now,
        case: Case {
            bottleneck: bottlenecks.remove(&case.id).unwrap_or_default(),
            preloaded: held.remove(&case.id),
            ..case
        },
    })
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            running: HashMap::new(),
            of_payer: HashMap::new(),
            payers: HashMap::new(),
            entries: BTreeMap::new(),
            cluster_gates: HashMap::new(),
            carried_out: Vec::new(),
            lanes: HashMap::new(),
            all: [(); 2].map(|()| Arc::new(Semaphore::new(LANES))),
        }
    }
}

impl Desk {
    /// Starts what the shares need, each if its deployment is not busy. What ends comes first, and alone: it is small, and
    /// another tenant may wait for the room. What the same deployment lacks comes with the next plan.
    pub fn dispatch<'a>(&mut self, shares: impl Iterator<Item = Share<'a>>, tools: Tools<'_>) {
        let now = Instant::now();
        let mut due: Vec<(Share<'_>, End)> = shares.filter_map(|share| self.due(share, now)).collect();
        due.sort_by_key(|(_, end)| end.is_empty());
        due.into_iter().for_each(|(share, end)| self.start(share, end, tools, now));
    }

    /// The share, if something may be left to do for it now, and what is to end.
    fn due<'a>(&mut self, mut share: Share<'a>, now: Instant) -> Option<(Share<'a>, End)> {
        let entry = self.entries.entry(Subject::Deployment(share.case.id.clone())).or_default();
        entry.keep_records(&share);
        if entry.rests(&share, now) {
            return None;
        }
        entry.rest = None;
        share.case.stored = entry.gate.with_last(&share.case.stored, now);
        let stored = &share.case.stored;
        if entry.backoff.acted(stored.uid(), stored.generation(), stored.deleting()) {
            entry.reported.clear();
            entry.obstacles.clear();
        }
        if entry.busy || entry.backoff.holds_all(now) {
            return None;
        }
        let held = entry.backoff.holds(Part::End, now);
        let end = if held { End::default() } else { ending(&share.case, share.now) };
        Some((share, end))
    }

    fn start(&mut self, share: Share<'_>, end: End, tools: Tools<'_>, now: Instant) {
        let subject = Subject::Deployment(share.case.id.clone());
        let (payer, ends) = (Payer::of(&share.case), !end.is_empty());
        if !ends && self.of_payer.get(&payer).is_some_and(|tasks| *tasks >= TASKS_PER_TENANT) {
            return;
        }
        let lanes = (self.lane(&payer, ends), self.all[usize::from(ends)].clone());
        let entry = self.entries.entry(subject.clone()).or_default();
        let makes = !ends && !entry.backoff.holds(Part::Make, now);
        let prepared = Prepared { end, make: if makes { making(&share.case) } else { Make::default() } };
        let held = entry.standing(|part| match part {
            Part::End => !entry.backoff.holds(Part::End, now),
            Part::Make => makes,
        });
        let records = std::mem::take(&mut entry.records);
        if prepared.is_empty() && records.is_empty() {
            let status = share.render(&Applied::nothing(held.clone()), &[]);
            let stored = share.case.stored.raw_status();
            let said = !status::differs(&stored, &status);
            if entry.gate.due(&stored, status, now).is_none() {
                drop(stored);
                if said && held.is_empty() {
                    entry.rest = Rest::begin(share.case, share.report.map(Cow::into_owned), now);
                }
                return;
            }
        }
        entry.busy = true;
        entry.assumed = assume(&prepared, tools.journals);
        let before = entry.obstacles.clone();
        let (gate, reported, noticed) = (entry.gate.clone(), entry.reported.clone(), entry.noticed.clone());
        let task = Task {
            share: share.owned(),
            prepared,
            held,
            before,
            gate,
            records,
            reported,
            noticed,
            writer: tools.writer.clone(),
            journals: tools.journals.clone(),
            sources: tools.sources.clone(),
            made: now,
        };
        let handle = self.tasks.spawn(task.run(lanes));
        self.running.insert(handle.id(), subject);
        *self.of_payer.entry(payer.clone()).or_default() += 1;
        self.payers.insert(handle.id(), payer);
    }

    /// Statuses of cluster-scoped kinds, one task for all of them.
    pub fn dispatch_cluster(&mut self, statuses: Vec<ClusterStatus>, writer: &Writer) {
        let now = Instant::now();
        let gates = &self.cluster_gates;
        let fresh = |status: &ClusterStatus| {
            gates.get(&status.key()).is_none_or(|gate| !gate.wrote_lately(&status.status, now))
        };
        let due: Vec<_> = statuses.into_iter().filter(fresh).collect();
        if due.is_empty() || !self.starts(Subject::ClusterStatuses, now) {
            return;
        }
        for status in &due {
            self.cluster_gates.entry(status.key()).or_default().wrote(status.status.clone(), None, now);
        }
        let writer = writer.clone();
        self.spawn(Subject::ClusterStatuses, async move {
            let mut done = Done::default();
            for status in due {
                if let Err(err) = status.write(&writer).await {
                    tracing::warn!(object = status.key(), %err, "cannot write the status");
                    done.failed.push((Part::End, Failing::Transient));
                }
            }
            done
        });
    }

    /// Ends pods and claims that no deployment has owned for long.
    pub fn dispatch_strays(&mut self, strays: &[Stray], tools: Tools<'_>) {
        if strays.is_empty() || !self.starts(Subject::Strays, Instant::now()) {
            return;
        }
        let (strays, writer, journals) = (strays.to_vec(), tools.writer.clone(), tools.journals.clone());
        self.spawn(Subject::Strays, async move {
            let failed = strays::end(&strays, &writer, &journals).await;
            Done { failed: failed.into_iter().map(|failing| (Part::End, failing)).collect(), ..Done::default() }
        });
    }

    /// Makes and ends capacity pods.
    pub fn dispatch_capacity(&mut self, steps: impl FnOnce() -> Vec<capacity::Step>, tools: Tools<'_>) {
        if self.entries.get(&Subject::CapacityPods).is_some_and(|entry| entry.busy) {
            return;
        }
        let steps = steps();
        if steps.is_empty() || !self.starts(Subject::CapacityPods, Instant::now()) {
            return;
        }
        let (writer, journals) = (tools.writer.clone(), tools.journals.clone());
        self.spawn(Subject::CapacityPods, async move {
            let all_end = capacity::carry_out(steps, &writer, &journals).await;
            let failed = if all_end { Vec::new() } else { vec![(Part::End, Failing::Transient)] };
            Done { failed, ..Done::default() }
        });
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

    /// When the next subject that waits after a failure, and waited at that time, may be tried again.
    pub fn next_try(&self, waited: Instant) -> Option<Instant> {
        self.entries.values().flat_map(|entry| entry.backoff.ends()).filter(|until| *until > waited).min()
    }

    /// Something that may have caused a refusal changed in this namespace; `None`: in the whole cluster.
    pub fn cause_changed(&mut self, namespace: Option<&str>) {
        for (subject, entry) in &mut self.entries {
            let Subject::Deployment(id) = subject else { continue };
            if namespace.is_none_or(|namespace| namespace == id.namespace) {
                entry.backoff.cause_changed();
            }
        }
    }

    /// Deployments whose creations are refused, and until when.
    pub fn held(&self) -> BTreeMap<DeploymentId, Held> {
        let held = |(subject, entry): (&Subject, &Entry)| {
            let Subject::Deployment(id) = subject else { return None };
            let until = entry.backoff.refused_until()?;
            let obstacle = entry.obstacles.iter().find(|obstacle| obstacle.part == Part::Make)?;
            Some((id.clone(), Held { until, message: obstacle.message.clone() }))
        };
        self.entries.iter().filter_map(held).collect()
    }

    /// What was carried out since the last call.
    pub fn carried_out(&mut self) -> Vec<CarriedOut> {
        std::mem::take(&mut self.carried_out)
    }

    /// Forgets deployments that do not exist any more.
    pub fn retain(&mut self, exists: impl Fn(&DeploymentId) -> bool) {
        self.entries.retain(|subject, entry| match subject {
            Subject::Deployment(id) => entry.busy || exists(id),
            Subject::ClusterStatuses | Subject::Strays | Subject::CapacityPods => true,
        });
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

    fn take(&mut self, result: Result<(Id, Done), JoinError>, journals: &Journals, metrics: &Metrics) {
        let (task, done) = match result {
            Ok((task, done)) => (task, done),
            Err(err) => {
                tracing::error!(%err, "a task ended abnormally");
                (err.id(), Done { failed: vec![(Part::End, Failing::Transient)], ..Done::default() })
            }
        };
        let Some(subject) = self.running.remove(&task) else { return };
        if let Some(tasks) = self.payers.remove(&task).and_then(|payer| self.of_payer.get_mut(&payer)) {
            *tasks -= 1;
        }
        self.of_payer.retain(|_, tasks| *tasks > 0);
        self.lanes.retain(|(payer, _), _| self.of_payer.contains_key(payer));
        metrics.write_outcome(if done.failed.is_empty() { "ok" } else { "failed" });
        let entry = self.entries.entry(subject).or_default();
        for key in entry.assumed.drain(..) {
            journals.pods().forget_assumed(&key);
            let claim = (key.0, stowage_crds::names::CLAIM_PREFIX.to_owned() + &key.1);
            journals.claims().forget_assumed(&claim);
        }
        self.carried_out.extend(entry.finish(done, Instant::now()));
    }

    /// Whether a task on this subject may start now; if so, it counts as started.
    fn starts(&mut self, subject: Subject, now: Instant) -> bool {
        let entry = self.entries.entry(subject).or_default();
        let starts = !entry.busy && !entry.backoff.holds_all(now) && !entry.backoff.holds(Part::End, now);
        entry.busy |= starts;
        starts
    }

    fn spawn(&mut self, subject: Subject, work: impl Future<Output = Done> + Send + 'static) {
        let handle = self.tasks.spawn(work);
        self.running.insert(handle.id(), subject);
    }

    fn lane(&mut self, payer: &Payer, ends: bool) -> Arc<Semaphore> {
        let lane = self.lanes.entry((payer.clone(), ends));
        lane.or_insert_with(|| Arc::new(Semaphore::new(LANES_PER_TENANT))).clone()
    }
}

impl Entry {
    /// Keeps the decisions that are new, for their events. That something still waits, with other
    /// numbers, is nothing new: the condition and the decision log show it.
    fn keep_records(&mut self, share: &Share<'_>) {
        for record in &share.fresh {
            if record.trigger == Trigger::Waits(Outcome::Refused) {
                // The refusal has an event of its own, once per distinct reason.
                continue;
            }
            if record.action == RecordAction::Wait {
                if self.waited.get(&record.trigger).is_some_and(|at| at.elapsed() < WAIT_EVENTS) {
                    continue;
                }
                self.waited.insert(record.trigger, Instant::now());
            }
            // A creation that was not carried out is decided anew, perhaps for another place.
            if record.action == RecordAction::Create {
                self.records.retain(|old| old.action != record.action || old.replica != record.replica);
            }
            self.records.push(record.clone());
        }
    }

    /// Whether nothing was left to do, and everything is as it was then.
    fn rests(&self, share: &Share<'_>, now: Instant) -> bool {
        let holds = |rest: &Rest| rest.holds(&share.case, share.report.as_deref(), now);
        !self.busy && self.records.is_empty() && self.rest.as_ref().is_some_and(holds)
    }

    /// What stands in the way of the parts that are not tried now.
    fn standing(&self, tried: impl Fn(Part) -> bool) -> Vec<Obstacle> {
        let stands = |obstacle: &&Obstacle| obstacle.failing != Failing::Transient && !tried(obstacle.part);
        self.obstacles.iter().filter(stands).cloned().collect()
    }

    fn finish(&mut self, done: Done, now: Instant) -> Option<CarriedOut> {
        self.busy = false;
        self.records.splice(0..0, done.unsent);
        if done.given_up {
            return None;
        }
        if let Some((status, version)) = done.status {
            self.gate.wrote(status, version, now);
        }
        if !done.failed.iter().any(|(_, failing)| *failing == Failing::Transient) {
            self.backoff.settled();
        }
        done.succeeded.iter().for_each(|part| self.backoff.succeeded(*part));
        let mut failed = done.failed;
        failed.sort_by_key(|(part, failing)| (*part, *failing as u8));
        failed.dedup();
        failed.into_iter().for_each(|(part, failing)| self.backoff.failed(part, failing, done.progress, now));
        if let Some(obstacles) = done.obstacles {
            self.obstacles = obstacles;
        }
        self.noticed = done.noticed;
        self.reported.extend(done.reported);
        while self.reported.len() > MAX_REPORTED {
            self.reported.pop_first();
        }
        done.carried_out
    }
}

/// Creations count as existing from now on, so that the next plan cannot give their place away.
fn assume(prepared: &Prepared, journals: &Journals) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    for replica in &prepared.make.create {
        journals.pods().assume(replica.pod.clone());
        if let Some(claim) = &replica.claim {
            journals.claims().assume(claim.clone());
        }
        let meta = &replica.pod.metadata;
        keys.push((meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()));
    }
    keys
}
