//! Every input in `corpus/`, as a fixed case: seeds, and what once broke something.

use std::path::Path;

/// Runs each input on a thread named after its file, so that a panic, and even a stack that is not
/// enough, says which one it was.
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = std::fs::read_dir(&corpus).unwrap_or_else(|err| panic!("{}: {err}", corpus.display()));
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", corpus.display());
    let broken: Vec<String> = files.iter().filter(|file| !holds(file, run)).map(|f| f.display().to_string()).collect();
    assert!(broken.is_empty(), "broken by:\n{}", broken.join("\n"));
}

fn holds(file: &Path, run: fn(&[u8])) -> bool {
    let input = std::fs::read(file).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || run(&input));
    thread.expect("a thread").join().is_ok()
}

#[test]
fn chat_template() {
    replay("chat_template", stowage_fuzz::chat_template);
}
#[test]
fn dra_message() {
    replay("dra_message", stowage_fuzz::dra_message);
}
#[test]
fn gguf() {
    replay("gguf", stowage_fuzz::gguf);
}
#[test]
fn openai_request() {
    replay("openai_request", stowage_fuzz::openai_request);
}
#[test]
fn safetensors() {
    replay("safetensors", stowage_fuzz::safetensors);
}
#[test]
fn scenario() {
    replay("scenario", stowage_fuzz::scenario);
}
