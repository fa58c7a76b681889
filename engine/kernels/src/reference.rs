//! The oracle: the same mathematics, written as plainly as possible, in f32 on exactly
//! dequantised weights. Slow on purpose; shares nothing with the fast path but the file formats.

/// `out[r] = w[r]·x`, with `w` row-major. The sum runs in eight chains of f32.
pub fn matvec(w: &[f32], x: &[f32], out: &mut [f32]) {
    for (row, out) in w.chunks_exact(x.len()).zip(out) {
        *out = dot(row, x);
    }
}

pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let whole = a.len() / 8 * 8;
    for (a, b) in a[..whole].chunks_exact(8).zip(b.chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / x.len() as f64;
    let scale = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    x.iter().zip(w).map(|(x, w)| x * scale * w).collect()
}

/// Rotates the pairs `(i, i + n/2)` of a head by `position · frequencies[i]`.
pub fn rope(head: &mut [f32], position: usize, frequencies: &[f32]) {
    let half = head.len() / 2;
    for (i, f) in frequencies.iter().enumerate() {
        let (sin, cos) = (position as f64 * f64::from(*f)).sin_cos();
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        head[i] = (a * cos - b * sin) as f32;
        head[i + half] = (b * cos + a * sin) as f32;
    }
}

pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// One head's attention: `keys` and `values` are rows of `head_dim`, oldest first.
pub fn attention(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f32> {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let scores: Vec<f32> = keys.iter().map(|k| dot(q, k) * scale).collect();
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (w, v) in weights.iter().zip(values) {
        for (o, v) in out.iter_mut().zip(*v) {
            *o += w / sum * v;
        }
    }
    out
}
