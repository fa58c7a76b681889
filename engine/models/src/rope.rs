//! Rotary frequencies and their table of cosines and sines.

use crate::config::ModelConfig;

/// Angle per position of each pair of dimensions.
pub fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let dim = config.head_dim as f64;
    (0..config.head_dim / 2)
        .map(|i| {
            let plain = config.rope_theta.powf(-2.0 * i as f64 / dim) as f32;
            plain / config.rope_factors.get(i).copied().unwrap_or(1.0)
        })
        .collect()
}

/// Cosines and sines of every position, `head_dim / 2` values each.
#[derive(Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    pub fn new(config: &ModelConfig, positions: usize) -> RopeTable {
        let frequencies = frequencies(config);
        let half = frequencies.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.reserve_exact(positions * half);
        sin.reserve_exact(positions * half);
        for position in 0..positions {
            for f in &frequencies {
                let (s, c) = (position as f64 * f64::from(*f)).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        RopeTable { half, cos, sin }
    }

    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    pub fn bytes_for(config: &ModelConfig, positions: usize) -> usize {
        positions * config.head_dim * size_of::<f32>()
    }
}
