//! What an H100 in MIG mode can be cut into.

use stowage_planner::snapshot::MigProfile;

fn profile(name: &str, memory_bytes: u64, sm_percent: u32, slices: u32, starts: &[u32]) -> MigProfile {
    MigProfile { name: name.into(), memory_bytes, sm_percent, slices, starts: starts.to_vec() }
}

/// As NVML describes an H100 with 80 GB.
pub fn h100() -> Vec<MigProfile> {
    let mib = |n: u64| n << 20;
    vec![
        profile("1g.10gb", mib(9_984), 12, 1, &[0, 1, 2, 3, 4, 5, 6]),
        profile("1g.20gb", mib(20_096), 12, 2, &[0, 2, 4, 6]),
        profile("2g.20gb", mib(20_096), 24, 2, &[0, 2, 4]),
        profile("3g.40gb", mib(40_448), 45, 4, &[0, 4]),
        profile("4g.40gb", mib(40_448), 48, 4, &[0]),
        profile("7g.80gb", mib(81_024), 100, 8, &[0]),
    ]
}
