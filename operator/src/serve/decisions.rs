//! The decision log: each decision once, in memory for queries and on stdout for collection.
//!
//! A plan repeats its decisions every few seconds as long as nothing changes; the record's
//! fingerprint says that it is the same one, and it is logged again only when the object's decision
//! changed in between. A decision that creates a replica holds what was predicted of it and, once the
//! replica serves, what happened. What is left out: delivery. Who needs all of them collects the JSON lines.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{BufReader, BufWriter, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use stowage_planner::DecisionReport;
use stowage_planner::report::{DecisionRecord, DeploymentReport, LimitedBy, Prediction, RecordAction};
use stowage_planner::snapshot::{DeploymentId, ReplicaId, TimeMs};

use crate::serve::metrics::startup::Started;
use crate::serve::metrics::trigger;

/// Records kept in memory. Beyond that the namespace that has most loses its oldest.
const KEEP: usize = 10_000;

/// A decision as it is logged.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Logged {
    #[serde(flatten)]
    pub record: DecisionRecord,
    /// What keeps the deployment from as many replicas as are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<LimitedBy>,
    /// What the plan expects of the deployment; only with a decision that creates a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// What became of the replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Happened>,
}

/// What became of a replica that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Happened {
    /// When it was Ready.
    pub ready_ms: TimeMs,
    /// From its creation; the API server keeps whole seconds.
    pub ready_in_ms: u64,
    /// Of that, by stage.
    pub stages_ms: Vec<(String, u64)>,
}

/// A mark in time as Grafana's JSON data sources read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Annotation {
    pub time: TimeMs,
    /// When the replica was Ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_end: Option<TimeMs>,
    pub title: String,
    pub text: String,
    /// Kind, action, reason, `namespace/name`.
    pub tags: [String; 4],
}

/// Which records are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<'a> {
    /// Not before, and before.
    pub since: TimeMs,
    pub until: Option<TimeMs>,
    pub namespace: Option<&'a str>,
    /// `namespace/name`.
    pub object: Option<&'a str>,
}

/// The last decisions, oldest first.
#[derive(Debug, Default)]
pub struct DecisionLog(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<Kept>,
    /// Records of each namespace.
    of: BTreeMap<String, usize>,
    /// Fingerprints of the decisions standing at present, per object.
    standing: HashMap<String, HashSet<u64>>,
}

/// A record as it is kept: a small part of what it takes as parts, and read again only for a query.
#[derive(Debug)]
struct Kept {
    time: TimeMs,
    object: DeploymentId,
    /// Of a decision that creates it.
    creates: Option<ReplicaId>,
    /// The whole in JSON, deflated.
    packed: Box<[u8]>,
}

impl Kept {
    fn of(logged: &Logged) -> Self {
        let record = &logged.record;
        let creates = record.replica.clone().filter(|_| record.action == RecordAction::Create);
        let mut packed = DeflateEncoder::new(Vec::new(), Compression::fast());
        // Strings and numbers, and a place in memory: neither fails.
        let _ = serde_json::to_writer(BufWriter::new(&mut packed), logged);
        let packed = packed.finish().unwrap_or_default().into();
        Self { time: record.time, object: record.object.clone(), creates, packed }
    }

    fn read(&self) -> Option<Logged> {
        serde_json::from_reader(BufReader::new(DeflateDecoder::new(&*self.packed))).ok()
    }
}

impl DecisionLog {
    /// Takes in the records of one plan; answers those that are new.
    pub fn take(&self, report: &DecisionReport) -> Vec<Logged> {
        let mut inner = self.lock();
        let mut standing: HashMap<String, HashSet<u64>> = HashMap::new();
        let mut fresh = Vec::new();
        let reports = report.by_deployment();
        for record in &report.records {
            let object = record.object.to_string();
            let known = inner.standing.get(&object).is_some_and(|set| set.contains(&record.fingerprint));
            if standing.entry(object).or_default().insert(record.fingerprint) && !known {
                fresh.push(logged(record, reports.get(&record.object).copied()));
            }
        }
        inner.standing = standing;
        fresh.iter().for_each(|logged| inner.keep(Kept::of(logged)));
        fresh
    }

    /// A replica is Ready: its decision as it stands now, if it is kept.
    pub fn happened(&self, started: &Started) -> Option<Logged> {
        let mut inner = self.lock();
        let kept = inner.records.iter_mut().rev().find(|kept| kept.creates.as_ref() == Some(&started.replica))?;
        let mut logged = kept.read()?;
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        logged.outcome = Some(Happened {
            ready_ms: started.ready_ms,
            ready_in_ms: millis(started.took),
            stages_ms: started.stages.iter().map(|(stage, took)| ((*stage).to_owned(), millis(*took))).collect(),
        });
        *kept = Kept::of(&logged);
        Some(logged)
    }

    /// The records that are asked for, oldest first.
    pub fn find(&self, query: Query<'_>) -> Vec<Logged> {
        self.lock().records.iter().filter(|kept| query.matches(kept)).filter_map(Kept::read).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, kept: Kept) {
        *self.of.entry(kept.object.namespace.clone()).or_default() += 1;
        self.records.push_back(kept);
        if self.records.len() <= KEEP {
            return;
        }
        let most = self.of.iter().max_by_key(|(_, count)| **count).map(|(namespace, _)| namespace.clone());
        let oldest = self.records.iter().position(|kept| Some(&kept.object.namespace) == most.as_ref());
        let gone = oldest.and_then(|at| self.records.remove(at));
        if let Some(count) = gone.and_then(|gone| self.of.get_mut(&gone.object.namespace)) {
            *count -= 1;
        }
        self.of.retain(|_, count| *count > 0);
    }
}

fn logged(record: &DecisionRecord, of: Option<&DeploymentReport>) -> Logged {
    let creates = record.action == RecordAction::Create;
    Logged {
        record: record.clone(),
        limited_by: of.and_then(|report| report.limited_by()),
        prediction: of.filter(|_| creates).map(|report| report.prediction),
        outcome: None,
    }
}

impl Query<'_> {
    fn matches(&self, kept: &Kept) -> bool {
        kept.time >= self.since
            && self.until.is_none_or(|until| kept.time < until)
            && self.namespace.is_none_or(|namespace| kept.object.namespace == namespace)
            && self.object.is_none_or(|object| kept.object.to_string() == object)
    }
}

impl From<&Logged> for Annotation {
    fn from(logged: &Logged) -> Self {
        let Logged { record, outcome, .. } = logged;
        let (kind, action) = (format!("{:?}", record.kind), format!("{:?}", record.action));
        Self {
            time: record.time,
            time_end: outcome.as_ref().map(|outcome| outcome.ready_ms),
            title: format!("{action} {}", record.object),
            text: record.message.clone(),
            tags: [kind, action, trigger(record), record.object.to_string()],
        }
    }
}

/// One JSON line per decision. `target` distinguishes them from anything else on the same stream; a line with an
/// `outcome` repeats the decision's `id`.
pub fn write_lines<'a>(mut to: impl Write, logged: impl IntoIterator<Item = &'a Logged>) {
    for record in logged {
        let line = serde_json::json!({"target": "decision", "record": record});
        // A closed stdout must not stop the operator.
        let _ = writeln!(to, "{line}");
    }
}
