//! The guard, on the router itself. What the page shows is tested in a browser on a cluster (`dashboard_shows_…`, e2e).

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::guard::Address;
use super::{Decisions, NEWEST, SCRIPT, STYLE, router};
use crate::cluster::Cluster;

fn address() -> Address {
    Address { port: 4321, token: "0123abcd".to_owned() }
}

#[test]
fn only_this_page_on_this_address_is_answered() {
    let check = |method: Method, headers: &[(&'static str, &str)], want: Option<u16>| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let got = address().refusal(&method, &map).map(|(code, _)| code.as_u16());
        assert_eq!(got, want, "{method} {headers:?}");
    };
    let (host, own) = (("host", "127.0.0.1:4321"), ("x-stowage-dashboard", "1"));
    check(Method::GET, &[host], None);
    check(Method::GET, &[("host", "localhost:4321")], None);
    check(Method::GET, &[], Some(421));
    // A name of the attacker's that resolves to loopback.
    check(Method::GET, &[("host", "evil.example:4321")], Some(421));
    check(Method::GET, &[("host", "127.0.0.1:80")], Some(421));
    check(Method::GET, &[("host", "127.0.0.1:4321.evil.example")], Some(421));
    check(Method::GET, &[host, ("origin", "http://evil.example")], Some(403));
    check(Method::POST, &[host, ("origin", "http://127.0.0.1:4321"), own], None);
    check(Method::POST, &[host, ("origin", "http://127.0.0.1:4322"), own], Some(403));
    check(Method::POST, &[host, ("origin", "null"), own], Some(403));
    // What a foreign form can send without asking first.
    check(Method::POST, &[host], Some(403));
    check(Method::OPTIONS, &[host], Some(403));
}

/// A cluster that does not answer.
async fn nowhere() -> Cluster {
    let config = "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], \
        clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: u, user: {}}]}";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config).unwrap();
    Cluster::connect(Some(file.path()), None).await.unwrap()
}

#[tokio::test]
async fn token_opens_the_page_and_every_answer_has_its_policy() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = nowhere().await;
    for (path, want) in [
        ("/0123abcd/", StatusCode::OK),
        ("/0123abcd/page.css", StatusCode::OK),
        ("/0123abcd/page.js", StatusCode::OK),
        ("/", StatusCode::NOT_FOUND),
        ("/0123abce/", StatusCode::NOT_FOUND),
        ("/0123abcd", StatusCode::NOT_FOUND),
        ("/0123abcd/overview.json", StatusCode::BAD_GATEWAY),
        ("/0123abcd/decisions.json?since=x", StatusCode::BAD_REQUEST),
    ] {
        let request = Request::get(path).header(header::HOST, "127.0.0.1:4321").body(Body::empty()).unwrap();
        let answer = router(cluster.clone(), "n", &address()).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), want, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(
            (&answer.headers()["referrer-policy"], &answer.headers()["cache-control"]),
            (&"no-referrer".parse().unwrap(), &"no-store".parse().unwrap())
        );
        if want == StatusCode::BAD_GATEWAY {
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("asking the operator"), "{body:?}");
        }
    }
}

#[test]
fn of_many_decisions_the_page_gets_the_newest_and_what_it_shows() {
    let one = |n: usize| {
        serde_json::json!({"id": n.to_string(), "time": n, "kind": "Place", "action": "Wait", "message": "m", "candidates": [1],
            "object": {"namespace": "n", "name": "d"}})
    };
    let all: Vec<_> = (0..NEWEST + 200).map(one).collect();
    let answer: Decisions = serde_json::from_value(serde_json::json!({"decisions": all})).unwrap();
    let text = serde_json::to_value(answer.newest()).unwrap();
    let shown = text["decisions"].as_array().unwrap();
    assert_eq!((shown.len(), shown[0]["time"].as_u64(), &shown[0]["object"]["name"]), (NEWEST, Some(200), &"d".into()));
    assert!(!text.to_string().contains("candidates"));
}

#[test]
fn page_asks_nobody_else_and_writes_no_markup() {
    for (what, text) in [("page", super::PAGE), ("style", STYLE), ("script", SCRIPT)] {
        let foreign = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http:") && !foreign.contains("https:") && !foreign.contains("@import"), "{what}");
    }
    for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
        assert!(!SCRIPT.contains(word), "{word}");
    }
}
