//! A server on loopback, and an HTTP client small enough to misbehave.
#![allow(dead_code)]

pub mod clockwork;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;
use stowage_engine::args::{Cli, Command, Serve};
use stowage_engine::process::{Model, Server, load_model};
use stowage_engine::text;
use stowage_engine_core::executor::ModelInfo;
use tokio::runtime::Runtime;

pub const MODEL: &str = "toy";
pub const CHAT: &str = "/v1/chat/completions";
pub const TEXT: &str = "/v1/completions";

/// A running server; it is drained by `drain` or ends with the test.
pub struct Running {
    pub runtime: Runtime,
    pub address: SocketAddr,
    pub server: Option<Server>,
}

pub fn args(extra: &[&str]) -> Serve {
    let base = ["stowage-engine", "serve", "--model", "sim", "--name", MODEL];
    let Command::Serve(args) = Cli::parse_from(base.iter().chain(extra)).command else {
        unreachable!("the line says serve")
    };
    args
}

/// A server of the simulated model: about 1 ms per token.
pub fn start(extra: &[&str]) -> Running {
    let args = args(extra);
    let model = load_model(&args).unwrap();
    start_with(&args, model)
}

pub fn start_with(args: &Serve, model: Model) -> Running {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = runtime.block_on(Server::start(args, model, loopback)).unwrap();
    Running { runtime, address: server.address, server: Some(server) }
}

/// A server of a model file or directory, or why it did not start.
pub fn serve(model: &std::path::Path) -> Result<Running, String> {
    let path = model.display().to_string();
    let line =
        ["stowage-engine", "serve", "--model", &path, "--name", MODEL, "--threads", "1", "--memory-bytes", "100000000"];
    let Command::Serve(args) = Cli::parse_from(line).command else { unreachable!("the line says serve") };
    let model = load_model(&args).map_err(|err| err.to_string())?;
    Ok(start_with(&args, model))
}

pub struct Response {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.headers.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }

    /// The `data:` payloads of a stream, the last one being `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let lines: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        let (last, events) = lines.split_last().unwrap();
        assert_eq!(*last, "data: [DONE]", "{}", self.body);
        events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

impl Running {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends a request and does not wait for the answer.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        receive(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, "", "")
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.request("POST", path, "", body)
    }

    pub fn chat(&self, extra: &str) -> Response {
        self.post("/v1/chat/completions", &chat_body(extra))
    }

    pub fn complete(&self, extra: &str) -> Response {
        self.post("/v1/completions", &completion_body(extra))
    }

    pub fn running(&self) -> u64 {
        let load = self.get("/stowage/v1/load").json();
        load["running"].as_u64().unwrap() + load["waiting"].as_u64().unwrap()
    }

    /// Waits for the condition, at most `limit` and never less than a minute: how long it takes depends on the machine.
    pub fn wait(&self, limit: Duration, what: &str, condition: impl Fn(&Self) -> bool) {
        let (start, limit) = (Instant::now(), limit.max(Duration::from_secs(60)));
        while !condition(self) {
            assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn chat_body(extra: &str) -> String {
    format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"hi"}}],"temperature":0{extra}}}"#)
}

pub fn completion_body(extra: &str) -> String {
    format!(r#"{{"model":"{MODEL}","prompt":"hello","temperature":0{extra}}}"#)
}

/// Reads a response to the end of the connection.
pub fn receive(mut stream: TcpStream) -> Response {
    let mut bytes = Vec::new();
    // A reset after the answer is the end of it as well.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (headers, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = headers.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Response { status, headers: headers.to_owned(), body }
}

fn unchunk(mut text: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.push_str(&rest[..size]);
        text = &rest[size + 2..];
    }
    out
}

/// The text of one choice of a stream.
pub fn stream_text(events: &[Value], index: u64) -> String {
    events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
        .filter(|choice| choice["index"] == index)
        .map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or(""))
        .collect()
}

/// A model without weights, for executors of tests.
pub fn model_info() -> ModelInfo {
    ModelInfo {
        vocab: text::SIMULATED_VOCAB,
        context_len: 128,
        block_tokens: 16,
        num_blocks: 64,
        block_bytes: 1,
        weight_bytes: 0,
        scratch_bytes: 0,
        max_step_tokens: 128,
        model_digest: [0; 32],
        kv_type: "none",
        isa: "none",
    }
}
