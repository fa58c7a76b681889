//! Runs other programs. A failure names the program and carries the end of its output, because
//! programs print the reason there.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// A command from its words; `args` adds the rest.
pub fn cmd(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Cargo, as a person would start it. The variables that `cargo run` gave us are taken away: build
/// scripts (ring's, for one) watch them, and would run again, with everything after them, at every turn.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).stdin(Stdio::null()).current_dir(super::paths::repo());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|p| text.starts_with(p)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Runs to the end; standard output, or an error that quotes standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot start {}", name(command)))?;
    checked(command, out)
}

/// As [`output`], with `input` on standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", name(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).ok(); // a program that ended early reports the reason itself
    }
    let out = child.wait_with_output().with_context(|| format!("waiting for {}", name(command)))?;
    checked(command, out)
}

fn checked(command: &Command, out: Output) -> Result<String> {
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("{} failed ({}): {}", line(command), out.status, tail(&stderr, 8));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether a program of that name is in PATH (or the places of root's own programs).
pub fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|d| std::path::Path::new(d).join(program)).find(|p| p.is_file())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    let all = format!("{} {}", name(command), words.join(" "));
    if all.chars().count() > 160 { all.chars().take(160).collect::<String>() + " …" } else { all }
}
