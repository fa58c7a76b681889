//! Repositories from a real HTTP server on loopback that answers as a hub does.

#![allow(clippy::unwrap_used)]

#[path = "server/hub.rs"]
mod hub;

use std::path::Path;
use std::time::Duration;

use hub::{FIRST, Hub, SECOND};
use stowage_fetch::address::Addresses;
use stowage_fetch::{FetchError, Fetcher, Files, Limits, Login, Progress, Token};
use tokio::sync::watch;

fn fetcher() -> Fetcher {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = Limits { disk_reserve_bytes: 0, pause: Duration::from_millis(5), ..Limits::default() };
    Fetcher::new(Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() }, limits)
}

/// Fetches the model in safetensors; how far it was shown to have come.
async fn fetch(hub: &Hub, folder: &Path, revision: &str, token: Option<&str>) -> Result<Progress, FetchError> {
    let (fetcher, endpoint) = (fetcher(), hub.endpoint().parse().unwrap());
    let login = token.map(|token| Login::token(Token::new(token).unwrap(), &endpoint));
    let repository = fetcher.repository(&endpoint, "o/n", revision, login.as_ref()).await?;
    let files = repository.chosen(&endpoint, None)?;
    let all = Files { files, folder: folder.to_owned(), login };
    let progress = watch::Sender::new(Progress::default());
    fetcher.fetch_files(&all, &progress).await.map(|()| *progress.borrow())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

static WEIGHTS: [u8; 50_000] = [7; 50_000];

fn model() -> Hub {
    Hub::start(&[
        ("config.json", b"{}"),
        ("empty.txt", b""),
        ("model-00001-of-00002.safetensors", &WEIGHTS),
        ("model-00002-of-00002.safetensors", &WEIGHTS[1..]),
        ("modeling.py", b"import os"),
        ("pytorch_model.bin", b"pickle"),
    ])
}

const FETCHED: [&str; 4] =
    ["config.json", "empty.txt", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The cache must know it before it removes other models.
#[tokio::test(flavor = "multi_thread")]
async fn size_of_a_repository_is_shown_before_room_is_taken_for_it() {
    let (dir, hub, fetcher) = (tempfile::tempdir().unwrap(), model(), fetcher());
    let endpoint = hub.endpoint().parse().unwrap();
    let repository = fetcher.repository(&endpoint, "o/n", "main", None).await.unwrap();
    let files = repository.chosen(&endpoint, None).unwrap();
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    let all = Files { files, folder: dir.path().to_owned(), login: None };
    fetcher.room.set_limit(10);
    let progress = watch::Sender::new(Progress::default());
    let refused = fetcher.fetch_files(&all, &progress).await;
    assert!(matches!(refused, Err(FetchError::CacheFull { .. })), "{refused:?}");
    assert_eq!((progress.borrow().bytes, progress.borrow().total), (0, total));
}

#[tokio::test(flavor = "multi_thread")]
async fn repository_is_fetched_without_code_and_pickles() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), model());
    let progress = fetch(&hub, dir.path(), "main", None).await.unwrap();
    assert_eq!(names(dir.path()), FETCHED);
    assert_eq!(std::fs::read(dir.path().join(FETCHED[2])).unwrap(), WEIGHTS);
    assert_eq!((progress.bytes, progress.total), (100_001, 100_001));
    assert!(!hub.asked().iter().any(|path| path.contains(".py") || path.contains(".bin")), "{:?}", hub.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_goes_to_the_hub_and_not_to_where_it_redirects() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), model());
    hub.state.lock().unwrap().token = "hf_secret".into();
    for (token, part) in [(None, "is private"), (Some("wrong"), "to the token")] {
        let text = fetch(&hub, dir.path(), "main", token).await.unwrap_err().to_string();
        assert!(text.contains(part) && !text.contains("wrong"), "{text}");
    }
    fetch(&hub, dir.path(), "main", Some("hf_secret")).await.unwrap();
    let asked = &hub.state.lock().unwrap().asked;
    let (hubs, stores): (Vec<_>, Vec<_>) = asked.iter().skip(2).partition(|(port, ..)| *port == hub.address.port());
    assert!(hubs.iter().all(|(_, _, token)| token.as_deref() == Some("hf_secret")), "{hubs:?}");
    assert!(stores.len() > 3 && stores.iter().all(|(_, _, token)| token.is_none()), "{stores:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_file_is_not_kept_and_the_others_are_not_fetched_again() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), model());
    for damaged in ["config.json", FETCHED[3]] {
        hub.state.lock().unwrap().damaged = vec![damaged.into()];
        let text = fetch(&hub, dir.path(), "main", None).await.unwrap_err().to_string();
        assert!(text.contains(damaged) && text.contains("has the digest"), "{text}");
        assert!(!names(dir.path()).iter().any(|name| name.starts_with(damaged)), "{:?}", names(dir.path()));
    }
    hub.state.lock().unwrap().damaged.clear();
    let before = hub.asked().len();
    fetch(&hub, dir.path(), "main", None).await.unwrap();
    assert_eq!(names(dir.path()), FETCHED);
    let asked = hub.asked().split_off(before);
    assert!(!asked.iter().any(|path| path.contains(FETCHED[2])), "fetched again: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_is_resolved_and_a_commit_stays_what_it_is() {
    let hub = model();
    let endpoint = hub.endpoint().parse().unwrap();
    let resolve = async |revision: &str| fetcher().repository(&endpoint, "o/n", revision, None).await.map(|r| r.commit);
    assert_eq!(resolve("main").await.unwrap(), FIRST);
    hub.state.lock().unwrap().main = SECOND.into();
    assert_eq!(resolve("main").await.unwrap(), SECOND);
    assert_eq!(resolve(FIRST).await.unwrap(), FIRST);
    assert!(resolve("v9").await.unwrap_err().to_string().contains("no revision \"v9\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn repository_that_lists_a_path_outside_or_misses_a_file_leaves_nothing_complete() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), model());
    hub.state.lock().unwrap().missing = vec!["config.json".into()];
    let text = fetch(&hub, dir.path(), "main", None).await.unwrap_err().to_string();
    assert!(text.contains("config.json") && text.contains("404"), "{text}");
    hub.state.lock().unwrap().files.insert("../escaped.json".into(), b"{}".to_vec());
    let text = fetch(&hub, &dir.path().join("in"), "main", None).await.unwrap_err().to_string();
    assert!(text.contains("leads out of it"), "{text}");
    assert!(!dir.path().join("escaped.json").exists() && !dir.path().join("in").exists());
}
