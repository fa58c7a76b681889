//! Asks node agents how much memory models need, before they are placed: agents alone reach the addresses that tenants name.
//!
//! Each question goes to one agent. An answer is kept as long as a deployment needs it; then the status has it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stowage_contracts::estimate::{Estimate, EstimateRequest};
use stowage_contracts::names::{NODE_AGENT_ADMIN_PORT, PATH_ESTIMATE};
use tokio::sync::Notify;

use super::bracketed;

/// For one answer: the agent has its own, shorter limit.
const LIMIT: Duration = Duration::from_secs(120);
/// Questions of one tenant at the same time: agents answer them one after the other.
const AT_ONCE_OF_TENANT: usize = 2;
/// A question that failed is asked again after this.
const RETRY: Duration = Duration::from_secs(60);
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 4096;
/// Longest error that goes into a condition, in characters.
const MAX_ERROR: usize = 400;

/// A request's key, and the tenant that asks: what one waits for does not delay another that asks the same.
pub type Question = (String, String);

/// What is known of each question.
#[derive(Debug, Default)]
pub struct Estimates(Mutex<BTreeMap<Question, Asked>>);

#[derive(Debug, Clone, Default)]
struct Asked {
    running: bool,
    answer: Option<Result<Estimate, String>>,
    again: Option<Instant>,
}

impl Estimates {
    /// All answers so far, by [`EstimateRequest::key`]: where any tenant got an estimate, that one.
    pub fn known(&self) -> BTreeMap<String, Result<Estimate, String>> {
        let mut known = BTreeMap::new();
        for ((key, _), asked) in self.lock().iter() {
            let Some(answer) = &asked.answer else { continue };
            if answer.is_ok() || !known.contains_key(key) {
                known.insert(key.clone(), answer.clone());
            }
        }
        known
    }

    /// Asks what is wanted and not known, and forgets what is wanted no more.
    pub fn ask(
        self: &Arc<Self>,
        wanted: &BTreeMap<Question, EstimateRequest>,
        agents: &[String],
        http: &reqwest::Client,
        changed: &Arc<Notify>,
    ) {
        let mut state = self.lock();
        state.retain(|key, _| wanted.contains_key(key));
        let mut running: BTreeMap<String, usize> = BTreeMap::new();
        for ((_, tenant), asked) in state.iter() {
            *running.entry(tenant.clone()).or_default() += usize::from(asked.running);
        }
        for (question, request) in wanted {
            let of_tenant = running.entry(question.1.clone()).or_default();
            if *of_tenant >= AT_ONCE_OF_TENANT {
                continue;
            }
            let asked = state.entry(question.clone()).or_default();
            let known = matches!(asked.answer, Some(Ok(_)));
            let waits = asked.again.is_some_and(|again| Instant::now() < again);
            let Some(agent) = chosen(&question.0, agents).filter(|_| !known && !waits && !asked.running) else {
                continue;
            };
            asked.running = true;
            *of_tenant += 1;
            let url = format!("http://{}:{NODE_AGENT_ADMIN_PORT}{PATH_ESTIMATE}", bracketed(agent));
            let (estimates, http, changed) = (Arc::clone(self), http.clone(), Arc::clone(changed));
            let (question, request) = (question.clone(), request.clone());
            tokio::spawn(async move {
                let answer = tokio::time::timeout(LIMIT, ask(&http, &url, &request)).await;
                estimates.answered(&question, answer.unwrap_or_else(|_| Err("no answer from the node agent".into())));
                changed.notify_one();
            });
        }
    }

    fn answered(&self, question: &Question, answer: Result<Estimate, String>) {
        if let Some(asked) = self.lock().get_mut(question) {
            let again = answer.is_err().then(|| Instant::now() + RETRY);
            *asked = Asked { running: false, answer: Some(answer), again };
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Question, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent for a question: the same one each time, others for other questions.
fn chosen<'a>(key: &str, agents: &'a [String]) -> Option<&'a String> {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    agents.get(usize::try_from(hasher.finish() % (agents.len().max(1) as u64)).unwrap_or(0))
}

async fn ask(http: &reqwest::Client, url: &str, request: &EstimateRequest) -> Result<Estimate, String> {
    let failed = |e: reqwest::Error| format!("the node agent cannot be asked: {}", e.without_url());
    let mut response = http.post(url).json(request).send().await.map_err(failed)?;
    let fine = response.status().is_success();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err("the node agent's answer is too long".into());
        }
    }
    if fine {
        return serde_json::from_slice(&body).map_err(|e| format!("the node agent's answer cannot be read: {e}"));
    }
    Err(String::from_utf8_lossy(&body).trim().chars().take(MAX_ERROR).collect())
}
