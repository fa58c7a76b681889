//! The one thread that owns the engine.
//!
//! It takes requests from a bounded channel, turns steps while there is work, and hands each
//! request's tokens to a channel of its own. That channel holds as much as the answer can be long,
//! so a slow client never blocks the thread; and when its receiving end is gone, the request is
//! cancelled before the next step. A step is not interrupted, so its length bounds the delay.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use stowage_contracts::load::LoadReport;
use stowage_engine_core::engine::{Engine, EngineConfig, Event, Refusal, StopToken};
use stowage_engine_core::executor::Executor;
use stowage_engine_core::fit::CostFit;
use stowage_engine_core::request::{FinishReason, Request, RequestId};
use stowage_engine_core::sampling::TokenLogprobs;
use tokio::sync::{mpsc, oneshot, watch};

use crate::load::{self, Identity};
use crate::metrics::Metrics;

/// Submissions on their way to the thread; more are refused as if the queue were full.
const COMMANDS: usize = 1024;
/// How often an idle thread looks whether it should end.
const IDLE: Duration = Duration::from_millis(200);

/// What happens to a request, as its owner sees it.
#[derive(Debug)]
pub enum Update {
    Admitted {
        cached_tokens: usize,
        /// When the step began that admitted it.
        at: Instant,
    },
    /// Log-probabilities of the next tokens of the prompt, from the second on.
    Prompt {
        logprobs: Vec<TokenLogprobs>,
    },
    Token {
        token: u32,
        logprobs: Option<TokenLogprobs>,
    },
    /// `stop` is what ended the answer, with [`FinishReason::Stop`].
    Finished {
        reason: FinishReason,
        stop: Option<StopToken>,
    },
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitError {
    Refused(Refusal),
    /// The engine thread has ended.
    Gone,
}

struct Submission {
    request: Request,
    updates: mpsc::Sender<Update>,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// What the thread shows while it works.
#[derive(Debug, Default)]
struct Pulse {
    /// Milliseconds since `born` of the last completed turn.
    at: AtomicU64,
    busy: AtomicBool,
    /// Microseconds spent in steps since the start.
    busy_micros: AtomicU64,
    /// Bytes in use: weights, scratch, and the KV blocks that were written.
    bytes: AtomicU64,
}

/// A sender to the thread, and what it publishes. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    submissions: SyncSender<Submission>,
    next_id: Arc<AtomicU64>,
    pulse: Arc<Pulse>,
    born: Instant,
    load: watch::Receiver<LoadReport>,
    draining: Arc<AtomicBool>,
    /// Longest prompt and answer together, in tokens.
    pub max_sequence: usize,
    pub vocab: usize,
    thread: Arc<JoinHandle<()>>,
}

impl EngineHandle {
    /// Starts the thread. It ends when all handles are gone.
    pub fn spawn<E: Executor + 'static>(
        executor: E,
        config: EngineConfig,
        identity: Identity,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let engine = Engine::new(executor, config);
        let info = engine.executor().info();
        let (vocab, max_sequence) = (info.vocab, engine.max_sequence());
        let (submissions, inbox) = sync_channel(COMMANDS);
        let (pulse, draining, born) = (Arc::new(Pulse::default()), Arc::new(AtomicBool::new(false)), Instant::now());
        let first = load::report(&identity, &engine.load(), CostFit::default().coefficients(), false);
        let (load_out, load) = watch::channel(first);
        let worker = Worker {
            fixed_bytes: (info.weight_bytes + info.scratch_bytes) as u64,
            block_bytes: info.block_bytes as u64,
            engine,
            inbox,
            owners: HashMap::new(),
            fit: CostFit::default(),
            pulse: pulse.clone(),
            born,
            load: load_out,
            draining: draining.clone(),
            identity,
            metrics,
            step_began: born,
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run())?;
        Ok(Self {
            submissions,
            next_id: Arc::new(AtomicU64::new(1)),
            pulse,
            born,
            load,
            draining,
            max_sequence,
            vocab,
            thread: Arc::new(thread),
        })
    }

    /// Hands in a request; its id is chosen here. Dropping the receiver cancels it.
    pub async fn submit(&self, mut request: Request) -> Result<mpsc::Receiver<Update>, SubmitError> {
        request.id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        // Each token, the admission and the end; and the scores of a prompt, which may come one by one.
        let scores = if request.prompt_logprobs.is_some() { request.prompt.len() } else { 0 };
        let room = request.max_tokens.min(self.max_sequence) + scores + 2;
        let (updates, receiver) = mpsc::channel(room);
        let (answer, refusal) = oneshot::channel();
        self.submissions.try_send(Submission { request, updates, answer }).map_err(|err| match err {
            TrySendError::Full(_) => SubmitError::Refused(Refusal::QueueFull { waiting: COMMANDS }),
            TrySendError::Disconnected(_) => SubmitError::Gone,
        })?;
        match refusal.await {
            Ok(Ok(())) => Ok(receiver),
            Ok(Err(refusal)) => Err(SubmitError::Refused(refusal)),
            Err(_) => Err(SubmitError::Gone),
        }
    }

    pub fn load(&self) -> LoadReport {
        let mut load = self.load.borrow().clone();
        load.draining = self.is_draining();
        load
    }

    pub fn watch_load(&self) -> watch::Receiver<LoadReport> {
        self.load.clone()
    }

    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Healthy: alive, and not longer than `limit` without a step while there is work.
    pub fn health(&self, limit: Duration) -> Result<(), String> {
        if self.has_ended() {
            return Err("the engine thread has ended".to_owned());
        }
        let silent = self.born.elapsed().saturating_sub(Duration::from_millis(self.pulse.at.load(Ordering::Acquire)));
        if self.pulse.busy.load(Ordering::Acquire) && silent > limit {
            return Err(format!("the engine has work and made no step for {} s", silent.as_secs()));
        }
        Ok(())
    }

    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Bytes in use, and time spent computing since the start.
    pub fn usage(&self) -> (u64, Duration) {
        let micros = self.pulse.busy_micros.load(Ordering::Relaxed);
        (self.pulse.bytes.load(Ordering::Relaxed), Duration::from_micros(micros))
    }
}

struct Worker<E> {
    engine: Engine<E>,
    inbox: Receiver<Submission>,
    owners: HashMap<RequestId, mpsc::Sender<Update>>,
    fit: CostFit,
    pulse: Arc<Pulse>,
    born: Instant,
    load: watch::Sender<LoadReport>,
    draining: Arc<AtomicBool>,
    identity: Identity,
    metrics: Metrics,
    fixed_bytes: u64,
    block_bytes: u64,
    step_began: Instant,
}

impl<E: Executor> Worker<E> {
    fn run(mut self) {
        let mut events = Vec::new();
        self.publish();
        while self.take_submissions() {
            self.cancel_abandoned();
            self.pulse.busy.store(self.engine.has_work(), Ordering::Release);
            if self.engine.has_work() {
                self.step(&mut events);
            }
            self.beat();
            // First the report: a client that has its last token sees itself gone from it.
            self.publish();
            self.deliver(&mut events);
        }
        tracing::debug!("the engine thread ends");
    }

    /// False when all handles are gone.
    fn take_submissions(&mut self) -> bool {
        if !self.engine.has_work() {
            match self.inbox.recv_timeout(IDLE) {
                Ok(submission) => self.accept(submission),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while let Ok(submission) = self.inbox.try_recv() {
            self.accept(submission);
        }
        true
    }

    fn accept(&mut self, Submission { request, updates, answer }: Submission) {
        let id = request.id;
        let verdict = self.engine.submit(request);
        if verdict.is_ok() {
            self.owners.insert(id, updates);
        }
        // Without a receiver for the verdict, the updates have none either.
        let _ = answer.send(verdict);
    }

    fn cancel_abandoned(&mut self) {
        let engine = &mut self.engine;
        self.owners.retain(|id, updates| {
            let wanted = !updates.is_closed();
            if !wanted {
                engine.cancel(*id);
            }
            wanted
        });
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        self.beat();
        let start = Instant::now();
        self.step_began = start;
        let result = self.engine.step(events);
        let taken = start.elapsed();
        self.pulse.busy_micros.fetch_add(taken.as_micros() as u64, Ordering::Relaxed);
        match result {
            Ok(stats) if stats.sequences > 0 => {
                self.fit.observe(stats.decodes, stats.kv_tokens, stats.prefill_tokens, taken.as_secs_f64() * 1e3);
                self.metrics.step(&stats, taken.as_secs_f64());
            }
            Ok(_) => {}
            Err(err) => {
                self.metrics.step_failed();
                tracing::error!(%err, "a step failed; it is tried again");
            }
        }
    }

    fn deliver(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            let (id, update) = match event {
                Event::Admitted { id, cached_tokens } => (id, Update::Admitted { cached_tokens, at: self.step_began }),
                Event::Token { id, token, logprobs } => (id, Update::Token { token, logprobs }),
                Event::Prompt { id, logprobs } => (id, Update::Prompt { logprobs }),
                Event::Finished { id, reason, stop, .. } => (id, Update::Finished { reason, stop }),
            };
            let is_last = matches!(update, Update::Finished { .. });
            if let Some(owner) = self.owners.get(&id) {
                // Closed: the client left, `cancel_abandoned` sees to it. Full cannot be.
                let _ = owner.try_send(update);
            }
            if is_last {
                self.owners.remove(&id);
            }
        }
    }

    fn beat(&self) {
        self.pulse.at.store(self.born.elapsed().as_millis() as u64, Ordering::Release);
    }

    fn publish(&self) {
        let load = self.engine.load();
        let draining = self.draining.load(Ordering::Relaxed);
        self.metrics.load(&load, draining);
        let bytes = self.fixed_bytes + self.block_bytes * load.blocks_touched as u64;
        self.pulse.bytes.store(bytes, Ordering::Relaxed);
        let report = load::report(&self.identity, &load, self.fit.coefficients(), draining);
        self.load.send_if_modified(|old| {
            let changed = *old != report;
            *old = report;
            changed
        });
    }
}
