//! Bytes from outside, and what holds whatever they are: one function per kind of input.
//!
//! Each takes any bytes, hands them to the product's own code and panics when a property is broken.
//! "Does not panic" is only the first: what is accepted satisfies what the rest of the code relies
//! on, what is refused is refused in one line, and neither costs memory out of proportion.
//!
//! They run in two ways. `tests/corpus.rs` replays `corpus/<target>/`, in `cargo test`: seeds, and
//! every input that once broke something, named by what it is. `cargo xtask fuzz` looks for new ones
//! with libFuzzer, guided by the coverage that the stable compiler can instrument; `make test-long`
//! does so for ten minutes each. An input that it finds goes to `corpus/`, under a telling name.

mod chat_template;
mod dra_message;
mod gguf;
mod memory;
mod openai_request;
mod safetensors;
mod scenario;

pub use chat_template::chat_template;
pub use dra_message::dra_message;
pub use gguf::gguf;
pub use openai_request::openai_request;
pub use safetensors::safetensors;
pub use scenario::scenario;

/// For the fuzzers: libfuzzer-sys ends the process at every panic, also at one that the product
/// contains. Without its hook it ends at those that leave the target.
pub fn panics_unwind() {
    let _ = std::panic::take_hook();
}

/// What every error must be before people see it.
#[track_caller]
fn one_line(error: &str) {
    assert!(!error.is_empty(), "an error without words");
    assert!(error.len() <= 1500, "an error of {} bytes: {error:.200}…", error.len());
    assert!(!error.contains(char::is_control), "an error is one line of plain text: {error:?}");
}

/// Runs a parser. It may hold so many bytes per byte of input at a time, and a little to start with.
#[track_caller]
fn within<T>(per_byte: usize, input: &[u8], parse: impl FnOnce() -> T) -> T {
    let (out, held) = memory::peak(parse);
    let allowed = (64 << 10) + per_byte * input.len();
    assert!(held <= allowed, "{} bytes of input took {held} bytes of memory, allowed are {allowed}", input.len());
    out
}

/// A directory for one input, in memory where the system has such a place.
fn scratch() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}
