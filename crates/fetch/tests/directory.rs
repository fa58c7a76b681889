//! Directories with a list of digests, from a real HTTP server on loopback.

#![allow(clippy::unwrap_used)]

#[path = "server/hub.rs"]
mod hub;

use std::path::Path;
use std::time::Duration;

use hub::Hub;
use sha2::{Digest, Sha256};
use stowage_fetch::address::Addresses;
use stowage_fetch::{FetchError, Fetcher, Files, Keys, Limits, Login, Progress, Url};
use tokio::sync::watch;

static WEIGHTS: [u8; 50_000] = [7; 50_000];
const FETCHED: [&str; 4] = ["config.json", "empty.txt", "model-1.safetensors", "model-2.safetensors"];

fn files() -> Vec<(&'static str, &'static [u8])> {
    vec![
        (FETCHED[0], b"{}"),
        (FETCHED[1], b""),
        (FETCHED[2], &WEIGHTS),
        (FETCHED[3], &WEIGHTS[1..]),
        ("modeling.py", b"import os"),
        ("pytorch_model.bin", b"pickle"),
    ]
}

/// As sha256sum writes it.
fn list(files: &[(&str, &[u8])]) -> String {
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    files.iter().map(|(name, bytes)| format!("{}  {name}\n", hex(bytes))).collect()
}

/// A server with these files and this list.
fn server(files: &[(&str, &[u8])], list: &str) -> Hub {
    let all: Vec<(&str, &[u8])> = files.iter().copied().chain([("SHA256SUMS", list.as_bytes())]).collect();
    Hub::start(&all)
}

/// The store gives each file under its name, to those who show no token.
fn url(server: &Hub) -> Url {
    format!("http://{}/", server.store).parse().unwrap()
}

fn fetcher(limits: Limits) -> Fetcher {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = Limits { disk_reserve_bytes: 0, pause: Duration::from_millis(1), ..limits };
    Fetcher::new(Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() }, limits)
}

/// Fetches the directory whose list this is.
async fn fetch(server: &Hub, folder: &Path, list: &str) -> Result<Progress, FetchError> {
    let fetcher = fetcher(Limits::default());
    let files = fetcher.directory(&url(server), Some(Sha256::digest(list).into()), None).await?.files;
    let progress = watch::Sender::new(Progress::default());
    fetcher
        .fetch_files(&Files { files, folder: folder.to_owned(), login: None }, &progress)
        .await
        .map(|()| *progress.borrow())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_is_fetched_without_code_and_pickles() {
    let (dir, list) = (tempfile::tempdir().unwrap(), list(&files()));
    let server = server(&files(), &list);
    let progress = fetch(&server, dir.path(), &list).await.unwrap();
    assert_eq!(names(dir.path()), FETCHED);
    assert_eq!(std::fs::read(dir.path().join(FETCHED[3])).unwrap(), WEIGHTS[1..]);
    assert_eq!((progress.bytes, progress.total), (100_001, 100_001));
    assert!(!server.asked().iter().any(|path| path.contains(".py") || path.contains(".bin")), "{:?}", server.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn list_with_another_digest_is_not_believed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), list(&files()[..3]));
    let server = server(&files(), &list(&files()));
    let text = fetch(&server, dir.path(), &other).await.unwrap_err().to_string();
    assert!(text.contains("SHA256SUMS: the file has the digest"), "{text}");
    assert_eq!(server.asked(), ["/SHA256SUMS"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_file_is_not_kept_and_the_others_are_not_fetched_again() {
    let (dir, list) = (tempfile::tempdir().unwrap(), list(&files()));
    let server = server(&files(), &list);
    server.state.lock().unwrap().damaged = vec![FETCHED[3].into()];
    let text = fetch(&server, dir.path(), &list).await.unwrap_err().to_string();
    assert!(text.contains("model-2.safetensors: the file has the digest"), "{text}");
    assert_eq!(names(dir.path()), FETCHED[..3]);
    server.state.lock().unwrap().damaged.clear();
    let before = server.asked().len();
    fetch(&server, dir.path(), &list).await.unwrap();
    assert_eq!(names(dir.path()), FETCHED);
    // The list, three lengths (an empty file needs none), and the one that is missing.
    let again = server.asked().split_off(before);
    assert_eq!(again.iter().filter(|path| path.contains(FETCHED[3])).count(), 3, "{again:?}");
    assert_eq!(again.len(), 6, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_that_climbs_or_names_what_is_not_there_leaves_nothing() {
    let digest = "a".repeat(64);
    for (more, part) in [
        (format!("{digest}  ../../../../etc/passwd\n"), "leads out of it"),
        (format!("{digest}  /etc/passwd\n"), "leads out of it"),
        (format!("{digest}  config.json\n"), "twice"),
        (format!("{digest}  gone.json\n"), "gone.json: 127.0.0.1 answers 404"),
        ("<html>".to_owned(), "write it with sha256sum"),
    ] {
        let (dir, list) = (tempfile::tempdir().unwrap(), list(&files()) + &more);
        let server = server(&files(), &list);
        let text = fetch(&server, dir.path(), &list).await.unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
    let server = Hub::start(&files());
    let text = fetch(&server, tempfile::tempdir().unwrap().path(), "").await.unwrap_err().to_string();
    assert!(text.contains("SHA256SUMS: 127.0.0.1 answers 404"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_that_never_ends_or_never_comes_is_given_up() {
    let endless = list(&[("model.safetensors", &[7; 100])]).repeat(100_000);
    let server = server(&files(), &endless);
    let text = fetch(&server, tempfile::tempdir().unwrap().path(), &endless).await.unwrap_err().to_string();
    assert!(text.contains("in more than 4194304 bytes"), "{text}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap()).parse().unwrap();
    let fetcher = fetcher(Limits { slowest: (1, Duration::from_millis(200)), ..Limits::default() });
    let e = fetcher.directory(&url, Some([0; 32]), None).await.unwrap_err();
    assert!(matches!(e, FetchError::TooSlow(_)), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_sign_requests_to_their_own_host_and_not_to_where_it_redirects() {
    let (dir, list) = (tempfile::tempdir().unwrap(), list(&files()));
    let server = server(&files(), &list);
    // Small files are here; large ones are redirected to the store, which refuses who shows a login.
    let url: Url = format!("{}/o/n/resolve/main/", server.endpoint()).parse().unwrap();
    let login = Login::keys(Keys::new("key-id", "secret-key", None).unwrap(), "us-east-1", &url);
    let fetcher = fetcher(Limits::default());
    let files = fetcher.directory(&url, Some(Sha256::digest(&list).into()), Some(&login)).await.unwrap().files;
    let all = Files { files, folder: dir.path().to_owned(), login: Some(login) };
    fetcher.fetch_files(&all, &watch::Sender::new(Progress::default())).await.unwrap();
    assert_eq!(names(dir.path()), FETCHED);
    let asked = &server.state.lock().unwrap().asked;
    let (own, others): (Vec<_>, Vec<_>) = asked.iter().partition(|(port, ..)| *port == server.address.port());
    assert!(own.len() > 5 && own.iter().all(|(_, _, id)| id.as_deref() == Some("key-id")), "{own:?}");
    assert!(others.len() > 3 && others.iter().all(|(_, _, login)| login.is_none()), "{others:?}");
}
