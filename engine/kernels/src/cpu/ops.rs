//! The small operators between the products.

use super::lanes::{LANES, Lanes};

/// `out = x / rms(x) · w`. The sum of squares runs in sixteen chains, then pairwise.
///
/// # Safety
/// The features of `L` are there.
#[inline(always)]
pub unsafe fn rms_norm<L: Lanes>(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == w.len() && x.len() == out.len());
    let whole = x.len() / LANES * LANES;
    // SAFETY: vectors are taken at multiples of sixteen below `whole`.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let v = L::load(x.as_ptr().add(i));
            sum = v.fma(v, sum);
        }
        let rest: f32 = x[whole..].iter().map(|v| v * v).sum();
        let scale = 1.0 / ((sum.sum() + rest) / x.len() as f32 + eps).sqrt();
        let factor = L::splat(scale);
        for i in (0..whole).step_by(LANES) {
            let v = L::load(x.as_ptr().add(i)).mul(factor);
            v.mul(L::load(w.as_ptr().add(i))).store(out.as_mut_ptr().add(i));
        }
        for i in whole..x.len() {
            out[i] = x[i] * scale * w[i];
        }
    }
}

/// `gate = silu(gate) · up`, where `silu(x) = x / (1 + e^-x)`. Lengths are multiples of sixteen.
///
/// # Safety
/// The features of `L` are there.
#[inline(always)]
pub unsafe fn silu_mul<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert!(gate.len() == up.len() && gate.len().is_multiple_of(LANES));
    // SAFETY: vectors are taken at multiples of sixteen below the common length.
    unsafe {
        for i in (0..gate.len()).step_by(LANES) {
            let g = L::load(gate.as_ptr().add(i));
            let e = g.mul(L::splat(-1.0)).exp().add(L::splat(1.0));
            g.div(e).mul(L::load(up.as_ptr().add(i))).store(gate.as_mut_ptr().add(i));
        }
    }
}

/// Rotates the pairs `(i, i + n/2)` of a head by the angles whose cosines and sines are given.
#[inline]
pub fn rope(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(head.len() / 2);
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
