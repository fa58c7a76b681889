//! The API on a real socket, with the simulated model: every refusal, streams, the cache, and clients
//! that leave.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::Value;
use stowage_engine::process::Model;
use stowage_engine::text::{self, TextModel};
use stowage_engine_core::executor::{ExecError, Executor, ModelInfo, StepBatch};
use stowage_telemetry::catalog::{Process, page};
use support::{CHAT, MODEL, TEXT, chat_body, completion_body, model_info, receive, start, start_with, stream_text};

#[test]
fn every_wrong_request_is_refused_with_what_to_change() {
    let server = start(&["--max-model-len", "256"]);
    let long = "x".repeat(300);
    let chat = |fields: &str| chat_body(fields);
    let text = |fields: &str| format!(r#"{{"model":"{MODEL}"{fields}}}"#);
    let cases: Vec<(&str, String, u16, &str, &str, &str)> = vec![
        (CHAT, "{".into(), 400, "invalid_json", "", "not valid JSON"),
        (CHAT, "[]".into(), 400, "invalid_json", "", "JSON object"),
        (CHAT, r#"{"model":"\ud800"}"#.into(), 400, "invalid_json", "", "not valid JSON"),
        (CHAT, "{}".into(), 400, "missing_required_parameter", "model", "missing"),
        (
            CHAT,
            r#"{"model":"other","messages":[{"role":"user","content":"x"}]}"#.into(),
            404,
            "model_not_found",
            "model",
            "`other`",
        ),
        (TEXT, r#"{"model":"other","prompt":"x"}"#.into(), 404, "model_not_found", "model", "/v1/models"),
        (CHAT, chat(r#","n":129"#), 400, "invalid_value", "n", "between 1 and 128"),
        (CHAT, chat(r#","n":"2""#), 400, "invalid_type", "n", "an integer"),
        (CHAT, chat(r#","max_tokens":0"#), 400, "invalid_value", "max_tokens", "between 1"),
        (CHAT, chat(r#","stop":["a","b",""]"#), 400, "invalid_value", "stop", "empty"),
        (CHAT, chat(r#","temperatur":1"#), 400, "unknown_parameter", "temperatur", "`temperature`"),
        (CHAT, chat(r#","max_tokens":-1"#), 400, "invalid_value", "max_tokens", "Leave it out"),
        (CHAT, chat(r#","stop_token_ids":[258]"#), 400, "invalid_value", "stop_token_ids", "token 258"),
        (CHAT, chat(r#","tools":[{"type":"function"}]"#), 400, "unsupported_parameter", "tools", "Remove"),
        (
            CHAT,
            chat(r#","response_format":{"type":"json_object"}"#),
            400,
            "unsupported_parameter",
            "response_format",
            "Remove",
        ),
        (CHAT, chat(r#","logit_bias":{"99999":1}"#), 400, "invalid_value", "logit_bias", "below 258"),
        (
            CHAT,
            format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{long}"}}]}}"#),
            400,
            "context_length_exceeded",
            "messages",
            "This model's maximum context length is 256 tokens. However, your messages resulted in at least 3",
        ),
        (
            TEXT,
            text(&format!(r#","prompt":"{long}""#)),
            400,
            "context_length_exceeded",
            "prompt",
            "resulted in at least 300 tokens",
        ),
        (TEXT, text(r#","prompt":"""#), 400, "invalid_value", "prompt", "empty"),
        (TEXT, text(r#","prompt":[1,258]"#), 400, "invalid_value", "prompt", "token 258"),
        (TEXT, text(r#","prompt":{}"#), 400, "invalid_type", "prompt", "an object"),
        (TEXT, text(r#","prompt":"a","n":128,"best_of":2"#), 400, "unsupported_parameter", "best_of", "`n`"),
    ];
    for (path, body, status, code, param, says) in cases {
        let response = server.post(path, &body);
        let error = response.json()["error"].clone();
        assert_eq!(response.status, status, "{body}: {error}");
        assert_eq!(error["code"], code, "{body}");
        assert_eq!(error["param"].as_str().unwrap_or(""), param, "{body}");
        assert!(error["message"].as_str().unwrap().contains(says), "{body}: {error}");
        assert!(error["type"].as_str().unwrap().ends_with("_error"));
        assert!(response.header("x-stowage-load").is_some());
    }
    assert_eq!(server.running(), 0);
}

#[test]
fn unknown_routes_and_methods_are_errors_in_the_same_shape() {
    let server = start(&[]);
    for path in ["/", "/v1", "/v1/embeddings", "/pause", "/v1/chat/completions/x", "//v1/models"] {
        let response = server.get(path);
        assert_eq!(
            (response.status, response.json()["error"]["code"].as_str().unwrap()),
            (404, "unknown_url"),
            "{path}"
        );
    }
    let response = server.get(CHAT);
    assert_eq!((response.status, response.json()["error"]["code"].as_str().unwrap()), (405, "method_not_allowed"));
}

#[test]
fn models_are_listed_and_found_by_name() {
    let server = start(&["--max-model-len", "512"]);
    let list = server.get("/v1/models").json();
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][0]["max_model_len"], 512);
    assert_eq!(server.get("/v1/models/toy").json()["id"], MODEL);
    assert_eq!(server.get("/v1/models/org%2Fother").json()["error"]["code"], "model_not_found");
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = start(&[]);
    let whole = server.chat(r#","max_tokens":20"#);
    assert_eq!(whole.status, 200, "{}", whole.body);
    let json = whole.json();
    let content = json["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(content.len(), 20, "one letter per token");
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(json["usage"]["completion_tokens"], 20);
    assert_eq!(json["usage"]["total_tokens"].as_u64(), json["usage"]["prompt_tokens"].as_u64().map(|n| n + 20));

    let stream = server.chat(r#","max_tokens":20,"stream":true,"stream_options":{"include_usage":true}"#);
    assert!(stream.header("content-type").unwrap().starts_with("text/event-stream"));
    let events = stream.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(stream_text(&events, 0), content);
    let (usage, rest) = events.split_last().unwrap();
    assert_eq!(usage["choices"].as_array().unwrap().len(), 0);
    assert_eq!(usage["usage"]["completion_tokens"], 20);
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(rest.iter().all(|event| event["id"] == events[0]["id"]));

    let text = server.complete(r#","max_tokens":5,"stream":true"#).events();
    assert_eq!(
        stream_text(&text, 0),
        server.complete(r#","max_tokens":5"#).json()["choices"][0]["text"].as_str().unwrap()
    );
}

#[test]
fn several_choices_and_prompts_keep_their_numbers() {
    let server = start(&[]);
    let body = format!(r#"{{"model":"{MODEL}","prompt":["ab","cd"],"n":2,"max_tokens":12,"temperature":1,"seed":7}}"#);
    let whole = server.post(TEXT, &body).json();
    let texts: Vec<&str> = whole["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert_ne!(texts[0], texts[1], "choices of one prompt are drawn apart");
    assert_eq!(whole["usage"]["prompt_tokens"], 4, "each prompt is counted once");
    assert_eq!(whole["usage"]["completion_tokens"], 48);
    let streamed = server.post(TEXT, &body.replace("\"n\":2", "\"n\":2,\"stream\":true")).events();
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(stream_text(&streamed, index as u64), *text);
    }
}

#[test]
fn a_seed_repeats_and_no_seed_does_not() {
    let server = start(&[]);
    let text = |fields: &str| {
        let body = format!(r#"{{"model":"{MODEL}","prompt":"ab","max_tokens":24,"temperature":1{fields}}}"#);
        server.post(TEXT, &body).json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(r#","seed":5"#), text(r#","seed":5"#));
    assert_ne!(text(r#","seed":5"#), text(r#","seed":6"#));
    assert_ne!(text(""), text(""));
}

#[test]
fn head_is_answered_wherever_get_is() {
    let server = start(&[]);
    for path in ["/v1/models", "/v1/models/toy", "/stowage/v1/load", "/healthz", "/readyz", "/metrics"] {
        let (get, head) = (server.get(path), server.request("HEAD", path, "", ""));
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
    assert_eq!(server.request("HEAD", CHAT, "", "").status, 405);
}

#[test]
fn a_cache_salt_of_the_request_narrows_the_tenants_cache() {
    let server = start(&[]);
    let prompt = "p".repeat(100);
    let cached = |tenant: &str, salt: &str| {
        let body = format!(r#"{{"model":"{MODEL}","prompt":"{prompt}","max_tokens":1,"cache_salt":"{salt}"}}"#);
        let json = server.request("POST", TEXT, &format!("x-stowage-tenant-salt: {tenant}\r\n"), &body).json();
        json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(
        [cached("a", "s"), cached("a", "s"), cached("a", ""), cached("b", "s"), cached("as", "")],
        [0, 96, 0, 0, 0]
    );
}

#[test]
fn two_starts_have_two_incarnations() {
    let (first, second) = (start(&[]), start(&[]));
    let incarnation = |server: &support::Running| {
        let load = server.get("/stowage/v1/load").json();
        load["incarnation"].as_str().unwrap().to_owned()
    };
    assert!(!incarnation(&first).is_empty());
    assert_eq!(incarnation(&first), incarnation(&first));
    assert_ne!(incarnation(&first), incarnation(&second));
}

#[test]
fn the_cache_is_shared_within_a_salt_and_never_across() {
    let server = start(&[]);
    let prompt = "p".repeat(100);
    let body = format!(r#"{{"model":"{MODEL}","prompt":"{prompt}","max_tokens":4}}"#);
    let cached = |salt: &str| {
        let header = if salt.is_empty() { String::new() } else { format!("x-stowage-tenant-salt: {salt}\r\n") };
        let json = server.request("POST", TEXT, &header, &body).json();
        json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("tenant-a"), 0);
    assert_eq!(cached("tenant-a"), 96);
    assert_eq!(cached("tenant-b"), 0);
    assert_eq!(cached(""), 0);
    assert_eq!(cached("tenant-b"), 96);
}

#[test]
fn a_client_that_leaves_is_cancelled_at_once() {
    let server = start(&[]);
    for stream in ["true", "false"] {
        let body = completion_body(&format!(r#","max_tokens":8000,"stream":{stream}"#));
        let mut connection = server.send("POST", TEXT, "", &body);
        if stream == "true" {
            connection.read_exact(&mut [0; 64]).unwrap();
        }
        server.wait(Duration::from_secs(5), "it runs", |server| server.running() == 1);
        drop(connection);
        server.wait(Duration::from_secs(30), "it is cancelled", |server| server.running() == 0);
    }
    let metrics = server.get("/metrics").body;
    let line = r#"stowage_engine_tokens_total{direction="output",cached="false"} "#;
    let computed = metrics.lines().find_map(|metric| metric.strip_prefix(line)).unwrap();
    assert!(computed.parse::<u32>().unwrap() < 8000, "neither request was computed to its end: {computed} tokens");
    assert!(metrics.contains(r#"stowage_engine_requests_total{outcome="cancelled"} 2"#), "{metrics}");
}

#[test]
fn draining_refuses_new_requests_and_finishes_old_ones() {
    let mut server = start(&[]);
    let old = server.send("POST", TEXT, "", &completion_body(r#","max_tokens":700,"stream":true"#));
    server.wait(Duration::from_secs(5), "it runs", |server| server.running() == 1);
    let ready = server.get("/readyz");
    assert_eq!((ready.status, ready.header("x-stowage-load").is_some()), (200, true));
    let handle = server.server.take().unwrap();
    let drained = server.runtime.spawn(handle.drain(Duration::from_secs(20)));
    server.wait(Duration::from_secs(2), "not ready", |server| server.get("/readyz").status == 503);
    let refused = server.complete("");
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str().unwrap()), (503, "draining"));
    assert_eq!(server.get("/stowage/v1/load").json()["draining"], true);
    assert_eq!(server.get("/healthz").status, 200);
    let events = receive(old).events();
    assert_eq!(stream_text(&events, 0).len(), 700, "not cut short");
    server.runtime.block_on(drained).unwrap();
    assert!(std::net::TcpStream::connect(server.address).is_err(), "still listening");
}

/// Hangs in its second step for ever, as a device that stopped answering.
struct Hanging(ModelInfo, u32);

impl Executor for Hanging {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError> {
        self.1 += 1;
        if self.1 > 1 {
            std::thread::park();
        }
        logits.resize(batch.logits_rows() * self.0.vocab, 0.0);
        Ok(())
    }
}

#[test]
fn a_stuck_engine_is_not_healthy() {
    let info = model_info();
    let text = TextModel::new(&text::simulated_meta(128)).unwrap();
    let model = Model { executor: Box::new(Hanging(info, 0)), text };
    let server = start_with(&support::args(&["--stuck-after", "1"]), model);
    assert_eq!(server.get("/healthz").status, 200, "idle is healthy");
    let open = server.send("POST", TEXT, "", &completion_body(""));
    server.wait(Duration::from_secs(5), "healthz fails", |server| server.get("/healthz").status == 503);
    assert!(server.get("/healthz").body.contains("no step for"));
    drop(open);
    // The engine thread never comes back: end without waiting for it.
    std::mem::forget(server);
}

#[test]
fn the_load_report_can_be_watched() {
    let server = start(&[]);
    let mut watch = server.send("GET", "/stowage/v1/load?watch=1", "", "");
    watch.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let open = server.send("POST", TEXT, "", &completion_body(r#","max_tokens":8000,"stream":true"#));
    let (start, mut seen, mut reports) = (Instant::now(), String::new(), Vec::<Value>::new());
    let mut buffer = [0; 4096];
    while reports.len() < 4
        || !reports.iter().any(|report| report["running"] == 1)
        || !reports.iter().any(|report| report["coefficients"]["a"].as_f64().unwrap() > 0.0)
    {
        let n = watch.read(&mut buffer).unwrap();
        assert!(n > 0 && start.elapsed() < Duration::from_secs(60), "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        reports = seen.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect();
    }
    drop(open);
    let most = 2.0 + 10.0 * start.elapsed().as_secs_f64();
    assert!(reports.len() as f64 <= most, "{} reports: more than ten a second", reports.len());
}

#[test]
fn metrics_count_what_happened() {
    let server = start(&[]);
    server.complete(r#","max_tokens":5"#);
    server.complete(r#","n":999"#);
    let page = server.get("/metrics").body;
    for line in [
        r#"stowage_engine_requests_total{outcome="ok"} 1"#,
        r#"stowage_engine_requests_total{outcome="invalid"} 1"#,
        r#"stowage_engine_tokens_total{direction="output",cached="false"} 5"#,
        r#"stowage_engine_tokens_total{direction="input",cached="false"} 5"#,
        "stowage_engine_time_to_first_token_seconds_count 1",
        "stowage_engine_running_requests 0",
        "stowage_engine_queue_wait_seconds_count 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(page.contains("# TYPE stowage_engine_requests_total counter"));
    page::assert_clean(Process::Engine, &page);
    assert_eq!(page::missing(Process::Engine, &page), Vec::<&str>::new());
}
