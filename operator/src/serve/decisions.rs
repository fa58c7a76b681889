//! The decision log: each decision once, in memory for queries and on stdout for collection.
//!
//! A plan repeats its decisions every few seconds as long as nothing changes; the record's
//! fingerprint says that it is the same one, and it is logged again only when the object's decision
//! changed in between. What is left out: delivery. Who needs all of them collects the JSON lines.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use stowage_planner::report::DecisionRecord;

/// Records kept in memory.
const KEEP: usize = 10_000;

/// The last decisions, oldest first.
#[derive(Debug, Default)]
pub struct DecisionLog(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<DecisionRecord>,
    /// Fingerprints of the decisions standing at present, per object.
    standing: HashMap<String, HashSet<u64>>,
}

impl DecisionLog {
    /// Takes in the records of one plan; answers those that are new.
    pub fn take(&self, records: &[DecisionRecord]) -> Vec<DecisionRecord> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut standing: HashMap<String, HashSet<u64>> = HashMap::new();
        let mut fresh = Vec::new();
        for record in records {
            let object = record.object.to_string();
            let known = inner.standing.get(&object).is_some_and(|set| set.contains(&record.fingerprint));
            if standing.entry(object).or_default().insert(record.fingerprint) && !known {
                fresh.push(record.clone());
            }
        }
        inner.standing = standing;
        inner.records.extend(fresh.iter().cloned());
        let surplus = inner.records.len().saturating_sub(KEEP);
        inner.records.drain(..surplus);
        fresh
    }

    /// Records from `since` (milliseconds) on, of one object (`namespace/name`) if given, oldest first.
    pub fn since(&self, since: u64, object: Option<&str>) -> Vec<DecisionRecord> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .records
            .iter()
            .filter(|record| record.time >= since && object.is_none_or(|name| record.object.to_string() == name))
            .cloned()
            .collect()
    }
}

/// One JSON line per record. `target` distinguishes them from anything else on the same stream.
pub fn write_lines(mut to: impl Write, records: &[DecisionRecord]) {
    for record in records {
        let line = serde_json::json!({"target": "decision", "record": record});
        // A closed stdout must not stop the operator.
        let _ = writeln!(to, "{line}");
    }
}
