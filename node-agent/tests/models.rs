//! The cache of models against a real HTTP server on loopback: what claims want, and what lies on the disk.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use stowage_contracts::model::{COMPLETE, ClaimModel, FETCHED_FILE, FileModel};
use stowage_contracts::preload::{Preload, Preloads};
use stowage_contracts::summary::FetchPhase;
use stowage_fetch::Limits;
use stowage_fetch::address::Addresses;
use stowage_node_agent::device::process::Processes;
use stowage_node_agent::dra::checkpoint::{Checkpoint, Entry, Stage};
use stowage_node_agent::models::ModelsState;
use stowage_node_agent::models::figures::Figures;
use stowage_node_agent::models::preloads::Asked;
use stowage_node_agent::models::task::{Settings, start};
use tokio::sync::watch;

/// Serves files of these bytes under any path.
struct Server {
    address: std::net::SocketAddr,
    /// Bytes of bodies.
    sent: Arc<AtomicU64>,
    up: Arc<AtomicBool>,
}

impl Server {
    fn start(bytes: Vec<u8>) -> Server {
        Server::with(bytes, false)
    }

    /// `stalls`: after the headers nothing comes.
    fn with(bytes: Vec<u8>, stalls: bool) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            sent: Arc::default(),
            up: Arc::new(AtomicBool::new(true)),
        };
        let (sent, up, bytes) = (Arc::clone(&server.sent), Arc::clone(&server.up), Arc::new(bytes));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sent, up, bytes) = (Arc::clone(&sent), Arc::clone(&up), Arc::clone(&bytes));
                std::thread::spawn(move || answer(&stream.unwrap(), &sent, &up, &bytes, stalls));
            }
        });
        server
    }

    fn model(&self, path: &str, bytes: &[u8]) -> ClaimModel {
        let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        ClaimModel::File(FileModel::open(format!("http://{}/{path}", self.address), sha256))
    }
}

/// The same file at another address.
fn at(url: &str, model: &ClaimModel) -> ClaimModel {
    match model {
        ClaimModel::File(file) => ClaimModel::File(FileModel { url: url.into(), ..file.clone() }),
        ClaimModel::Hub(_) => panic!("not a file"),
    }
}

fn answer(
    mut stream: &TcpStream,
    sent: &AtomicU64,
    up: &AtomicBool,
    bytes: &[u8],
    stalls: bool,
) -> std::io::Result<()> {
    let (mut range, mut line) = ((0, bytes.len()), String::new());
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        if let Some(value) = line.to_lowercase().trim_end().strip_prefix("range: bytes=") {
            let (from, last) = value.split_once('-').unwrap();
            range = (from.parse().unwrap(), last.parse::<usize>().unwrap() + 1);
        }
        line.clear();
    }
    if !up.load(Ordering::Relaxed) {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let (from, to) = (range.0, range.1.min(bytes.len()));
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{}\r\ncontent-length: {}\r\netag: \"v\"\r\nconnection: close\r\n\r\n",
        to - 1,
        bytes.len(),
        to - from
    )?;
    if stalls {
        std::thread::sleep(Duration::from_secs(3600));
    }
    sent.fetch_add((to - from) as u64, Ordering::Relaxed);
    stream.write_all(&bytes[from..to])
}

/// A node's cache whose claims the test sets.
struct Node {
    models: PathBuf,
    claims: watch::Sender<Arc<Checkpoint>>,
    ahead: watch::Sender<Asked>,
    state: watch::Receiver<ModelsState>,
}

impl Node {
    fn start(models: &Path, cache_bytes: u64) -> Node {
        Node::counted(models, cache_bytes, Figures::default())
    }

    fn counted(models: &Path, cache_bytes: u64, figures: Figures) -> Node {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ((claims, seen), (ahead, asked)) = (watch::channel(Arc::default()), watch::channel(Asked::default()));
        let settings = Settings {
            addresses: Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() },
            limits: Limits { disk_reserve_bytes: 0, pause: Duration::from_millis(5), ..Limits::default() },
            cache_bytes,
            disk_reserve_percent: 0,
            hub: "http://127.0.0.1:1".parse().unwrap(),
            processes: Processes::default(),
            figures,
        };
        Node { models: models.to_owned(), claims, ahead, state: start(settings, models.to_owned(), seen, asked) }
    }

    /// The operator wants these here ahead of need.
    fn preload(&self, models: &[&ClaimModel]) {
        let one = |model: &&ClaimModel| Preload { model: (*model).clone(), tenant: "a".into() };
        let list = Preloads { models: models.iter().map(one).collect() };
        self.ahead.send_replace(Asked::read(list, tokio::time::Instant::now()));
    }

    fn claim(&self, wanted: &[(&str, &ClaimModel)]) {
        let of_one: Vec<_> = wanted.iter().map(|(uid, model)| (*uid, "a", *model)).collect();
        self.claim_of(&of_one);
    }

    /// Claims with their tenants.
    fn claim_of(&self, wanted: &[(&str, &str, &ClaimModel)]) {
        let entry = |tenant: &str, model: &ClaimModel| Entry {
            namespace: "a".into(),
            name: "stowage-x".into(),
            pod: "x".into(),
            pod_uid: "p".into(),
            tenant: tenant.into(),
            stage: Stage::Completed,
            devices: vec![],
            model: Some(model.clone()),
        };
        let mut checkpoint = Checkpoint::default();
        checkpoint.claims =
            wanted.iter().map(|(uid, tenant, model)| ((*uid).to_owned(), entry(tenant, model))).collect();
        self.claims.send_replace(Arc::new(checkpoint));
    }

    async fn until(&mut self, what: &str, test: impl Fn(&ModelsState) -> bool) -> ModelsState {
        let found = tokio::time::timeout(Duration::from_secs(20), self.state.wait_for(|state| test(state))).await;
        found.unwrap_or_else(|_| panic!("{what} did not come")).unwrap().clone()
    }

    /// Waits until the claim's directory is complete; what the engine reads there.
    async fn handed_to(&self, uid: &str) -> Vec<u8> {
        let directory = self.models.join("claims").join(uid);
        for _ in 0..2000 {
            if directory.join(COMPLETE).exists() {
                return std::fs::read(directory.join(FETCHED_FILE)).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("claim {uid} did not get its model: {:?}", self.state.borrow());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_claims_of_one_model_cost_the_source_one_transfer_and_later_ones_none() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 300_000]);
    let server = Server::start(bytes.clone());
    let model = server.model("m", &bytes);
    let mut node = Node::start(dir.path(), 0);
    node.claim(&[("uid-1", &model), ("uid-2", &model)]);
    assert_eq!(node.handed_to("uid-1").await, bytes);
    assert_eq!(node.handed_to("uid-2").await, bytes);
    // Two more: the first bytes, by which the length is asked.
    assert_eq!(server.sent.load(Ordering::Relaxed), bytes.len() as u64 + 2);
    let state = node.until("the cached model", |state| state.fetches.is_empty()).await;
    assert_eq!(state.cached, [(model.key(), bytes.len() as u64)].into());
    server.up.store(false, Ordering::Relaxed);
    node.claim(&[("uid-3", &model)]);
    assert_eq!(node.handed_to("uid-3").await, bytes);
    assert_eq!(server.sent.load(Ordering::Relaxed), bytes.len() as u64 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_survives_a_restart_and_the_next_agent_waits_for_the_last() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let model = server.model("m", &bytes);
    let node = Node::start(dir.path(), 0);
    node.claim(&[("uid-1", &model)]);
    node.handed_to("uid-1").await;
    let mut next = Node::start(dir.path(), 0);
    next.claim(&[("uid-1", &model), ("uid-2", &model)]);
    server.up.store(false, Ordering::Relaxed);
    // The end of the channel ends the first task, and with it its lock.
    drop(node);
    assert_eq!(next.handed_to("uid-2").await, bytes);
    next.until("the cached model", |state| state.cached.contains_key(&model.key())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_fetch_is_reported_and_leaves_nothing_and_others_go_on() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let (good, wrong) = (server.model("m", &bytes), server.model("m", b"another file"));
    let inside = at("http://169.254.169.254/latest", &good);
    let mut node = Node::start(dir.path(), 0);
    node.claim(&[("uid-1", &wrong), ("uid-2", &inside), ("uid-3", &good)]);
    assert_eq!(node.handed_to("uid-3").await, bytes);
    let failed =
        |state: &ModelsState| state.fetches.iter().filter(|fetch| fetch.phase == FetchPhase::Failed).count() == 2;
    let state = node.until("the failures", failed).await;
    let error = |model: &ClaimModel| {
        let fetch = state.fetches.iter().find(|fetch| fetch.model == model.key()).unwrap();
        fetch.error.clone().unwrap()
    };
    assert!(error(&wrong).contains("the file has the digest"), "{}", error(&wrong));
    assert!(error(&inside).contains("link-local"), "{}", error(&inside));
    assert_eq!(state.cached.keys().collect::<Vec<_>>(), [&good.key()]);
    assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    assert!(!dir.path().join("claims/uid-1").join(FETCHED_FILE).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_sources_of_one_tenant_keep_no_other_tenant_waiting() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let slow: Vec<ClaimModel> = (0..20)
        .map(|n| at(&format!("http://{}/{n}", silent.local_addr().unwrap()), &server.model("m", &bytes)))
        .collect();
    let uids: Vec<String> = (0..20).map(|n| format!("slow-{n}")).collect();
    let mut claims: Vec<(&str, &str, &ClaimModel)> =
        uids.iter().zip(&slow).map(|(uid, model)| (uid.as_str(), "a", model)).collect();
    let node = Node::start(dir.path(), 0);
    node.claim_of(&claims);
    let model = server.model("m", &bytes);
    claims.push(("uid-b", "b", &model));
    node.claim_of(&claims);
    assert_eq!(node.handed_to("uid-b").await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_a_tenant_are_fetched_in_the_order_in_which_they_came() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = server.model("m", &bytes);
    let slow = |n: u32| at(&format!("http://{}/{n}", silent.local_addr().unwrap()), &first);
    let (one, two) = (slow(1), slow(2));
    // The later one has the smaller key, and would never come to an end.
    let later = (3..).map(slow).find(|model| model.key() < first.key()).unwrap();
    let mut node = Node::start(dir.path(), 0);
    let in_phase = |model: &ClaimModel, phase: FetchPhase| {
        let key = model.key();
        move |state: &ModelsState| state.fetches.iter().any(|fetch| fetch.model == key && fetch.phase == phase)
    };
    node.claim(&[("uid-1", &one), ("uid-2", &two)]);
    node.until("the first fetch", in_phase(&one, FetchPhase::Fetching)).await;
    node.until("the second fetch", in_phase(&two, FetchPhase::Fetching)).await;
    node.claim(&[("uid-1", &one), ("uid-2", &two), ("uid-3", &first)]);
    node.until("the first that waits", in_phase(&first, FetchPhase::Queued)).await;
    node.claim(&[("uid-1", &one), ("uid-2", &two), ("uid-3", &first), ("uid-4", &later)]);
    node.until("the second that waits", in_phase(&later, FetchPhase::Queued)).await;
    node.claim(&[("uid-2", &two), ("uid-3", &first), ("uid-4", &later)]);
    assert_eq!(node.handed_to("uid-3").await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_models_leave_when_the_cache_is_full_and_used_ones_stay() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let models: Vec<ClaimModel> = (0..4).map(|n| server.model(&format!("m{n}"), &bytes)).collect();
    let mut node = Node::start(dir.path(), 2500);
    node.claim(&[("uid-0", &models[0])]);
    node.handed_to("uid-0").await;
    node.claim(&[("uid-0", &models[0]), ("uid-1", &models[1])]);
    node.handed_to("uid-1").await;
    node.claim(&[("uid-0", &models[0]), ("uid-2", &models[2])]);
    node.handed_to("uid-2").await;
    assert!(!dir.path().join("claims/uid-1").exists());
    let state = node.until("the eviction", |state| state.cached.len() == 2 && state.fetches.is_empty()).await;
    assert!(state.cached.contains_key(&models[0].key()) && state.cached.contains_key(&models[2].key()), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn preloaded_model_is_there_before_the_claim_and_its_source_is_not_asked_again() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let model = server.model("m", &bytes);
    let mut node = Node::start(dir.path(), 0);
    node.preload(&[&model]);
    let state = node.until("the preloaded model", |state| state.cached.contains_key(&model.key())).await;
    assert!(state.fetches.is_empty(), "no claim waits: {state:?}");
    server.up.store(false, Ordering::Relaxed);
    node.claim(&[("uid-1", &model)]);
    assert_eq!(node.handed_to("uid-1").await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn preloading_takes_free_room_only_and_makes_way_for_claims() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let models: Vec<ClaimModel> = (0..4).map(|n| server.model(&format!("m{n}"), &bytes)).collect();
    let mut node = Node::start(dir.path(), 2500);
    node.claim(&[("uid-0", &models[0])]);
    node.handed_to("uid-0").await;
    node.claim(&[]);
    // Of 2500 bytes 2000 are for what is fetched ahead and all that is there: one of the two.
    node.preload(&[&models[1], &models[2]]);
    let ahead = |state: &ModelsState| state.cached.keys().filter(|key| **key != models[0].key()).count();
    let state = node.until("the first preloaded model", |state| ahead(state) == 1).await;
    let (there, not) = match state.cached.contains_key(&models[1].key()) {
        true => (&models[1], &models[2]),
        false => (&models[2], &models[1]),
    };
    // A claim's model needs no more than is free; the next one needs what is unused, the preloaded one too.
    node.claim(&[("uid-3", &models[3])]);
    node.handed_to("uid-3").await;
    node.claim(&[("uid-3", &models[3]), ("uid-2", not)]);
    node.handed_to("uid-2").await;
    let both = |state: &ModelsState| [not, &models[3]].iter().all(|model| state.cached.contains_key(&model.key()));
    node.until("room for the claims", |state| both(state) && !state.cached.contains_key(&there.key())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_are_counted_by_phase_and_outcome() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let server = Server::start(bytes.clone());
    let mut registry = stowage_telemetry::metrics::registry();
    let mut node = Node::counted(dir.path(), 0, Figures::register(&mut registry));
    let (model, other) = (server.model("m", &bytes), server.model("other", b"another content"));
    node.claim(&[("uid-1", &model), ("uid-2", &other)]);
    assert_eq!(node.handed_to("uid-1").await, bytes);
    let failed = |state: &ModelsState| state.fetches.iter().any(|fetch| fetch.phase == FetchPhase::Failed);
    node.until("the other one fails, its digest is wrong", |state| failed(state) && !state.cached.is_empty()).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "stowage_model_fetches_total{outcome=\"complete\"} 1",
        "stowage_model_fetches_total{outcome=\"failed\"} 1",
        "stowage_model_fetched_bytes_total 1000",
        "stowage_model_cache_bytes 1000",
        "stowage_model_cache_models 1",
        "stowage_model_fetch_seconds_count{phase=\"queue\"} 2",
        "stowage_model_fetch_seconds_count{phase=\"fetch\"} 1",
        "stowage_model_fetch_seconds_count{phase=\"verify\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preload_that_stalls_keeps_no_room_from_a_claim() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 1000]);
    let (server, stalled) = (Server::start(bytes.clone()), Server::with(vec![8; 1900], true));
    let mut node = Node::start(dir.path(), 2500);
    let slow = stalled.model("slow", &[8; 1900]);
    node.preload(&[&slow]);
    let partial = dir.path().join("partial");
    let begun = || std::fs::read_dir(&partial).is_ok_and(|mut all| all.next().is_some());
    for _ in 0..2000 {
        if begun() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begun(), "the preload did not begin");
    let model = server.model("m", &bytes);
    node.claim(&[("uid-1", &model)]);
    assert_eq!(node.handed_to("uid-1").await, bytes);
    node.until("the claim's model", |state| state.cached.contains_key(&model.key())).await;
}
