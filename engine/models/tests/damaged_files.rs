//! Damaged, truncated and hostile files: an error in one line, never a panic, never memory out of
//! proportion to the file.

#![allow(clippy::unwrap_used)]

#[path = "common/tiny.rs"]
mod tiny;

use std::sync::LazyLock;

use proptest::prelude::*;
use stowage_engine_kernels::WeightType;
use stowage_engine_models::gguf::{Gguf, GgufError};
use stowage_engine_models::{Isa, LoadOptions, load, safetensors};

static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| tiny::gguf_bytes("llama", WeightType::Q4_1));

static SAFETENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("stowage-damaged-{}", std::process::id()));
    tiny::write(&dir, "llama", WeightType::Bf16, false);
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    bytes
});

/// Most damage is done to the first kilobytes, where the tables are.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, bool, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.9), any::<u8>()), 1..8)
}

fn damaged(whole: &[u8], cut: Option<prop::sample::Index>, damage: &[(prop::sample::Index, bool, u8)]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (at, early, value) in damage {
        let range = if *early { bytes.len().min(3000) } else { bytes.len() };
        bytes[at.index(range)] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(whole.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_gguf_is_read_or_refused(cut in any::<Option<prop::sample::Index>>(), d in damage()) {
        let bytes = damaged(&GGUF, cut, &d);
        match Gguf::parse(&bytes) {
            Ok(gguf) => prop_assert!(gguf.tensors.iter().all(|t| t.range.end <= bytes.len())),
            Err(e) => prop_assert!(!e.to_string().contains('\n')),
        }
    }

    #[test]
    fn damaged_safetensors_are_read_or_refused(cut in any::<Option<prop::sample::Index>>(), d in damage()) {
        let bytes = damaged(&SAFETENSORS, cut, &d);
        if let Ok(tensors) = safetensors::parse(&bytes) {
            prop_assert!(tensors.values().all(|t| t.range.end <= bytes.len()));
        }
    }

    #[test]
    fn noise_after_the_magic_is_refused_or_read(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Gguf::parse(&[b"GGUF\x03\0\0\0".as_slice(), &noise].concat());
        let _ = safetensors::parse(&noise);
    }
}

proptest! {
    // Fewer cases: each loads a model.
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_model_loads_or_is_refused(d in damage(), budget in any::<bool>()) {
        let name = format!("stowage-damaged-{}-{}.gguf", std::process::id(), d.len());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, damaged(&GGUF, None, &d)).unwrap();
        let options = LoadOptions {
            isa: Some(Isa::Portable),
            threads: Some(1),
            max_memory_bytes: budget.then_some(64 << 20),
            ..LoadOptions::default()
        };
        let result = load(&path, &options);
        std::fs::remove_file(&path).unwrap();
        if let Err(e) = result {
            prop_assert!(!e.to_string().contains('\n'), "{e}");
        }
    }
}

#[test]
fn a_truncated_file_names_the_tensor_and_both_lengths() {
    let cut = &GGUF[..GGUF.len() - 1000];
    let error = Gguf::parse(cut).unwrap_err();
    let GgufError::TensorEnds { name, end, len } = &error else { panic!("{error}") };
    assert!(name.starts_with("blk.2.") && *end > *len && *len == cut.len() as u64);
    let text = error.to_string();
    assert!(text.contains(&format!("tensor {name} ends at byte ")) && text.contains("truncated"));
}

#[test]
fn other_files_are_no_gguf() {
    assert_eq!(Gguf::parse(b"PK\x03\x04"), Err(GgufError::NotGguf));
    assert_eq!(Gguf::parse(b""), Err(GgufError::NotGguf));
    assert_eq!(Gguf::parse(b"GGUF\x01\0\0\0"), Err(GgufError::Version(1)));
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let mut bytes = GGUF.clone();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(Gguf::parse(&bytes), Err(GgufError::TooMany { .. })));
    let header = u64::MAX.to_le_bytes();
    assert!(safetensors::parse(&header).is_err());
}
