//! Listens to the node agents: who uses more than was promised, and how old the last word is.
//!
//! One task per agent pod follows `GET /stowage/v1/summary?watch=1` (a JSON line when something
//! changed, a heartbeat every 10 s) and keeps the last summary. Nothing is decided here; a summary
//! that stops coming is old, not empty, and its evidence expires with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use serde_json::Value;
use stowage_crds::names::{NODE_AGENT_ADMIN_PORT, PATH_SUMMARY};
use stowage_planner::snapshot::Overshoot;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Two heartbeats: after this a silent stream is dropped and opened anew.
const SILENCE: Duration = Duration::from_secs(22);
const RETRY: Duration = Duration::from_secs(2);
/// A line longer than this is not a summary.
const MAX_LINE: usize = 1 << 20;

/// The last word of each agent, by node.
#[derive(Debug, Default)]
pub struct Agents {
    state: Mutex<BTreeMap<String, Heard>>,
    tasks: Mutex<HashMap<String, (String, JoinHandle<()>)>>,
}

/// What one agent said last, as far as decisions use it.
#[derive(Debug, Clone, Default)]
pub struct AgentNews {
    pub age_ms: u64,
    /// Its stream has ended and was not opened again: the agent is away.
    pub broken: bool,
    pub overshoots: Vec<FoundOvershoot>,
    pub refusals: Vec<FoundRefusal>,
}

/// Evidence against one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOvershoot {
    pub namespace: String,
    pub pod: String,
    /// Empty when the agent could not say.
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

/// Evidence in a summary older than this is no evidence.
const EVIDENCE_LIMIT: Duration = Duration::from_secs(15);

/// A summary and when it came.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: Instant,
    pub broken: bool,
    pub summary: Arc<Value>,
}

impl Agents {
    /// The last summary of each node.
    pub fn heard(&self) -> BTreeMap<String, Heard> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the agents said, for a view.
    pub fn news(&self) -> BTreeMap<String, AgentNews> {
        let news = |(node, heard): (String, Heard)| {
            let age = heard.at.elapsed();
            let evidence = if age < EVIDENCE_LIMIT { &heard.summary } else { &Value::Null };
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            let (overshoots, refusals) = (overshoots(evidence), refusals(evidence));
            (node, AgentNews { age_ms, broken: heard.broken, overshoots, refusals })
        };
        self.heard().into_iter().map(news).collect()
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
        for (node, address) in agents {
            if tasks.contains_key(node) {
                continue;
            }
            let listener = listen(self.clone(), node.clone(), address.clone(), http.clone(), changed.clone());
            tasks.insert(node.clone(), (address.clone(), tokio::spawn(listener)));
        }
    }

    fn hear(&self, node: &str, summary: Value) {
        let heard = Heard { at: Instant::now(), broken: false, summary: Arc::new(summary) };
        self.state.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), heard);
    }

    fn broke(&self, node: &str) {
        if let Some(heard) = self.state.lock().unwrap_or_else(PoisonError::into_inner).get_mut(node) {
            heard.broken = true;
        }
    }
}

async fn listen(agents: Arc<Agents>, node: String, address: String, http: reqwest::Client, changed: Arc<Notify>) {
    loop {
        if let Err(err) = stream(&agents, &node, &address, &http, &changed).await {
            tracing::debug!(node, %err, "no summary from the node agent");
        }
        agents.broke(&node);
        changed.notify_one();
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads one stream until it ends, breaks or falls silent.
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
            agents.hear(node, serde_json::from_slice(&line)?);
            changed.notify_one();
        }
        if pending.len() > MAX_LINE {
            return Err(StreamError::TooLong);
        }
    }
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("request failed: {0}")]
    Http(#[from] reqwest::Error),
    #[error("not a summary: {0}")]
    Json(#[from] serde_json::Error),
    #[error("nothing came for {SILENCE:?}")]
    Silent,
    #[error("the agent closed the stream")]
    Ended,
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
}

/// The evidence in a summary; what is not understood is no evidence.
fn overshoots(summary: &Value) -> Vec<FoundOvershoot> {
    let list = summary.get("overshoots").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(overshoot).collect()
}

fn refusals(summary: &Value) -> Vec<FoundRefusal> {
    let list = summary.get("refusals").and_then(Value::as_array);
    let refusal = |found: &Value| {
        let text = |key: &str| found.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(FoundRefusal {
            namespace: text("namespace")?,
            claim: text("claim")?,
            since: text("since")?.parse().ok()?,
            message: text("message")?,
        })
    };
    list.into_iter().flatten().filter_map(refusal).collect()
}

fn overshoot(found: &Value) -> Option<FoundOvershoot> {
    let text = |key: &str| found.get(key).and_then(Value::as_str).map(str::to_owned);
    let number = |key: &str| found.get(key).and_then(Value::as_u64);
    Some(FoundOvershoot {
        namespace: text("namespace")?,
        pod: text("pod")?,
        pod_uid: text("podUid").unwrap_or_default(),
        evidence: Overshoot {
            gpu: text("gpu")?,
            promised_bytes: number("promisedBytes")?,
            used_bytes: number("usedBytes")?,
            samples: u32::try_from(number("samples")?).unwrap_or(u32::MAX),
            source: text("source").unwrap_or_else(|| "NVML".into()),
            headroom: found.get("headroom").and_then(Value::as_bool).unwrap_or(false),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn evidence_is_read_from_a_summary_and_nonsense_is_none() {
        let summary = json!({"node": "node1", "overshoots": [
            {"namespace": "team-a", "claim": "stowage-chat-x1y2z3", "pod": "chat-x1y2z3", "podUid": "u", "gpu": "GPU-a",
             "promisedBytes": 1073741824u64, "usedBytes": 1500000000u64, "samples": 5, "source": "NVML", "headroom": true},
            {"namespace": "team-a", "pod": "no-figures"},
            7,
        ]});
        let found = overshoots(&summary);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].pod.as_str(), found[0].pod_uid.as_str(), found[0].evidence.samples),
            ("chat-x1y2z3", "u", 5)
        );
        assert!(found[0].evidence.headroom);
        assert!(overshoots(&json!({"overshoots": "all"})).is_empty());
    }

    #[test]
    fn what_an_agent_cannot_prepare_is_read_from_a_summary() {
        let summary = json!({"node": "node1", "refusals": [
            {"namespace": "team-a", "claim": "stowage-chat-x1y2z3", "since": "2026-01-01T00:00:00Z", "message": "disk full"},
            {"namespace": "team-a", "claim": "stowage-chat-no-time"},
        ]});
        let found = refusals(&summary);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].claim.as_str(), found[0].message.as_str()), ("stowage-chat-x1y2z3", "disk full"));
        assert!(refusals(&Value::Null).is_empty());
    }
}
