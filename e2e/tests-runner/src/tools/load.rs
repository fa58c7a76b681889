//! Closed-loop load: a few clients that ask one question after the other until they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::cluster::wait_for;
use super::http::Caller;

/// After a failure.
const PAUSE: Duration = Duration::from_millis(100);

/// Load that runs beside a test. A request counts as failed unless it ends with 200 and, streamed, `[DONE]`.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<Failure>>>,
    tasks: JoinSet<()>,
}

/// What the load saw.
#[derive(Debug)]
pub struct Outcome {
    pub succeeded: usize,
    pub failures: Vec<Failure>,
}

/// A request that did not end well.
#[derive(Debug, Clone)]
pub struct Failure {
    pub client: usize,
    pub began: Instant,
    pub why: String,
}

// === impl Load ===

impl Load {
    /// Half of the clients stream.
    pub fn start(caller: &Caller, model: &str, clients: usize, max_tokens: u32) -> Self {
        let mut load =
            Self { stop: Arc::default(), done: Arc::default(), failures: Arc::default(), tasks: JoinSet::new() };
        for client in 0..clients {
            let (stop, done, failures) = (load.stop.clone(), load.done.clone(), load.failures.clone());
            let (caller, model) = (caller.clone(), model.to_owned());
            load.tasks.spawn(async move {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let began = Instant::now();
                    match ask(&caller, &model, client, turn, max_tokens).await {
                        Ok(()) => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(e) => {
                            let why = format!("client {client} turn {turn}: {e:#}");
                            failures.lock().await.push(Failure { client, began, why });
                            // As a client would: a refused connection is not tried again in the same millisecond.
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
            });
        }
        load
    }

    pub fn succeeded(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// No new requests; those in flight end as they end.
    pub async fn finish(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let failures = std::mem::take(&mut *self.failures.lock().await);
        Outcome { succeeded: self.done.load(Ordering::Relaxed), failures }
    }
}

/// Waits until the load has had `count` answers: then requests are in flight at any moment.
pub async fn under_way(load: &Load, count: usize) -> anyhow::Result<()> {
    wait_for("the load to be under way", Duration::from_secs(60), || async {
        Ok(if load.succeeded() >= count { Ok(()) } else { Err(format!("{} answers", load.succeeded())) })
    })
    .await
}

async fn ask(caller: &Caller, model: &str, client: usize, turn: usize, max_tokens: u32) -> anyhow::Result<()> {
    let question = format!("Client {client}, question {turn}: name a river and a city on it.");
    if client.is_multiple_of(2) {
        let (_, done) = caller.chat_stream(model, &question, max_tokens).await?;
        anyhow::ensure!(done, "the stream ended without [DONE]");
    } else {
        let answer = caller.chat(model, &question, max_tokens).await?;
        anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    }
    Ok(())
}
