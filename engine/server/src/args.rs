//! The command line, as docs/contracts.md has it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use stowage_contracts::names::DEFAULT_DRAIN_SECONDS;
use stowage_engine_models::{KvChoice, SERVER_STEP_TOKENS};
use stowage_telemetry::traces::TraceArgs;

/// Serves one model over an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "stowage-engine", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and serve it until SIGTERM.
    Serve(Serve),
    /// Wait until a file exists: the mark that a model is complete.
    WaitModel {
        /// The file.
        #[arg(long)]
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// A GGUF file, a directory with safetensors, or `sim` for a simulated model.
    #[arg(long)]
    pub model: PathBuf,
    /// The name clients send.
    #[arg(long)]
    pub name: String,
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub host: std::net::IpAddr,
    /// Longest prompt and answer together, in tokens [default: what the model was trained for].
    #[arg(long)]
    pub max_model_len: Option<usize>,
    /// Whether control tokens spelt out in the prompts of /v1/completions count as such. In chats they
    /// never do.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub parse_special: bool,
    /// How K and V are stored: `auto`, `f32` or `bf16`.
    #[arg(long, default_value = "auto")]
    pub kv_type: KvChoice,
    /// Bytes for weights and KV cache. The smallest of this, STOWAGE_GPU_MEMORY_BYTES and the
    /// container's limit counts.
    #[arg(long)]
    pub memory_bytes: Option<u64>,
    /// Threads that compute [default: the processors this process may use].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Tokens computed per step. More is better for throughput, less for the time between tokens
    /// (and until a cancelled request stops) while long prompts come in.
    #[arg(long, default_value_t = SERVER_STEP_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_step_tokens: u32,
    /// Sequences (prompts times `n`) computed at the same time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_running: u32,
    /// Sequences that may wait; more are refused with 503.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_waiting: u32,
    /// Largest request body.
    #[arg(long, default_value_t = 4 << 20)]
    pub max_body_bytes: usize,
    /// Connections open at the same time; more wait to be accepted.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Seconds a client may take to send a request's head; an idle connection is closed after it.
    #[arg(long, default_value_t = 30)]
    pub header_timeout: u64,
    /// Seconds a client may take to send a request's body.
    #[arg(long, default_value_t = 30)]
    pub body_timeout: u64,
    /// Seconds without progress, with work to do, after which /healthz fails.
    #[arg(long, default_value_t = 60)]
    pub stuck_after: u64,
    /// Seconds that running requests have to finish after SIGTERM.
    #[arg(long, default_value_t = DEFAULT_DRAIN_SECONDS)]
    pub drain_timeout: u64,
    /// For engines outside a cluster: the policies of those inside let them send nothing.
    #[command(flatten)]
    pub traces: Box<TraceArgs>,
}

impl Serve {
    /// Sequences in the engine, running and waiting.
    pub fn max_sequences(&self) -> usize {
        self.max_running as usize + self.max_waiting as usize
    }

    /// A simulated model: deterministic text without meaning, in the time that the cost model gives.
    pub fn is_simulated(&self) -> bool {
        self.model.as_os_str() == "sim"
    }
}
