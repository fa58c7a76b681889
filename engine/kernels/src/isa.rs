//! Which instructions the kernels may use. Decided once per loaded model, from what the processor
//! has and what the caller insists on.

use std::fmt;
use std::str::FromStr;

/// Ordered from what runs everywhere to what runs fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, whatever the target guarantees.
    Portable,
    /// AVX2 + FMA + F16C, f32 arithmetic.
    Avx2,
    /// AVX-512 F/BW/DQ/VL, f32 arithmetic.
    Avx512,
    /// AVX-512 with BF16 dot products: activations rounded to bf16, sums in f32.
    Avx512Bf16,
}

/// The environment variable that forces a kernel set, for tests and for bug reports.
pub const ISA_ENV: &str = "STOWAGE_ENGINE_ISA";

impl Isa {
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The best this processor has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.supported()).unwrap_or(Isa::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    pub fn supported(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2,
            Isa::Avx512 => avx512,
            Isa::Avx512Bf16 => avx512 && has!("avx512bf16"),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn supported(self) -> bool {
        self == Isa::Portable
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(s: &str) -> Result<Isa, String> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| {
            let names: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
            format!("unknown kernel set {s:?}: it is one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        assert!("sse9".parse::<Isa>().unwrap_err().contains("avx2"));
    }

    #[test]
    fn what_is_detected_is_supported() {
        assert!(Isa::detect().supported());
        assert!(Isa::Portable.supported());
    }
}
