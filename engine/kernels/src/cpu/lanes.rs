//! Sixteen f32 lanes, in three instruction sets.
//!
//! Kernels are written once over [`Lanes`] and instantiated per instruction set inside a function
//! that enables its features (see `dispatch`). Everything here is `inline(always)`, so that the
//! intrinsics end up in that function and the vectors in its registers.
//!
//! # Safety
//! One rule for every method: the processor has the implementor's features, and pointers are valid
//! for the sixteen values they stand for. No alignment is asked for.

#![allow(clippy::missing_safety_doc)] // The rule above covers every method.

use crate::half::{bf16_to_f32, f16_to_f32};

/// Lanes per vector: rows of a packed panel, tokens of a KV block.
pub const LANES: usize = 16;

pub trait Lanes: Copy {
    /// Sixteen 32-bit words whose low four bits are the next weights.
    type Nibbles: Copy;
    /// The most rows of activations one pass over a panel may carry.
    const TILE: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    unsafe fn max(self, o: Self) -> Self;
    unsafe fn min(self, o: Self) -> Self;
    /// `self * b + c`; fused where the instruction set has it.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn round(self) -> Self;
    /// `2^self` for whole numbers in `-126..=127`.
    unsafe fn exp2_int(self) -> Self;
    unsafe fn from_i8(p: *const i8) -> Self;
    unsafe fn from_f16(p: *const u16) -> Self;
    /// The low and the high halves of sixteen words of two bf16 each.
    unsafe fn from_bf16_pairs(p: *const u32) -> (Self, Self);
    unsafe fn nibbles(p: *const u32) -> Self::Nibbles;
    unsafe fn low_nibble(n: Self::Nibbles) -> Self;
    unsafe fn next_nibble(n: Self::Nibbles) -> Self::Nibbles;

    #[inline(always)]
    unsafe fn array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` holds sixteen values; features are the caller's promise.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// Pairwise, in the same order in every instruction set.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: features are the caller's promise.
        let mut a = unsafe { self.array() };
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                a[i] += a[i + half];
            }
            half /= 2;
        }
        a[0]
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: features are the caller's promise.
        unsafe { self.array() }.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// e^self to about 2 ulp; what underflows becomes 0 or the smallest normal numbers.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        const POLY: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_58e-2, 0.166_666_65, 0.5];
        // SAFETY: features are the caller's promise.
        unsafe {
            let x = self.min(Self::splat(88.0)).max(Self::splat(-87.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 in two parts: the product with the first is exact.
            let f = n.fma(Self::splat(-0.693_359_4), x);
            let f = n.fma(Self::splat(2.121_944_4e-4), f);
            let mut p = Self::splat(POLY[0]);
            for c in &POLY[1..] {
                p = p.fma(f, Self::splat(*c));
            }
            let e = p.fma(f.mul(f), f.add(Self::splat(1.0)));
            e.mul(n.exp2_int())
        }
    }
}

/// Plain arrays: the compiler vectorises as far as the target allows.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Portable {
    Portable(std::array::from_fn(f))
}

impl Lanes for Portable {
    type Nibbles = [u32; LANES];
    const TILE: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: sixteen values by the module's rule; an array of f32 needs only their alignment,
        // which `read_unaligned` waives.
        Portable(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        each(|i| self.0[i] + o.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        each(|i| self.0[i] * o.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        each(|i| self.0[i] / o.0[i])
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        each(|i| if self.0[i] > o.0[i] { self.0[i] } else { o.0[i] })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        each(|i| if self.0[i] < o.0[i] { self.0[i] } else { o.0[i] })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        each(|i| self.0[i] * b.0[i] + c.0[i])
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding and taking away 1.5·2^23 leaves the nearest whole number.
        each(|i| (self.0[i] + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        each(|i| f32::from_bits(((self.0[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn from_i8(p: *const i8) -> Self {
        // SAFETY: sixteen values by the module's rule.
        each(|i| f32::from(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn from_f16(p: *const u16) -> Self {
        // SAFETY: sixteen values by the module's rule.
        each(|i| f16_to_f32(unsafe { p.add(i).read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn from_bf16_pairs(p: *const u32) -> (Self, Self) {
        // SAFETY: sixteen values by the module's rule.
        let words = unsafe { p.cast::<[u32; LANES]>().read_unaligned() };
        (each(|i| bf16_to_f32(words[i] as u16)), each(|i| f32::from_bits(words[i] & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u32) -> [u32; LANES] {
        // SAFETY: sixteen values by the module's rule.
        unsafe { p.cast::<[u32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low_nibble(n: [u32; LANES]) -> Self {
        each(|i| (n[i] & 0xf) as i32 as f32)
    }
    #[inline(always)]
    unsafe fn next_nibble(n: [u32; LANES]) -> [u32; LANES] {
        n.map(|w| w >> 4)
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// Two halves of eight.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY (all of this impl): the module's rule gives features and sixteen valid values; the
    // second half is the eight values after the first, and every access is an unaligned one.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx2 {
        type Nibbles = (__m256i, __m256i);
        const TILE: usize = 4;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            let v = unsafe { _mm256_set1_ps(x) };
            Avx2(v, v)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, o.0), _mm256_mul_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_div_ps(self.0, o.0), _mm256_div_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_max_ps(self.0, o.0), _mm256_max_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Avx2(_mm256_min_ps(self.0, o.0), _mm256_min_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
        }
        #[inline(always)]
        unsafe fn exp2_int(self) -> Self {
            unsafe {
                let bias = _mm256_set1_epi32(127);
                let f = |v| {
                    let n = _mm256_add_epi32(_mm256_cvtps_epi32(v), bias);
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
                };
                Avx2(f(self.0), f(self.1))
            }
        }
        #[inline(always)]
        unsafe fn from_i8(p: *const i8) -> Self {
            unsafe {
                let f = |p: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
                Avx2(f(p), f(p.add(8)))
            }
        }
        #[inline(always)]
        unsafe fn from_f16(p: *const u16) -> Self {
            unsafe {
                let f = |p: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
                Avx2(f(p), f(p.add(8)))
            }
        }
        #[inline(always)]
        unsafe fn from_bf16_pairs(p: *const u32) -> (Self, Self) {
            unsafe {
                let (a, b) = Self::nibbles(p);
                let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let lo = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
                let hi = |v| _mm256_castsi256_ps(_mm256_and_si256(v, high));
                (Avx2(lo(a), lo(b)), Avx2(hi(a), hi(b)))
            }
        }
        #[inline(always)]
        unsafe fn nibbles(p: *const u32) -> (__m256i, __m256i) {
            unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())) }
        }
        #[inline(always)]
        unsafe fn low_nibble(n: (__m256i, __m256i)) -> Self {
            unsafe {
                let mask = _mm256_set1_epi32(0xf);
                let f = |v| _mm256_cvtepi32_ps(_mm256_and_si256(v, mask));
                Avx2(f(n.0), f(n.1))
            }
        }
        #[inline(always)]
        unsafe fn next_nibble(n: (__m256i, __m256i)) -> (__m256i, __m256i) {
            unsafe { (_mm256_srli_epi32::<4>(n.0), _mm256_srli_epi32::<4>(n.1)) }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    /// The value of each nibble: a permutation by the nibbles turns sixteen of them into floats.
    static NIBBLE_VALUES: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

    // SAFETY (all of this impl): the module's rule gives features and sixteen valid values; every
    // access is an unaligned one.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx512 {
        type Nibbles = __m512i;
        const TILE: usize = 12;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Avx512(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Avx512(_mm512_loadu_ps(p)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Avx512(_mm512_add_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            unsafe { Avx512(_mm512_mul_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            unsafe { Avx512(_mm512_div_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Avx512(_mm512_max_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Avx512(_mm512_min_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            unsafe { Avx512(_mm512_roundscale_ps::<NEAREST>(self.0)) }
        }
        #[inline(always)]
        unsafe fn exp2_int(self) -> Self {
            unsafe { Avx512(_mm512_scalef_ps(_mm512_set1_ps(1.0), self.0)) }
        }
        #[inline(always)]
        unsafe fn from_i8(p: *const i8) -> Self {
            unsafe { Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn from_f16(p: *const u16) -> Self {
            unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn from_bf16_pairs(p: *const u32) -> (Self, Self) {
            unsafe {
                let v = _mm512_loadu_si512(p.cast());
                let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                (
                    Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))),
                    Avx512(_mm512_castsi512_ps(_mm512_and_si512(v, high))),
                )
            }
        }
        #[inline(always)]
        unsafe fn nibbles(p: *const u32) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn low_nibble(n: __m512i) -> Self {
            unsafe {
                let values = _mm512_loadu_ps(NIBBLE_VALUES.as_ptr());
                Avx512(_mm512_permutexvar_ps(n, values))
            }
        }
        #[inline(always)]
        unsafe fn next_nibble(n: __m512i) -> __m512i {
            unsafe { _mm512_srli_epi32::<4>(n) }
        }
    }
}
