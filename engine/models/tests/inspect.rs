//! What is said of a model before it is loaded, against what loading it takes.

#![allow(clippy::unwrap_used)]

#[path = "common/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use stowage_engine_kernels::WeightType;
use stowage_engine_models::inspect::{self, Facts, HeadError, Served};
use stowage_engine_models::{LoadError, LoadOptions, SERVER_STEP_TOKENS, load};

/// A directory of its own that goes away.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        Dir(std::env::temp_dir().join(format!("stowage-inspect-{}-{name}", std::process::id())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Loads with exactly the estimated memory and with one byte less, and compares what the engine reports.
fn estimate_is_what_loading_takes(path: &Path, context: usize) {
    let needs = inspect::path(path).unwrap().engine.unwrap();
    let estimate = needs.memory(Served::one(context));
    let options = |bytes: u64| LoadOptions {
        max_memory_bytes: Some(bytes),
        max_model_len: Some(context),
        threads: Some(1),
        max_step_tokens: SERVER_STEP_TOKENS as usize,
        ..LoadOptions::default()
    };
    let (model, _) = load(path, &options(estimate.total())).unwrap();
    let info = model.info();
    let reported = (info.weight_bytes + info.num_blocks * info.block_bytes) as u64;
    let estimated = estimate.weights + estimate.kv;
    assert!(reported <= estimated, "{reported} bytes reported, {estimated} estimated for {}", path.display());
    assert!(estimated <= reported + reported / 20, "{estimated} bytes estimated, {reported} reported");
    assert_eq!(info.context_len, context);
    assert!(matches!(load(path, &options(estimate.total() - 1)), Err(LoadError::DoesNotFit { .. })));
}

#[test]
fn estimate_is_what_the_engine_reports_for_each_format_and_type() {
    use WeightType::*;
    for arch in ["llama", "qwen2", "qwen3"] {
        for (ty, gguf) in [(F32, true), (Q8_0, true), (Q4_0, true), (Q4_1, true), (Bf16, false), (F16, false)] {
            let dir = Dir::new(&format!("{arch}-{}", ty.name()));
            let path = tiny::write(&dir.0, arch, ty, gguf);
            for context in [1, 100, 512] {
                estimate_is_what_loading_takes(&path, context);
            }
        }
    }
}

#[test]
fn estimate_of_the_real_model_is_what_the_engine_reports() {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).unwrap();
    let model = cache.join("stowage/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("STOWAGE_TEST_MODEL").map_or(model, PathBuf::from);
    if !path.exists() {
        eprintln!("skipped: no model at {} (get it with `cargo xtask model`)", path.display());
        return;
    }
    for context in [2048, 8192] {
        estimate_is_what_loading_takes(&path, context);
    }
    let facts = inspect::path(&path).unwrap();
    assert_eq!((facts.architecture.as_str(), facts.quantization()), ("llama", Some("q4_1")));
    assert_eq!((facts.parameters, facts.context_len, facts.chat_template), (134_515_008, Some(8192), true));
}

/// Everything that is shown, without the estimate.
fn shown(facts: &Facts) -> String {
    let Facts {
        format, name, architecture, parameters, types, context_len, chat_template, licence, file_bytes, ..
    } = facts;
    format!(
        "{format:?} {name:?} {architecture} {parameters} {types:?} {context_len:?} {chat_template} {licence:?} {file_bytes}"
    )
}

#[test]
fn beginning_of_a_file_is_enough_and_too_short_a_beginning_asks_for_more() {
    let file = tiny::gguf_bytes("llama", WeightType::Q4_1);
    let (name, len) = (Path::new("tiny.gguf"), file.len() as u64);
    let whole = inspect::gguf(name, &file, len).unwrap();
    let mut enough = None;
    for at in 1..file.len() {
        match inspect::gguf(name, &file[..at], len) {
            Ok(facts) => {
                assert_eq!(shown(&facts), shown(&whole), "at {at}");
                let memory = |facts: &Facts| facts.engine.as_ref().unwrap().memory(Served::one(512));
                assert_eq!(memory(&facts), memory(&whole));
                enough = Some(at);
                break;
            }
            Err(HeadError::NeedsMore) => {}
            // Shorter than the magic.
            Err(HeadError::Load(e)) => assert!(at < 4, "{e} at {at}"),
        }
    }
    assert!(enough.unwrap() < file.len() / 10, "{enough:?} of {len} bytes");
}

#[test]
fn truncated_file_is_described_and_refused() {
    let file = tiny::gguf_bytes("llama", WeightType::Q4_1);
    let facts = inspect::gguf(Path::new("tiny.gguf"), &file[..file.len() - 1], file.len() as u64 - 1).unwrap();
    assert_eq!(facts.architecture, "llama");
    assert!(matches!(facts.engine, Err(LoadError::Gguf { .. })));
}

#[test]
fn unsupported_type_is_named_and_counted() {
    let mut file = tiny::gguf_bytes("llama", WeightType::Q4_0);
    let at = file.windows(22).position(|w| w == b"blk.0.ffn_down.weight\x02").unwrap();
    // Behind the name: the number of dimensions, two of them, the type.
    file[at + 21 + 4 + 16] = 12;
    let facts = inspect::gguf(Path::new("tiny.gguf"), &file, file.len() as u64).unwrap();
    assert_eq!(facts.types.get("q4_K"), Some(&(160 * 96)));
    let error = facts.engine.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("has type q4_K"), "{cause}");
}
