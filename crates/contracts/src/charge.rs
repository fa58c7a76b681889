//! What a slice of a GPU costs its tenant.

/// The larger of the two shares of a GPU, in milli-GPU (1000 is a whole one), rounded up.
///
/// `memory` and `whole_memory` are bytes, `sm` and `whole_sm` per cent of the streaming
/// multiprocessors. A GPU whose memory or SMs are reported as zero costs a whole one.
pub fn gpu_milli(memory: u64, whole_memory: u64, sm: u32, whole_sm: u32) -> u64 {
    share(memory, whole_memory).max(share(sm.into(), whole_sm.into()))
}

fn share(part: u64, whole: u64) -> u64 {
    if whole == 0 { 1000 } else { u64::try_from((u128::from(part) * 1000).div_ceil(whole.into())).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(memory: (u64, u64), sm: (u32, u32), want: u64) {
        assert_eq!(gpu_milli(memory.0, memory.1, sm.0, sm.1), want);
    }

    #[test]
    fn larger_share_is_charged_and_rounded_up() {
        check((1, 3), (0, 100), 334);
        check((1, 4), (30, 100), 300);
        check((80, 80), (10, 100), 1000);
    }
    #[test]
    fn gpu_without_size_costs_a_whole_one() {
        check((1, 0), (1, 100), 1000);
        check((0, 80), (0, 0), 1000);
    }
    #[test]
    fn share_beyond_64_bits_saturates() {
        check((u64::MAX, 1), (0, 100), u64::MAX);
    }
}
