//! The binary itself: starts that fail say why in one line, and SIGTERM ends it in good order.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn engine(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stowage-engine"));
    let log = dir.join("termination-log");
    std::fs::write(&log, "").unwrap();
    command.arg("serve").args(["--name", "m", "--host", "127.0.0.1"]).args(args);
    command.env("STOWAGE_TERMINATION_LOG", log).env("STOWAGE_LOG_FORMAT", "text");
    command.env_remove("STOWAGE_GPU_MEMORY_BYTES").env_remove("STOWAGE_GPU_REPORT_DIR");
    command.envs(env.iter().copied()).stderr(Stdio::piped());
    command
}

/// The exit code, and the line that says why.
fn fails(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let output = engine(dir, args, env).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = stderr.lines().last().unwrap_or_default().to_owned();
    let line = line.strip_prefix("stowage-engine: ").unwrap_or_else(|| panic!("no reason in {stderr}")).to_owned();
    let termination = std::fs::read_to_string(dir.join("termination-log")).unwrap();
    assert_eq!(termination, format!("{line}\n"), "the pod's status says the same");
    (output.status.code().unwrap(), line)
}

#[test]
fn a_bad_model_is_named_with_the_reason_and_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("garbage.gguf"), b"this is no model").unwrap();
    std::fs::write(path("empty.gguf"), b"").unwrap();
    std::fs::write(path("cut.gguf"), b"GGUF\x03\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00").unwrap();
    let mut absurd = b"GGUF\x03\x00\x00\x00".to_vec();
    absurd.extend([0xFF; 16]);
    std::fs::write(path("absurd.gguf"), absurd).unwrap();
    std::fs::create_dir(path("dir")).unwrap();
    for name in ["missing.gguf", "garbage.gguf", "empty.gguf", "cut.gguf", "absurd.gguf", "dir"] {
        let (code, line) = fails(dir.path(), &["--model", &path(name)], &[]);
        assert_eq!(code, 78, "{line}");
        assert!(line.starts_with(&format!("cannot load the model: {}", path(name))), "{line}");
        assert_eq!(line.matches(&path(name)).count(), 1, "said once: {line}");
        assert!(line.contains(". Check the model file"), "{line}");
    }
}

#[test]
fn a_slice_that_cannot_be_read_is_an_error_and_not_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (code, line) = fails(dir.path(), &["--model", "/nowhere"], &[("STOWAGE_GPU_MEMORY_BYTES", "2Gi")]);
    assert_eq!(code, 78);
    assert!(line.contains(r#"STOWAGE_GPU_MEMORY_BYTES is "2Gi""#), "{line}");
}

#[test]
fn a_report_directory_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (code, line) = fails(dir.path(), &["--model", "sim"], &[("STOWAGE_GPU_REPORT_DIR", "/nowhere/at/all")]);
    assert_eq!(code, 69);
    assert!(line.starts_with("cannot write the usage report in /nowhere/at/all"), "{line}");
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, line) = fails(dir.path(), &["--model", "sim", "--port", &port], &[]);
    assert_eq!(code, 69);
    assert!(line.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{line}");
}

/// Starts on a free port; returns the process and its address, read from its log.
fn start(dir: &Path, env: &[(&str, &str)]) -> (Child, String) {
    let mut child = engine(dir, &["--model", "sim", "--port", "0"], env).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready =
        lines.find_map(|line| line.ok().filter(|line| line.contains("address="))).expect("it says where it listens");
    std::thread::spawn(move || lines.for_each(drop));
    let address = ready.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    let plain: String = address.chars().filter(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
    (child, plain)
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn terminate(child: &Child) {
    // SAFETY: the child is ours and has not been waited for, so the pid is still its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
}

#[test]
fn sigterm_lets_a_stream_finish_and_ends_with_zero() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &[]);
    assert!(get(&address, "/readyz").contains("200 OK"));
    let mut stream = TcpStream::connect(&address).unwrap();
    let body = r#"{"model":"m","prompt":"x","max_tokens":600,"stream":true}"#;
    write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.read_exact(&mut [0; 32]).unwrap();
    terminate(&child);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !get(&address, "/readyz").contains("503") {
        assert!(Instant::now() < deadline, "readyz stays 200 after SIGTERM");
    }
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "the stream was cut");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_usage_report_grows_with_use_and_its_lock_ends_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let reports = tempfile::tempdir().unwrap();
    let env = [("STOWAGE_GPU_REPORT_DIR", reports.path().to_str().unwrap()), ("STOWAGE_GPU_SM_PERCENT", "50")];
    let (mut child, address) = start(dir.path(), &env);
    let bytes = || -> u64 {
        let text = std::fs::read_to_string(reports.path().join("usage.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(json["smPercent"].as_u64().unwrap() <= 50);
        json["bytes"].as_u64().unwrap()
    };
    assert_eq!(bytes(), 0);
    let mut stream = TcpStream::connect(&address).unwrap();
    let body = r#"{"model":"m","prompt":"x","max_tokens":500}"#;
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while bytes() == 0 {
        assert!(Instant::now() < deadline, "used blocks are not reported");
        std::thread::sleep(Duration::from_millis(50));
    }
    // While it lives, nobody else can report for this claim.
    let (code, line) = fails(dir.path(), &["--model", "sim"], &env);
    assert_eq!(code, 69, "{line}");
    terminate(&child);
    child.wait().unwrap();
    let (mut child, _) = start(dir.path(), &env);
    terminate(&child);
    child.wait().unwrap();
}
