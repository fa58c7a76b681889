//! A model file in the GGUF format, from its header to a model that could run.

use std::collections::BTreeSet;
use std::path::Path;

use stowage_engine::text::{ParseSpecial, TextModel};
use stowage_engine_models::gguf::Gguf;
use stowage_engine_models::{Isa, LoadOptions, ModelMeta, TokenizerSource, load};

use crate::{one_line, scratch, within};

/// Tables point into the file and cannot be cut off unnoticed; what they describe is loaded, with a
/// tokenizer that knows no token beyond the vocabulary, or refused.
pub fn gguf(data: &[u8]) {
    match within(32, data, || Gguf::parse(data)) {
        Err(err) => one_line(&err.to_string()),
        Ok(gguf) => {
            tensors_lie_in_the_file(&gguf, data);
            let dir = scratch();
            let path = dir.path().join("model.gguf");
            std::fs::write(&path, data).expect("write the model");
            loads_or_is_refused(&path);
        }
    }
}

fn tensors_lie_in_the_file(gguf: &Gguf, data: &[u8]) {
    let mut names = BTreeSet::new();
    for tensor in &gguf.tensors {
        assert!(names.insert(&tensor.name), "tensor {:?} twice", tensor.name);
        let rows: u64 = tensor.dims[1..].iter().product();
        let row = tensor.ty.row_bytes(tensor.dims[0] as usize).expect("whole rows");
        assert_eq!(tensor.range.len(), row * rows as usize, "{tensor:?}");
        assert!(tensor.range.end <= data.len(), "{tensor:?} leaves the file");
    }
    if let Some(end) = gguf.tensors.iter().map(|tensor| tensor.range.end).max() {
        assert!(Gguf::parse(&data[..end - 1]).is_err(), "a file without its last byte of data was accepted");
    }
}

pub(crate) fn loads_or_is_refused(path: &Path) {
    let options = LoadOptions {
        isa: Some(Isa::Portable),
        threads: Some(1),
        max_memory_bytes: Some(16 << 20),
        max_step_tokens: 16,
        ..LoadOptions::default()
    };
    match load(path, &options) {
        Err(err) => {
            let why = std::error::Error::source(&err).map_or_else(String::new, |why| format!(": {why}"));
            one_line(&format!("{err}{why}"));
        }
        Ok((_, meta)) => speaks_or_is_refused(&meta),
    }
}

fn speaks_or_is_refused(meta: &ModelMeta) {
    let TokenizerSource::Gguf(tokenizer) = &meta.tokenizer else { return };
    match TextModel::new(meta) {
        Err(err) => one_line(&err.to_string()),
        Ok(text) => {
            let ids = text.encode("The capital of France is", ParseSpecial::Yes, 100).unwrap_or_default();
            let known = tokenizer.tokens.len();
            assert!(ids.iter().all(|id| (*id as usize) < known), "a token beyond the {known} there are: {ids:?}");
        }
    }
}
