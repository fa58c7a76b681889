//! Models from a hub's repository or an object store's directory through the cache: revisions, tokens, keys, and what lies in
//! the claims' directories.

#![allow(clippy::unwrap_used)]

#[path = "../../crates/fetch/tests/server/hub.rs"]
mod hub;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hub::{FIRST, Hub, SECOND};
use sha2::{Digest, Sha256};
use stowage_contracts::hub::{HubModel, TOKEN_DIR, TOKEN_FILE, TokenRef};
use stowage_contracts::model::{COMPLETE, ClaimModel, FileModel};
use stowage_contracts::s3::{ACCESS_KEY_ID, S3Login, SECRET_ACCESS_KEY};
use stowage_contracts::summary::FetchPhase;
use stowage_fetch::Limits;
use stowage_fetch::address::Addresses;
use stowage_node_agent::device::process::Processes;
use stowage_node_agent::dra::checkpoint::{Checkpoint, Entry, Stage};
use stowage_node_agent::models::ModelsState;
use stowage_node_agent::models::preloads::Asked;
use stowage_node_agent::models::task::{Settings, start};
use tokio::sync::watch;

static WEIGHTS: [u8; 50_000] = [7; 50_000];

fn repository() -> Hub {
    Hub::start(&[("config.json", b"{}"), ("model.safetensors", &WEIGHTS), ("modeling.py", b"import os")])
}

fn model(revision: &str, secret: Option<&str>) -> ClaimModel {
    let token = secret.map(|secret| TokenRef { namespace: "a".into(), secret: secret.into(), key: "token".into() });
    ClaimModel::Hub(HubModel { repo: "o/n".into(), revision: revision.into(), path: None, token })
}

/// A node whose claims and pods the test sets.
struct Node {
    dir: PathBuf,
    claims: watch::Sender<Arc<Checkpoint>>,
    state: watch::Receiver<ModelsState>,
}

impl Node {
    fn start(dir: &Path, hub: &Hub) -> Node {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (claims, seen) = watch::channel(Arc::default());
        let (_, nothing_ahead) = watch::channel(Asked::default());
        let settings = Settings {
            addresses: Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() },
            limits: Limits { disk_reserve_bytes: 0, pause: Duration::from_millis(5), ..Limits::default() },
            cache_bytes: 0,
            disk_reserve_percent: 0,
            hub: hub.endpoint().parse().unwrap(),
            processes: Processes::at(&dir.join("proc")),
            figures: Default::default(),
        };
        Node { dir: dir.to_owned(), claims, state: start(settings, dir.join("models"), seen, nothing_ahead) }
    }

    /// Claims, each with a pod of its own.
    fn claim(&self, wanted: &[(usize, &ClaimModel)]) {
        let entry = |number: usize, model: &ClaimModel| Entry {
            namespace: "a".into(),
            name: "stowage-x".into(),
            pod: "x".into(),
            pod_uid: pod(number),
            tenant: "a".into(),
            stage: Stage::Completed,
            devices: vec![],
            model: Some(model.clone()),
        };
        let mut checkpoint = Checkpoint::default();
        checkpoint.claims = wanted.iter().map(|(number, model)| (uid(*number), entry(*number, model))).collect();
        self.claims.send_replace(Arc::new(checkpoint));
    }

    /// The container of the claim's pod that waits for the model runs, with this token.
    fn waits(&self, number: usize, token: &str) {
        self.waits_with(number, &[(TOKEN_FILE, token)]);
    }

    /// The same with the keys of an object store.
    fn waits_with_keys(&self, number: usize, id: &str) {
        self.waits_with(number, &[(ACCESS_KEY_ID, id), (SECRET_ACCESS_KEY, "secret-key")]);
    }

    fn waits_with(&self, number: usize, files: &[(&str, &str)]) {
        let process = self.dir.join("proc").join((100 + number).to_string());
        let directory = process.join("root").join(TOKEN_DIR);
        std::fs::create_dir_all(&directory).unwrap();
        for (name, content) in files {
            std::fs::write(directory.join(name), content).unwrap();
        }
        std::fs::write(process.join("cgroup"), format!("0::/kubepods/pod{}/c", pod(number))).unwrap();
    }

    fn directory(&self, number: usize) -> PathBuf {
        self.dir.join("models/claims").join(uid(number))
    }

    /// Waits until the claim has its model; the names of its files.
    async fn handed_to(&self, number: usize) -> Vec<String> {
        for _ in 0..2000 {
            if self.directory(number).join(COMPLETE).exists() {
                let entries = std::fs::read_dir(self.directory(number).join("model")).unwrap();
                let mut names: Vec<String> =
                    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
                names.sort();
                return names;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("claim {number} did not get its model: {:?}", self.state.borrow());
    }

    /// The error of the one failed fetch.
    async fn error(&mut self) -> String {
        let failed = |state: &ModelsState| state.fetches.iter().any(|fetch| fetch.phase == FetchPhase::Failed);
        let state = tokio::time::timeout(Duration::from_secs(20), self.state.wait_for(failed)).await.unwrap().unwrap();
        state.fetches.iter().find_map(|fetch| fetch.error.clone()).unwrap()
    }
}

fn uid(number: usize) -> String {
    format!("uid-{number}")
}

fn pod(number: usize) -> String {
    format!("0a1b2c3d-1111-2222-3333-{number:012}")
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_is_resolved_once_per_claim_and_stays_after_a_restart() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), repository());
    let main = model("main", None);
    let node = Node::start(dir.path(), &hub);
    node.claim(&[(1, &main)]);
    assert_eq!(node.handed_to(1).await, ["config.json", "model.safetensors"]);
    let mut state = node.state.clone();
    let seen = state.wait_for(|state| state.commits.contains_key("uid-1")).await.unwrap().commits.clone();
    assert_eq!(seen["uid-1"], FIRST);
    hub.state.lock().unwrap().main = SECOND.into();
    drop((node, state));
    let mut next = Node::start(dir.path(), &hub);
    // A later claim names the commit, as the operator writes it.
    let pinned = model(FIRST, None);
    let before = hub.asked().len();
    next.claim(&[(1, &main), (2, &pinned)]);
    next.handed_to(2).await;
    let seen = next.state.wait_for(|state| state.commits.contains_key("uid-1")).await.unwrap().commits.clone();
    assert_eq!(seen["uid-1"], FIRST);
    assert_eq!(hub.asked().len(), before, "the cache was not enough: {:?}", hub.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn private_repository_waits_for_the_token_and_is_for_those_who_have_one() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), repository());
    hub.state.lock().unwrap().token = "hf_secret".into();
    let (private, open) = (model(FIRST, Some("hub")), model(FIRST, None));
    let mut node = Node::start(dir.path(), &hub);
    node.claim(&[(1, &private)]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(hub.asked(), Vec::<String>::new(), "asked without a token");
    node.waits(1, "hf_secret");
    node.handed_to(1).await;
    // The same token needs no hub; without a token the cached model is not handed out.
    let before = hub.asked().len();
    node.waits(2, "hf_secret");
    node.claim(&[(1, &private), (2, &private)]);
    node.handed_to(2).await;
    assert_eq!(hub.asked().len(), before);
    node.claim(&[(1, &private), (3, &open)]);
    let error = node.error().await;
    assert!(error.contains("is private"), "{error}");
    assert!(!node.directory(3).join(COMPLETE).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_token_must_be_allowed_by_the_hub_before_it_gets_what_is_cached() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), repository());
    hub.state.lock().unwrap().token = "hf_first".into();
    let private = model(FIRST, Some("hub"));
    let mut node = Node::start(dir.path(), &hub);
    node.waits(1, "hf_first");
    node.claim(&[(1, &private)]);
    node.handed_to(1).await;
    node.waits(2, "hf_revoked");
    node.claim(&[(2, &private)]);
    let error = node.error().await;
    assert!(error.contains("401 to the token") && !error.contains("hf_"), "{error}");
    assert!(!node.directory(2).join(COMPLETE).exists());
    hub.state.lock().unwrap().token = "hf_next".into();
    node.claim(&[]);
    node.state.wait_for(|state| state.fetches.is_empty()).await.unwrap();
    node.waits(3, "hf_next");
    let before = hub.asked().len();
    node.claim(&[(3, &private)]);
    node.handed_to(3).await;
    assert_eq!(hub.asked().len(), before + 1, "only the listing is asked: {:?}", hub.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn private_directory_is_for_those_whose_keys_the_store_allows() {
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let list = format!("{}  config.json\n{}  model.safetensors\n", hex(b"{}"), hex(&WEIGHTS));
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("model.safetensors", &WEIGHTS), ("SHA256SUMS", list.as_bytes())];
    let (dir, store) = (tempfile::tempdir().unwrap(), Hub::start(&files));
    store.state.lock().unwrap().token = "first".into();
    // The server of this test has the files of the repository there.
    let open = FileModel::open(format!("{}/o/n/resolve/main/", store.endpoint()), hex(list.as_bytes()));
    let login = S3Login { region: "us-east-1".into(), namespace: "a".into(), secret: "store".into() };
    let private = ClaimModel::File(FileModel { s3: Some(login), ..open.clone() });
    let mut node = Node::start(dir.path(), &store);
    node.claim(&[(1, &private)]);
    node.waits_with_keys(1, "first");
    assert_eq!(node.handed_to(1).await, ["config.json", "model.safetensors"]);
    let before = store.asked().len();
    node.waits_with_keys(2, "first");
    node.claim(&[(1, &private), (2, &private)]);
    node.handed_to(2).await;
    assert_eq!(store.asked().len(), before, "the same keys need no store");

    node.waits_with_keys(3, "revoked");
    node.claim(&[(3, &private)]);
    let error = node.error().await;
    assert!(error.contains("401 to the keys") && !error.contains("secret-key"), "{error}");
    assert!(!node.directory(3).join(COMPLETE).exists());
    store.state.lock().unwrap().token = "next".into();
    node.claim(&[]);
    node.state.wait_for(|state| state.fetches.is_empty()).await.unwrap();
    node.waits_with_keys(4, "next");
    let before = store.asked().len();
    node.claim(&[(4, &private)]);
    node.handed_to(4).await;
    assert_eq!(store.asked().len(), before + 1, "only the list is asked: {:?}", store.asked());

    node.claim(&[(5, &ClaimModel::File(open))]);
    let error = node.error().await;
    assert!(error.contains("answers 401; check that the address exists and needs no login"), "{error}");
    assert!(!node.directory(5).join(COMPLETE).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn repository_without_safetensors_is_refused_with_what_to_write() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(&[("a.gguf", &WEIGHTS), ("b/c.gguf", &WEIGHTS)]));
    let mut node = Node::start(dir.path(), &hub);
    node.claim(&[(1, &model(FIRST, None))]);
    let error = node.error().await;
    assert!(error.contains("a.gguf, b/c.gguf") && error.contains("huggingFace.path"), "{error}");
    let file = HubModel { repo: "o/n".into(), revision: FIRST.into(), path: Some("b/c.gguf".into()), token: None };
    node.claim(&[(2, &ClaimModel::Hub(file))]);
    // The server of this test gives large files by their names in the store.
    assert_eq!(node.handed_to(2).await, ["c.gguf"]);
}
