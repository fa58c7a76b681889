//! `cargo xtask test` and `cargo xtask e2e`: the suites, one after the other, and one last line that
//! counts what passed and failed in all of them.

mod clients;
mod count;
pub mod fuzz;
mod oracles;

use crate::base::{paths, sh};
use crate::product;
use crate::programs::build;
use anyhow::{Context, Result, bail};
use count::Count;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

#[derive(clap::Args)]
pub struct TestArgs {
    /// Only what needs no cluster
    #[arg(long)]
    unit: bool,
    /// Slow tests, and ten minutes of fuzzing per target, too
    #[arg(long)]
    long: bool,
    /// Leave the cluster running
    #[arg(long)]
    keep: bool,
}

#[derive(clap::Args)]
pub struct E2eArgs {
    /// Parts of the names of the tests to run; all when none is given
    filter: Vec<String>,
    /// The slow tests too
    #[arg(long)]
    long: bool,
}

/// The hub of the tests: a Service that one of them makes.
const HUB: &str = "http://hub.stowage-e2e-hub.svc:8000";
/// Two for all tests together, and one for those that need a node for themselves.
const NODES: &str = "3";
/// Beside the default version: the newest that e2e/cluster/kube has a module file for.
const ANOTHER_VERSION: &str = "1.37.2";

/// Everything `make test` promises. The last line counts, whatever happened: a suite that could not run counts as one
/// failed test.
pub fn test(args: &TestArgs) -> Result<()> {
    let mut total = Count::default();
    if let Err(why) = suites(args, &mut total) {
        println!("FAIL {why:#}");
        total.failed += 1;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn suites(args: &TestArgs, total: &mut Count) -> Result<()> {
    product::own(&["model"]).context("fetch the model that the engine's tests read")?;
    let mut env = Vec::new();
    if !args.unit {
        // The chart's golden is compared with what real Helm renders.
        env.push(("STOWAGE_HELM", build::ensure(build::DEFAULT_VERSION)?.join("helm")));
    }
    if !args.long {
        // Property tests try the same cases each time: what passes once passes again. `--long` tries new ones.
        env.push(("PROPTEST_RNG_SEED", "20261129".into()));
    }
    if args.long {
        // Tests that run at a larger size then.
        env.push(("STOWAGE_TEST_LONG", "1".into()));
        env.extend(oracles::ensure()?);
    }
    let env: Vec<_> = env.iter().map(|(name, path)| (*name, path.as_os_str())).collect();
    total.add(suite("unit", &["test", "--workspace", "--no-fail-fast"], &env)?);
    if args.long {
        total.add(absurd_snapshots()?);
        total.add(fuzz::targets(&[], fuzz::TEN_MINUTES)?);
    }
    if !args.unit {
        total.add(on_cluster(args)?);
    }
    if args.long {
        total.add(on_another_cluster()?);
    }
    Ok(())
}

/// Snapshots that are fuzzed through the planner, with optimised code and every check on.
const ABSURD_SNAPSHOTS: &str = "10000000";

fn absurd_snapshots() -> Result<Count> {
    let args = ["test", "--profile", "fuzz", "-p", "stowage-planner", "--test", "absurd", "--", "--nocapture"];
    suite("absurd snapshots", &args, &[("STOWAGE_TEST_CASES", ABSURD_SNAPSHOTS.as_ref())])
}

/// The end-to-end tests on the local cluster; it is ended again unless it was up before or is to be kept.
fn on_cluster(args: &TestArgs) -> Result<Count> {
    let was_up = product::is_current() || product::own(&["cluster", "status"]).is_ok();
    if !product::is_current() {
        println!("==> cluster");
        print!("{}", product::own(&["cluster", "up", "--nodes", NODES])?);
    }
    let count = end_to_end(&[], args.long);
    if !was_up && !args.keep {
        product::own(&["cluster", "down"]).context("end the cluster")?;
    }
    count
}

/// The same charts through an ordinary kubeconfig (`CLUSTER=current`), on a cluster with other names and ports and
/// a newer Kubernetes, beside the first. Tests that end parts of the local cluster are not for it.
fn on_another_cluster() -> Result<Count> {
    const TESTS: [&str; 6] = [
        "quickstart_answers",
        "two_tenants_share",
        "restricted_pod_security",
        "a_bad_object",
        "nobody_but_the_operator",
        "keys_decide",
    ];
    println!("==> another cluster, Kubernetes {ANOTHER_VERSION}");
    let place = ["--state-dir", "/var/tmp/stowage-beside"];
    let cluster = |words: &[&str]| product::own(&[&["cluster"], words, &place].concat());
    print!("{}", cluster(&["up", "--nodes", "2", "--kubernetes", ANOTHER_VERSION])?);
    let count = (|| {
        product::load(&place).context("give its nodes our images")?;
        let bin = build::ensure(ANOTHER_VERSION)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut tests = Command::new(product::program()?);
        tests.arg("e2e").args(TESTS).env("CLUSTER", "current").env_remove("STOWAGE_URL");
        tests.env("KUBECONFIG", cluster(&["kubeconfig"])?.trim()).env("PATH", format!("{}:{path}", bin.display()));
        counted(&mut tests)
    })();
    cluster(&["down"]).context("end the other cluster")?;
    count
}

/// `make e2e`: alone, on the running cluster.
pub fn e2e(args: &E2eArgs) -> Result<()> {
    let count = end_to_end(&args.filter, args.long)?;
    if count.failed > 0 {
        bail!("{} tests failed", count.failed)
    }
    Ok(())
}

fn end_to_end(filter: &[String], long: bool) -> Result<Count> {
    let start = Instant::now();
    product::build()?;
    if !product::is_current() {
        // A cluster that runs may have fewer nodes: it grows.
        product::own(&["cluster", "up", "--nodes", NODES]).context("start the cluster")?;
    }
    let target = product::Target::find()?;
    if !product::is_current() {
        product::load(&[]).context("give the nodes our images")?;
    }
    product::install(&target, Some(HUB))?;
    let endpoint = product::endpoint(&target)?;
    println!("==> end to end (installed in {:.0} s)", start.elapsed().as_secs_f64());
    let mut tests = Command::new(product::built("stowage-e2e"));
    tests
        .args(filter)
        .env("KUBECONFIG", &target.kubeconfig)
        .env("STOWAGE_URL", &endpoint.url)
        .env("STOWAGE_ROOT", paths::repo());
    let clients = clients::ensure(long)?;
    tests.env("STOWAGE_PYTHON", clients.python).env("STOWAGE_CLIENTS", clients.folder);
    if let Some(python) = clients.python_long {
        tests.env("STOWAGE_PYTHON_LONG", python);
    }
    tests.env("STOWAGE_XTASK", product::program()?).env("STOWAGE_MODEL_FILE", crate::image::model::fetch()?);
    if let Some(bin) = &target.bin {
        tests.env("STOWAGE_BIN", bin);
        tests.env("STOWAGE_STATE", target.kubeconfig.parent().unwrap_or(&target.kubeconfig));
    }
    if long {
        tests.arg("--long");
    }
    counted(&mut tests)
}

/// One `cargo …` suite.
fn suite(name: &str, args: &[&str], env: &[(&str, &std::ffi::OsStr)]) -> Result<Count> {
    println!("==> {name}");
    let mut cargo = sh::cargo(args);
    cargo.envs(env.iter().copied());
    counted(&mut cargo)
}

/// Runs to the end, shows what is printed, and counts. A program that failed without a failed test
/// (it did not compile, it died) counts as one.
fn counted(command: &mut Command) -> Result<Count> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    let mut count = Count::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line.context("read the tests' output")?;
        match counts(&line) {
            Some(more) => count.add(more),
            None if quiet(&line) => {}
            None => println!("{line}"),
        }
    }
    if !child.wait()?.success() && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// Passing unit tests are many; only what is worth reading is shown.
fn quiet(line: &str) -> bool {
    line.is_empty() || (line.starts_with("test ") && line.ends_with("... ok")) || line.starts_with("running ")
}

/// The closing line of one test binary: libtest's, or our own end-to-end runner's.
fn counts(line: &str) -> Option<Count> {
    let text = line.strip_prefix("test result: ").map_or(line, |rest| rest.split_once(". ").map_or(rest, |(_, r)| r));
    let mut parts = text.split([',', ';']).map(str::trim);
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Count { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, want: Option<(u32, u32)>) {
        assert_eq!(counts(line), want.map(|(passed, failed)| Count { passed, failed }));
    }

    #[test]
    fn libtest_lines_are_counted() {
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            Some((12, 0)),
        );
        check("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", Some((3, 2)));
    }
    #[test]
    fn our_own_closing_line_is_counted() {
        check("7 passed, 1 failed", Some((7, 1)));
    }
    #[test]
    fn other_lines_are_not() {
        check("ok deleting_under_load 3.1", None);
        check("test tests::x ... ok", None);
        check("passed, failed", None);
    }
}
