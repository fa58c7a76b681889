//! The one loop: observe → plan → check → publish, and give the plan to the desk while leading.
//!
//! Every replica plans; only the leader executes. Autoscaling, quota and placement are decided
//! together in one plan, because three loops over the same GPUs would fight. A plan is made at most
//! [`DEBOUNCE`] after a change and at least every [`PERIOD`]; never on incomplete or failing inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use stowage_crds::names::{LABEL_NAME, NODE_NAMESPACE};
use stowage_planner::Prepared;
use stowage_planner::snapshot::{DeploymentId, Freshness, Hold, Policy, ScalingMode, Snapshot};
use stowage_planner::{DecisionReport, Plan};
use stowage_telemetry::health::{Heartbeat, Readiness};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::execute::capacity::Capacity;
use crate::execute::cluster;
use crate::execute::desk::{Decided, Desk, Held, Tools, shares};
use crate::execute::write::Writer;
use crate::lead::{Fence, Term};
use crate::observe::Sources;
use crate::observe::agents::Agents;
use crate::observe::agents::estimates::Estimates;
use crate::observe::agents::preloads::PreloadSender;
use crate::observe::causes::Causes;
use crate::observe::clock::ClockWatch;
use crate::observe::gateways::Gateways;
use crate::observe::history::Histories;
use crate::observe::journal::Journals;
use crate::observe::takeover::{confirm, take_over};
use crate::observe::view::View;
use crate::serve::decisions::{DecisionLog, write_lines};
use crate::serve::metrics::Metrics;
use crate::serve::metrics::startup::Startups;
use crate::serve::published::{Basis, Published};
use crate::translate::memory::Memory;
use crate::translate::preloads::{Preloading, preloading};
use crate::translate::snapshot::replicas::millis;
use crate::translate::snapshot::strays;
use crate::translate::validate::questions;
use crate::translate::{Built, build};

/// Changes within this time are decided on together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// After a plan nothing is planned for so many times as long as it took, so that planning uses a quarter of a core at most.
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_secs(2);
/// A process that does not lead only publishes its plan.
const STANDBY_DEBOUNCE: Duration = Duration::from_secs(1);
/// Without a change a plan is made this often: deadlines and back-offs end by themselves.
pub const PERIOD: Duration = Duration::from_secs(5);

/// Everything the loop works with.
pub struct Control {
    pub sources: Arc<Sources>,
    pub causes: Arc<Causes>,
    pub journals: Arc<Journals>,
    pub agents: Arc<Agents>,
    pub estimates: Arc<Estimates>,
    pub preloads: PreloadSender,
    /// The lists as they were made last.
    pub preloading: Option<(Instant, Preloading)>,
    pub gateways: Arc<Gateways>,
    pub clock: ClockWatch,
    /// Notified while a gateway lacks the key of the salts.
    pub salt_key_missing: Arc<Notify>,
    pub http: reqwest::Client,
    pub log: Arc<DecisionLog>,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    /// Beats with each plan, and with each time that planning is found to be paused.
    pub heartbeat: Heartbeat,
    pub writer: Writer,
    pub fence: Arc<Fence>,
    pub leading: watch::Receiver<Option<Term>>,
    pub changed: Arc<Notify>,
    pub published: watch::Sender<Arc<Published>>,
    /// Whether the leader prints decisions on stdout.
    pub print_decisions: bool,
    pub period: Duration,
    pub policy: Policy,
    /// What the last plan leaves for the next.
    pub prepared: Prepared,
    pub memory: Memory,
    pub desk: Desk,
    /// Who may read the engines' metrics.
    pub histories: Arc<Histories>,
    pub scrapers: Arc<Vec<NetworkPolicyPeer>>,
    pub capacity: Capacity,
    /// Of capacity pods.
    pub capacity_image: String,
    /// What became of the replicas that were created.
    pub startups: Startups,
    pub sequence: u64,
    /// What the last plan was made for.
    pub before: Snapshot,
    /// The term for which a fresh list has been taken in.
    pub taken_over: Option<Term>,
}

impl Control {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut next = Instant::now();
        let mut last = Instant::now();
        let mut rested = last;
        loop {
            let due = self.desk.next_try(last).map_or(next, |at| at.min(next));
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.leading.changed() => {}
                Some(()) = self.desk.finished(&self.journals, &self.metrics) => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let debounce = if self.leading.borrow().is_some() { DEBOUNCE } else { STANDBY_DEBOUNCE };
            let rest = rested.saturating_duration_since(Instant::now());
            let pause = debounce.saturating_sub(last.elapsed()).max(rest).max(Duration::from_millis(10));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
                // A new leader does not wait out the pause of a standby.
                _ = self.leading.changed() => {}
            }
            self.desk.drain_finished(&self.journals, &self.metrics);
            last = Instant::now();
            next = last + self.turn().await;
            rested = Instant::now() + rest_after(last.elapsed());
        }
        self.desk.finish().await;
    }

    /// One plan; answers how long it stays right by itself.
    async fn turn(&mut self) -> Duration {
        self.heartbeat.beat();
        let term = *self.leading.borrow_and_update();
        self.metrics.leading.set(i64::from(term.is_some()));
        if term.is_none() {
            self.step_down();
        }
        let agents = self.follow_agents();
        let now = millis(Timestamp::now());
        if let Some(by_ms) = self.clock.step(now, Instant::now()) {
            tracing::warn!(by_ms, "the clock of this machine was set; intervals of signals begin anew");
            self.gateways.clock_set(by_ms, now);
            self.memory.clock_set(&self.sources.pods.all(), by_ms);
        }
        self.gateways.follow(&self.sources.pods.all(), &self.http, &self.changed, now);
        if let Err(frozen) = self.sources.trusted(Instant::now()) {
            return self.freeze(term, frozen.to_string());
        }
        self.metrics.frozen.set(0);
        self.readiness.set_ready();
        if let Some(term) = term
            && !self.caught_up(term).await
        {
            return Duration::from_millis(500);
        }
        if term.is_some() {
            confirm(&self.writer.client(), &self.journals).await;
        }
        let mut view = self.sources.view(&self.journals, self.agents.reports());
        view.gateways = self.gateways.take(millis(view.now));
        if view.gateways.salt_key_missing {
            self.salt_key_missing.notify_one();
        }
        view.scrapers = self.scrapers.clone();
        view.earlier = self.histories.known(Instant::now());
        if term.is_some() {
            let connected = self.agents.connected();
            let heard = agents.iter().filter(|(node, _)| connected.contains(*node));
            let addresses: Vec<String> = heard.map(|(_, address)| address.clone()).collect();
            self.estimates.ask(&questions(&view), &addresses, &self.http, &self.changed);
        }
        view.estimates = self.estimates.known();
        self.decide(term, &Arc::new(view), &agents)
    }

    fn decide(&mut self, term: Option<Term>, view: &Arc<View>, agents: &BTreeMap<String, String>) -> Duration {
        let now = millis(view.now);
        for done in self.desk.carried_out() {
            done.actions.iter().for_each(|action| self.memory.decided(&done.uid, action, millis(done.at)));
        }
        self.memory.observe(view, now);
        let held = self.held(view);
        self.memory.hold(held);
        self.sequence += 1;
        let started = Instant::now();
        let mut built = build(view, &self.memory, self.sequence);
        built.snapshot.share(&self.before);
        self.before = built.snapshot.clone();
        self.memory.keep(view, &built);
        let basis = Basis { view: view.clone(), memory: self.memory.clone(), policy: self.policy.clone() };
        let (plan, report) = self.prepared.plan(&built.snapshot, &self.policy, now);
        self.memory.borrowed(&report.shares);
        self.memory.waited(&report.waiting);
        self.memory.moved(&report.recent_moves);
        self.memory.unclaimed(&built.unclaimed, now);
        self.memory.learn(&built.judged, &view.deployments);
        self.memory.remember(&built.snapshot, &plan);
        let bottlenecks = self.memory.bottlenecks(&built.snapshot, now);
        self.gateways.watch(ruled(&built.snapshot));
        let violations = check(&built.snapshot, &plan);
        self.metrics.planned(started.elapsed(), plan.actions.len());
        let history = self.histories.age(Instant::now()).map(|age| ("prometheus", age));
        self.metrics.ages(ages(&self.sources, view, &built.snapshot).into_iter().chain(history));
        let fresh = self.log.take(&report);
        let started = self.startups.observe(&view.pods);
        let happened: Vec<_> = started.iter().filter_map(|started| self.log.happened(started)).collect();
        if term.is_some() {
            if self.print_decisions {
                write_lines(std::io::stdout().lock(), fresh.iter().chain(&happened));
            }
            fresh.iter().for_each(|logged| self.metrics.decided(&logged.record));
            started.iter().for_each(|started| self.metrics.started(started));
            self.metrics.leads(&built.snapshot, &report, Instant::now());
        } else {
            self.metrics.stands_by();
        }
        let pause = report
            .wake_at
            .map_or(self.period, |at| Duration::from_millis(at.saturating_sub(now)).clamp(DEBOUNCE, self.period));
        for violation in &violations {
            tracing::error!(
                violation,
                sequence = self.sequence,
                "the plan violates an invariant and is not carried out"
            );
        }
        self.metrics.plan_outcome(if violations.is_empty() { "checked" } else { "refused" });
        let executable = term.filter(|_| violations.is_empty() && self.fence.check(Instant::now()).is_ok());
        if let Some(term) = executable {
            self.startups.predict(&plan, &report);
            let fresh: Vec<_> = fresh.into_iter().map(|logged| logged.record).collect();
            // Of a new leader's first plan, so that the status does not lose it meanwhile.
            if self.preloading.is_none() {
                self.preload(&built, &report, agents);
            }
            let held = self.preloading.as_ref().map(|(_, preloading)| preloading.held.clone()).unwrap_or_default();
            self.execute(
                term,
                view,
                &built,
                Decided { plan: &plan, report: &report, fresh: &fresh, bottlenecks, held },
            );
            // It looks at all nodes, and nothing waits for it.
            if self.preloading.as_ref().is_none_or(|(made, _)| made.elapsed() >= PERIOD) {
                self.preload(&built, &report, agents);
            }
        }
        self.publish(term, None, Some((built, basis)), Some((plan, report)), violations);
        pause
    }

    /// Sends agents what to fetch ahead of need.
    fn preload(&mut self, built: &Built, report: &DecisionReport, agents: &BTreeMap<String, String>) {
        let preloading = preloading(built, report);
        self.preloads.send(&preloading.lists, agents, &self.http);
        self.preloading = Some((Instant::now(), preloading));
    }

    /// Deployments whose creations are refused, with the end of their pause as the planner's time.
    fn held(&mut self, view: &View) -> BTreeMap<DeploymentId, Hold> {
        for namespace in self.causes.take() {
            self.desk.cause_changed(namespace.as_deref());
        }
        let now = Instant::now();
        let held = self.desk.held();
        self.causes.listen(!held.is_empty());
        let hold = |(id, held): (DeploymentId, Held)| {
            let left = u64::try_from(held.until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
            (left > 0).then(|| (id, Hold { until_ms: millis(view.now).saturating_add(left), message: held.message }))
        };
        held.into_iter().filter_map(hold).collect()
    }

    fn execute(&mut self, term: Term, view: &View, built: &Built, decided: Decided<'_>) {
        let Decided { plan, report, .. } = decided;
        self.desk.retain(|id| view.deployments.contains_key(&(id.namespace.clone(), id.name.clone())));
        let tools = Tools { writer: &self.writer, journals: &self.journals, sources: &self.sources };
        self.desk.dispatch(shares(view, built, decided, term), tools);
        let mut strays = strays::ended_by(plan, &built.unclaimed);
        strays.extend(built.strays.iter().filter(|stray| !strays.contains(stray)).cloned().collect::<Vec<_>>());
        self.desk.dispatch_strays(&strays, tools);
        let steps = || self.capacity.steps(view, built, report, &self.capacity_image);
        self.desk.dispatch_capacity(steps, tools);
        self.desk.dispatch_cluster(cluster::statuses(view, built, report), &self.writer);
    }

    /// The watches of a new leader may lag behind what the old one wrote.
    async fn caught_up(&mut self, term: Term) -> bool {
        if self.taken_over == Some(term) {
            return true;
        }
        self.desk.reset();
        match take_over(&self.writer.client(), &self.sources, &self.journals).await {
            Ok(()) => self.taken_over = Some(term),
            Err(err) => tracing::warn!(%err, "cannot list what exists; planning waits for it"),
        }
        self.taken_over == Some(term)
    }

    fn step_down(&mut self) {
        if self.taken_over.take().is_some() {
            self.preloading = None;
            self.desk.reset();
            self.journals.clear();
        }
    }

    /// Addresses of the node agents, by node.
    fn follow_agents(&self) -> BTreeMap<String, String> {
        let mut addresses = BTreeMap::new();
        for pod in self.sources.pods.all().values() {
            let labels = pod.metadata.labels.as_ref();
            let agent =
                labels.and_then(|labels| labels.get(LABEL_NAME)).is_some_and(|name| name == "stowage-node-agent");
            let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { continue };
            let ending = pod.metadata.deletion_timestamp.is_some();
            if !agent || ending || pod.metadata.namespace.as_deref() != Some(NODE_NAMESPACE) {
                continue;
            }
            if let (Some(node), Some(address)) = (&spec.node_name, &status.pod_ip) {
                addresses.insert(node.clone(), address.clone());
            }
        }
        self.agents.follow(&addresses, &self.http, &self.changed);
        addresses
    }

    fn freeze(&mut self, term: Option<Term>, why: String) -> Duration {
        if self.published.borrow().frozen.as_ref() != Some(&why) {
            tracing::warn!(why, "planning is paused");
        }
        self.metrics.frozen.set(1);
        self.metrics.plan_outcome("frozen");
        self.publish(term, Some(why), None, None, Vec::new());
        Duration::from_secs(1)
    }

    fn publish(
        &self,
        term: Option<Term>,
        frozen: Option<String>,
        built: Option<(Built, Basis)>,
        decided: Option<(Plan, DecisionReport)>,
        violations: Vec<String>,
    ) {
        let (plan, report) =
            decided.map_or((None, None), |(plan, report)| (Some(Arc::new(plan)), Some(Arc::new(report))));
        let (snapshot, basis) =
            built.map_or((None, None), |(built, basis)| (Some(Arc::new(built.snapshot)), Some(Arc::new(basis))));
        self.published.send_replace(Arc::new(Published {
            leading: term.is_some(),
            frozen,
            snapshot,
            plan,
            report,
            violations,
            basis,
        }));
    }
}

/// How long nothing is planned after a plan that took so long: in a large cluster every moment brings something new, and
/// planning would take a core for itself.
fn rest_after(took: Duration) -> Duration {
    (took * REST).min(LONGEST_REST)
}

/// How old the inputs of a decision are: the watches, the node agents (the oldest), the gateways.
fn ages(sources: &Sources, view: &View, snapshot: &Snapshot) -> Vec<(&'static str, Duration)> {
    let watches = sources.ages(Instant::now()).into_iter().filter_map(|(source, age)| Some((source, age?)));
    let agents = snapshot.nodes.iter().filter_map(|node| match node.freshness {
        Freshness::Fresh { age_ms } | Freshness::Stale { age_ms } => Some(age_ms),
        Freshness::Missing => None,
    });
    let counted = view.gateways.deployments.values().filter_map(|load| load.counted);
    let gateways = counted.map(|counted| millis(view.now).saturating_sub(counted.to_ms));
    let read = [("node_agents", agents.max()), ("gateways", gateways.max())];
    watches.chain(read.into_iter().filter_map(|(source, age)| Some((source, Duration::from_millis(age?))))).collect()
}

/// Deployments whose count a rule decides or advises.
fn ruled(snapshot: &Snapshot) -> BTreeSet<DeploymentId> {
    let ruled = snapshot.deployments.iter().filter(|d| d.scaling.mode != ScalingMode::Manual);
    ruled.map(|d| d.id.clone()).collect()
}

/// The planner's own invariants, asked again of the finished plan.
fn check(snapshot: &Snapshot, plan: &Plan) -> Vec<String> {
    stowage_planner::check::check(snapshot, plan).iter().map(ToString::to_string).collect()
}
