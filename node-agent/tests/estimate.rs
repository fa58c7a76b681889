//! Estimates of models that are not here, against what the engine's reader says of the whole files.

#![allow(clippy::unwrap_used)]

#[path = "../../engine/server/tests/support/clockwork.rs"]
mod clockwork;
#[path = "../../crates/fetch/tests/server/hub.rs"]
mod hub;

use std::path::Path;

use clockwork::{Clockwork, Directory, Gguf};
use hub::{FIRST, Hub};
use sha2::{Digest, Sha256};
use stowage_contracts::estimate::{Estimate, EstimateRequest, SEQUENCES};
use stowage_contracts::hub::{HubModel, TokenRef};
use stowage_contracts::model::{ClaimModel, FileModel};
use stowage_contracts::s3::S3Login;
use stowage_engine_models::inspect::{self, Served};
use stowage_fetch::address::Addresses;
use stowage_fetch::{Fetcher, Limits};
use stowage_node_agent::models::estimate::Estimator;

fn estimator(hub: &Hub, models: &Path) -> Estimator {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let allowed = Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() };
    let agent = env!("CARGO_BIN_EXE_stowage-node-agent");
    let limits = Limits { pause: std::time::Duration::from_millis(1), ..Limits::default() };
    Estimator::new(Fetcher::new(allowed, limits), hub.endpoint().parse().unwrap(), models, agent.into())
}

fn of_hub(path: Option<&str>) -> ClaimModel {
    ClaimModel::Hub(HubModel {
        repo: "o/n".into(),
        revision: "main".into(),
        path: path.map(str::to_owned),
        token: None,
    })
}

fn request(model: ClaimModel, max_model_len: Option<u32>) -> EstimateRequest {
    EstimateRequest { model, max_model_len, kv_cache_type: None, tenant: "a".into() }
}

fn digest(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the engine takes, from the whole files.
fn expected(path: &Path, context_len: usize) -> Estimate {
    let needs = inspect::path(path).unwrap().engine.unwrap();
    let memory = needs.memory(Served { sequences: SEQUENCES as usize, ..Served::one(context_len) });
    let context_len = context_len as u32;
    Estimate { weights: memory.weights, kv_cache: memory.kv, scratch: memory.scratch, context_len }
}

#[tokio::test(flavor = "multi_thread")]
async fn estimate_from_headers_is_what_the_whole_files_give() {
    let (dir, hello) = (tempfile::tempdir().unwrap(), Clockwork::hello());
    let whole = Directory::new(&hello).write(&dir.path().join("whole"));
    let gguf = Gguf::new(&hello).write(&dir.path().join("m.gguf"));
    let read = |path: &Path| std::fs::read(path).unwrap();
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let mut files: Vec<(&str, Vec<u8>)> = names.map(|name| (name, read(&whole.join(name)))).into();
    files.push(("m.gguf", read(&gguf)));
    let list: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", digest(bytes))).collect();
    files.push(("SHA256SUMS", list.clone().into()));
    let hub = Hub::start(&files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect::<Vec<_>>());
    let estimator = estimator(&hub, dir.path());
    let url = format!("{}/o/n/resolve/{FIRST}/m.gguf", hub.endpoint());
    let file = ClaimModel::File(FileModel::open(url, "0".repeat(64)));
    let directory =
        ClaimModel::File(FileModel::open(format!("{}/o/n/resolve/{FIRST}/", hub.endpoint()), digest(&list)));
    for (model, path) in [(of_hub(None), &whole), (of_hub(Some("m.gguf")), &gguf), (file, &gguf), (directory, &whole)] {
        for (asked, context_len) in [(None, 2048), (Some(100), 100), (Some(1 << 20), 2048)] {
            let found = estimator.estimate(&request(model.clone(), asked)).await.unwrap();
            assert_eq!(found, expected(path, context_len), "{model:?}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path().join("headers").join(std::process::id().to_string())).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_sources_of_one_tenant_delay_no_estimate_of_another() {
    let (dir, hello) = (tempfile::tempdir().unwrap(), Clockwork::hello());
    let gguf = std::fs::read(Gguf::new(&hello).write(&dir.path().join("m.gguf"))).unwrap();
    let hub = Hub::start(&[("m.gguf", &gguf)]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let estimator = std::sync::Arc::new(estimator(&hub, dir.path()));
    let slow = |n: usize| {
        let url = format!("http://{}/{n}", silent.local_addr().unwrap());
        let request = request(ClaimModel::File(FileModel::open(url, "0".repeat(64))), None);
        let estimator = std::sync::Arc::clone(&estimator);
        tokio::spawn(async move { estimator.estimate(&request).await })
    };
    let waiting: Vec<_> = (0..20).map(slow).collect();
    // Nobody answers, but the connection is there: the first of them has its place.
    let (_connection, _) = silent.accept().unwrap();
    let other = EstimateRequest { tenant: "b".into(), ..request(of_hub(Some("m.gguf")), None) };
    tokio::time::timeout(std::time::Duration::from_secs(20), estimator.estimate(&other)).await.unwrap().unwrap();
    assert!(waiting.iter().all(|task| !task.is_finished()));
    for task in &waiting {
        task.abort();
    }
    futures::future::join_all(waiting).await;
    // What was read of them is gone with them.
    assert_eq!(std::fs::read_dir(dir.path().join("headers").join(std::process::id().to_string())).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn model_that_cannot_be_estimated_is_named_with_the_reason() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(&[("config.json", b"{}"), ("m.gguf", &[7; 5000])]));
    let estimator = estimator(&hub, dir.path());
    let token = TokenRef { namespace: "a".into(), secret: "s".into(), key: "k".into() };
    let private = HubModel { repo: "o/n".into(), revision: "main".into(), path: None, token: Some(token) };
    let login = S3Login { region: "us-east-1".into(), namespace: "a".into(), secret: "s".into() };
    let in_store = FileModel { s3: Some(login), ..FileModel::open(hub.endpoint(), "0".repeat(64)) };
    for (model, part) in [
        (of_hub(Some("m.gguf")), "does not serve it"),
        (of_hub(Some("other.gguf")), "its GGUF files: m.gguf"),
        (ClaimModel::Hub(private), "everybody may read"),
        (ClaimModel::File(in_store), "everybody may read"),
        (ClaimModel::File(FileModel::open("http://10.0.0.1/m", "0".repeat(64))), "a private address"),
    ] {
        let error = estimator.estimate(&request(model, None)).await.unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains(&dir.path().display().to_string()), "{error}");
    }
}

/// A GGUF file with one array of bytes, which the reader keeps as numbers of eight bytes each.
fn wide(bytes: usize) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    for number in [0u64, 1, 1] {
        file.extend(number.to_le_bytes());
    }
    file.push(b'k');
    file.extend([9u32, 0].map(u32::to_le_bytes).concat());
    file.extend((bytes as u64).to_le_bytes());
    file.resize(file.len() + bytes, 7);
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_take_much_to_read_cost_the_agent_nothing() {
    let (dir, small, large) = (tempfile::tempdir().unwrap(), wide(1000), wide(15 << 20));
    let long = [&u64::to_le_bytes(10 << 20)[..], &vec![b' '; 10 << 20]].concat();
    let shards: Vec<String> = (0..5).map(|n| format!("model-{n}.safetensors")).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("small.gguf", &small), ("large.gguf", &large), ("config.json", b"{}")];
    files.extend(shards.iter().map(|name| (name.as_str(), long.as_slice())));
    let hub = Hub::start(&files);
    let estimator = estimator(&hub, dir.path());
    for (path, part) in [
        (Some("small.gguf"), "does not serve it"),
        (Some("large.gguf"), "take more than 96 MiB"),
        (None, "longer than 32 MiB"),
    ] {
        let error = estimator.estimate(&request(of_hub(path), None)).await.unwrap_err().to_string();
        assert!(error.contains(part), "{path:?}: {error}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("headers").join(std::process::id().to_string())).unwrap().count(), 0);
}
