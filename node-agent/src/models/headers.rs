//! The parts of headers that need parsing, in a process of its own: what a tenant's URL answers may be made to take much
//! memory and time, and the agent serves every tenant of the node.
//!
//! The agent starts its own program with [`READ_HEADERS`]; the question comes on standard input and the answer goes to
//! standard output, both as JSON. The process has limits on memory and processor time, and no environment.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use stowage_contracts::estimate::{Estimate, EstimateRequest, SEQUENCES};
use stowage_engine_models::inspect::{self, Served};
use stowage_engine_models::{KvChoice, chain};
use tokio::io::AsyncWriteExt;

/// The argument that makes the agent's program read headers, and nothing else.
pub const READ_HEADERS: &str = "read-headers";

/// Memory that headers may take while they are parsed, in bytes. Mapped files are not counted.
const MEMORY: u64 = 96 << 20;
/// Processor time, in seconds.
const SECONDS: u64 = 20;

/// What is to be read.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Whether a GGUF file's header ends within its first bytes.
    IsWhole { path: PathBuf, have: u64 },
    /// What the engine needs for the file, or the directory, whose headers are there.
    Estimate { path: PathBuf, request: EstimateRequest },
}

/// What was read.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    IsWhole(bool),
    Estimate(Estimate),
    /// The bundled engine does not serve it.
    Refused(String),
    /// The question cannot be answered as it was asked.
    Asked(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("its headers take more than {} MiB or {SECONDS} s to read; write a size", MEMORY >> 20)]
    TooMuch,
    #[error("cannot start the reader of headers: {0}")]
    Start(#[from] std::io::Error),
}

/// Asks a process of this program; it ends with the future.
pub async fn ask(program: &Path, question: &Question) -> Result<Answer, ReadError> {
    let mut child = tokio::process::Command::new(program)
        .arg(READ_HEADERS)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = serde_json::to_vec(question).map_err(std::io::Error::other)?;
        // One that has ended already is seen below.
        let _ = stdin.write_all(&text).await;
    }
    let output = child.wait_with_output().await?;
    serde_json::from_slice(&output.stdout).map_err(|_| ReadError::TooMuch)
}

/// The whole life of that process.
pub fn answer_and_end() -> std::io::Result<()> {
    for (resource, limit) in [(Resource::Data, MEMORY), (Resource::Cpu, SECONDS), (Resource::Core, 0)] {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let answer = answer(&serde_json::from_str(&text)?);
    std::io::stdout().write_all(&serde_json::to_vec(&answer)?)
}

fn answer(question: &Question) -> Answer {
    match question {
        Question::IsWhole { path, have } => Answer::IsWhole(inspect::header_ends_within(path, *have)),
        Question::Estimate { path, request } => of_headers(path, request),
    }
}

fn of_headers(path: &Path, request: &EstimateRequest) -> Answer {
    let facts = match inspect::path(path) {
        Ok(facts) => facts,
        Err(e) => return Answer::Refused(chain(&e)),
    };
    let needs = match facts.engine {
        Ok(needs) => needs,
        Err(e) => return Answer::Refused(chain(&e)),
    };
    let own = needs.context_len();
    let context_len = request.max_model_len.map_or(own, |len| own.min(len as usize));
    let kv_type = match request.kv_cache_type.as_deref().map(str::parse) {
        None => KvChoice::Auto,
        Some(Ok(kv)) => kv,
        Some(Err(why)) => return Answer::Asked(why),
    };
    let memory = needs.memory(Served { sequences: SEQUENCES as usize, kv_type, ..Served::one(context_len) });
    let context_len = u32::try_from(context_len).unwrap_or(u32::MAX);
    Answer::Estimate(Estimate { weights: memory.weights, kv_cache: memory.kv, scratch: memory.scratch, context_len })
}
