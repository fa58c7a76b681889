//! The machines that can be simulated out of the box, with the figures of the real products.

use std::fmt;
use std::str::FromStr;

use crate::scenario::{Architecture, Device, Ecc, Mig, MigProfile, Reports, Scenario, VERSION};

const MIB: u64 = 1 << 20;

/// A simulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Eight H100 80GB SXM, all connected by NVLink, two NUMA nodes.
    H100x8,
    /// Eight A100 80GB SXM, all connected by NVLink, two NUMA nodes.
    A100x8,
    /// One L4: a small inference machine.
    L4x1,
    /// Two H100, two A100, two L4: for tests of placement.
    Mixed,
}

impl Profile {
    pub const ALL: [Self; 4] = [Self::H100x8, Self::A100x8, Self::L4x1, Self::Mixed];

    pub fn name(self) -> &'static str {
        match self {
            Self::H100x8 => "h100-80g-x8",
            Self::A100x8 => "a100-80g-x8",
            Self::L4x1 => "l4-x1",
            Self::Mixed => "mixed",
        }
    }

    /// The scenario of this machine under the given node name, with nothing wrong. The uuids follow
    /// from node name and index, so a lost file is made again with the same devices.
    pub fn scenario(self, node: &str) -> Scenario {
        let kinds: Vec<Kind> = match self {
            Self::H100x8 => vec![Kind::H100; 8],
            Self::A100x8 => vec![Kind::A100; 8],
            Self::L4x1 => vec![Kind::L4],
            Self::Mixed => vec![Kind::H100, Kind::H100, Kind::A100, Kind::A100, Kind::L4, Kind::L4],
        };
        let count = kinds.len();
        let devices = kinds.into_iter().enumerate().map(|(index, kind)| kind.device(node, index, count)).collect();
        Scenario {
            version: VERSION,
            profile: Some(self.name().to_owned()),
            driver_version: "580.65.06".to_owned(),
            cuda_version: "13.0".to_owned(),
            devices,
            reports: Reports::default(),
            processes: Vec::new(),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("no profile {0:?}; there are h100-80g-x8, a100-80g-x8, l4-x1 and mixed")]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or_else(|| UnknownProfile(name.to_owned()))
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    H100,
    A100,
    L4,
}

impl Kind {
    fn device(self, node: &str, index: usize, count: usize) -> Device {
        // What NVML tells of the real cards: not a round number of GiB.
        let (product, memory_mib, sm_count, architecture) = match self {
            Self::H100 => ("NVIDIA H100 80GB HBM3", 81_559, 132, Architecture::Hopper),
            Self::A100 => ("NVIDIA A100-SXM4-80GB", 81_920, 108, Architecture::Ampere),
            Self::L4 => ("NVIDIA L4", 23_034, 58, Architecture::Ada),
        };
        let island = match self {
            Self::H100 => Some(0),
            Self::A100 => Some(1),
            Self::L4 => None,
        };
        Device {
            uuid: uuid(node, index),
            product: product.to_owned(),
            memory_bytes: memory_mib * MIB,
            reserved_bytes: 512 * MIB,
            sm_count,
            architecture,
            nvlink_island: island,
            numa: Some(u32::from(index * 2 >= count && count > 1)),
            temperature_celsius: 38,
            power_milliwatts: 70_000,
            throttle: Vec::new(),
            ecc: Ecc::default(),
            mig: self.mig(),
            xid_events: Vec::new(),
            recovery_action: None,
            lost: false,
            errors: std::collections::BTreeMap::new(),
        }
    }

    fn mig(self) -> Option<Mig> {
        let profile = |index, id, slices, instances, sm_count, memory_mib| MigProfile {
            index,
            id,
            slices,
            instances,
            sm_count,
            memory_mib,
        };
        let profiles = match self {
            Self::H100 => vec![
                profile(0, 19, 1, 7, 16, 9_984),
                profile(1, 14, 2, 3, 32, 20_096),
                profile(2, 9, 3, 2, 60, 40_448),
                profile(3, 5, 4, 1, 64, 40_448),
                profile(4, 0, 7, 1, 132, 81_024),
            ],
            Self::A100 => vec![
                profile(0, 19, 1, 7, 14, 9_728),
                profile(1, 14, 2, 3, 28, 19_968),
                profile(2, 9, 3, 2, 42, 40_192),
                profile(3, 5, 4, 1, 56, 40_192),
                profile(4, 0, 7, 1, 98, 80_896),
            ],
            Self::L4 => return None,
        };
        Some(Mig { enabled: false, profiles })
    }
}

/// A uuid in NVML's form, from the node's name and the device's index. Two rounds of 64-bit FNV-1a:
/// different for different nodes is all that is asked of it.
fn uuid(node: &str, index: usize) -> String {
    let high = fnv(&format!("{node}/{index}/high"));
    let low = fnv(&format!("{node}/{index}/low"));
    let hex = format!("{high:016x}{low:016x}");
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_profile_round_trips_through_its_file() {
        for profile in Profile::ALL {
            let scenario = profile.scenario("node-1");
            assert_eq!(Scenario::parse(scenario.to_json().as_bytes()).unwrap(), scenario);
            assert_eq!(profile.name().parse::<Profile>().unwrap(), profile);
        }
        assert!("h200".parse::<Profile>().is_err());
    }

    #[test]
    fn uuids_are_stable_and_differ_between_nodes_and_devices() {
        let mut all = BTreeSet::new();
        for node in ["node1", "node2", "node10"] {
            for device in Profile::H100x8.scenario(node).devices {
                assert!(all.insert(device.uuid));
            }
        }
        assert_eq!(all.len(), 24);
        assert_eq!(uuid("node1", 0), uuid("node1", 0));
    }
}
