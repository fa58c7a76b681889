//! The tile loop with bf16 dot products: 32 multiply-adds per instruction, sums in f32.
//!
//! Activations are rounded to bf16 (8 significant bits); weights are exact, because bytes and
//! nibbles are whole numbers up to 256 and bf16 holds those. Same structure and same order of
//! sums as `tile`, in pairs of columns.

use std::arch::x86_64::*;

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

/// Rounds row `m` of a tile `height` rows high into its places, and sums it by groups: what multiplies a
/// minimum must be what multiplies the nibbles. The sums run as in the f32 path, in eight chains and then pairwise.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub fn put(row: &[f32], m: usize, height: usize, data: &mut [u32], sums: &mut [f32]) {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let places = data.chunks_exact_mut(GROUP / 2 * height);
    for (g, (group, places)) in row.as_chunks::<GROUP>().0.iter().zip(places).enumerate() {
        let mut words = [0; GROUP / 2];
        // SAFETY: a group is two vectors and `words` one; 512 bits are 512 bits.
        let pairs: __m512i = unsafe {
            let (low, high) = (_mm512_loadu_ps(group.as_ptr()), _mm512_loadu_ps(group[LANES..].as_ptr()));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        };
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), pairs) };
        for (place, word) in places.iter_mut().skip(m).step_by(height).zip(words) {
            *place = word;
        }
        let even = chains(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
        let odd = chains(_mm512_castsi512_ps(_mm512_and_si512(pairs, high)));
        sums[g * height + m] = ((even[0] + even[2]) + (even[1] + even[3])) + ((odd[0] + odd[2]) + (odd[1] + odd[3]));
    }
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
