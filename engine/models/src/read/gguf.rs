//! GGUF versions 2 and 3, little-endian: metadata and the table of tensors, bounds-checked.
//!
//! Nothing in the file is trusted: every length is compared with the bytes that are left before
//! anything is allocated, so a damaged or hostile file costs an error, not memory. Tensor data is
//! not read here, only located.

use std::collections::BTreeMap;
use std::ops::Range;

use stowage_engine_kernels::WeightType;
use thiserror::Error;

use crate::file::{shown, thousands};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    String(String),
    /// Arrays of whole numbers of any width.
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Strings(Vec<String>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// Slowest last, as GGUF has it: `[columns, rows]` for a matrix.
    pub dims: Vec<u64>,
    pub ty: WeightType,
    /// Where its data is in the file. Checked to lie inside.
    pub range: Range<usize>,
}

#[derive(Debug, PartialEq)]
pub struct Gguf {
    pub version: u32,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<TensorInfo>,
}

/// What is wrong with the file. Shown after the file's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GgufError {
    #[error("it does not start with GGUF: it is no GGUF file")]
    NotGguf,
    #[error("GGUF version {0} is not supported, 2 and 3 are")]
    Version(u32),
    #[error("its numbers are big-endian, and only little-endian GGUF is supported: convert the model for this machine")]
    BigEndian,
    #[error("it ends at byte {} inside {what}: it is truncated (fetch it again)", thousands(*.len))]
    Ends { what: String, len: u64 },
    #[error("{what} claims {} entries, more than the file can hold: it is damaged", thousands(*.count))]
    TooMany { what: String, count: u64 },
    #[error("{what} has type {ty}, which GGUF does not define: it is damaged")]
    BadValueType { what: String, ty: u32 },
    #[error("{what} is an array of arrays, which no model needs")]
    NestedArray { what: String },
    #[error("{what} is not UTF-8: it is damaged")]
    NotText { what: String },
    #[error("{what} appears twice: it is damaged")]
    Twice { what: String },
    #[error("its alignment is {0}, not a power of two: it is damaged")]
    Alignment(u64),
    #[error("tensor {} has type {ty}; f32, f16, bf16, q8_0, q4_0 and q4_1 are supported (convert the model)", shown(.name))]
    TensorType { name: String, ty: String },
    #[error("tensor {} has the shape {dims:?}, which is impossible", shown(.name))]
    Shape { name: String, dims: Vec<u64> },
    #[error(
        "tensor {} ends at byte {}, the file has {}: it is truncated (fetch it again)",
        shown(.name), thousands(*.end), thousands(*.len)
    )]
    TensorEnds { name: String, end: u64, len: u64 },
}

const MAX_DIMS: u32 = 4;

impl Gguf {
    /// Reads a whole file.
    pub fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
        Gguf::parse_head(bytes, bytes.len() as u64)
    }

    /// Reads the beginning of a file of `len` bytes. [`GgufError::Ends`] where the beginning is too short.
    pub fn parse_head(bytes: &[u8], len: u64) -> Result<Gguf, GgufError> {
        let Tables { version, metadata, tensors: table, data } = Tables::read(bytes, len)?;
        let mut tensors = Vec::with_capacity(table.len());
        let mut names = std::collections::BTreeSet::new();
        for raw in table {
            if !names.insert(raw.name.clone()) {
                return Err(GgufError::Twice { what: format!("tensor {}", shown(&raw.name)) });
            }
            tensors.push(raw.locate(data, len)?);
        }
        Ok(Gguf { version, metadata, tensors })
    }

    /// What the tables at the beginning of a file say, whether or not the tensors' types are supported: the
    /// metadata (without tensors), and the number of parameters of each type.
    pub fn outline(bytes: &[u8], len: u64) -> Result<(Gguf, BTreeMap<String, u64>), GgufError> {
        let Tables { version, metadata, tensors, data: _ } = Tables::read(bytes, len)?;
        let mut types = BTreeMap::new();
        for tensor in tensors {
            let name = weight_type(tensor.ty).map_or_else(|name| name, |ty| ty.name().to_owned());
            let count: &mut u64 = types.entry(name).or_default();
            *count = count.saturating_add(tensor.dims.iter().fold(1, |n: u64, d| n.saturating_mul(*d)));
        }
        Ok((Gguf { version, metadata, tensors: Vec::new() }, types))
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::String(s)) => Some(s),
            _ => None,
        }
    }

    pub fn uint(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key) {
            Some(Value::U64(n)) => Some(*n),
            Some(Value::I64(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key) {
            Some(Value::F64(x)) => Some(*x),
            _ => None,
        }
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key) {
            Some(Value::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key) {
            Some(Value::Strings(s)) => Some(s),
            _ => None,
        }
    }
}

/// The tables at the beginning of a file, before tensors are located.
struct Tables {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<RawTensor>,
    /// Where the data begins.
    data: u64,
}

impl Tables {
    fn read(bytes: &[u8], len: u64) -> Result<Tables, GgufError> {
        if bytes.get(..4) != Some(b"GGUF") {
            return Err(GgufError::NotGguf);
        }
        let mut r = Reader { bytes, at: 4, len };
        let version = r.u32(&|| "the header".into())?;
        if (2..=3).contains(&version.swap_bytes()) {
            return Err(GgufError::BigEndian);
        }
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        // The smallest tensor entry: name length, one dimension, type, offset.
        let tensors = r.count("the tensor table", 8 + 4 + 8 + 4 + 8)?;
        // The smallest metadata entry: key length, type, one byte.
        let entries = r.count("the metadata", 8 + 4 + 1)?;
        let mut metadata = BTreeMap::new();
        for i in 0..entries {
            let key = r.string(&|| format!("metadata entry {i}"))?;
            let value = r.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Twice { what: format!("metadata {}", shown(&key)) });
            }
        }
        let tensors = (0..tensors).map(|i| r.tensor(i)).collect::<Result<Vec<_>, _>>()?;
        let alignment = match metadata.get("general.alignment") {
            Some(Value::U64(a)) if a.is_power_of_two() && *a <= 1 << 20 => *a,
            Some(Value::U64(a)) => return Err(GgufError::Alignment(*a)),
            _ => 32,
        };
        let data = (r.at as u64).next_multiple_of(alignment);
        Ok(Tables { version, metadata, tensors, data })
    }
}

/// A tensor's entry before its place is known.
struct RawTensor {
    name: String,
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

impl RawTensor {
    fn locate(self, data: u64, len: u64) -> Result<TensorInfo, GgufError> {
        let RawTensor { name, dims, ty, offset } = self;
        let ty = weight_type(ty).map_err(|ty| GgufError::TensorType { name: name.clone(), ty })?;
        let size = dims[1..].iter().try_fold(dims[0], |n, d| n.checked_mul(*d));
        let row = usize::try_from(dims[0]).ok().and_then(|cols| ty.row_bytes(cols));
        let rows = dims[1..].iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = row.zip(rows).and_then(|(row, rows)| (row as u64).checked_mul(rows));
        let (Some(bytes), true) = (bytes, size.is_some_and(|n| n > 0)) else {
            return Err(GgufError::Shape { name, dims });
        };
        let start = data.saturating_add(offset);
        let end = start.saturating_add(bytes);
        if end > len {
            return Err(GgufError::TensorEnds { name, end, len });
        }
        Ok(TensorInfo { name, dims, ty, range: start as usize..end as usize })
    }
}

fn weight_type(id: u32) -> Result<WeightType, String> {
    const OTHERS: [(u32, &str); 9] = [
        (6, "q5_0"),
        (7, "q5_1"),
        (9, "q8_1"),
        (10, "q2_K"),
        (11, "q3_K"),
        (12, "q4_K"),
        (13, "q5_K"),
        (14, "q6_K"),
        (15, "q8_K"),
    ];
    match id {
        0 => Ok(WeightType::F32),
        1 => Ok(WeightType::F16),
        2 => Ok(WeightType::Q4_0),
        3 => Ok(WeightType::Q4_1),
        8 => Ok(WeightType::Q8_0),
        30 => Ok(WeightType::Bf16),
        _ => {
            let known = OTHERS.iter().find(|(i, _)| *i == id);
            Err(known.map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned()))
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of the whole file, of which `bytes` is the beginning.
    len: u64,
}

/// What is being read, spelled out only when it fails.
type What<'a> = &'a dyn Fn() -> String;

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize, what: What<'_>) -> Result<&'a [u8], GgufError> {
        if n > self.left() {
            return Err(GgufError::Ends { what: what(), len: self.bytes.len() as u64 });
        }
        let out = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(out)
    }

    fn array<const N: usize>(&mut self, what: What<'_>) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: What<'_>) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: What<'_>) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of entries, each at least `smallest` bytes long.
    fn count(&mut self, what: &str, smallest: usize) -> Result<usize, GgufError> {
        let count = self.u64(&|| what.into())?;
        // In the header the tables come after, so all that is left bounds both.
        match usize::try_from(count).ok().and_then(|n| n.checked_mul(smallest)) {
            Some(bytes) if bytes <= self.left() => Ok(count as usize),
            // Nothing is allocated for entries that are not there yet.
            Some(bytes) if (self.at as u64).saturating_add(bytes as u64) <= self.len => {
                Err(GgufError::Ends { what: what.into(), len: self.bytes.len() as u64 })
            }
            _ => Err(GgufError::TooMany { what: what.into(), count }),
        }
    }

    fn string(&mut self, what: What<'_>) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(_) => Err(GgufError::NotText { what: what() }),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let what = || format!("metadata {}", shown(key));
        let ty = self.u32(&what)?;
        if ty == 9 {
            return self.array_value(key);
        }
        Ok(match self.scalar(ty, &what)? {
            Scalar::U(n) => Value::U64(n),
            Scalar::I(n) => Value::I64(n),
            Scalar::F(x) => Value::F64(x),
            Scalar::B(b) => Value::Bool(b),
            Scalar::S(s) => Value::String(s),
        })
    }

    fn array_value(&mut self, key: &str) -> Result<Value, GgufError> {
        let what = || format!("metadata {}", shown(key));
        let ty = self.u32(&what)?;
        let smallest = match ty {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(GgufError::NestedArray { what: what() }),
            _ => return Err(GgufError::BadValueType { what: what(), ty }),
        };
        let n = self.count(&what(), smallest)?;
        let mut scalars = (0..n).map(|_| self.scalar(ty, &what));
        match ty {
            6 | 12 => scalars.map(|s| s.map(|s| s.float() as f32)).collect::<Result<_, _>>().map(Value::Floats),
            7 => scalars.map(|s| s.map(|s| matches!(s, Scalar::B(true)))).collect::<Result<_, _>>().map(Value::Bools),
            8 => scalars.map(|s| s.map(Scalar::text)).collect::<Result<_, _>>().map(Value::Strings),
            _ => scalars
                .try_fold(Vec::with_capacity(n), |mut v, s| {
                    v.push(s?.int());
                    Ok(v)
                })
                .map(Value::Ints),
        }
    }

    fn scalar(&mut self, ty: u32, what: What<'_>) -> Result<Scalar, GgufError> {
        Ok(match ty {
            0 => Scalar::U(self.array::<1>(what)?[0].into()),
            1 => Scalar::I(i8::from_le_bytes(self.array(what)?).into()),
            2 => Scalar::U(u16::from_le_bytes(self.array(what)?).into()),
            3 => Scalar::I(i16::from_le_bytes(self.array(what)?).into()),
            4 => Scalar::U(self.u32(what)?.into()),
            5 => Scalar::I(i32::from_le_bytes(self.array(what)?).into()),
            6 => Scalar::F(f32::from_le_bytes(self.array(what)?).into()),
            7 => Scalar::B(self.array::<1>(what)?[0] != 0),
            8 => Scalar::S(self.string(what)?),
            10 => Scalar::U(self.u64(what)?),
            11 => Scalar::I(i64::from_le_bytes(self.array(what)?)),
            12 => Scalar::F(f64::from_le_bytes(self.array(what)?)),
            _ => return Err(GgufError::BadValueType { what: what(), ty }),
        })
    }

    fn tensor(&mut self, i: usize) -> Result<RawTensor, GgufError> {
        let name = self.string(&|| format!("entry {i} of the tensor table"))?;
        let what = || format!("the entry of tensor {}", shown(&name));
        let n = self.u32(&what)?;
        if !(1..=MAX_DIMS).contains(&n) {
            return Err(GgufError::Shape { dims: vec![u64::from(n)], name });
        }
        let dims = (0..n).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        let ty = self.u32(&what)?;
        let offset = self.u64(&what)?;
        Ok(RawTensor { dims, ty, offset, name })
    }
}

enum Scalar {
    U(u64),
    I(i64),
    F(f64),
    B(bool),
    S(String),
}

impl Scalar {
    /// Arrays hold token ids and types; a u64 beyond i64 is none.
    fn int(self) -> i64 {
        match self {
            Scalar::U(n) => i64::try_from(n).unwrap_or(i64::MAX),
            Scalar::I(n) => n,
            _ => 0,
        }
    }

    fn float(self) -> f64 {
        match self {
            Scalar::F(x) => x,
            _ => 0.0,
        }
    }

    fn text(self) -> String {
        match self {
            Scalar::S(s) => s,
            _ => String::new(),
        }
    }
}
