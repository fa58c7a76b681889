//! The load of earlier days from a real Prometheus, and from servers that answer nonsense.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use jiff::Timestamp;
use prometheus_http_query::Client;
use stowage_operator::observe::history::{EarlierLoads, read};
use stowage_planner::snapshot::{DeploymentId, History};
use stowage_telemetry::catalog::operator::OFFERED_LOAD;

const DAY: i64 = 86_400;

/// Ends the process when the test does.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn client(address: &str) -> Client {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Client::from(http, &format!("http://{address}")).unwrap()
}

/// Series of `labels` with a value every 15 s from five minutes before each moment until seven after; it rises to the
/// second value two and a half minutes after.
fn series(text: &mut String, labels: &str, moments: &[i64], value: f64, later: f64) {
    for moment in moments {
        for at in (-300..420).step_by(15) {
            let value = if at < 150 { value } else { later };
            writeln!(text, "{}{labels} {value} {}", OFFERED_LOAD.name, moment + at).unwrap();
        }
    }
}

/// Prometheus with these samples; `None`: it is not installed.
async fn prometheus(folder: &Path, samples: &str) -> Option<(Prometheus, Client)> {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped: promtool is not installed (e2e/prerequisites.sh)");
        return None;
    }
    let (input, data, config) = (folder.join("samples"), folder.join("data"), folder.join("prometheus.yml"));
    std::fs::write(&input, format!("# TYPE {} gauge\n{samples}# EOF\n", OFFERED_LOAD.name)).unwrap();
    std::fs::write(&config, "").unwrap();
    let made =
        Command::new("promtool").args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&input).arg(&data).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", data.display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let (child, client) = (Prometheus(child.unwrap()), client(&address));
    for _ in 0..600 {
        if client.is_server_ready().await.unwrap_or(false) {
            return Some((child, client));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("Prometheus is not ready after a minute");
}

fn of(loads: &EarlierLoads, name: &str, start_s: u64) -> Option<History> {
    loads.get(&DeploymentId::new("team-a", name))?.history(Some(Duration::from_secs(start_s)))
}

#[tokio::test]
async fn growth_of_earlier_days_is_read_from_a_real_prometheus() {
    stowage_telemetry::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let now = Timestamp::now().as_second();
    let (days, week) = ([now - 2 * DAY, now - DAY], [now - 7 * DAY]);
    let mut text = String::new();
    series(&mut text, r#"{namespace="team-a",deployment="chat",pod="a"}"#, &[week[0], days[0]], 2.0, 4.0);
    series(&mut text, r#"{namespace="team-a",deployment="chat",pod="b"}"#, &days[1..], 2.0, 4.0);
    // One of the two may be anybody's.
    series(&mut text, r#"{namespace="team-a",deployment="twice",pod="a"}"#, &days, 2.0, 4.0);
    series(&mut text, r#"{namespace="team-a",deployment="twice",pod="b"}"#, &days, 1.0, 90.0);
    series(&mut text, r#"{namespace="team-a",deployment="young"}"#, &days[1..], 1.0, 3.0);
    series(&mut text, r#"{namespace="team-a",deployment="odd"}"#, &days, f64::NAN, f64::INFINITY);
    series(&mut text, r#"{namespace="team-a"}"#, &days, 5.0, 5.0);
    let Some((_running, client)) = prometheus(folder.path(), &text).await else { return };
    let loads = read(&client, now).await.unwrap();
    assert_eq!(of(&loads, "chat", 300), Some(History { now: 2.0, ahead: 4.0, periods: 3 }));
    assert_eq!(of(&loads, "chat", 20), Some(History { now: 2.0, ahead: 2.0, periods: 3 }));
    assert_eq!(of(&loads, "young", 300), Some(History { now: 1.0, ahead: 3.0, periods: 1 }), "too few for the planner");
    assert_eq!(of(&loads, "odd", 300), None);
    assert_eq!(of(&loads, "twice", 300), None);
    assert_eq!(loads.len(), 2, "{loads:?}");
}

#[tokio::test]
async fn nonsense_gives_no_load_and_no_panic() {
    stowage_telemetry::install_crypto();
    let vector = |labels: &str, value: &str| {
        format!(
            r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{labels},"value":[1,"{value}"]}}]}}}}"#
        )
    };
    let named = r#"{"namespace":"team-a","deployment":"chat"}"#;
    let cases = [
        ("a negative load", vector(named, "-1"), Some(0)),
        ("more than a cluster", vector(named, "1e300"), Some(0)),
        ("not a number", vector(named, "NaN"), Some(0)),
        ("no deployment", vector(r#"{"namespace":"team-a","deployment":""}"#, "1"), Some(0)),
        ("a good one", vector(named, "1"), Some(1)),
        ("another kind", r#"{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}"#.to_owned(), Some(0)),
        ("an error", r#"{"status":"error","errorType":"internal","error":"x"}"#.to_owned(), None),
        ("no JSON", "<html>".to_owned(), None),
    ];
    for (what, body, series) in cases {
        let answer = move || {
            let body = body.clone();
            async move { ([(CONTENT_TYPE, "application/json")], body).into_response() }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let found = read(&client(&address), 2_000_000_000).await;
        assert_eq!(found.as_ref().map(|loads| loads.len()).ok(), series, "{what}: {found:?}");
        server.abort();
    }
    assert!(read(&client("127.0.0.1:1"), 2_000_000_000).await.is_err());
}
