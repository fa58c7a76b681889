//! The fast path: packed matrices, tiles, attention, and the table that binds them to an
//! instruction set.

mod attend;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub mod gemm;
pub mod kv;
mod lanes;
mod ops;
pub mod pack;
mod tile;

pub use attend::{MAX_HEAD_DIM, PARTITION};
pub use attention::{Attention, AttnSeq, Heads};
pub use gemm::{Act, Epilogue, PackedX, gemm};
pub use kv::{KvCache, KvLayout, KvType};
pub use lanes::LANES;
pub use ops::rope;
pub use pack::PackedMatrix;

use std::ops::Range;

use crate::isa::Isa;
use crate::quant::WeightType;
use attend::AttendArgs;
use tile::TileArgs;

/// Runs a tile of the given height.
type TileFn = unsafe fn(usize, TileArgs);
type AttendFn = unsafe fn(usize, &AttendArgs);

/// The functions of one instruction set. Only made for one that the processor has, which is what
/// makes its safe methods safe.
pub struct Kernels {
    isa: Isa,
    tile_limit: usize,
    tiles: [TileFn; 6],
    attend: [AttendFn; 2],
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    silu_mul: unsafe fn(&mut [f32], &[f32]),
}

/// Instantiates the generic kernels for one set of lanes, with its features enabled.
macro_rules! instantiate {
    ($name:ident, $lanes:ty, $(#[$feature:meta])?) => {
        mod $name {
            use super::attend::{AttendArgs, KV_BF16, KV_F32, attend_f32};
            use super::tile::{self, TileArgs, tile_f32};
            use super::{Kernels, ops};
            use super::lanes::{self, Lanes};
            use crate::isa::Isa;

            $(#[$feature])?
            unsafe fn tile<const T: u8>(height: usize, a: TileArgs) {
                // SAFETY: this function is only reachable through `Kernels`, made where the
                // features exist; the caller promises the arguments.
                unsafe {
                    match height {
                        1 => tile_f32::<$lanes, T, 1>(a),
                        2 => tile_f32::<$lanes, T, 2>(a),
                        3 => tile_f32::<$lanes, T, 3>(a),
                        4 => tile_f32::<$lanes, T, 4>(a),
                        6 if <$lanes>::TILE >= 6 => tile_f32::<$lanes, T, 6>(a),
                        8 if <$lanes>::TILE >= 8 => tile_f32::<$lanes, T, 8>(a),
                        10 if <$lanes>::TILE >= 10 => tile_f32::<$lanes, T, 10>(a),
                        12 if <$lanes>::TILE >= 12 => tile_f32::<$lanes, T, 12>(a),
                        _ => unreachable!("no tile of {height} rows"),
                    }
                }
            }

            $(#[$feature])?
            unsafe fn attend<const KV: u8>(height: usize, a: &AttendArgs) {
                // SAFETY: as in `tile`.
                unsafe {
                    match height {
                        1 => attend_f32::<$lanes, KV, 1>(a),
                        2 => attend_f32::<$lanes, KV, 2>(a),
                        3 => attend_f32::<$lanes, KV, 3>(a),
                        4 => attend_f32::<$lanes, KV, 4>(a),
                        6 => attend_f32::<$lanes, KV, 6>(a),
                        8 => attend_f32::<$lanes, KV, 8>(a),
                        10 => attend_f32::<$lanes, KV, 10>(a),
                        12 => attend_f32::<$lanes, KV, 12>(a),
                        _ => unreachable!("no tile of {height} rows"),
                    }
                }
            }

            $(#[$feature])?
            unsafe fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
                // SAFETY: as in `tile`.
                unsafe { ops::rms_norm::<$lanes>(x, w, eps, out) }
            }

            $(#[$feature])?
            unsafe fn silu_mul(gate: &mut [f32], up: &[f32]) {
                // SAFETY: as in `tile`.
                unsafe { ops::silu_mul::<$lanes>(gate, up) }
            }

            pub fn kernels(isa: Isa) -> Kernels {
                Kernels {
                    isa,
                    tile_limit: <$lanes>::TILE,
                    tiles: [
                        tile::<{ tile::F32 }>,
                        tile::<{ tile::F16 }>,
                        tile::<{ tile::BF16 }>,
                        tile::<{ tile::Q8_0 }>,
                        tile::<{ tile::Q4_0 }>,
                        tile::<{ tile::Q4_1 }>,
                    ],
                    attend: [attend::<KV_F32>, attend::<KV_BF16>],
                    rms_norm,
                    silu_mul,
                }
            }
        }
    };
}

instantiate!(portable, lanes::Portable,);
#[cfg(target_arch = "x86_64")]
instantiate!(avx2, lanes::Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
instantiate!(
    avx512,
    lanes::Avx512,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
);

#[cfg(target_arch = "x86_64")]
mod avx512bf16 {
    use super::attend::{AttendArgs, attend_bf16};
    use super::bf16::tile_bf16;
    use super::tile::TileArgs;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub unsafe fn tile<const T: u8>(height: usize, a: TileArgs) {
        // SAFETY: this function is only reachable through `Kernels`, made where the features
        // exist; the caller promises the arguments.
        unsafe {
            match height {
                1 => tile_bf16::<T, 1>(a),
                2 => tile_bf16::<T, 2>(a),
                3 => tile_bf16::<T, 3>(a),
                4 => tile_bf16::<T, 4>(a),
                6 => tile_bf16::<T, 6>(a),
                8 => tile_bf16::<T, 8>(a),
                10 => tile_bf16::<T, 10>(a),
                12 => tile_bf16::<T, 12>(a),
                _ => unreachable!("no tile of {height} rows"),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub unsafe fn attend(height: usize, a: &AttendArgs) {
        // SAFETY: as in `tile`.
        unsafe {
            match height {
                1 => attend_bf16::<1, 4>(a),
                2 => attend_bf16::<2, 4>(a),
                3 => attend_bf16::<3, 4>(a),
                4 => attend_bf16::<4, 2>(a),
                6 => attend_bf16::<6, 2>(a),
                8 => attend_bf16::<8, 1>(a),
                10 => attend_bf16::<10, 1>(a),
                12 => attend_bf16::<12, 1>(a),
                _ => unreachable!("no tile of {height} rows"),
            }
        }
    }
}

impl Kernels {
    /// `None` where the processor lacks the instructions.
    pub fn new(isa: Isa) -> Option<Kernels> {
        if !isa.supported() {
            return None;
        }
        Some(match isa {
            Isa::Portable => portable::kernels(isa),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::kernels(isa),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => avx512::kernels(isa),
            #[cfg(not(target_arch = "x86_64"))]
            _ => return None,
        })
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How activations should meet weights of this type. f16 and f32 weights are not exact in
    /// bf16, so they always run in f32.
    pub fn act(&self, ty: WeightType) -> Act {
        match (self.isa, ty) {
            (_, WeightType::F32 | WeightType::F16) => Act::F32,
            (Isa::Avx512Bf16, _) => Act::Bf16,
            _ => Act::F32,
        }
    }

    /// How queries meet the cache.
    fn query_act(&self, kv: KvType) -> Act {
        match (self.isa, kv) {
            (Isa::Avx512Bf16, KvType::Bf16) => Act::Bf16,
            _ => Act::F32,
        }
    }

    fn tile_limit(&self, act: Act) -> usize {
        match act {
            Act::Bf16 => gemm::MAX_HEIGHT,
            Act::F32 => self.tile_limit,
        }
    }

    fn tile(&self, ty: WeightType, act: Act) -> TileFn {
        #[cfg(target_arch = "x86_64")]
        if act == Act::Bf16 {
            assert!(self.isa == Isa::Avx512Bf16, "bf16 activations need bf16 instructions");
            return match ty {
                WeightType::Bf16 => avx512bf16::tile::<{ tile::BF16 }>,
                WeightType::Q8_0 => avx512bf16::tile::<{ tile::Q8_0 }>,
                WeightType::Q4_0 => avx512bf16::tile::<{ tile::Q4_0 }>,
                WeightType::Q4_1 => avx512bf16::tile::<{ tile::Q4_1 }>,
                WeightType::F32 | WeightType::F16 => panic!("{} runs in f32", ty.name()),
            };
        }
        self.tiles[match ty {
            WeightType::F32 => tile::F32,
            WeightType::F16 => tile::F16,
            WeightType::Bf16 => tile::BF16,
            WeightType::Q8_0 => tile::Q8_0,
            WeightType::Q4_0 => tile::Q4_0,
            WeightType::Q4_1 => tile::Q4_1,
        } as usize]
    }

    fn attend(&self, kv: KvType) -> AttendFn {
        #[cfg(target_arch = "x86_64")]
        if self.query_act(kv) == Act::Bf16 {
            return avx512bf16::attend;
        }
        self.attend[match kv {
            KvType::F32 => attend::KV_F32,
            KvType::Bf16 => attend::KV_BF16,
        } as usize]
    }

    /// Some groups of a tile of bf16 activations, which only one instruction set has.
    fn put_bf16(&self, rows: &[f32], part: Range<usize>, height: usize, data: &mut [u32], sums: &mut [f32]) {
        assert!(self.isa == Isa::Avx512Bf16, "bf16 activations need bf16 instructions");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `new` made this table for a processor with the features.
        unsafe {
            bf16::put(rows, part, height, data, sums);
        }
    }

    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: `new` made this table for a processor with the features.
        unsafe { (self.rms_norm)(x, w, eps, out) }
    }

    /// `gate = silu(gate) · up`; lengths are multiples of sixteen.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: as in `rms_norm`.
        unsafe { (self.silu_mul)(gate, up) }
    }
}
