//! What a device is: name, place, links.

use super::*;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetUUID", device, |d, _| put_text(uuid, length, &d.uuid))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetName", device, |d, _| put_text(name, length, &d.product))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetIndex", device, |d, s| put(index, index_of(d, s)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMinorNumber", device, |d, s| put(minor, index_of(d, s)))
}

fn index_of(device: &Device, snapshot: &Snapshot) -> c_uint {
    snapshot.scenario.devices.iter().position(|other| other.uuid == device.uuid).unwrap_or(0) as c_uint
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfo_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPciInfo_v3", device, |d, s| put(pci, pci_info(index_of(d, s))))
}

/// One bus per device, from 0x10 on.
fn pci_info(index: c_uint) -> sys::nvmlPciInfo_t {
    let bus = 0x10 + index;
    // SAFETY: plain data, zeroes are valid.
    let mut info: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
    fill(&mut info.busIdLegacy, &format!("0000:{bus:02X}:00.0"));
    fill(&mut info.busId, &format!("00000000:{bus:02X}:00.0"));
    info.bus = bus;
    info.pciDeviceId = 0x2330_10de;
    info
}

fn fill(to: &mut [c_char], text: &str) {
    let room = to.len() - 1;
    for (cell, byte) in to.iter_mut().take(room).zip(text.bytes()) {
        *cell = byte as c_char;
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNumaNodeId(device: nvmlDevice_t, node: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNumaNodeId", device, |d, _| put(node, d.numa.ok_or(NOT_SUPPORTED)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetArchitecture(device: nvmlDevice_t, architecture: *mut c_uint) -> nvmlReturn_t {
    let number = |a| match a {
        Architecture::Turing => sys::NVML_DEVICE_ARCH_TURING,
        Architecture::Ampere => sys::NVML_DEVICE_ARCH_AMPERE,
        Architecture::Ada => sys::NVML_DEVICE_ARCH_ADA,
        Architecture::Hopper => sys::NVML_DEVICE_ARCH_HOPPER,
        Architecture::Blackwell => sys::NVML_DEVICE_ARCH_BLACKWELL,
    };
    on_device("nvmlDeviceGetArchitecture", device, |d, _| put(architecture, number(d.architecture)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCudaComputeCapability", device, |d, _| {
        let (high, low, _) = capability(d.architecture);
        put(major, high)?;
        put(minor, low)
    })
}

/// Compute capability, and CUDA cores per SM.
fn capability(architecture: Architecture) -> (c_int, c_int, u32) {
    match architecture {
        Architecture::Turing => (7, 5, 64),
        Architecture::Ampere => (8, 0, 64),
        Architecture::Ada => (8, 9, 128),
        Architecture::Hopper => (9, 0, 128),
        Architecture::Blackwell => (10, 0, 128),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNumGpuCores(device: nvmlDevice_t, cores: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNumGpuCores", device, |d, _| {
        put(cores, d.sm_count.saturating_mul(capability(d.architecture).2))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMigMode", device, |d, _| {
        let enabled = c_uint::from(d.mig.as_ref().ok_or(NOT_SUPPORTED)?.enabled);
        put(current, enabled)?;
        put(pending, enabled)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMaxMigDeviceCount", device, |d, _| put(count, if d.mig.is_some() { 7 } else { 0 }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut sys::nvmlGpuInstanceProfileInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuInstanceProfileInfo", device, |d, _| {
        let mig = d.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        let found = mig.profiles.iter().find(|p| p.index == profile).ok_or(NOT_SUPPORTED)?;
        // SAFETY: plain data, zeroes are valid.
        let mut answer: sys::nvmlGpuInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        answer.id = found.id;
        answer.sliceCount = found.slices;
        answer.instanceCount = found.instances;
        answer.multiprocessorCount = found.sm_count;
        answer.memorySizeMB = found.memory_mib;
        put(info, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: nvmlDevice_t,
    other: nvmlDevice_t,
    level: *mut sys::nvmlGpuTopologyLevel_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTopologyCommonAncestor", one, |a, s| {
        let uuid = uuid_of(other)?;
        let b = s.scenario.devices.iter().find(|d| d.uuid == uuid).ok_or(LOST)?;
        let found = if a.uuid == b.uuid {
            sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL
        } else if a.numa == b.numa {
            sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE
        } else {
            sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM
        };
        put(level, found)
    })
}

/// The devices at the other end of a device's links: all others of its island, link n to the n-th.
fn link_peer(device: &Device, snapshot: &Snapshot, link: c_uint) -> Option<c_uint> {
    let island = device.nvlink_island?;
    let peers = snapshot.scenario.devices.iter().enumerate();
    let peers = peers.filter(|(_, d)| d.nvlink_island == Some(island) && d.uuid != device.uuid);
    peers.map(|(index, _)| index as c_uint).nth(link as usize)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    active: *mut sys::nvmlEnableState_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNvLinkState", device, |d, s| {
        if d.nvlink_island.is_none() {
            return Err(NOT_SUPPORTED);
        }
        put(active, sys::nvmlEnableState_t::from(link_peer(d, s, link).is_some()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: nvmlDevice_t,
    link: c_uint,
    pci: *mut sys::nvmlPciInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, |d, s| {
        put(pci, pci_info(link_peer(d, s, link).ok_or(NOT_SUPPORTED)?))
    })
}
