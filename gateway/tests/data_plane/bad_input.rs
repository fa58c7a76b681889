//! Requests that no client should send, as a table; and clients that take their time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::engine::{Behaviour, MockEngine};
use crate::support::harness::{Harness, LIMITS, OK, until};

const CHAT: &str = "/v1/chat/completions";

/// Method, key, path, body, and then status, code and parameter of the answer.
type Case<'a> = (&'a str, Option<&'a str>, &'a str, &'a str, u16, &'a str, Option<&'a str>);

#[tokio::test]
async fn every_invalid_request_has_its_status_code_and_parameter() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let big = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(70 << 10));
    let cases: [Case<'_>; 24] = [
        ("POST", None, CHAT, "{}", 401, "invalid_api_key", None),
        ("POST", Some("sk-wrong"), CHAT, "{}", 401, "invalid_api_key", None),
        ("POST", Some(""), CHAT, "{}", 401, "invalid_api_key", None),
        ("POST", Some("sk-a"), "/v1/chat/completions?key=sk-a", "{}", 401, "invalid_api_key", None),
        ("POST", None, "/v1/chat/completions?api_key=sk-a", r#"{"model":"m"}"#, 401, "invalid_api_key", None),
        ("GET", None, "/v1/models", "", 401, "invalid_api_key", None),
        ("POST", Some("sk-a"), CHAT, "", 400, "invalid_json", None),
        ("POST", Some("sk-a"), CHAT, "{", 400, "invalid_json", None),
        ("POST", Some("sk-a"), CHAT, "[]", 400, "invalid_json", None),
        ("POST", Some("sk-a"), CHAT, "\"text\"", 400, "invalid_json", None),
        ("POST", Some("sk-a"), CHAT, r#"{"model":"m\ud800"}"#, 400, "invalid_json", None),
        ("POST", Some("sk-a"), CHAT, "{}", 400, "missing_required_parameter", Some("model")),
        ("POST", Some("sk-a"), CHAT, r#"{"model":null}"#, 400, "missing_required_parameter", Some("model")),
        ("POST", Some("sk-a"), CHAT, r#"{"model":7}"#, 400, "invalid_type", Some("model")),
        ("POST", Some("sk-a"), CHAT, r#"{"model":"m","stream":"yes"}"#, 400, "invalid_type", Some("stream")),
        ("POST", Some("sk-a"), CHAT, r#"{"model":"m","max_tokens":-1}"#, 400, "invalid_value", Some("max_tokens")),
        ("POST", Some("sk-a"), CHAT, r#"{"model":"other"}"#, 404, "model_not_found", Some("model")),
        ("POST", Some("sk-a"), CHAT, &big, 413, "request_too_large", None),
        ("GET", Some("sk-a"), CHAT, "", 405, "method_not_allowed", None),
        ("POST", Some("sk-a"), "/v1/embeddings", "{}", 404, "not_supported_yet", None),
        ("GET", Some("sk-a"), "/v1/models/none", "", 404, "model_not_found", Some("model")),
        ("GET", Some("sk-a"), "/metrics", "", 404, "unknown_url", None),
        ("GET", Some("sk-a"), "/stowage/v1/load", "", 404, "unknown_url", None),
        ("GET", Some("sk-a"), "/stowage/v1/signals", "", 404, "unknown_url", None),
    ];
    for (method, key, path, body, status, code, param) in cases {
        let method: Method = method.parse().unwrap();
        let answer = gateway.send(method.clone(), path, key, Bytes::copy_from_slice(body.as_bytes())).await;
        let shown = format!("{method} {path} {} → {}", &body[..body.len().min(60)], answer.text());
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{shown}");
        assert_eq!(answer.json()["error"]["param"].as_str(), param, "{shown}");
        assert!(answer.json()["error"]["message"].as_str().is_some_and(|message| message.len() > 20), "{shown}");
    }
    assert_eq!(engine.seen().len(), 0);
}

/// The status of what a socket answers, 0 for a closed connection.
async fn status(socket: &mut TcpStream) -> u16 {
    let mut head = [0; 64];
    let read = tokio::time::timeout(Duration::from_secs(5), socket.read(&mut head)).await;
    let text = String::from_utf8_lossy(&head[..read.unwrap().unwrap_or(0)]).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn paths_that_a_client_library_would_normalise_are_404_on_the_wire() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    for path in [
        "/v1/../metrics",
        "/v1/./models",
        "//v1/models",
        "/v1//models",
        "/%2e%2e/metrics",
        "/v1/%2e%2e/metrics",
        "/v1%2fmodels",
        "/v1/models/",
        "/v1/chat/completions/../../../pause",
        "/v1/chat/completions//",
        "/%76%31/models",
        "/v1/models/..%2f..%2fmetrics",
        "/pause",
        "/sleep",
        "/update_weights",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/stowage/v1/continue",
        "/V1/models",
        "/v1/models\u{7f}",
    ] {
        for method in ["GET", "POST"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\ncontent-length: 0\r\n\r\n"
            );
            let status = status(&mut gateway.raw(&request).await).await;
            assert!(status == 404 || (status == 400 && path.contains('\u{7f}')), "{method} {path} → {status}");
        }
    }
    // An absolute target and a query name the same path as without.
    let request = "GET http://other/v1/models?limit=2 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\n\r\n";
    assert_eq!(status(&mut gateway.raw(request).await).await, OK);
    assert_eq!(engine.seen().len(), 0);
}

#[tokio::test]
async fn malformed_heads_are_refused_and_others_are_served() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let many: String = (0..100).map(|i| format!("h{i}: v\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(40 << 10));
    for (what, text, expected) in [
        ("too many headers", format!("GET /healthz HTTP/1.1\r\n{many}\r\n"), 431),
        ("far too many headers", format!("GET /healthz HTTP/1.1\r\n{many}{many}{many}\r\n"), 431),
        ("a header too long", format!("GET /healthz HTTP/1.1\r\n{long}\r\n"), 431),
        ("no HTTP", "hello\r\n\r\n".to_owned(), 400),
        (
            "two lengths",
            "POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\n{}".to_owned(),
            400,
        ),
        (
            "a bad chunk",
            format!("POST {CHAT} HTTP/1.1\r\nauthorization: Bearer sk-a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
            400,
        ),
    ] {
        let got = status(&mut gateway.raw(&text).await).await;
        assert!(got == expected || got == 0, "{what}: {got}");
    }
    assert_eq!(gateway.chat(false).await.status, OK);
}

#[tokio::test]
async fn caller_without_a_key_is_refused_before_the_body_is_read() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let mut socket = gateway
        .raw(&format!("POST {CHAT} HTTP/1.1\r\nauthorization: Bearer sk-no\r\ncontent-length: 60000\r\n\r\n"))
        .await;
    assert_eq!(status(&mut socket).await, 401);
}

#[tokio::test]
async fn a_body_that_never_ends_is_ended() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nauthorization: Bearer sk-a\r\ntransfer-encoding: chunked\r\n\r\n");
    // One that stops coming …
    let mut idle = gateway.raw(&format!("{head}4\r\n{{\"mo\r\n")).await;
    assert_eq!(status(&mut idle).await, 408);
    // … and one that never stops.
    let mut endless = gateway.raw(&head).await;
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    for _ in 0..80 {
        if endless.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    assert_eq!(status(&mut endless).await, 413);
    assert_eq!(gateway.gateway.metrics.buffered_bytes.get(), 0);
}

#[tokio::test]
async fn silent_and_trickling_connections_are_closed() {
    let gateway = Harness::start(&[]).await;
    for begin in ["", "P", "POST /v1/chat/comp"] {
        let mut socket = gateway.raw(begin).await;
        let started = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(4), socket.read(&mut [0; 512])).await;
        assert!(ended.is_ok(), "{begin:?} was still open after {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_thousand_trickling_clients_do_not_disturb_others() {
    stowage_gateway::listen::server::raise_file_limit();
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut limits = LIMITS;
    // Long enough for all of them to be connected at once, on a busy machine too.
    limits.settings.body.patience = Duration::from_secs(8);
    let gateway = Harness::with(&[&engine], limits).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nauthorization: Bearer sk-a\r\ncontent-length: 2000\r\n\r\n");
    let mut slow = Vec::new();
    for _ in 0..1000 {
        slow.push(gateway.raw(&head).await);
    }
    until("all are connected", || gateway.gateway.metrics.connections.get() >= 1000).await;
    let trickle = async {
        for _ in 0..3 {
            for socket in &mut slow {
                let _ = socket.write_all(b"x").await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let others = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..30 {
            let started = Instant::now();
            assert_eq!(gateway.chat(false).await.status, OK);
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let ((), slowest) = tokio::join!(trickle, others);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(gateway.gateway.metrics.buffered_bytes.get() <= 1000 * 2000, "what was announced is charged");
}

#[tokio::test]
async fn more_headers_than_are_read_are_answered_with_an_error_object() {
    let gateway = Harness::start(&[]).await;
    let mut request = http::Request::get(format!("http://{}/v1/models", gateway.address));
    for n in 0..80 {
        request = request.header(format!("x-{n}"), "v");
    }
    let request = request.body(http_body_util::Full::new(Bytes::new())).unwrap();
    let answer = crate::support::harness::read(gateway.client.request(request).await.unwrap()).await;
    assert_eq!((answer.status, answer.code().as_str()), (431, "too_many_headers"));
    assert!(answer.text().contains("64"), "{}", answer.text());
}
