//! The inner loop of every matrix product: one panel of sixteen rows against a few rows of
//! activations, in f32.
//!
//! Per group of 32 columns the products are summed from zero, then scaled into the total:
//! `total += d · Σ q·x + m · Σ x`. That keeps quantised weights exact (small whole numbers), takes
//! two operations per group for the scales, and fixes the order of every row's sum whatever the
//! number of rows beside it. The groups' sums are independent chains, so even one row of
//! activations keeps the multipliers busy.

use super::lanes::{LANES, Lanes};
use super::pack::PackedMatrix;
use crate::quant::{GROUP, WeightType};

/// Weight types as constants, so that each gets its own loop.
pub const F32: u8 = 0;
pub const F16: u8 = 1;
pub const BF16: u8 = 2;
pub const Q8_0: u8 = 3;
pub const Q4_0: u8 = 4;
pub const Q4_1: u8 = 5;

pub const fn weight_type(t: u8) -> WeightType {
    match t {
        F32 => WeightType::F32,
        F16 => WeightType::F16,
        BF16 => WeightType::Bf16,
        Q8_0 => WeightType::Q8_0,
        Q4_0 => WeightType::Q4_0,
        _ => WeightType::Q4_1,
    }
}

/// What a tile reads and writes. `x` is `[columns][MT]` (f32, or pairs of bf16 as words), `xsum`
/// is `[groups][MT]`, `out` is `[MT][16]`.
#[derive(Clone, Copy)]
pub struct TileArgs {
    pub panel: *const u8,
    pub groups: usize,
    pub x: *const u32,
    pub xsum: *const f32,
    pub out: *mut f32,
}

/// # Safety
/// The features of `L` are there; `args` points to a panel of type `T` and to activations and
/// room of the sizes `TileArgs` names.
#[inline(always)]
pub unsafe fn tile_f32<L: Lanes, const T: u8, const MT: usize>(args: TileArgs) {
    // SAFETY: every offset below stays within one group of the panel (its size is
    // `group_bytes`), within `MT` activations per column, and within `MT` rows of `out`.
    unsafe {
        let zero = L::splat(0.0);
        let mut total = [zero; MT];
        let group_bytes = PackedMatrix::group_bytes(weight_type(T));
        for g in 0..args.groups {
            let w = args.panel.add(g * group_bytes);
            let x = args.x.cast::<f32>().add(g * GROUP * MT);
            let xsum = args.xsum.add(g * MT);
            let part = group::<L, T, MT>(w, x);
            let scales = w.add(GROUP * LANES / if T == Q8_0 { 1 } else { 2 }).cast::<u16>();
            match T {
                Q8_0 => {
                    let d = L::from_f16(scales);
                    for m in 0..MT {
                        total[m] = d.fma(part[m], total[m]);
                    }
                }
                Q4_0 => {
                    let d = L::from_f16(scales);
                    for m in 0..MT {
                        let centred = part[m].add(L::splat(-8.0 * *xsum.add(m)));
                        total[m] = d.fma(centred, total[m]);
                    }
                }
                Q4_1 => {
                    let (d, min) = (L::from_f16(scales), L::from_f16(scales.add(LANES)));
                    for m in 0..MT {
                        total[m] = d.fma(part[m], total[m]);
                        total[m] = min.fma(L::splat(*xsum.add(m)), total[m]);
                    }
                }
                _ => {
                    for m in 0..MT {
                        total[m] = total[m].add(part[m]);
                    }
                }
            }
        }
        for (m, t) in total.into_iter().enumerate() {
            t.store(args.out.add(m * LANES));
        }
    }
}

/// The unscaled sums over one group.
///
/// # Safety
/// As for [`tile_f32`], at one group.
#[inline(always)]
unsafe fn group<L: Lanes, const T: u8, const MT: usize>(w: *const u8, x: *const f32) -> [L; MT] {
    // SAFETY: `w` holds one group of type `T`, `x` holds `GROUP * MT` values.
    unsafe {
        let mut part = [L::splat(0.0); MT];
        match T {
            F32 => {
                for k in 0..GROUP {
                    column(&mut part, L::load(w.cast::<f32>().add(k * LANES)), x.add(k * MT));
                }
            }
            F16 => {
                for k in 0..GROUP {
                    column(&mut part, L::from_f16(w.cast::<u16>().add(k * LANES)), x.add(k * MT));
                }
            }
            Q8_0 => {
                for k in 0..GROUP {
                    column(&mut part, L::from_i8(w.cast::<i8>().add(k * LANES)), x.add(k * MT));
                }
            }
            BF16 => {
                for pair in 0..GROUP / 2 {
                    let (even, odd) = L::from_bf16_pairs(w.cast::<u32>().add(pair * LANES));
                    column(&mut part, even, x.add(2 * pair * MT));
                    column(&mut part, odd, x.add((2 * pair + 1) * MT));
                }
            }
            _ => {
                for z in 0..GROUP / 8 {
                    let mut n = L::nibbles(w.cast::<u32>().add(z * LANES));
                    for k in [0, 2, 4, 6, 1, 3, 5, 7] {
                        column(&mut part, L::low_nibble(n), x.add((8 * z + k) * MT));
                        n = L::next_nibble(n);
                    }
                }
            }
        }
        part
    }
}

/// `acc[r] += w · x[r]`. A function and not a closure, because only functions can be forced into
/// the caller, where the instruction set is.
///
/// # Safety
/// The features of `L` are there; `R` values are readable at `x`.
#[inline(always)]
pub unsafe fn column<L: Lanes, const R: usize>(acc: &mut [L; R], w: L, x: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = w.fma(L::splat(*x.add(r)), *acc);
        }
    }
}
