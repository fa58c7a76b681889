//! Rotary positions: how fast each pair of dimensions turns, and how far it has at each row.

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

/// Cosines and sines of the rows of one step, `head_dim / 2` values each. Computed per step and
/// shared by all layers and heads: a table over all positions would cost half a gigabyte for a
/// context of a million tokens.
#[derive(Debug)]
pub struct Rotations {
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotations {
    pub fn new(config: &ModelConfig) -> Rotations {
        Rotations { frequencies: frequencies(config), cos: Vec::new(), sin: Vec::new() }
    }

    /// Sets the position of each row.
    pub fn set(&mut self, positions: impl Iterator<Item = usize>) {
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for f in &self.frequencies {
                // In f64, so that far positions keep their precision.
                let (sin, cos) = (position as f64 * f64::from(*f)).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    pub fn at(&self, row: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let range = row * half..(row + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    pub fn bytes_for(config: &ModelConfig, rows: usize) -> usize {
        rows * config.head_dim * size_of::<f32>()
    }
}
