//! Follows the node agents' summaries: who uses more than was promised, and how old the last summary is.
//!
//! One task per agent pod follows `GET /stowage/v1/summary?watch=1` (a JSON line when something
//! changed, a heartbeat every 10 s) and keeps the last summary. Nothing is decided here; a summary
//! that stops coming is old, not empty, and its evidence expires with it.

pub mod estimates;
pub mod preloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use stowage_contracts::hub::is_commit;
use stowage_contracts::summary::{Claim, ModelFetch, Overshooting, Refused, Summary};
use stowage_crds::names::{NODE_AGENT_ADMIN_PORT, PATH_SUMMARY};
use stowage_planner::snapshot::Overshoot;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Two heartbeats: after this a stream without a line is dropped and opened anew.
const SILENCE: Duration = Duration::from_secs(22);
const RETRY: Duration = Duration::from_secs(2);
/// A line longer than this is not a summary.
const MAX_LINE: usize = 1 << 20;

/// The last summary of each agent, by node.
#[derive(Debug, Default)]
pub struct Agents {
    state: Mutex<BTreeMap<String, Received>>,
    tasks: Mutex<HashMap<String, (String, JoinHandle<()>)>>,
}

/// What one agent reported last, as far as decisions use it.
#[derive(Debug, Clone, Default)]
pub struct AgentReport {
    pub age_ms: u64,
    /// Its stream has ended and was not opened again: the agent cannot be reached.
    pub broken: bool,
    pub overshoots: Vec<FoundOvershoot>,
    pub refusals: Vec<FoundRefusal>,
    pub fetches: Vec<ModelFetch>,
    /// Commits to which revisions were resolved, by the claim's UID.
    pub commits: BTreeMap<String, String>,
    /// All of it, for people; `None`: too old.
    pub summary: Option<Arc<Summary>>,
}

/// Evidence against one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOvershoot {
    pub namespace: String,
    pub pod: String,
    /// Empty when the agent could not find it.
    pub pod_uid: String,
    pub evidence: Overshoot,
}

/// A claim that the kubelet wants and the agent cannot prepare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRefusal {
    pub namespace: String,
    pub claim: String,
    pub since: Timestamp,
    pub message: String,
}

impl AgentReport {
    /// Whether decisions follow from the same, whenever it was said.
    fn says_the_same(&self, other: &Self) -> bool {
        let evidence = |report: &Self| {
            let Self { overshoots, refusals, fetches, commits, .. } = report.clone();
            (overshoots, refusals, fetches, commits, report.summary.is_some())
        };
        evidence(self) == evidence(other)
    }
}

/// Of a node whose agent is gone for so long nothing is kept.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Evidence in a summary older than this is no evidence.
const EVIDENCE_LIMIT: Duration = Duration::from_secs(15);

/// A summary and when it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub at: Instant,
    pub broken: bool,
    pub summary: Arc<Summary>,
}

impl Agents {
    /// The last summary of each node.
    pub fn received(&self) -> BTreeMap<String, Received> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the agents reported last, for a view.
    pub fn reports(&self) -> BTreeMap<String, AgentReport> {
        self.received().into_iter().map(|(node, received)| (node, report(&received))).collect()
    }

    /// Follows exactly these agents: node name → pod address.
    pub fn follow(self: &Arc<Self>, agents: &BTreeMap<String, String>, http: &reqwest::Client, changed: &Arc<Notify>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|node, (address, task)| {
            let keep = agents.get(node) == Some(address);
            if !keep {
                task.abort();
            }
            keep
        });
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|node, received| agents.contains_key(node) || received.at.elapsed() < FORGOTTEN_AFTER);
        for (node, address) in agents {
            if tasks.contains_key(node) {
                continue;
            }
            let listener = listen(self.clone(), node.clone(), address.clone(), http.clone(), changed.clone());
            tasks.insert(node.clone(), (address.clone(), tokio::spawn(listener)));
        }
    }

    /// Whether another decision may follow: a heartbeat alone makes no plan, of many nodes one comes at any moment.
    fn receive(&self, node: &str, summary: Summary) -> bool {
        let received = Received { at: Instant::now(), broken: false, summary: Arc::new(summary) };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let evidence = report(&received);
        let before = state.insert(node.to_owned(), received);
        // What was evidence may have expired since.
        before.is_none_or(|before| before.broken || !report(&before).says_the_same(&evidence))
    }

    /// Whether it was whole before.
    fn broke(&self, node: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.get_mut(node).is_some_and(|received| !std::mem::replace(&mut received.broken, true))
    }

    /// Nodes whose agent is heard.
    pub fn connected(&self) -> BTreeSet<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.iter().filter(|(_, received)| !received.broken).map(|(node, _)| node.clone()).collect()
    }
}

async fn listen(agents: Arc<Agents>, node: String, address: String, http: reqwest::Client, changed: Arc<Notify>) {
    loop {
        if let Err(err) = stream(&agents, &node, &address, &http, &changed).await {
            tracing::debug!(node, %err, "no summary from the node agent");
        }
        if agents.broke(&node) {
            changed.notify_one();
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads one stream until it ends, breaks or stops sending.
async fn stream(
    agents: &Agents,
    node: &str,
    address: &str,
    http: &reqwest::Client,
    changed: &Notify,
) -> Result<(), StreamError> {
    let url = format!("http://{}:{NODE_AGENT_ADMIN_PORT}{PATH_SUMMARY}?watch=1", bracketed(address));
    let mut body = http.get(url).send().await?.error_for_status()?.bytes_stream();
    let mut pending: Vec<u8> = Vec::new();
    loop {
        let Ok(chunk) = tokio::time::timeout(SILENCE, body.next()).await else { return Err(StreamError::Silent) };
        let Some(chunk) = chunk else { return Err(StreamError::Ended) };
        pending.extend_from_slice(&chunk?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if agents.receive(node, read(node, &line)?) {
                changed.notify_one();
            }
        }
        if pending.len() > MAX_LINE {
            return Err(StreamError::TooLong);
        }
    }
}

/// A line of the agent on this node. An address may have passed to another pod before the watch shows it.
fn read(node: &str, line: &[u8]) -> Result<Summary, StreamError> {
    let summary: Summary = serde_json::from_slice(line)?;
    if summary.node == node { Ok(summary) } else { Err(StreamError::OtherNode(summary.node)) }
}

/// As it stands in a URL.
pub(super) fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("request failed: {0}")]
    Http(#[from] reqwest::Error),
    #[error("not a summary: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a summary of the node {0:?} came from the address of this node's agent")]
    OtherNode(String),
    #[error("no line came for {SILENCE:?}")]
    Silent,
    #[error("the agent closed the stream")]
    Ended,
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
}

/// What decisions use of a summary; evidence in an old one is no evidence.
fn report(received: &Received) -> AgentReport {
    let age = received.at.elapsed();
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let blank = AgentReport { age_ms, broken: received.broken, ..AgentReport::default() };
    if age >= EVIDENCE_LIMIT {
        return blank;
    }
    AgentReport {
        overshoots: received.summary.overshoots.iter().map(overshoot).collect(),
        refusals: received.summary.refusals.iter().map(refusal).collect(),
        fetches: received.summary.fetches.clone(),
        commits: received.summary.claims.iter().filter_map(commit).collect(),
        summary: Some(received.summary.clone()),
        ..blank
    }
}

fn commit(claim: &Claim) -> Option<(String, String)> {
    let commit = claim.model_commit.as_ref().filter(|commit| is_commit(commit))?;
    Some((claim.uid.clone(), commit.clone()))
}

fn overshoot(found: &Overshooting) -> FoundOvershoot {
    FoundOvershoot {
        namespace: found.namespace.clone(),
        pod: found.pod.clone(),
        pod_uid: found.pod_uid.clone(),
        evidence: Overshoot {
            gpu: found.gpu.clone(),
            promised_bytes: found.promised_bytes,
            used_bytes: found.used_bytes,
            samples: found.samples,
            source: found.source.clone(),
            headroom: found.headroom,
        },
    }
}

fn refusal(found: &Refused) -> FoundRefusal {
    FoundRefusal {
        namespace: found.namespace.clone(),
        claim: found.claim.clone(),
        since: found.since,
        message: found.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The report of a summary that came this long ago.
    fn aged(age: Duration, summary: serde_json::Value) -> AgentReport {
        let at = Instant::now().checked_sub(age).unwrap();
        report(&Received { at, broken: false, summary: Arc::new(serde_json::from_value(summary).unwrap()) })
    }

    fn summary() -> serde_json::Value {
        json!({"node": "node1", "at": "2026-01-01T00:00:00Z", "overshoots": [
            {"namespace": "team-a", "claim": "stowage-chat-x1y2z3", "claimUid": "c", "pod": "chat-x1y2z3", "podUid": "u",
             "gpu": "GPU-a", "promisedBytes": 1073741824u64, "marginBytes": 0, "usedBytes": 1500000000u64, "samples": 5,
             "source": "NVML", "headroom": true, "since": "2026-01-01T00:00:00Z"},
        ], "refusals": [
            {"namespace": "team-a", "claim": "stowage-chat-x1y2z3", "claimUid": "c", "since": "2026-01-01T00:00:00Z", "message": "disk full"},
        ]})
    }

    #[test]
    fn evidence_of_a_fresh_summary_is_reported() {
        let found = aged(Duration::ZERO, summary());
        let overshoot = &found.overshoots[0];
        assert_eq!(
            (overshoot.pod.as_str(), overshoot.pod_uid.as_str(), overshoot.evidence.samples),
            ("chat-x1y2z3", "u", 5)
        );
        assert!(overshoot.evidence.headroom);
        assert_eq!(
            (found.refusals[0].claim.as_str(), found.refusals[0].message.as_str()),
            ("stowage-chat-x1y2z3", "disk full")
        );
    }

    #[test]
    fn stream_that_stays_broken_makes_one_plan_and_gets_no_questions() {
        let agents = Agents::default();
        assert!(!agents.broke("node1"), "nothing was known of it");
        let quiet = json!({"node": "node1", "at": "2026-01-01T00:00:00Z"});
        agents.receive("node1", serde_json::from_value(quiet).unwrap());
        assert_eq!(agents.connected(), BTreeSet::from(["node1".to_owned()]));
        assert!(agents.broke("node1"));
        assert!(!agents.broke("node1"));
        assert!(agents.connected().is_empty());
    }

    #[test]
    fn heartbeat_makes_no_plan_and_news_and_a_stream_that_is_back_do() {
        let agents = Agents::default();
        let plans = |summary: serde_json::Value| agents.receive("node1", serde_json::from_value(summary).unwrap());
        let quiet = json!({"node": "node1", "at": "2026-01-01T00:00:00Z"});
        assert!(plans(quiet.clone()) && !plans(quiet.clone()));
        assert!(!plans(json!({"node": "node1", "at": "2026-01-01T00:00:10Z"})));
        assert!(plans(summary()) && !plans(summary()) && plans(quiet.clone()));
        agents.broke("node1");
        assert!(plans(quiet.clone()) && !plans(quiet));
    }

    #[test]
    fn summary_of_another_node_is_refused() {
        let line = summary().to_string();
        assert!(read("node1", line.as_bytes()).is_ok());
        let other = read("node2", line.as_bytes()).unwrap_err().to_string();
        assert!(other.contains("node1"), "{other}");
    }

    #[test]
    fn evidence_of_an_old_summary_is_not_reported() {
        let found = aged(EVIDENCE_LIMIT, summary());
        assert!(found.overshoots.is_empty() && found.refusals.is_empty() && found.age_ms >= 15_000);
    }
}
