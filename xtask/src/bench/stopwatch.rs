//! A program that holds a loaded model and measures on demand: ours, or llama.cpp's. Both answer the
//! lines that `engine/models/examples/bench.rs` describes, and cost nothing between them.

use crate::base::{paths, python, sh};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Stopwatch {
    name: &'static str,
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Its description of itself after the model was loaded.
    pub ready: Value,
}

/// How an engine is started for a measurement.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The model file.
    pub model: &'a Path,
    pub threads: usize,
    /// KV type of our engine; llama.cpp keeps its own.
    pub kv: &'a str,
}

/// One measurement of one round.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Sample {
    pub tokens: f64,
    pub wall_s: f64,
    pub cpu_s: f64,
}

/// The release whose figures and settings are written down; a newer one may be another peer.
const LLAMA_CPP: &str = "0.3.36";

// === impl Stopwatch ===

impl Stopwatch {
    pub fn ours(setup: &Setup) -> Result<Self> {
        let mut cargo = sh::cargo(&["run", "--quiet", "-p", "stowage-engine-models", "--example", "bench", "--"]);
        cargo.arg("--model").arg(setup.model).args(["--threads", &setup.threads.to_string(), "--kv", setup.kv]);
        Self::start("ours", cargo)
    }

    pub fn llama_cpp(setup: &Setup) -> Result<Self> {
        let python = install_llama_cpp().with_context(|| {
            format!("install llama-cpp-python {LLAMA_CPP} (its source is compiled: needs g++, and a package index that pip reaches)")
        })?;
        let mut program = Command::new(python);
        program.arg(paths::repo().join("engine/tools/bench_llama_cpp.py"));
        program.arg(setup.model).arg(setup.threads.to_string());
        Self::start("llama.cpp", program)
    }

    fn start(name: &'static str, mut program: Command) -> Result<Self> {
        let mut child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the stopwatch of {name}"))?;
        let ask = child.stdin.take().context("no input")?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        let mut this = Self { name, child, ask, answers, ready: Value::Null };
        this.ready = this.answer()?;
        Ok(this)
    }

    pub fn measure(&mut self, what: &str, seconds: f64) -> Result<Sample> {
        Ok(serde_json::from_value(self.ask(&format!("{what} {seconds}"))?)?)
    }

    /// Mean |Δlogprob| to the golden's 512 tokens.
    pub fn distance(&mut self) -> Result<f64> {
        let golden = paths::repo().join("engine/testdata/smollm2-135m-instruct.json");
        let answer = self.ask(&format!("fidelity {}", golden.display()))?;
        answer["mean_abs_dlogprob"].as_f64().with_context(|| format!("not a distance: {answer}"))
    }

    fn ask(&mut self, line: &str) -> Result<Value> {
        writeln!(self.ask, "{line}").with_context(|| format!("ask {} for `{line}`", self.name))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("the stopwatch of {} ended ({}); the reason is above", self.name, self.child.wait()?)
        }
        serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.child.kill().ok(); // it may have ended already
        self.child.wait().ok();
    }
}

fn install_llama_cpp() -> Result<std::path::PathBuf> {
    let check = format!("import llama_cpp; assert llama_cpp.__version__ == '{LLAMA_CPP}'");
    let package = format!("llama-cpp-python=={LLAMA_CPP}");
    let folder = format!("llama-cpp-{LLAMA_CPP}");
    if !paths::cache().join(&folder).exists() {
        eprintln!("compiling llama.cpp, once and silently (it took 21 minutes on two cores with other work)");
    }
    // The build's own defaults: optimised, for this processor. The image tower is not needed.
    python::ensure(&folder, &check, &[&package], &[("CMAKE_ARGS", "-DLLAVA_BUILD=OFF")])
}
