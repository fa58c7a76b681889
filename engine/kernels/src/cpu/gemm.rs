//! Matrix products of packed weights and a handful or hundreds of rows of activations.
//!
//! One path for every number of rows: they are cut into tiles, a worker takes a few panels and
//! runs all tiles past them. Decode is one tile of one row, sixteen streams are two of eight,
//! prefill is dozens of the largest. Results leave through an epilogue, so that residual sums and
//! gates cost no pass of their own.

use std::ops::Range;

use super::Kernels;
use super::lanes::LANES;
use super::pack::PackedMatrix;
use super::tile::TileArgs;
use crate::mem::{Buffer, Shared};
use crate::pool::Pool;
use crate::quant::GROUP;

/// How activations meet a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    F32,
    /// Rounded to bf16, in pairs.
    Bf16,
}

/// Tile heights that have a kernel. Others are rounded up with rows of zeros.
pub const HEIGHTS: [usize; 8] = [1, 2, 3, 4, 6, 8, 10, 12];
pub const MAX_HEIGHT: usize = 12;

/// `rows` cut into tiles of nearly equal, available heights: all but the last are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePlan {
    pub rows: usize,
    pub height: usize,
}

impl TilePlan {
    /// `limit` is the most rows a kernel of this instruction set takes.
    pub fn new(rows: usize, limit: usize) -> TilePlan {
        let tiles = rows.div_ceil(limit).max(1);
        TilePlan { rows, height: round_up(rows.div_ceil(tiles)) }
    }

    pub fn tiles(self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// (first row, rows, padded height) of a tile.
    pub fn tile(self, tile: usize) -> (usize, usize, usize) {
        let first = tile * self.height;
        let rows = self.height.min(self.rows - first);
        (first, rows, round_up(rows))
    }

    fn padded_rows(self) -> usize {
        self.tiles() * self.height
    }
}

fn round_up(rows: usize) -> usize {
    HEIGHTS.into_iter().find(|h| *h >= rows).unwrap_or(MAX_HEIGHT)
}

/// Activations of one layer input, cut into tiles in the order in which kernels read them.
#[derive(Debug)]
pub struct PackedX {
    act: Act,
    plan: TilePlan,
    cols: usize,
    data: Buffer<u32>,
    sums: Buffer<f32>,
}

impl PackedX {
    /// Room for up to `max_rows` rows of up to `max_cols` columns.
    pub fn new(max_rows: usize, max_cols: usize) -> std::io::Result<PackedX> {
        let rows = max_rows + MAX_HEIGHT;
        let cols = max_cols.next_multiple_of(GROUP);
        Ok(PackedX {
            act: Act::F32,
            plan: TilePlan { rows: 0, height: 1 },
            cols: 0,
            data: Buffer::zeroed(rows * cols)?,
            sums: Buffer::zeroed(rows * cols / GROUP)?,
        })
    }

    pub fn bytes_for(max_rows: usize, max_cols: usize) -> usize {
        let cols = max_cols.next_multiple_of(GROUP);
        (max_rows + MAX_HEIGHT) * (cols + cols / GROUP) * 4
    }

    pub fn rows(&self) -> usize {
        self.plan.rows
    }

    /// Fills the tiles in parallel. `row(r, buffer)` writes row `r`, `cols` long, into `buffer`.
    pub fn fill(
        &mut self,
        (pool, kernels, act): (&mut Pool, &Kernels, Act),
        (rows, cols): (usize, usize),
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.act = act;
        self.plan = TilePlan::new(rows, kernels.tile_limit(act));
        self.cols = cols.next_multiple_of(GROUP);
        let (padded, plan) = (self.cols, self.plan);
        assert!(plan.padded_rows() * padded <= self.data.len(), "more rows than the buffer holds");
        let groups = padded / GROUP;
        let words = GROUP / if act == Act::Bf16 { 2 } else { 1 };
        // Several rows in one tile: each thread prepares all of them and turns its part of the columns.
        let parts = if plan.tiles() == 1 && plan.height >= MANY { pool.threads().min(groups) } else { 1 };
        let (data, sums) = (Shared::new(&mut self.data), Shared::new(&mut self.sums));
        pool.run(plan.tiles() * parts, 1, &|from, to| {
            let mut buffer = vec![0.0; plan.height * padded];
            for item in from..to {
                let (first, rows, height) = plan.tile(item / parts);
                let part = groups * (item % parts) / parts..groups * (item % parts + 1) / parts;
                // SAFETY: tiles are disjoint, and so are parts of one: each tile has `height` rows of
                // room at `first`, each part is claimed once, and the assertion above bounds them all.
                let (data, sums) = unsafe {
                    let at = first * groups + part.start * height;
                    (data.slice(at * words, part.len() * words * height), sums.slice(at, part.len() * height))
                };
                let buffer = &mut buffer[..height * padded];
                for (m, values) in buffer.chunks_exact_mut(padded).enumerate() {
                    let wide = if m < rows { cols } else { 0 };
                    if m < rows {
                        row(first + m, &mut values[..cols]);
                    }
                    values[wide..].fill(0.0);
                }
                match act {
                    Act::F32 => put_f32(buffer, part, height, data, sums),
                    Act::Bf16 => kernels.put_bf16(buffer, part, height, data, sums),
                }
            }
        });
    }

    /// Pointers to the tile's activations and group sums.
    fn tile(&self, tile: usize) -> (*const u32, *const f32) {
        let (first, ..) = self.plan.tile(tile);
        let words = self.cols / if self.act == Act::Bf16 { 2 } else { 1 };
        (self.data[first * words..].as_ptr(), self.sums[first * (self.cols / GROUP)..].as_ptr())
    }
}

/// Row after row in, column after column of these groups out; the sums by groups.
fn put_f32(rows: &[f32], part: Range<usize>, height: usize, data: &mut [u32], sums: &mut [f32]) {
    for (m, row) in rows.chunks_exact(rows.len() / height).enumerate() {
        let row = &row[part.start * GROUP..part.end * GROUP];
        for (k, x) in row.iter().enumerate() {
            data[k * height + m] = x.to_bits();
        }
        for (g, group) in row.chunks_exact(GROUP).enumerate() {
            sums[g * height + m] = ordered_sum(group);
        }
    }
}

/// Eight chains, then pairwise: vectorisable, and the same order everywhere.
fn ordered_sum(group: &[f32]) -> f32 {
    let mut a = [0.0f32; 8];
    for chunk in group.chunks_exact(8) {
        for (a, x) in a.iter_mut().zip(chunk) {
            *a += x;
        }
    }
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

/// Where results go.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// `out = W·x`, plus a bias per row of the matrix.
    Store(Option<&'a [f32]>),
    /// `out += W·x`, plus a bias per row of the matrix.
    Add(Option<&'a [f32]>),
    /// Panels alternate between gate and up: `out = silu(gate) · up`, half as wide as the matrix. The
    /// bias is per row of the matrix, so its panels alternate too.
    SiluMul(Option<&'a [f32]>),
}

/// From so many rows on the threads share the work on one tile. Measured with eight rows, where it pays; one row is
/// not worth a barrier.
const MANY: usize = 4;

/// Panels a worker keeps in its second cache while tiles pass.
const BLOCK: usize = 8;

/// `out[r][c]` (row `r` of the activations, `ld` values apart) from row `c` of the matrix.
pub fn gemm(
    (pool, kernels): (&mut Pool, &Kernels),
    w: &PackedMatrix,
    x: &PackedX,
    out: &mut [f32],
    ld: usize,
    epilogue: Epilogue<'_>,
) {
    assert_eq!(w.groups() * GROUP, x.cols, "a matrix and its input differ in width");
    let step = if matches!(epilogue, Epilogue::SiluMul(_)) { 2 } else { 1 };
    let width = w.rows() / step;
    assert!(width <= ld && out.len() >= x.plan.rows * ld, "no room for the product");
    assert!(w.panels().is_multiple_of(step), "gate and up must come in pairs of panels");
    let out = Shared::new(out);
    let (plan, groups) = (x.plan, w.groups());
    let run = kernels.tile(w.ty(), x.act);
    pool.run(w.panels() / step, 1, &|from, to| {
        let mut room = [0.0; 2 * MAX_HEIGHT * LANES];
        let (low, high) = room.split_at_mut(MAX_HEIGHT * LANES);
        for block in (from..to).step_by(BLOCK) {
            for tile in 0..plan.tiles() {
                let (first, rows, height) = plan.tile(tile);
                let (x, xsum) = x.tile(tile);
                for item in block..(block + BLOCK).min(to) {
                    let args = |panel: usize, out: &mut [f32]| TileArgs {
                        panel: w.panel(panel).as_ptr(),
                        groups,
                        x,
                        xsum,
                        out: out.as_mut_ptr(),
                    };
                    // SAFETY: `run` is the kernel of this matrix's type and these activations;
                    // the tile holds `height` rows of `x.cols` columns, which equals the panel's,
                    // and each half of `room` holds the tallest tile.
                    unsafe {
                        run(height, args(item * step, low));
                        if step == 2 {
                            run(height, args(item * 2 + 1, high));
                            if let Epilogue::SiluMul(Some(bias)) = epilogue {
                                let bias = &bias[item * 2 * LANES..];
                                add_bias(&mut low[..rows * LANES], &bias[..LANES]);
                                add_bias(&mut high[..rows * LANES], &bias[LANES..2 * LANES]);
                            }
                            kernels.silu_mul(&mut low[..rows * LANES], &high[..rows * LANES]);
                        }
                    }
                    let at = item * LANES;
                    let wide = LANES.min(width - at);
                    for (m, low) in low.chunks_exact(LANES).take(rows).enumerate() {
                        // SAFETY: `at..at + wide` is within `width <= ld`, the row within `out`
                        // by the assertion, and no other worker has this panel.
                        let out = unsafe { out.slice((first + m) * ld + at, wide) };
                        finish(out, low, epilogue, at);
                    }
                }
            }
        }
    });
}

/// Adds one panel's bias to each row of a tile.
fn add_bias(tile: &mut [f32], bias: &[f32]) {
    for row in tile.chunks_exact_mut(LANES) {
        row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
    }
}

#[inline]
fn finish(out: &mut [f32], values: &[f32], epilogue: Epilogue<'_>, at: usize) {
    match epilogue {
        Epilogue::Store(Some(bias)) => {
            for ((o, v), b) in out.iter_mut().zip(values).zip(&bias[at..]) {
                *o = v + b;
            }
        }
        Epilogue::Add(None) => out.iter_mut().zip(values).for_each(|(o, v)| *o += v),
        Epilogue::Add(Some(bias)) => {
            for ((o, v), b) in out.iter_mut().zip(values).zip(&bias[at..]) {
                *o += v + b;
            }
        }
        // A whole panel is one vector, and not worth a call.
        _ => match out.as_mut_array::<LANES>() {
            Some(out) => out.copy_from_slice(&values[..LANES]),
            None => out.copy_from_slice(&values[..out.len()]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::pack::random_rows;
    use crate::half::{bf16_to_f32, f32_to_bf16};
    use crate::isa::Isa;
    use crate::quant::WeightType;
    use crate::reference;

    fn inputs(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 300.0).collect()
    }

    fn product(isa: Isa, w: &PackedMatrix, x: &[f32], rows: usize, epilogue: Epilogue<'_>) -> Vec<f32> {
        let kernels = Kernels::new(isa).unwrap();
        let mut pool = Pool::new(2).unwrap();
        let cols = w.cols();
        let mut packed = PackedX::new(rows, cols).unwrap();
        let act = kernels.act(w.ty());
        packed.fill((&mut pool, &kernels, act), (rows, cols), &|r, to| {
            to.copy_from_slice(&x[r * cols..][..cols]);
        });
        let mut out = vec![1.0; rows * w.rows()];
        gemm((&mut pool, &kernels), w, &packed, &mut out, w.rows(), epilogue);
        out
    }

    /// The kernel against plain sums over the exact weights and, for bf16, rounded activations.
    fn agrees(isa: Isa, ty: WeightType, (n, k): (usize, usize), rows: usize) {
        if !isa.supported() {
            return;
        }
        let src = random_rows(ty, n, k, 3);
        let mut pool = Pool::new(2).unwrap();
        let w = PackedMatrix::pack(&mut pool, ty, (n, k), &|r| &src[r]).unwrap();
        let x = inputs(rows, k);
        let got = product(isa, &w, &x, rows, Epilogue::Store(None));
        let rounded: Vec<f32> = match Kernels::new(isa).unwrap().act(ty) {
            Act::F32 => x,
            Act::Bf16 => x.iter().map(|x| bf16_to_f32(f32_to_bf16(*x))).collect(),
        };
        let mut row = vec![0.0; k];
        for (c, bytes) in src.iter().enumerate() {
            ty.dequantize_row(bytes, &mut row);
            for r in 0..rows {
                let x = &rounded[r * k..][..k];
                let want = reference::dot(&row, x);
                let size: f32 = row.iter().zip(x).map(|(a, b)| (a * b).abs()).sum();
                let error = (got[r * n + c] - want).abs();
                assert!(error <= 1e-5 * size + 1e-6, "{isa} {} {c},{r}: {error}", ty.name());
            }
        }
    }

    const TYPES: [WeightType; 6] =
        [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4_1];

    #[test]
    fn every_type_on_every_instruction_set_agrees_with_plain_sums() {
        for isa in Isa::ALL {
            for ty in TYPES {
                for rows in [1, 2, 5, 8, 12, 31] {
                    agrees(isa, ty, (48, 128), rows);
                }
            }
        }
    }

    #[test]
    fn rows_and_columns_need_not_fill_panels_and_groups() {
        for isa in Isa::ALL {
            agrees(isa, WeightType::Bf16, (21, 50), 3);
            agrees(isa, WeightType::F32, (5, 17), 3);
            agrees(isa, WeightType::Q8_0, (33, 96), 7);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (n, k) = (64, 192);
        let x = inputs(29, k);
        let mut pool = Pool::new(2).unwrap();
        for isa in Isa::ALL.into_iter().filter(|i| i.supported()) {
            for ty in TYPES {
                let src = random_rows(ty, n, k, 5);
                let w = PackedMatrix::pack(&mut pool, ty, (n, k), &|r| &src[r]).unwrap();
                let all = product(isa, &w, &x, 29, Epilogue::Store(None));
                for r in [0, 13, 28] {
                    let alone = product(isa, &w, &x[r * k..][..k], 1, Epilogue::Store(None));
                    assert_eq!(alone, all[r * n..][..n], "{isa} {} row {r}", ty.name());
                }
            }
        }
    }

    #[test]
    fn epilogues_add_bias_sum_and_gate() {
        let (n, k) = (32, 64);
        let src = random_rows(WeightType::F32, n, k, 9);
        let mut pool = Pool::new(1).unwrap();
        let w = PackedMatrix::pack(&mut pool, WeightType::F32, (n, k), &|r| &src[r]).unwrap();
        let x = inputs(2, k);
        for isa in Isa::ALL.into_iter().filter(|i| i.supported()) {
            let plain = product(isa, &w, &x, 2, Epilogue::Store(None));
            let bias: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let biased = product(isa, &w, &x, 2, Epilogue::Store(Some(&bias)));
            let added = product(isa, &w, &x, 2, Epilogue::Add(None));
            let added_biased = product(isa, &w, &x, 2, Epilogue::Add(Some(&bias)));
            let gated = product(isa, &w, &x, 2, Epilogue::SiluMul(None));
            let gated_biased = product(isa, &w, &x, 2, Epilogue::SiluMul(Some(&bias)));
            for (i, p) in plain.iter().enumerate() {
                assert_eq!(biased[i], p + bias[i % n]);
                assert_eq!(added[i], p + 1.0);
                assert_eq!(added_biased[i], 1.0 + (p + bias[i % n]));
            }
            for r in 0..2 {
                for c in 0..16 {
                    for (values, got) in [(&plain, &gated), (&biased, &gated_biased)] {
                        let want = reference::silu(values[r * n + c]) * values[r * n + 16 + c];
                        let got = got[r * n + c];
                        assert!((got - want).abs() <= 2e-6 * want.abs() + 1e-7, "{isa}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_cover_the_rows_with_heights_that_exist() {
        for limit in [4, 12] {
            for rows in 1..200 {
                let plan = TilePlan::new(rows, limit);
                let mut next = 0;
                for t in 0..plan.tiles() {
                    let (first, n, height) = plan.tile(t);
                    assert!(first == next && n >= 1 && n <= height && height <= limit);
                    assert!(HEIGHTS.contains(&height));
                    next += n;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
