//! The weight formats of GGUF and safetensors that we run, and what their bits mean exactly.
//!
//! Quantised formats hold groups of 32 weights along a row. `q8_0` is `d·q`, `q4_0` is `d·(q−8)`,
//! `q4_1` is `d·q + m`, with `d` and `m` in f16. Nibble `i` of a group sits in the low half of
//! byte `i` for `i < 16`, else in the high half of byte `i − 16`.

use crate::half::{bf16_to_f32, f16_to_f32};

/// Weights in one quantised group, and the step along a row in which kernels walk every format.
pub const GROUP: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
}

impl WeightType {
    /// (weights, bytes) of the smallest unit of a row.
    pub fn unit(self) -> (usize, usize) {
        match self {
            WeightType::F32 => (1, 4),
            WeightType::F16 | WeightType::Bf16 => (1, 2),
            WeightType::Q8_0 => (GROUP, 34),
            WeightType::Q4_0 => (GROUP, 18),
            WeightType::Q4_1 => (GROUP, 20),
        }
    }

    /// Bytes of a row of `cols` weights; `None` when `cols` is not a whole number of units.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (weights, bytes) = self.unit();
        cols.is_multiple_of(weights).then(|| (cols / weights).checked_mul(bytes)).flatten()
    }

    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::Bf16 => "bf16",
            WeightType::Q8_0 => "q8_0",
            WeightType::Q4_0 => "q4_0",
            WeightType::Q4_1 => "q4_1",
        }
    }

    /// The exact values of one row. `row` is `row_bytes(out.len())` long.
    pub fn dequantize_row(self, row: &[u8], out: &mut [f32]) {
        let (weights, bytes) = self.unit();
        for (unit, out) in row.chunks_exact(bytes).zip(out.chunks_mut(weights)) {
            match self {
                WeightType::F32 => out[0] = f32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]),
                WeightType::F16 => out[0] = f16_to_f32(u16_at(unit, 0)),
                WeightType::Bf16 => out[0] = bf16_to_f32(u16_at(unit, 0)),
                _ => dequantize_group(self, unit, out),
            }
        }
    }
}

fn dequantize_group(ty: WeightType, unit: &[u8], out: &mut [f32]) {
    let d = f16_to_f32(u16_at(unit, 0));
    for (i, out) in out.iter_mut().enumerate() {
        *out = match ty {
            WeightType::Q8_0 => d * f32::from(unit[2 + i] as i8),
            WeightType::Q4_0 => d * (f32::from(nibble(&unit[2..], i)) - 8.0),
            _ => d * f32::from(nibble(&unit[4..], i)) + f16_to_f32(u16_at(unit, 2)),
        };
    }
}

/// Weight `i` of a group of nibbles.
#[inline]
pub fn nibble(bytes: &[u8], i: usize) -> u8 {
    if i < 16 { bytes[i] & 0xf } else { bytes[i - 16] >> 4 }
}

#[inline]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::f32_to_f16;

    fn group(ty: WeightType, head: &[f32], body: &[u8]) -> Vec<f32> {
        let mut unit: Vec<u8> = head.iter().flat_map(|x| f32_to_f16(*x).to_le_bytes()).collect();
        unit.extend_from_slice(body);
        let mut out = vec![0.0; GROUP];
        ty.dequantize_row(&unit, &mut out);
        out
    }

    #[test]
    fn q4_1_is_scale_times_nibble_plus_minimum() {
        let mut body = [0u8; 16];
        body[3] = 0xa5;
        let out = group(WeightType::Q4_1, &[0.5, -2.0], &body);
        assert_eq!(out[3], 0.5 * 5.0 - 2.0);
        assert_eq!(out[19], 0.5 * 10.0 - 2.0);
        assert_eq!(out[0], -2.0);
    }

    #[test]
    fn q4_0_is_centred_on_eight() {
        let out = group(WeightType::Q4_0, &[2.0], &[0x80; 16]);
        assert_eq!((out[0], out[16]), (-16.0, 0.0));
    }

    #[test]
    fn q8_0_is_signed() {
        let mut body = [0u8; 32];
        body[31] = 0x81;
        assert_eq!(group(WeightType::Q8_0, &[0.25], &body)[31], -127.0 * 0.25);
    }

    #[test]
    fn rows_hold_whole_groups_only() {
        assert_eq!(WeightType::Q4_1.row_bytes(64), Some(40));
        assert_eq!(WeightType::Q4_1.row_bytes(65), None);
        assert_eq!(WeightType::F32.row_bytes(usize::MAX), None);
    }
}
