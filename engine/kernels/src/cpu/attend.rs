//! The inner loops of attention: a few query rows against one partition of a sequence's KV.
//!
//! A partition is 256 consecutive positions, cut at absolute multiples of 256 whatever is asked
//! for. Each is reduced on its own (largest score, sum of exponentials, weighted sum of V) and
//! merged in order, so a row's result depends on its sequence only. What a row must not see
//! contributes exact zeros.

use std::mem::MaybeUninit;

use super::gemm::MAX_HEIGHT;
use super::lanes::{LANES, Lanes};
use super::tile::column;

/// Positions in a partition.
pub const PARTITION: usize = 256;
/// The largest head a kernel has room for.
pub const MAX_HEAD_DIM: usize = 256;

pub const KV_F32: u8 = 0;
pub const KV_BF16: u8 = 1;

/// One tile of query rows (all reading the same KV head) and one partition.
#[derive(Clone, Copy)]
pub struct AttendArgs {
    /// Scaled queries: `[head_dim][R]` f32, or `[head_dim/2][R]` pairs of bf16.
    pub q: *const u32,
    /// Positions each of the `R` rows sees, from the start of the sequence. 0 for padding.
    pub limits: *const usize,
    /// The sequence's block table.
    pub table: *const u32,
    /// The K panel of this layer and head in block 0.
    pub keys: *const u8,
    pub block_bytes: usize,
    pub panel_bytes: usize,
    pub head_dim: usize,
    pub partition: usize,
    /// Results: `[R][head_dim]` weighted sums, `[R]` largest scores, `[R]` sums.
    pub out: *mut f32,
    pub largest: *mut f32,
    pub sums: *mut f32,
}

impl AttendArgs {
    /// (first position, blocks) of the partition that any row sees.
    ///
    /// # Safety
    /// `limits` holds `rows` values.
    #[inline(always)]
    pub unsafe fn span(&self, rows: usize) -> (usize, usize) {
        // SAFETY: the caller's promise.
        let limits = unsafe { std::slice::from_raw_parts(self.limits, rows) };
        let end = limits.iter().copied().max().unwrap_or(0);
        let first = self.partition * PARTITION;
        (first, end.saturating_sub(first).min(PARTITION).div_ceil(LANES))
    }

    /// K panel of the partition's block `b`; V follows `panel_bytes` later.
    ///
    /// # Safety
    /// The table covers that block.
    #[inline(always)]
    pub unsafe fn panel(&self, first: usize, b: usize) -> *const u8 {
        // SAFETY: the caller's promise; table entries are blocks of the cache.
        unsafe { self.keys.add(*self.table.add(first / LANES + b) as usize * self.block_bytes) }
    }
}

/// Scores of a tile, one row after the other. Written before they are read, as far as blocks go.
type Scores = [f32; MAX_HEIGHT * PARTITION];

/// # Safety
/// The features of `L` are there; `args` is as its fields say, with a table and a cache that cover
/// every position below the largest limit, `head_dim` a multiple of 16 and at most `MAX_HEAD_DIM`.
#[inline(always)]
pub unsafe fn attend_f32<L: Lanes, const KV: u8, const R: usize>(args: &AttendArgs) {
    let mut scores = MaybeUninit::<Scores>::uninit();
    let s = scores.as_mut_ptr().cast::<f32>();
    let q = args.q.cast::<f32>();
    // SAFETY: offsets stay inside panels of `16 · head_dim` values, `R` queries per dimension, and
    // `R` rows of `PARTITION` scores; the rest is the caller's promise.
    unsafe {
        let (first, blocks) = args.span(R);
        for b in 0..blocks {
            let keys = args.panel(first, b);
            let mut acc = [L::splat(0.0); R];
            if KV == KV_F32 {
                for d in 0..args.head_dim {
                    column(&mut acc, L::load(keys.cast::<f32>().add(d * LANES)), q.add(d * R));
                }
            } else {
                for p in 0..args.head_dim / 2 {
                    let (even, odd) = L::from_bf16_pairs(keys.cast::<u32>().add(p * LANES));
                    column(&mut acc, even, q.add(2 * p * R));
                    column(&mut acc, odd, q.add((2 * p + 1) * R));
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                acc.store(s.add(r * PARTITION + b * LANES));
            }
        }
        softmax::<L, R>(args, first, blocks, s);
        for d in (0..args.head_dim).step_by(LANES) {
            let mut acc = [L::splat(0.0); R];
            for b in 0..blocks {
                let values = args.panel(first, b).add(args.panel_bytes);
                let s = s.add(b * LANES);
                if KV == KV_F32 {
                    for t in 0..LANES {
                        let v = L::load(values.cast::<f32>().add(t * args.head_dim + d));
                        token(&mut acc, v, s.add(t));
                    }
                } else {
                    for p in 0..LANES / 2 {
                        let words = values.cast::<u32>().add(p * args.head_dim + d);
                        let (even, odd) = L::from_bf16_pairs(words);
                        token(&mut acc, even, s.add(2 * p));
                        token(&mut acc, odd, s.add(2 * p + 1));
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                acc.store(args.out.add(r * args.head_dim + d));
            }
        }
    }
}

/// `acc[r] += v · s[r]`, where rows of `s` are `PARTITION` apart.
///
/// # Safety
/// The features of `L` are there; `R` such values are readable at `s`.
#[inline(always)]
unsafe fn token<L: Lanes, const R: usize>(acc: &mut [L; R], v: L, s: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = v.fma(L::splat(*s.add(r * PARTITION)), *acc);
        }
    }
}

/// Turns scores into exponentials relative to each row's largest, zero where the row sees nothing,
/// and notes that largest score and their sum.
///
/// # Safety
/// As for [`attend_f32`]; `s` holds `R` rows of `PARTITION` scores, `blocks` blocks of them filled.
#[inline(always)]
pub unsafe fn softmax<L: Lanes, const R: usize>(args: &AttendArgs, first: usize, blocks: usize, s: *mut f32) {
    // SAFETY: `blocks * LANES <= PARTITION`, and rows are `PARTITION` apart.
    unsafe {
        for r in 0..R {
            let seen = (*args.limits.add(r)).saturating_sub(first).min(blocks * LANES);
            let row = std::slice::from_raw_parts_mut(s.add(r * PARTITION), blocks * LANES);
            if seen == 0 {
                row.fill(0.0);
                *args.largest.add(r) = f32::NEG_INFINITY;
                *args.sums.add(r) = 0.0;
                continue;
            }
            row[seen..].fill(f32::NEG_INFINITY);
            let mut largest = L::splat(f32::NEG_INFINITY);
            for b in 0..blocks {
                largest = largest.max(L::load(row.as_ptr().add(b * LANES)));
            }
            let largest = largest.largest();
            let shift = L::splat(-largest);
            let mut sum = L::splat(0.0);
            for b in 0..blocks {
                let p = row.as_mut_ptr().add(b * LANES);
                L::load(p).add(shift).exp().store(p);
                // The approximation of e^-inf is tiny, not zero.
                if (b + 1) * LANES > seen {
                    row[seen.max(b * LANES)..(b + 1) * LANES].fill(0.0);
                }
                sum = sum.add(L::load(row.as_ptr().add(b * LANES)));
            }
            *args.largest.add(r) = largest;
            *args.sums.add(r) = sum.sum();
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use bf16::attend_bf16;

#[cfg(target_arch = "x86_64")]
mod bf16 {
    use super::super::bf16::dot;
    use super::super::lanes::Avx512;
    use super::*;
    use std::arch::x86_64::*;

    /// As [`attend_f32`], with bf16 dot products: queries and exponentials are rounded to bf16, sums are f32.
    ///
    /// A score, like a weighted sum, is one chain of additions; `N` blocks (or sixteens of dimensions) are
    /// computed side by side to keep the multipliers busy where rows are few. It changes no chain.
    ///
    /// # Safety
    /// As for [`attend_f32`], on a processor with AVX-512 BF16, with bf16 queries and a bf16 cache.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub unsafe fn attend_bf16<const R: usize, const N: usize>(args: &AttendArgs) {
        let mut scores = MaybeUninit::<Scores>::uninit();
        let s = scores.as_mut_ptr().cast::<f32>();
        // SAFETY: as in `attend_f32`; exponentials are rounded in place, so row `r` of pairs starts
        // where its row of scores does.
        unsafe {
            let (first, blocks) = args.span(R);
            let mut b = 0;
            while b + N <= blocks {
                keys::<R, N>(args, first, b, s);
                b += N;
            }
            while N > 1 && b < blocks {
                keys::<R, 1>(args, first, b, s);
                b += 1;
            }
            softmax::<Avx512, R>(args, first, blocks, s);
            for r in 0..R {
                let row = s.add(r * PARTITION);
                for b in 0..blocks {
                    let e = _mm512_cvtneps_pbh(_mm512_loadu_ps(row.add(b * LANES)));
                    let e: __m256i = std::mem::transmute(e);
                    _mm256_storeu_si256(row.cast::<u16>().add(b * LANES).cast(), e);
                }
            }
            let mut d = 0;
            while d + N * LANES <= args.head_dim {
                values::<R, N>(args, first, blocks, d, s);
                d += N * LANES;
            }
            while N > 1 && d < args.head_dim {
                values::<R, 1>(args, first, blocks, d, s);
                d += LANES;
            }
        }
    }

    /// Scores of blocks `b..b + N`. Nothing is fetched ahead by hand: the processor does that better here.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn keys<const R: usize, const N: usize>(args: &AttendArgs, first: usize, b: usize, s: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut keys = [args.keys; N];
            for (n, keys) in keys.iter_mut().enumerate() {
                *keys = args.panel(first, b + n);
            }
            let mut acc = [[_mm512_setzero_ps(); R]; N];
            for p in 0..args.head_dim / 2 {
                for (acc, keys) in acc.iter_mut().zip(keys) {
                    let k = _mm512_loadu_si512(keys.add(p * 64).cast());
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = dot(*acc, k, _mm512_set1_epi32(*args.q.add(p * R + r) as i32));
                    }
                }
            }
            for (n, acc) in acc.into_iter().enumerate() {
                for (r, acc) in acc.into_iter().enumerate() {
                    _mm512_storeu_ps(s.add(r * PARTITION + (b + n) * LANES), acc);
                }
            }
        }
    }

    /// Sums of V in the dimensions from `d`, weighted by the exponentials at `s`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn values<const R: usize, const N: usize>(
        args: &AttendArgs,
        first: usize,
        blocks: usize,
        d: usize,
        s: *const f32,
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); R]; N];
            for b in 0..blocks {
                let values = args.panel(first, b).add(args.panel_bytes).cast::<i32>().add(d);
                let s = s.cast::<i32>().add(b * LANES / 2);
                for p in 0..LANES / 2 {
                    for (n, acc) in acc.iter_mut().enumerate() {
                        let v = _mm512_loadu_si512(values.add(p * args.head_dim + n * LANES).cast());
                        for (r, acc) in acc.iter_mut().enumerate() {
                            *acc = dot(*acc, v, _mm512_set1_epi32(*s.add(r * PARTITION + p)));
                        }
                    }
                }
            }
            for (n, acc) in acc.into_iter().enumerate() {
                for (r, acc) in acc.into_iter().enumerate() {
                    _mm512_storeu_ps(args.out.add(r * args.head_dim + d + n * LANES), acc);
                }
            }
        }
    }
}
