//! The tile loop with bf16 dot products: 32 multiply-adds per instruction, sums in f32.
//!
//! Activations are rounded to bf16 (8 significant bits); weights are exact, because bytes and
//! nibbles are whole numbers up to 256 and bf16 holds those. Same structure and same order of
//! sums as `tile`, in pairs of columns.

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::LANES;
use super::pack::PackedMatrix;
use super::tile::{BF16, Q4_0, Q4_1, Q8_0, TileArgs, weight_type};
use crate::quant::GROUP;

/// How far ahead of its use a panel is fetched: far enough to hide memory, near enough to stay in
/// the first cache.
const PREFETCH: usize = 4096;

/// The bf16 of each nibble, twice: a permutation by 16-bit lanes looks at five bits.
static NIBBLE_BF16: [u16; 32] = {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        table[i] = ((i % 16) as f32).to_bits().wrapping_shr(16) as u16;
        i += 1;
    }
    table
};

/// # Safety
/// The processor has AVX-512 F, BW, VL and BF16; `args` as `TileArgs` says, with `x` in bf16 pairs
/// and `T` one of bf16, q8_0, q4_0 and q4_1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub unsafe fn tile_bf16<const T: u8, const MT: usize>(args: TileArgs) {
    let group_bytes = PackedMatrix::group_bytes(weight_type(T));
    // SAFETY: the offsets stay within one group of the panel, `MT` activations per column pair and
    // `MT` rows of `out`; prefetches may point anywhere.
    unsafe {
        let values = _mm512_loadu_si512(NIBBLE_BF16.as_ptr().cast());
        let mut total = [_mm512_setzero_ps(); MT];
        for g in 0..args.groups {
            let w = args.panel.add(g * group_bytes);
            let x = args.x.add(g * GROUP / 2 * MT);
            let xsum = args.xsum.add(g * MT);
            let mut part = [_mm512_setzero_ps(); MT];
            let mut line = 0;
            while line * 64 < group_bytes {
                _mm_prefetch::<_MM_HINT_T0>(w.add(PREFETCH + line * 64).cast());
                line += 1;
            }
            let mut pair = |wv: __m512i, p: usize| {
                for (m, part) in part.iter_mut().enumerate() {
                    let xv = _mm512_set1_epi32(*x.add(p * MT + m) as i32);
                    *part = dot(*part, wv, xv);
                }
            };
            match T {
                BF16 => {
                    for p in 0..GROUP / 2 {
                        pair(_mm512_loadu_si512(w.add(p * LANES * 4).cast()), p);
                    }
                }
                Q8_0 => {
                    for p in 0..GROUP / 2 {
                        let even = bytes(w.add(2 * p * LANES));
                        let odd = bytes(w.add((2 * p + 1) * LANES));
                        pair(_mm512_or_si512(_mm512_srli_epi32::<16>(even), odd), p);
                    }
                }
                _ => {
                    for z in 0..GROUP / 8 {
                        let mut n = _mm512_loadu_si512(w.add(z * LANES * 4).cast());
                        for j in 0..4 {
                            pair(_mm512_permutexvar_epi16(n, values), 4 * z + j);
                            n = _mm512_srli_epi16::<4>(n);
                        }
                    }
                }
            }
            let scales = w.add(GROUP * LANES / if T == Q8_0 { 1 } else { 2 });
            match T {
                Q8_0 => {
                    let d = halves(scales);
                    for m in 0..MT {
                        total[m] = _mm512_fmadd_ps(d, part[m], total[m]);
                    }
                }
                Q4_0 => {
                    let d = halves(scales);
                    for m in 0..MT {
                        let centre = _mm512_set1_ps(-8.0 * *xsum.add(m));
                        total[m] = _mm512_fmadd_ps(d, _mm512_add_ps(part[m], centre), total[m]);
                    }
                }
                Q4_1 => {
                    let (d, min) = (halves(scales), halves(scales.add(LANES * 2)));
                    for m in 0..MT {
                        total[m] = _mm512_fmadd_ps(d, part[m], total[m]);
                        let sum = _mm512_set1_ps(*xsum.add(m));
                        total[m] = _mm512_fmadd_ps(min, sum, total[m]);
                    }
                }
                _ => {
                    for m in 0..MT {
                        total[m] = _mm512_add_ps(total[m], part[m]);
                    }
                }
            }
        }
        for (m, t) in total.into_iter().enumerate() {
            _mm512_storeu_ps(args.out.add(m * LANES), t);
        }
    }
}

/// Words of one row's group: pairs of columns.
const WORDS: usize = GROUP / 2;

/// Rounds some groups of a tile of `height` rows, and turns them so that the rows' words of one pair of columns lie side by
/// side. The sums by groups are of the rounded values: what multiplies a minimum must be what multiplies
/// the nibbles. They run as in the f32 path, in eight chains and then pairwise.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub fn put(rows: &[f32], part: Range<usize>, height: usize, data: &mut [u32], sums: &mut [f32]) {
    let groups = rows.len() / height / GROUP;
    let group = |m: usize, g: usize| &rows[(m * groups + g) * GROUP..][..GROUP];
    let places = data.chunks_exact_mut(WORDS * height).zip(sums.chunks_exact_mut(height));
    for (g, (places, sums)) in part.zip(places) {
        let mut m = 0;
        while m + 4 <= height {
            let quad = [m, m + 1, m + 2, m + 3].map(|m| rounded(group(m, g)));
            for (sum, pairs) in sums[m..].iter_mut().zip(quad) {
                *sum = total(pairs);
            }
            // SAFETY: four words at `m` of each of the group's columns, which are `height` words long.
            unsafe { turn(quad, places.as_mut_ptr().add(m), height) };
            m += 4;
        }
        for (m, sum) in sums.iter_mut().enumerate().skip(m) {
            let pairs = rounded(group(m, g));
            *sum = total(pairs);
            for (place, word) in places.iter_mut().skip(m).step_by(height).zip(words(pairs)) {
                *place = word;
            }
        }
    }
}

/// A group as bf16, in pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(group: &[f32]) -> __m512i {
    assert!(group.len() == GROUP);
    // SAFETY: a group is two vectors; 512 bits are 512 bits.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(group.as_ptr()), _mm512_loadu_ps(group[LANES..].as_ptr()));
        std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn total(pairs: __m512i) -> f32 {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let even = chains(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
    let odd = chains(_mm512_castsi512_ps(_mm512_and_si512(pairs, high)));
    ((even[0] + even[2]) + (even[1] + even[3])) + ((odd[0] + odd[2]) + (odd[1] + odd[3]))
}

/// Four rows of sixteen words as sixteen columns of four, each column `stride` words after the one before.
///
/// # Safety
/// Four words are writable at each of the columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn turn([a, b, c, d]: [__m512i; 4], to: *mut u32, stride: usize) {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    // Of the four quarters of each, the first holds a column of 0 to 3, the second one of 4 to 7, and so on.
    let columns = [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ];
    for (column, x) in columns.into_iter().enumerate() {
        let quarters = [
            _mm512_extracti32x4_epi32::<0>(x),
            _mm512_extracti32x4_epi32::<1>(x),
            _mm512_extracti32x4_epi32::<2>(x),
            _mm512_extracti32x4_epi32::<3>(x),
        ];
        for (quarter, x) in quarters.into_iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { _mm_storeu_si128(to.add((4 * quarter + column) * stride).cast(), x) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn words(x: __m512i) -> [u32; WORDS] {
    // SAFETY: 512 bits are 512 bits.
    unsafe { std::mem::transmute(x) }
}

/// Sums of every fourth lane, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn chains(x: __m512) -> [f32; 4] {
    let sum = _mm_add_ps(_mm512_extractf32x4_ps::<0>(x), _mm512_extractf32x4_ps::<1>(x));
    let sum = _mm_add_ps(_mm_add_ps(sum, _mm512_extractf32x4_ps::<2>(x)), _mm512_extractf32x4_ps::<3>(x));
    let mut out = [0.0; 4];
    // SAFETY: four values.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sum) };
    out
}

/// `acc + w·x` over pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn dot(acc: __m512, w: __m512i, x: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits without invalid values.
    unsafe {
        let w: __m512bh = std::mem::transmute(w);
        let x: __m512bh = std::mem::transmute(x);
        _mm512_dpbf16_ps(acc, w, x)
    }
}

/// Sixteen signed bytes as f32 bits. Their low halves are zero: the high halves are the bf16.
///
/// # Safety
/// Sixteen bytes are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn bytes(p: *const u8) -> __m512i {
    // SAFETY: sixteen bytes, by the caller's promise.
    let q = unsafe { _mm_loadu_si128(p.cast()) };
    _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)))
}

/// # Safety
/// Sixteen f16 are readable at `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(p: *const u8) -> __m512 {
    // SAFETY: 32 bytes, by the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}
