//! What a model's files hold, before anything is decided about running it.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::meta::ModelMeta;
use crate::weights::Weights;

/// A model as read: its shape, the place of each tensor, and what a server needs to know.
pub(crate) struct Opened {
    pub config: ModelConfig,
    pub weights: Weights,
    pub meta: ModelMeta,
}

/// Names the model: length, everything before the data, and the first and last bytes of each
/// tensor. It distinguishes models and conversions quickly whatever their size; it is no proof
/// against someone who crafts a file to collide (the image's digest is).
pub(crate) fn digest(bytes: &[u8], tensors: impl Iterator<Item = Range<usize>>) -> [u8; 32] {
    const SAMPLE: usize = 4096;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    let ranges: Vec<_> = tensors.collect();
    let data = ranges.iter().map(|r| r.start).min().unwrap_or(bytes.len());
    hasher.update(&bytes[..data]);
    for r in ranges {
        let n = r.len().min(SAMPLE);
        hasher.update(&bytes[r.start..r.start + n]);
        hasher.update(&bytes[r.end - n..r.end]);
    }
    *hasher.finalize().as_bytes()
}
