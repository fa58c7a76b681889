//! `cargo xtask fuzz`: looks for inputs that break a property of `fuzz/`, with libFuzzer, one target
//! after the other. The stable compiler can instrument for coverage (LLVM's sancov pass), so no
//! nightly and no `cargo-fuzz` is needed; what is missing without them is the address sanitizer.

use super::count::Count;
use crate::base::progress::Progress;
use crate::base::{paths, sh};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Targets (files of fuzz/fuzz_targets); all when none is given
    targets: Vec<String>,
    /// How long each is tried
    #[arg(long, default_value_t = TEN_MINUTES)]
    seconds: u64,
}

pub const TEN_MINUTES: u64 = 600;

/// What `cargo fuzz --sanitizer none` asks of the compiler. The simulated NVML is a library that is
/// loaded at run time and reports its coverage to the program, whose symbols it must see.
const INSTRUMENT: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Clink-arg=-rdynamic";

/// One input may take this long before it counts as endless.
const TIMEOUT: &str = "-timeout=20";

pub fn run(args: &Args) -> Result<()> {
    let count = targets(&args.targets, args.seconds)?;
    println!("{} passed, {} failed", count.passed, count.failed);
    ensure!(count.failed == 0, "{} targets failed", count.failed);
    Ok(())
}

/// Runs these targets, or all; each is one test.
pub fn targets(wanted: &[String], seconds: u64) -> Result<Count> {
    let known = known()?;
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    println!("==> fuzz");
    let programs = build()?;
    let mut count = Count::default();
    for name in known.iter().filter(|name| wanted.is_empty() || wanted.contains(name)) {
        match target(name, &programs, seconds)? {
            true => count.passed += 1,
            false => count.failed += 1,
        }
    }
    Ok(count)
}

fn known() -> Result<Vec<String>> {
    let folder = paths::repo().join("fuzz/fuzz_targets");
    let files = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut names: Vec<String> =
        files.flatten().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Builds all of them; returns the folder they are in. Only with `--target` are the flags for the
/// programs alone, and not for build scripts and macros, which could not be linked.
fn build() -> Result<PathBuf> {
    let rustc = sh::output(&mut sh::cmd("rustc", &["-vV"]))?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let folder = paths::target().join("fuzz");
    let mut cargo = sh::cargo(&["build", "--quiet", "--package=stowage-fuzz", "--features=libfuzzer", "--bins"]);
    cargo.args(["--profile=fuzz", "--target", host]).arg("--target-dir").arg(&folder).env("RUSTFLAGS", INSTRUMENT);
    ensure!(cargo.status()?.success(), "the fuzzers do not compile");
    Ok(folder.join(host).join("fuzz"))
}

/// libFuzzer's progress.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Reached {
    runs: u64,
    /// Places in the program (edges) that some input reached.
    edges: u64,
}

/// True when nothing was found.
fn target(name: &str, programs: &Path, seconds: u64) -> Result<bool> {
    let found = paths::target().join("fuzz/found").join(name);
    let corpus = paths::target().join("fuzz/corpus").join(name);
    for folder in [&found, &corpus] {
        std::fs::create_dir_all(folder)?;
    }
    let mut fuzzer = Command::new(programs.join(name));
    // The first folder keeps what was found to be of interest; seeds are only read.
    fuzzer
        .env("RUST_BACKTRACE", "0")
        .arg(&corpus)
        .arg(paths::repo().join("fuzz/corpus").join(name))
        .args([TIMEOUT, "-print_funcs=0"]);
    fuzzer.arg(format!("-artifact_prefix={}/", found.display())).arg(format!("-max_total_time={seconds}"));
    let dictionary = paths::repo().join(format!("fuzz/dictionaries/{name}"));
    if dictionary.is_file() {
        fuzzer.arg(format!("-dict={}", dictionary.display()));
    }
    let mut child =
        fuzzer.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().with_context(|| format!("start {name}"))?;
    let mut progress = Progress::new(name);
    let (start, mut reached, mut output) = (Instant::now(), Reached::default(), Vec::new());
    for line in BufReader::new(child.stderr.take().context("no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if let Some(now) = status(&line) {
            reached = now;
            progress.set(start.elapsed().as_secs() as usize, seconds as usize, &shown(reached));
        } else {
            output.push(line);
        }
    }
    let fine = child.wait()?.success();
    if !fine {
        println!("{}", sh::tail(&output.join("\n"), 40));
        println!("fuzz {name} FAILED: keep the input as fuzz/corpus/{name}/<what it is>, then fix what it breaks");
    }
    progress.finish(&shown(reached));
    Ok(fine)
}

fn shown(reached: Reached) -> String {
    format!("{} inputs, {} edges", reached.runs, reached.edges)
}

/// A line that begins with the number of runs and contains `cov:` and the number of edges.
fn status(line: &str) -> Option<Reached> {
    let (runs, rest) = line.strip_prefix('#')?.split_once(['\t', ':'])?;
    let mut words = rest.split_whitespace().skip_while(|word| *word != "cov:");
    let edges = words.nth(1)?.parse().ok()?;
    Some(Reached { runs: runs.trim().parse().ok()?, edges })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_progress_are_understood() {
        let reached = |runs, edges| Some(Reached { runs, edges });
        assert_eq!(
            status("#8192\tpulse  cov: 812 ft: 2011 corp: 60/9Kb lim: 80 exec/s: 4096 rss: 60Mb"),
            reached(8192, 812)
        );
        assert_eq!(status("#77: cov: 9 ft: 10 corp: 3 exec/s: 5 oom/timeout/crash: 0/0/0 time: 3s"), reached(77, 9));
    }

    #[test]
    fn other_lines_are_not() {
        assert_eq!(status("INFO: seed corpus: files: 27"), None);
        assert_eq!(status("    #1 0x55d in main"), None);
    }
}
