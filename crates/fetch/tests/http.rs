//! Fetches from a real HTTP server on loopback that misbehaves in one way per test.

#![allow(clippy::unwrap_used)]

mod server;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use server::{Behaviour, Server, content};
use sha2::{Digest, Sha256};
use stowage_fetch::address::Addresses;
use stowage_fetch::pieces::PIECE;
use stowage_fetch::{FetchError, Fetcher, FileDigest, Keys, Limits, Login, Phase, Progress, Request, parse_url};
use tokio::sync::watch;

/// A little more than two pieces.
const LEN: usize = 2 * PIECE as usize + 12_345;

fn limits() -> Limits {
    Limits {
        disk_reserve_bytes: 0,
        stall: Duration::from_millis(300),
        pause: Duration::from_millis(5),
        total: Duration::from_secs(60),
        ..Limits::default()
    }
}

fn loopback() -> Addresses {
    Addresses { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Addresses::default() }
}

fn request(dir: &Path, url: &str, bytes: &[u8]) -> Request {
    Request {
        url: parse_url(url).unwrap(),
        digest: FileDigest::Sha256(Sha256::digest(bytes).into()),
        partial: dir.join("model.partial"),
        login: None,
    }
}

async fn fetch_with(limits: Limits, addresses: Addresses, request: &Request) -> Result<Progress, FetchError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let progress = watch::Sender::new(Progress::default());
    Fetcher::new(addresses, limits).fetch(request, &progress).await.map(|()| *progress.borrow())
}

/// Fetches a file of this length; what was fetched is the file, or the error contains the text.
async fn check(behaviour: Behaviour, len: usize, expected: Result<(), &str>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(len);
    let server = Server::start(behaviour, bytes.clone());
    let request = request(dir.path(), &server.url(), &bytes);
    match (fetch_with(limits(), loopback(), &request).await, expected) {
        (Ok(progress), Ok(())) => {
            assert_eq!(std::fs::read(&request.partial).unwrap(), bytes);
            assert_eq!(progress, Progress { phase: Phase::Verify, bytes: len as u64, total: len as u64 });
        }
        (Err(e), Err(part)) => {
            let text = e.to_string();
            assert!(text.contains(part), "{text}");
            assert!(text.len() < 1000, "{} bytes", text.len());
        }
        (found, _) => panic!("{found:?} instead of {expected:?}"),
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn file_is_fetched_in_parallel_ranges() {
    let server = check(Behaviour::Good, LEN, Ok(())).await;
    assert!(server.seen.most_at_once.load(Ordering::Relaxed) > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_answers_200_to_a_range_is_read_as_a_whole() {
    check(Behaviour::NoRanges, LEN, Ok(())).await;
    check(Behaviour::NoRanges, 5, Ok(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_stall_or_fail_are_continued() {
    for behaviour in [Behaviour::EndsEarlySometimes, Behaviour::StallsSometimes, Behaviour::FailsSometimes] {
        check(behaviour, LEN, Ok(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_never_recovers_is_given_up() {
    check(Behaviour::AlwaysFails, 100, Err("answers 503")).await;
    check(Behaviour::AlwaysStalls, 100, Err("nothing came for too long")).await;
    check(Behaviour::Closes, 100, Err("connection to 127.0.0.1 failed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_sends_next_to_nothing_is_given_up_and_what_came_is_kept() {
    let server = check(Behaviour::OneByteEach, LEN, Err("attempt 8 without progress")).await;
    let requests = server.seen.requests.load(Ordering::Relaxed);
    assert!(requests < 50, "{requests} requests");

    let (dir, bytes) = (tempfile::tempdir().unwrap(), content(LEN));
    let server = Server::start(Behaviour::Drips, bytes.clone());
    let request = request(dir.path(), &server.url(), &bytes);
    let slow = Limits { slowest: (1000, Duration::from_millis(700)), ..limits() };
    let e = fetch_with(slow, loopback(), &request).await.unwrap_err();
    assert!(e.to_string().contains("bytes came in 700ms"), "{e}");
    assert!(request.partial.exists());
    server.set(Behaviour::Good);
    fetch_with(limits(), loopback(), &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_lies_is_refused() {
    check(Behaviour::SendsAnotherRange, 100, Err("sends the bytes")).await;
    check(Behaviour::LongerThanSaid, 100, Err("more bytes than")).await;
    check(Behaviour::NoLength, 100, Err("does not say how long")).await;
    check(Behaviour::LongRange, 100, Err("sends the range")).await;
    check(Behaviour::Missing, 100, Err("answers 404")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_changes_meanwhile_is_never_mixed() {
    check(Behaviour::ChangesOnce, LEN, Ok(())).await;
    check(Behaviour::ChangesAlways, LEN, Err("changed while it was fetched")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_digest_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Behaviour::Good, content(100));
    let request = request(dir.path(), &server.url(), b"another file");
    let e = fetch_with(limits(), loopback(), &request).await.unwrap_err();
    assert!(matches!(e, FetchError::Digest { .. }), "{e}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_that_was_cut_goes_on_with_the_missing_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(LEN);
    let server = Server::start(Behaviour::SlowAfterFirstPiece, bytes.clone());
    let request = request(dir.path(), &server.url(), &bytes);
    let one = Limits { parallel: 1, ..limits() };
    let cut = tokio::time::timeout(Duration::from_secs(5), async {
        tokio::select! {
            done = fetch_with(one.clone(), loopback(), &request) => panic!("{done:?} of a server that never ends"),
            () = server.second_piece_asked() => {}
        }
    });
    cut.await.unwrap();
    let before = server.seen.sent.load(Ordering::Relaxed);
    server.set(Behaviour::Good);
    fetch_with(one, loopback(), &request).await.unwrap();
    assert_eq!(std::fs::read(&request.partial).unwrap(), bytes);
    let again = server.seen.sent.load(Ordering::Relaxed) - before;
    assert!(again < LEN as u64 - PIECE + 1000, "{again} bytes sent again of {LEN}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_size_disk_time_and_bandwidth_hold() {
    let bytes = content(200_000);
    let server = Server::start(Behaviour::Good, bytes.clone());
    let dir = tempfile::tempdir().unwrap();
    let request = request(dir.path(), &server.url(), &bytes);
    let small = Limits { file_bytes: 199_999, ..limits() };
    assert!(matches!(fetch_with(small, loopback(), &request).await, Err(FetchError::TooLarge { .. })));
    let full = Limits { disk_reserve_bytes: u64::MAX, ..limits() };
    assert!(matches!(fetch_with(full, loopback(), &request).await, Err(FetchError::DiskFull { .. })));
    let slow = Limits { bytes_per_second: 1000, total: Duration::from_millis(300), ..limits() };
    assert!(matches!(fetch_with(slow, loopback(), &request).await, Err(FetchError::TooSlow(_))));
    let start = Instant::now();
    let limited = Limits { bytes_per_second: 400_000, ..limits() };
    fetch_with(limited, loopback(), &request).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?} for half a second's bytes", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_that_fit_alone_do_not_fill_the_disk_together() {
    let bytes = content(200_000);
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::start(Behaviour::Drips, bytes.clone()));
    let fetcher = Fetcher::new(loopback(), limits());
    fetcher.room.set_limit(300_000);
    let first = request(dir.path(), &server.url(), &bytes);
    let progress = watch::Sender::new(Progress::default());
    let running = tokio::spawn({
        let fetcher = fetcher.clone();
        async move { fetcher.fetch(&first, &progress).await }
    });
    while fetcher.room.reserved() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = Request { partial: dir.path().join("second.partial"), ..request(dir.path(), &server.url(), &bytes) };
    let progress = watch::Sender::new(Progress::default());
    let e = fetcher.fetch(&second, &progress).await.unwrap_err();
    assert!(matches!(e, FetchError::CacheFull { .. }), "{e}");
    running.abort();
    let _ = running.await;
    server.set(Behaviour::Good);
    fetcher.fetch(&second, &progress).await.unwrap();
    assert_eq!(fetcher.room.reserved(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_inside_are_reached_by_no_way() {
    let bytes = content(100);
    let inside = Server::start(Behaviour::Good, bytes.clone());
    let dir = tempfile::tempdir().unwrap();
    let port = inside.port();
    let only_v6 = Addresses { allowed: vec!["::/0".parse().unwrap()], ..Addresses::default() };
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1", "127.1"] {
        for addresses in [Addresses::default(), only_v6.clone()] {
            if host == "localhost" && addresses == only_v6 {
                // Refused by its IPv4 address only where it has one.
                continue;
            }
            let request = request(dir.path(), &format!("http://{host}:{port}/model"), &bytes);
            let e = fetch_with(limits(), addresses, &request).await.unwrap_err();
            assert!(matches!(e, FetchError::Address { .. }), "{host}: {e}");
        }
    }
    assert_eq!(inside.seen.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_and_each_is_judged() {
    let bytes = content(100);
    let target = Server::start(Behaviour::Good, bytes.clone());
    let to = |location: String| Server::start(Behaviour::Redirects(location), vec![]);
    let dir = tempfile::tempdir().unwrap();
    let keys = |url: &str| Login::keys(Keys::new("i", "s", None).unwrap(), "us-east-1", &parse_url(url).unwrap());
    let fine = to(target.url());
    let fetched = request(dir.path(), &fine.url(), &bytes);
    fetch_with(limits(), loopback(), &fetched).await.unwrap();
    for (location, part) in [
        ("http://169.254.169.254/latest/meta-data".to_owned(), "link-local"),
        ("http://10.96.0.1/".to_owned(), "a private address"),
        (format!("http://[::1]:{}/", target.port()), "a loopback address"),
        ("file:///etc/passwd".to_owned(), "neither http nor https"),
        ("http://user:secret@127.0.0.1/".to_owned(), "name or password"),
        ("/again".to_owned(), "more than 5 redirects"),
    ] {
        let server = to(location.clone());
        let request = request(dir.path(), &server.url(), &bytes);
        let with_keys = Request { login: Some(keys(&server.url())), ..request.clone() };
        for request in [request, with_keys] {
            let e = fetch_with(limits(), loopback(), &request).await.unwrap_err();
            assert!(e.to_string().contains(part), "{location}: {e}");
        }
    }
}
