//! Bounds: bodies, queues, tenants, connections.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::time::Duration;

use support::{MODEL, TEXT, completion_body, receive, start};

#[test]
fn encoded_bodies_are_refused_as_such() {
    let server = start(&[]);
    let refused = server.request("POST", TEXT, "content-encoding: gzip\r\n", &completion_body(""));
    let code = refused.json()["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!((refused.status, code.as_str()), (415, "unsupported_content_encoding"));
    assert_eq!(server.request("POST", TEXT, "content-encoding: identity\r\n", &completion_body("")).status, 200);
}

#[test]
fn more_sequences_than_the_queue_ever_takes_are_refused_for_good() {
    let server = start(&["--max-running", "4", "--max-waiting", "12"]);
    let body = |prompts: usize, n: usize| {
        let prompts = vec![r#""ab""#; prompts].join(",");
        format!(r#"{{"model":"{MODEL}","prompt":[{prompts}],"n":{n},"max_tokens":1}}"#)
    };
    for (prompts, n) in [(13, 1), (1, 13), (7, 2), (1000, 100)] {
        let refused = server.post(TEXT, &body(prompts, n));
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, error["code"].as_str().unwrap()), (400, "invalid_value"), "{error}");
        assert_eq!(error["param"], "n");
        assert!(error["message"].as_str().unwrap().contains("Lower `n`"), "{error}");
        assert_eq!(refused.header("retry-after"), None);
    }
    for (prompts, n) in [(12, 1), (1, 12), (6, 2)] {
        let response = server.post(TEXT, &body(prompts, n));
        assert_eq!(response.status, 200, "{}", response.body);
        assert_eq!(response.json()["choices"].as_array().unwrap().len(), 12);
    }
}

#[test]
fn an_answer_with_too_many_prompt_logprobs_is_refused() {
    let server = start(&[]);
    let body = |n: usize| {
        let prompt = "p".repeat(4000);
        format!(r#"{{"model":"{MODEL}","prompt":"{prompt}","n":{n},"max_tokens":0,"echo":true,"logprobs":20}}"#)
    };
    let refused = server.post(TEXT, &body(8));
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, &error["param"]), (400, &"logprobs".into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("672000"), "{error}");
    assert_eq!(server.post(TEXT, &body(1)).status, 200);
}

#[test]
fn a_tenant_with_many_sequences_leaves_room_for_another() {
    let server = start(&["--max-running", "4", "--max-waiting", "12"]);
    let many = format!(r#"{{"model":"{MODEL}","prompt":"ab","n":12,"max_tokens":4000,"stream":true}}"#);
    let salt = |tenant: &str| format!("x-stowage-tenant-salt: {tenant}\r\n");
    let open = server.send("POST", TEXT, &salt("a"), &many);
    server.wait(Duration::from_secs(5), "all are taken", |server| server.running() == 12);
    let refused = server.request("POST", TEXT, &salt("a"), &completion_body(""));
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, error["code"].as_str().unwrap()), (503, "queue_full"), "{error}");
    assert!(error["message"].as_str().unwrap().contains("this tenant holds its part"), "{error}");
    // The other tenant finds room, and is computed although all places were taken.
    let other = server.request("POST", TEXT, &salt("b"), &completion_body(r#","max_tokens":5"#));
    assert_eq!(other.status, 200, "{}", other.body);
    assert_eq!(server.running(), 12, "the first tenant's sequences go on");
    drop(open);
    server.wait(Duration::from_secs(5), "room again", |server| server.running() == 0);
    assert_eq!(server.request("POST", TEXT, &salt("a"), &completion_body("")).status, 200);
}

#[test]
fn a_full_queue_refuses_with_a_time_to_come_back() {
    let server = start(&["--max-running", "1", "--max-waiting", "1"]);
    let long = completion_body(r#","max_tokens":8000,"stream":true"#);
    let mut open = Vec::new();
    for expected in 1..=2 {
        open.push(server.send("POST", TEXT, "", &long));
        server.wait(Duration::from_secs(5), "it is taken", |server| server.running() == expected);
    }
    let refused = server.complete("");
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str().unwrap()), (503, "queue_full"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(open);
    server.wait(Duration::from_secs(5), "room again", |server| server.running() == 0);
    assert_eq!(server.complete("").status, 200);
}

#[test]
fn bodies_that_are_too_large_or_never_end_are_cut() {
    let server = start(&["--max-body-bytes", "1000", "--body-timeout", "1"]);
    let announced = server.post(TEXT, &"x".repeat(1001));
    assert_eq!((announced.status, announced.json()["error"]["code"].as_str().unwrap()), (413, "request_too_large"));
    let mut chunked = server.connect();
    chunked
        .write_all(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .unwrap();
    let chunk = format!("200\r\n{}\r\n", "x".repeat(0x200));
    for _ in 0..3 {
        let _ = chunked.write_all(chunk.as_bytes());
    }
    assert_eq!(receive(chunked).status, 413);
    let mut endless = server.connect();
    endless
        .write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 500\r\n\r\n{")
        .unwrap();
    let response = receive(endless);
    assert_eq!((response.status, response.json()["error"]["code"].as_str().unwrap()), (408, "request_timeout"));
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one struct that outlives them.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(8192);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

#[test]
fn a_thousand_clients_that_send_a_byte_a_second_do_not_stop_others() {
    allow_many_files();
    let server = start(&["--header-timeout", "2", "--body-timeout", "2"]);
    server.complete("");
    let before = resident_bytes();
    let heads = ["P", "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"];
    let mut slow: Vec<_> = (0..1000).map(|i| (server.connect(), heads[i % 2])).collect();
    for (stream, head) in &mut slow {
        stream.write_all(head.as_bytes()).unwrap();
    }
    for _ in 0..4 {
        for (stream, _) in &mut slow {
            let _ = stream.write_all(b"O");
        }
        assert_eq!(server.complete(r#","max_tokens":5"#).status, 200, "others are served");
        std::thread::sleep(Duration::from_secs(1));
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 100 << 20, "{} MiB for 1,000 idle connections", grown >> 20);
    server.wait(Duration::from_secs(10), "they are closed", |server| {
        server
            .get("/metrics")
            .body
            .lines()
            .any(|line| line.strip_prefix("stowage_engine_connections ").is_some_and(|n| n.parse::<u32>().unwrap() < 5))
    });
}
