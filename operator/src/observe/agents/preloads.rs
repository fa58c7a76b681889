//! Sends each node's agent the models to hold ahead of need: the whole list, at once when it changed and again while it
//! holds. What does not arrive is sent again; what is on the node is seen in its GpuNode.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stowage_contracts::names::{NODE_AGENT_ADMIN_PORT, PATH_PRELOADS};
use stowage_contracts::preload::{Preload, Preloads, RESEND_EVERY};

use super::bracketed;

/// For one answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What was sent last to each node, and when.
#[derive(Debug, Default)]
pub struct PreloadSender(Mutex<BTreeMap<String, (Vec<Preload>, Instant)>>);

impl PreloadSender {
    /// Sends what is due. `agents`: node name → pod address.
    pub fn send(
        &self,
        lists: &BTreeMap<String, Vec<Preload>>,
        agents: &BTreeMap<String, String>,
        http: &reqwest::Client,
    ) {
        for (node, list) in self.due(lists, Instant::now()) {
            let Some(address) = agents.get(&node) else { continue };
            let url = format!("http://{}:{NODE_AGENT_ADMIN_PORT}{PATH_PRELOADS}", bracketed(address));
            let sending = http.put(url).json(&Preloads { models: list }).timeout(LIMIT).send();
            tokio::spawn(async move {
                let sent = sending.await.and_then(reqwest::Response::error_for_status);
                if let Err(err) = sent {
                    tracing::debug!(node, err = %err.without_url(), "an agent did not take its list of models");
                }
            });
        }
    }

    /// Lists that changed or were sent long ago. An empty list is sent once.
    fn due(&self, lists: &BTreeMap<String, Vec<Preload>>, now: Instant) -> Vec<(String, Vec<Preload>)> {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended: Vec<String> = sent.keys().filter(|node| !lists.contains_key(*node)).cloned().collect();
        let mut due: Vec<(String, Vec<Preload>)> = Vec::new();
        for node in ended {
            sent.remove(&node);
            due.push((node, Vec::new()));
        }
        for (node, list) in lists {
            let stands = |(last, at): &(Vec<Preload>, Instant)| last == list && now < *at + RESEND_EVERY;
            if !sent.get(node).is_some_and(stands) {
                sent.insert(node.clone(), (list.clone(), now));
                due.push((node.clone(), list.clone()));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_contracts::model::{ClaimModel, FileModel};

    #[test]
    fn list_is_sent_when_it_changes_again_while_it_holds_and_once_when_it_is_empty() {
        let (sender, start) = (PreloadSender::default(), Instant::now());
        let model = |n: u32| Preload {
            model: ClaimModel::File(FileModel::open(format!("https://h/{n}"), "a".repeat(64))),
            tenant: "a".into(),
        };
        let lists = |models: &[u32]| {
            let list: Vec<Preload> = models.iter().map(|n| model(*n)).collect();
            BTreeMap::from([("n1".to_owned(), list)])
        };
        let due = |lists: &BTreeMap<String, Vec<Preload>>, after: u64| {
            let due = sender.due(lists, start + Duration::from_secs(after));
            due.into_iter().map(|(_, list)| list.len()).collect::<Vec<_>>()
        };
        assert_eq!(due(&lists(&[1]), 0), [1]);
        assert_eq!(due(&lists(&[1]), 5), [0; 0]);
        assert_eq!(due(&lists(&[1, 2]), 6), [2]);
        assert_eq!(due(&lists(&[1, 2]), 6 + RESEND_EVERY.as_secs()), [2]);
        assert_eq!(due(&BTreeMap::new(), 7 + RESEND_EVERY.as_secs()), [0]);
        assert_eq!(due(&BTreeMap::new(), 60), [0; 0]);
    }
}
