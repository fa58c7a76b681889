//! Clients that do not read, do not finish, or come in great numbers.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::engine::{Behaviour, MockEngine};
use crate::support::harness::{Harness, LIMITS, OK, chat, until};

/// More than sockets on loopback hold.
const FLOOD: Behaviour = Behaviour::Flood;

#[tokio::test]
async fn http1_client_that_does_not_read_gives_its_replica_back() {
    let engine = MockEngine::start(FLOOD).await;
    let gateway = Harness::start(&[&engine]).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(gateway.address).await.unwrap();
    let body = chat(true).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    until("the engine works", || engine.seen().len() == 1).await;
    until("its replica is free", || gateway.in_flight() == 0).await;
    assert_eq!(gateway.gateway.metrics.connections.get(), 0, "the connection is closed too");
}

#[tokio::test]
async fn client_that_reads_slowly_gets_its_whole_answer() {
    let engine = MockEngine::start(Behaviour::Events { events: 40, bytes: 64 << 10 }).await;
    let gateway = Harness::start(&[&engine]).await;
    let mut response = gateway.open_stream().await;
    let mut received = 0;
    while let Some(frame) = response.body_mut().frame().await {
        received += frame.unwrap().data_ref().map_or(0, Bytes::len);
        // Two and a half MiB in some two seconds: longer than the timeout of one second, and never idle for it.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(received > 40 * (64 << 10), "{received}");
}

/// An HTTP/2 connection on which answers have no room.
async fn zero_window(
    gateway: &Harness,
) -> (hyper::client::conn::http2::SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>) {
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(socket))
        .await
        .unwrap();
    (sender, tokio::spawn(async move { drop(connection.await) }))
}

fn request(gateway: &Harness, key: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://{}/v1/chat/completions", gateway.address))
        .header("authorization", format!("Bearer {key}"))
        .body(Full::new(chat(true).to_string().into()))
        .unwrap()
}

#[tokio::test]
async fn http2_stream_without_a_window_gives_its_replica_back_and_others_go_on() {
    let engine = MockEngine::start(FLOOD).await;
    let gateway = Harness::start(&[&engine]).await;
    let (mut sender, _connection) = zero_window(&gateway).await;
    let stalled = sender.send_request(request(&gateway, "sk-a")).await.unwrap();
    until("its replica is free", || engine.seen().len() == 1 && gateway.in_flight() == 0).await;
    assert!(stalled.into_body().frame().await.unwrap().is_err(), "the stream was reset");
    // The connection itself still works.
    assert_eq!(sender.send_request(request(&gateway, "sk-a")).await.unwrap().status(), OK);
}

#[tokio::test]
async fn http2_connection_whose_answers_are_never_read_is_closed() {
    let gateway = Harness::start(&[]).await;
    let (mut sender, connection) = zero_window(&gateway).await;
    let refused = sender.send_request(request(&gateway, "sk-no")).await.unwrap();
    assert_eq!(refused.status(), 401);
    tokio::time::timeout(Duration::from_secs(20), connection).await.expect("closed").unwrap();
    until("it is gone", || gateway.gateway.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn connection_without_a_valid_key_gets_sixteen_answers() {
    let gateway = Harness::start(&[]).await;
    let (mut sender, connection) = zero_window(&gateway).await;
    let mut answered = 0;
    while let Ok(response) = sender.send_request(request(&gateway, "sk-no")).await {
        assert_eq!(response.status(), 401);
        answered += 1;
        assert!(answered < 100, "no end");
    }
    assert!(answered >= 16, "{answered}");
    connection.await.unwrap();
}

#[tokio::test]
async fn unfinished_heads_hold_a_bounded_amount_together() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut limits = LIMITS;
    limits.server.header_timeout = Duration::from_secs(60);
    limits.server.max_partial_heads = 64 << 10;
    let gateway = Harness::with(&[&engine], limits).await;
    let head = format!("GET /v1/models HTTP/1.1\r\nx-long: {}", "y".repeat(12 << 10));
    let mut sockets = Vec::new();
    for _ in 0..40 {
        sockets.push(gateway.raw(&head).await);
    }
    // Each is charged 8 KiB; one address may have three quarters of 64 KiB.
    until("most are closed", || gateway.gateway.metrics.connections.get() <= 6).await;
    assert_eq!(gateway.chat(false).await.status, OK);
}

#[tokio::test]
async fn address_with_too_many_connections_gets_no_more() {
    let mut limits = LIMITS;
    limits.server.peers.max_per_address = 3;
    let gateway = Harness::with(&[], limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(gateway.raw("").await);
    }
    until("they are there", || gateway.gateway.metrics.connections.get() == 3).await;
    let mut fourth = gateway.raw("").await;
    assert_eq!(fourth.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(gateway.gateway.metrics.refused_connections.get(), 1);
    drop(held);
    until("they are gone", || gateway.gateway.metrics.connections.get() == 0).await;
    assert_eq!(gateway.get(None, "/healthz").await.status, OK);
}

#[tokio::test]
async fn connections_without_a_key_displace_each_other_and_not_those_with_one() {
    let engine = MockEngine::start(Behaviour::Stream { events: 100, gap: Duration::from_millis(20) }).await;
    let mut limits = LIMITS;
    limits.server.peers.max_guests = 5;
    limits.server.header_timeout = Duration::from_secs(60);
    let gateway = Harness::with(&[&engine], limits).await;
    let stream = gateway.open_stream().await;
    let mut guests = Vec::new();
    for _ in 0..50 {
        guests.push(gateway.raw("GET /v1/mo").await);
    }
    until("few are left", || gateway.gateway.metrics.connections.get() <= 6).await;
    let answer = crate::support::harness::read(stream).await;
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    // A client that shows its key at once is served among them.
    assert_eq!(gateway.get(Some("sk-a"), "/v1/models").await.status, OK);
}
