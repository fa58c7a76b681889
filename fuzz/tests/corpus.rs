//! Every input in `corpus/`, as a fixed case: seeds, and what once broke something.

use std::path::Path;
use std::sync::{Mutex, Once};

/// Runs each input on a thread named after its file, so that a panic, and even a stack that is not
/// enough, names it.
fn replay(target: &str, run: fn(&[u8])) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = name_the_running as *const () as libc::sighandler_t;
        // SAFETY: a handler may be set at any time, and this one only writes.
        unsafe { libc::signal(libc::SIGABRT, handler) };
    });
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
    let running = |change: &dyn Fn(&mut Vec<String>)| change(&mut RUNNING.lock().expect("no panic while it is held"));
    running(&|names| names.push(format!("running: {}\n", file.display())));
    let thread = std::thread::Builder::new().name(name).spawn(move || run(&input));
    let held = thread.expect("a thread").join().is_ok();
    running(&|names| names.retain(|line| !line.contains(&*file.to_string_lossy())));
    held
}

/// One line for each input that is being tried.
static RUNNING: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What ends the whole program (too much memory, a panic behind a C interface) names no file itself.
extern "C" fn name_the_running(_: libc::c_int) {
    for line in RUNNING.try_lock().iter().flat_map(|names| names.iter()) {
        // SAFETY: the line is there as long as the lock is held.
        unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    }
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
