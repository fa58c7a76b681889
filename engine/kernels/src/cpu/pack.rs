//! Matrices as kernels read them: panels of sixteen rows, walked 32 columns at a time, with scales
//! in line, so that a pass over a panel is one contiguous stream.
//!
//! Per group of 32 columns a panel holds, by type:
//! - `f32`, `f16`: `[32][16]` values;
//! - `bf16`: `[16 pairs][16][2]` values;
//! - `q8_0`: `[32][16]` signed bytes, then `d` of each row (f16);
//! - `q4_0`, `q4_1`: four times `[16]` words, then `d` of each row, then for `q4_1` the `m`s.
//!   Word `z` of a row holds columns `8z..8z+8`: nibble `j` of its low half is column `8z + 2j`,
//!   of its high half `8z + 2j + 1`. So the words are both sixteen 32-bit lanes of one column and
//!   thirty-two 16-bit lanes of a column pair.
//!
//! Columns are padded to whole groups and rows to whole panels, with zeros. Nothing is rounded:
//! a packed matrix holds exactly the file's weights.

use std::io;

use super::lanes::LANES;
use crate::half::{bf16_to_f32, f16_to_f32};
use crate::mem::{Arena, Buffer, Shared};
use crate::pool::Pool;
use crate::quant::{GROUP, WeightType, u16_at};

/// Wide loads past the end of a panel stay inside the buffer.
const SLACK: usize = 4096;

#[derive(Debug)]
pub struct PackedMatrix {
    ty: WeightType,
    rows: usize,
    cols: usize,
    data: Buffer<u8>,
}

/// One row as the file has it: `ty.row_bytes(cols)` bytes.
pub type RowBytes<'a> = &'a [u8];

impl PackedMatrix {
    /// Bytes of one group of a panel.
    pub const fn group_bytes(ty: WeightType) -> usize {
        match ty {
            WeightType::F32 => GROUP * LANES * 4,
            WeightType::F16 | WeightType::Bf16 => GROUP * LANES * 2,
            WeightType::Q8_0 => GROUP * LANES + LANES * 2,
            WeightType::Q4_0 => GROUP * LANES / 2 + LANES * 2,
            WeightType::Q4_1 => GROUP * LANES / 2 + LANES * 4,
        }
    }

    /// Memory a matrix will take, before it is made: whole cache lines.
    pub fn bytes_for(ty: WeightType, rows: usize, cols: usize) -> usize {
        (rows.div_ceil(LANES) * cols.div_ceil(GROUP) * Self::group_bytes(ty) + SLACK).next_multiple_of(64)
    }

    /// Packs a matrix alone, see [`PackedMatrix::pack_in`].
    pub fn pack<'a>(
        pool: &mut Pool,
        ty: WeightType,
        shape: (usize, usize),
        row: &(dyn Fn(usize) -> RowBytes<'a> + Sync),
    ) -> io::Result<PackedMatrix> {
        let mut arena = Arena::new(Self::bytes_for(ty, shape.0, shape.1))?;
        Ok(Self::pack_in(&mut arena, pool, ty, shape, row))
    }

    /// Packs `rows` rows; `row(r)` is where row `r` of the result comes from, so callers merge
    /// and permute as they need. The arena has [`PackedMatrix::bytes_for`] bytes left.
    pub fn pack_in<'a>(
        arena: &mut Arena,
        pool: &mut Pool,
        ty: WeightType,
        (rows, cols): (usize, usize),
        row: &(dyn Fn(usize) -> RowBytes<'a> + Sync),
    ) -> PackedMatrix {
        let mut data = arena.take(Self::bytes_for(ty, rows, cols));
        let groups = cols.div_ceil(GROUP);
        let panel_bytes = groups * Self::group_bytes(ty);
        let out = Shared::new(&mut data);
        pool.run(rows.div_ceil(LANES), 4, &|from, to| {
            for panel in from..to {
                // SAFETY: panels are disjoint parts of `data`, and each is claimed once.
                let panel_out = unsafe { out.slice(panel * panel_bytes, panel_bytes) };
                for lane in 0..LANES.min(rows - panel * LANES) {
                    let bytes = row(panel * LANES + lane);
                    for (g, group) in panel_out.chunks_exact_mut(Self::group_bytes(ty)).enumerate() {
                        put_group(ty, bytes, g, lane, group);
                    }
                }
            }
        });
        PackedMatrix { ty, rows, cols, data }
    }

    pub fn ty(&self) -> WeightType {
        self.ty
    }
    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// The bytes of one panel, all groups.
    pub fn panel(&self, panel: usize) -> &[u8] {
        let bytes = self.groups() * Self::group_bytes(self.ty);
        &self.data[panel * bytes..(panel + 1) * bytes]
    }

    /// The exact values of row `r`: how token embeddings are looked up.
    pub fn unpack_row(&self, r: usize, out: &mut [f32]) {
        let lane = r % LANES;
        let groups = self.panel(r / LANES).chunks_exact(Self::group_bytes(self.ty));
        for (group, out) in groups.zip(out[..self.cols].chunks_mut(GROUP)) {
            for (k, out) in out.iter_mut().enumerate() {
                *out = get(self.ty, group, lane, k);
            }
        }
    }
}

/// Writes group `g` of a row into its lane. Weights beyond the row's end stay zero.
fn put_group(ty: WeightType, row: &[u8], g: usize, lane: usize, out: &mut [u8]) {
    let (weights, unit) = ty.unit();
    let at = g * GROUP / weights * unit;
    let src = &row[at..row.len().min(at + GROUP / weights * unit)];
    match ty {
        WeightType::F32 => {
            for (k, x) in src.chunks_exact(4).enumerate() {
                out[(k * LANES + lane) * 4..][..4].copy_from_slice(x);
            }
        }
        WeightType::F16 => {
            for (k, x) in src.chunks_exact(2).enumerate() {
                out[(k * LANES + lane) * 2..][..2].copy_from_slice(x);
            }
        }
        WeightType::Bf16 => {
            for (k, x) in src.chunks_exact(2).enumerate() {
                out[bf16_at(k, lane)..][..2].copy_from_slice(x);
            }
        }
        WeightType::Q8_0 => {
            for (k, q) in src[2..].iter().enumerate() {
                out[k * LANES + lane] = *q;
            }
            out[GROUP * LANES + lane * 2..][..2].copy_from_slice(&src[..2]);
        }
        WeightType::Q4_0 | WeightType::Q4_1 => {
            let heads = unit - GROUP / 2;
            for z in 0..4 {
                let word = nibble_word(&src[heads..], z);
                out[(z * LANES + lane) * 4..][..4].copy_from_slice(&word.to_le_bytes());
            }
            for (i, head) in src[..heads].chunks_exact(2).enumerate() {
                out[GROUP * LANES / 2 + (i * LANES + lane) * 2..][..2].copy_from_slice(head);
            }
        }
    }
}

fn bf16_at(k: usize, lane: usize) -> usize {
    (k / 2 * LANES + lane) * 4 + k % 2 * 2
}

/// Columns `8z..8z+8` of a group of nibbles, in the order of the module's description.
fn nibble_word(nibbles: &[u8], z: usize) -> u32 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&nibbles[z % 2 * 8..][..8]);
    let x = u64::from_le_bytes(bytes) >> (z / 2 * 4);
    // Every second byte's nibble, moved next to each other.
    let gather = |x: u64| {
        let x = x & 0x000f_000f_000f_000f;
        (x | x >> 12 | x >> 24 | x >> 36) as u32 & 0xffff
    };
    gather(x) | gather(x >> 8) << 16
}

/// One weight out of a packed group.
fn get(ty: WeightType, group: &[u8], lane: usize, k: usize) -> f32 {
    let scale = |at: usize| f16_to_f32(u16_at(group, at + lane * 2));
    let quant = || {
        let word = (k / 8 * LANES + lane) * 4;
        let bytes: [u8; 4] = [group[word], group[word + 1], group[word + 2], group[word + 3]];
        let shift = k % 2 * 16 + k % 8 / 2 * 4;
        (u32::from_le_bytes(bytes) >> shift & 0xf) as f32
    };
    let q4_scales = GROUP * LANES / 2;
    match ty {
        WeightType::F32 => {
            let at = (k * LANES + lane) * 4;
            f32::from_le_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]])
        }
        WeightType::F16 => f16_to_f32(u16_at(group, (k * LANES + lane) * 2)),
        WeightType::Bf16 => bf16_to_f32(u16_at(group, bf16_at(k, lane))),
        WeightType::Q8_0 => scale(GROUP * LANES) * f32::from(group[k * LANES + lane] as i8),
        WeightType::Q4_0 => scale(q4_scales) * (quant() - 8.0),
        WeightType::Q4_1 => scale(q4_scales) * quant() + scale(q4_scales + LANES * 2),
    }
}

/// For the tests here and in `gemm`: a matrix of random bits with finite scales.
#[cfg(test)]
pub(crate) fn random_rows(ty: WeightType, rows: usize, cols: usize, seed: u64) -> Vec<Vec<u8>> {
    use crate::half::f32_to_f16;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let float = |n: &mut dyn FnMut() -> u64| (n() >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..rows)
        .map(|_| {
            let (weights, unit) = ty.unit();
            let mut row = Vec::new();
            for _ in 0..cols / weights {
                let x = float(&mut next);
                match ty {
                    WeightType::F32 => row.extend(x.to_le_bytes()),
                    WeightType::F16 => row.extend(f32_to_f16(x).to_le_bytes()),
                    WeightType::Bf16 => row.extend(crate::half::f32_to_bf16(x).to_le_bytes()),
                    _ => {
                        let mut group: Vec<u8> = (0..unit).map(|_| next() as u8).collect();
                        group[..2].copy_from_slice(&f32_to_f16(x * 0.1).to_le_bytes());
                        if ty == WeightType::Q4_1 {
                            let m = f32_to_f16(float(&mut next));
                            group[2..4].copy_from_slice(&m.to_le_bytes());
                        }
                        row.extend(group);
                    }
                }
            }
            row
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::nibble;

    fn unpacks_to_what_the_file_says(ty: WeightType, rows: usize, cols: usize) {
        let mut pool = Pool::new(2).unwrap();
        let src = random_rows(ty, rows, cols, 7);
        let packed = PackedMatrix::pack(&mut pool, ty, (rows, cols), &|r| &src[r]).unwrap();
        let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
        for (r, bytes) in src.iter().enumerate() {
            packed.unpack_row(r, &mut got);
            ty.dequantize_row(bytes, &mut want);
            assert_eq!(got, want, "{} row {r}", ty.name());
        }
    }

    #[test]
    fn packing_loses_nothing() {
        use WeightType::*;
        for ty in [F32, F16, Bf16, Q8_0, Q4_0, Q4_1] {
            unpacks_to_what_the_file_says(ty, 37, 96);
        }
    }

    #[test]
    fn columns_need_not_fill_a_group_where_the_format_allows() {
        use WeightType::*;
        for ty in [F32, F16, Bf16] {
            unpacks_to_what_the_file_says(ty, 16, 50);
        }
    }

    #[test]
    fn nibbles_keep_their_columns() {
        let bytes: Vec<u8> = (0..16).map(|i| (i as u8) | (15 - i as u8) << 4).collect();
        for k in 0..GROUP {
            let word = nibble_word(&bytes, k / 8);
            let shift = k % 2 * 16 + k % 8 / 2 * 4;
            assert_eq!((word >> shift & 0xf) as u8, nibble(&bytes, k), "column {k}");
        }
    }
}
