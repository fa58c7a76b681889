//! Engines that are killed while they work: of requests whose client has seen nothing, none is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::engine::{Behaviour, Heart, MockEngine};
use crate::support::harness::{Harness, OK, pod, until_within};
use crate::support::process::{EngineProcess, free_address};

/// Set by `make test-long`.
const LONG_TESTS: &str = "STOWAGE_TEST_LONG";
const CLIENTS: usize = 8;

/// A number for (seed, n) that looks random and is the same in each run (splitmix64).
fn draw(seed: u64, n: u64, below: u64) -> u64 {
    let mut z = seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % below
}

/// What the clients have got.
#[derive(Default)]
struct Answered {
    by_client: [AtomicUsize; CLIENTS],
    failed: std::sync::Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Answered {
    fn all(&self) -> usize {
        self.by_client.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    fn each(&self) -> [usize; CLIENTS] {
        std::array::from_fn(|client| self.by_client[client].load(Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_replica_is_killed_at_random_moments_and_no_request_fails() {
    let kills: u64 = if std::env::var_os(LONG_TESTS).is_some() { 200 } else { 10 };
    let address = free_address();
    let mut engine = EngineProcess::start(address);
    let mut gateway = Harness::start(&[]).await;
    gateway.facts.deployments[0].hold = Some(Duration::from_secs(120));
    gateway.facts.pods = vec![pod("chat-0", address)];
    gateway.apply();
    let (gateway, answered) = (Arc::new(gateway), Arc::new(Answered::default()));
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(ask(client, gateway.clone(), answered.clone()))).collect();
    for kill in 0..kills {
        // After some more answers, so that the moment has nothing to do with what the engine just does.
        let moment = answered.all() + 1 + draw(7, kill, 40) as usize;
        until_within("the moment of the kill", LONG, || answered.all() >= moment).await;
        engine.kill();
        let before = answered.each();
        engine = EngineProcess::start(address);
        // Each request that the kill met has ended, so the next kill meets others. One that met two would be
        // taken for the cause.
        until_within("each client to have two answers more", LONG, || {
            answered.each().iter().zip(before).all(|(now, before)| *now >= before + 2)
        })
        .await;
    }
    answered.stop.store(true, Ordering::SeqCst);
    futures::future::join_all(clients).await;
    let failed = answered.failed.lock().unwrap().clone();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), answered.all(), &failed[..failed.len().min(3)]);
}

const LONG: Duration = Duration::from_secs(120);

async fn ask(client: usize, gateway: Arc<Harness>, answered: Arc<Answered>) {
    while !answered.stop.load(Ordering::SeqCst) {
        let answer = gateway.chat(false).await;
        if answer.status != OK || answer.cut {
            answered.failed.lock().unwrap().push(format!("{} {}", answer.status, answer.text()));
        }
        answered.by_client[client].fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn request_that_ended_one_process_is_answered_by_the_next() {
    let engine = MockEngine::start(Behaviour::Restart).await;
    engine.set_heart(Heart::Beating);
    let gateway = Harness::start(&[&engine]).await;
    gateway.until_reported("chat-0").await;
    let asking = gateway.chat_later(false);
    until_within("it is sent", LONG, || engine.seen().len() == 1).await;
    engine.set(Behaviour::Whole);
    assert_eq!(asking.await.unwrap(), OK);
    assert_eq!(engine.seen().len(), 2);
}

#[tokio::test]
async fn request_that_ended_two_processes_is_refused_as_the_probable_cause() {
    let engine = MockEngine::start(Behaviour::Restart).await;
    engine.set_heart(Heart::Beating);
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.deployments[0].hold = Some(LONG);
    gateway.apply();
    gateway.until_reported("chat-0").await;
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "probable_cause"));
    assert_eq!(answer.headers["x-should-retry"], "false");
    assert_eq!(engine.seen().len(), 2);
    // The replica itself is well.
    engine.set(Behaviour::Whole);
    assert_eq!(gateway.chat(false).await.status, OK);
}

#[tokio::test]
async fn replica_whose_connection_broke_gets_nothing_until_it_reports_again() {
    let engine = MockEngine::start(Behaviour::Hang).await;
    engine.set_heart(Heart::Beating);
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.deployments[0].hold = Some(LONG);
    gateway.apply();
    gateway.until_reported("chat-0").await;
    let asking = gateway.chat_later(false);
    until_within("it is sent", LONG, || engine.seen().len() == 1).await;
    // The process is gone, and what takes its place answers requests before it reports anything.
    engine.set_heart(Heart::Stopped);
    engine.set(Behaviour::Whole);
    engine.restart();
    until_within("it is held", LONG, || gateway.waiting() == 1).await;
    let second = gateway.chat_later(false);
    until_within("both are held", LONG, || gateway.waiting() == 2).await;
    assert_eq!(engine.seen().len(), 1);
    engine.set_heart(Heart::Beating);
    assert_eq!((asking.await.unwrap(), second.await.unwrap()), (OK, OK));
    assert_eq!(engine.seen().len(), 3);
}
