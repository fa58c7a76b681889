//! The safetensors header: eight bytes of length, JSON, then the data it points into.
//!
//! Read by hand because it is short, and because every error should name file and tensor. As with
//! GGUF nothing is trusted and nothing of the data is read.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use stowage_engine_kernels::WeightType;

use crate::file::{shown, thousands};

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub ty: WeightType,
    /// Fastest last: `[rows, columns]` for a matrix.
    pub shape: Vec<u64>,
    /// Where its data is in the file. Checked to lie inside and to fit the shape.
    pub range: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SafetensorsError {
    #[error("it has {} bytes, too few for a safetensors file", thousands(*.0))]
    TooShort(u64),
    #[error("its header ends at byte {}, the file has {}: it is truncated (fetch it again)", thousands(*.end), thousands(*.len))]
    HeaderEnds { end: u64, len: u64 },
    #[error("its header has {} bytes, more than the {} that are allowed: it is damaged", thousands(*.0), thousands(MAX_HEADER))]
    HeaderTooLong(u64),
    #[error("its header is no table of tensors: {}", shown(.0))]
    Header(String),
    #[error("tensor {} has type {}; F32, F16 and BF16 are supported", shown(.name), shown(.ty))]
    TensorType { name: String, ty: String },
    #[error("tensor {} of shape {shape:?} does not fill its bytes {start}..{end}: it is damaged", shown(.name))]
    Shape { name: String, shape: Vec<u64>, start: u64, end: u64 },
    #[error(
        "tensor {} ends at byte {}, the file has {}: it is truncated (fetch it again)",
        shown(.name), thousands(*.end), thousands(*.len)
    )]
    TensorEnds { name: String, end: u64, len: u64 },
}

/// As in the format's own reader.
const MAX_HEADER: u64 = 100_000_000;

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The tensors of one file, by name.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, SafetensorsError> {
    parse_head(bytes, bytes.len() as u64)
}

/// The tensors of a file of `len` bytes, of which `bytes` is the beginning. [`SafetensorsError::HeaderEnds`] where the
/// beginning is too short.
pub fn parse_head(bytes: &[u8], len: u64) -> Result<BTreeMap<String, Tensor>, SafetensorsError> {
    let (table, data) = table(bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in table {
        let tensor = locate(&name, entry, data, len)?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The number of parameters of each type, supported or not.
pub fn outline(bytes: &[u8]) -> Result<BTreeMap<String, u64>, SafetensorsError> {
    let mut types = BTreeMap::new();
    for entry in table(bytes)?.0.into_values() {
        let count: &mut u64 = types.entry(entry.dtype.to_lowercase()).or_default();
        *count = count.saturating_add(entry.shape.iter().fold(1, |n: u64, d| n.saturating_mul(*d)));
    }
    Ok(types)
}

/// The header's entries, and where the data begins.
fn table(bytes: &[u8]) -> Result<(BTreeMap<String, Entry>, u64), SafetensorsError> {
    let len = bytes.len() as u64;
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(SafetensorsError::TooShort(len));
    };
    let header_len = u64::from_le_bytes(*head);
    if header_len > MAX_HEADER {
        return Err(SafetensorsError::HeaderTooLong(header_len));
    }
    let Some(header) = rest.get(..header_len as usize) else {
        return Err(SafetensorsError::HeaderEnds { end: 8 + header_len, len });
    };
    let Table(table) = serde_json::from_slice(header).map_err(|e| SafetensorsError::Header(e.to_string()))?;
    Ok((table, 8 + header_len))
}

/// The header, without `__metadata__`. Read in one pass, because a tree of JSON values may take a
/// hundred times the memory of its text.
struct Table(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        deserializer.deserialize_map(TableVisitor)
    }
}

struct TableVisitor;

impl<'de> Visitor<'de> for TableVisitor {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
        let mut table = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value().map_err(|e| A::Error::custom(format!("tensor {}: {e}", shown(&name))))?;
            if table.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor {} appears twice", shown(&name))));
            }
            table.insert(name, entry);
        }
        Ok(Table(table))
    }
}

fn locate(name: &str, entry: Entry, data: u64, len: u64) -> Result<Tensor, SafetensorsError> {
    let Entry { dtype, shape, data_offsets: (start, end) } = entry;
    let name = name.to_owned();
    let ty = match dtype.as_str() {
        "F32" => WeightType::F32,
        "F16" => WeightType::F16,
        "BF16" => WeightType::Bf16,
        _ => return Err(SafetensorsError::TensorType { name, ty: dtype }),
    };
    let (_, bytes) = ty.unit();
    let size = shape.iter().try_fold(bytes as u64, |n, d| n.checked_mul(*d));
    if size.is_none() || end.checked_sub(start) != size {
        return Err(SafetensorsError::Shape { name, shape, start, end });
    }
    let (from, to) = (data.saturating_add(start), data.saturating_add(end));
    if to > len {
        return Err(SafetensorsError::TensorEnds { name, end: to, len });
    }
    Ok(Tensor { ty, shape, range: from as usize..to as usize })
}
