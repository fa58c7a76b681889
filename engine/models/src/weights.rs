//! Tensors by name and shape, wherever they come from.
//!
//! Names are GGUF's (`blk.0.attn_q.weight`), for safetensors too. The shape is asserted when a
//! tensor is taken, so what the decoder packs has the size the config promised.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use stowage_engine_kernels::WeightType;
use thiserror::Error;

use crate::file::{Mapped, shown};

/// A tensor's place. `cols` is the dimension along which products sum.
#[derive(Clone, Debug)]
pub struct Entry {
    pub file: usize,
    pub ty: WeightType,
    pub rows: usize,
    pub cols: usize,
    pub range: Range<usize>,
}

/// A model's table of tensors, and the files that hold their bytes.
#[derive(Debug)]
pub struct Weights {
    /// Empty where only headers were read.
    pub files: Vec<(PathBuf, Mapped)>,
    pub tensors: BTreeMap<String, Entry>,
    /// From the name here to the one in the file, for messages.
    pub file_name: fn(&str) -> String,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WeightError {
    #[error("tensor {0} is missing")]
    Missing(String),
    #[error(
        "tensor {} has no place in a {architecture} model as its configuration describes it; answers without it would be wrong: \
         use a model whose architecture is supported",
        shown(.name)
    )]
    Unused { name: String, architecture: String },
    #[error("tensor {} is in {} and in {}: which one counts is unknown", shown(.name), first.display(), second.display())]
    Twice { name: String, first: PathBuf, second: PathBuf },
    #[error("tensor {name} is {got_rows} × {got_cols}, the model's shape needs {rows} × {cols}")]
    Shape { name: String, rows: usize, cols: usize, got_rows: usize, got_cols: usize },
}

/// A matrix in the file: `rows` rows of `cols` weights.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub ty: WeightType,
    pub rows: usize,
    pub cols: usize,
    bytes: &'a [u8],
    row_bytes: usize,
}

impl<'a> Matrix<'a> {
    pub fn row(&self, r: usize) -> &'a [u8] {
        &self.bytes[r * self.row_bytes..][..self.row_bytes]
    }
}

impl Weights {
    /// No files yet; `file_name` gives a tensor's name in them.
    pub fn new(file_name: fn(&str) -> String) -> Weights {
        Weights { files: Vec::new(), tensors: BTreeMap::new(), file_name }
    }

    /// Adds a tensor of the file that is pushed next.
    pub fn add(&mut self, name: String, entry: Entry, path: &Path) -> Result<(), WeightError> {
        match self.tensors.get(&name) {
            None => {
                self.tensors.insert(name, entry);
                Ok(())
            }
            Some(other) => {
                let first = self.files.get(other.file).map_or(path, |(first, _)| first).to_owned();
                Err(WeightError::Twice { name: self.shown_name(&name), first, second: path.to_owned() })
            }
        }
    }

    /// A tensor's name as its file has it.
    pub fn shown_name(&self, name: &str) -> String {
        (self.file_name)(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.rows as u64 * t.cols as u64).sum()
    }

    /// The entry of a tensor that must have this shape. Needs the table alone, no bytes.
    pub fn entry(&self, name: &str, (rows, cols): (usize, usize)) -> Result<&Entry, WeightError> {
        let entry = self.tensors.get(name).ok_or_else(|| WeightError::Missing(self.shown_name(name)))?;
        let wrong = || {
            let (got_rows, got_cols) = (entry.rows, entry.cols);
            WeightError::Shape { name: self.shown_name(name), rows, cols, got_rows, got_cols }
        };
        // Readers have checked that the range holds whole rows; this only keeps it visible.
        let whole = entry.ty.row_bytes(cols).is_some();
        if whole && (entry.rows, entry.cols) == (rows, cols) { Ok(entry) } else { Err(wrong()) }
    }

    pub fn matrix(&self, name: &str, (rows, cols): (usize, usize)) -> Result<Matrix<'_>, WeightError> {
        let entry = self.entry(name, (rows, cols))?;
        let bytes = &self.files[entry.file].1[entry.range.clone()];
        Ok(Matrix { ty: entry.ty, rows, cols, bytes, row_bytes: entry.ty.row_bytes(cols).unwrap_or(0) })
    }

    /// A vector, in f32.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, WeightError> {
        let m = self.matrix(name, (1, len))?;
        let mut out = vec![0.0; len];
        m.ty.dequantize_row(m.row(0), &mut out);
        Ok(out)
    }

    pub fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, WeightError> {
        if self.has(name) { self.vector(name, len).map(Some) } else { Ok(None) }
    }
}

/// Where row `r` of a head-wise half-split Q or K is in GGUF's interleaved order: pairs that
/// rotate together are neighbours there, and `head_dim / 2` apart here.
pub fn interleaved_row(r: usize, head_dim: usize) -> usize {
    let (head, d) = (r / head_dim, r % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (d % half) + d / half
}

#[cfg(test)]
mod tests {
    use super::interleaved_row;

    #[test]
    fn interleaving_is_a_permutation_within_heads() {
        let rows: Vec<usize> = (0..16).map(|r| interleaved_row(r, 8)).collect();
        assert_eq!(rows[..8], [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(rows[8..], [8, 10, 12, 14, 9, 11, 13, 15]);
    }
}
