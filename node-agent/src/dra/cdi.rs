//! The CDI file of a claim: what the container runtime adds to the claim's containers.
//!
//! Per claim one device with the slice (environment, report directory) and one per GPU, because two
//! devices of one name fail every start. The file also carries the checkpoint's entry as an
//! annotation, so a lost checkpoint can be rebuilt from what the runtime uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stowage_contracts::names;

use crate::dra::checkpoint::{Entry, Stage};
use crate::dra::files::write_atomically;

/// Where the report directory is mounted in the container.
pub const REPORT_MOUNT: &str = "/run/stowage/report";
/// The report directory is a file system of its own, in the container's memory: it ends with the
/// container, and a container can fill no more of it than this. An engine writes three small files.
const REPORT_OPTIONS: [&str; 6] = ["size=256k", "nr_inodes=32", "mode=1777", "nosuid", "nodev", "noexec"];
const ENTRY_ANNOTATION: &str = "stowage.dev/claim";

/// What is fetched is data: it can be read and nothing else.
const MODEL_OPTIONS: [&str; 6] = ["rbind", "ro", "rprivate", "nosuid", "nodev", "noexec"];

/// What the edits of a claim depend on besides the claim.
#[derive(Debug, Clone)]
pub struct CdiContext {
    pub simulated: bool,
    /// `/dev/nvidia<n>` by uuid, on real GPUs.
    pub minors: BTreeMap<String, u32>,
    /// The claim's directory of its model, where one is fetched for it.
    pub model: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    device_nodes: Vec<DeviceNode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DeviceNode {
    path: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    /// The source; for a `tmpfs` a name without meaning, which the format requires.
    host_path: String,
    container_path: String,
    /// Absent: a bind mount, as earlier agents wrote.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    fs_type: Option<String>,
    options: Vec<String>,
}

/// The qualified CDI names of each of the claim's devices, in order. The slice goes with the first.
pub fn device_ids(uid: &str, entry: &Entry) -> Vec<Vec<String>> {
    let name = |name: String| format!("{}={name}", names::CDI_KIND);
    let each = entry.devices.iter().enumerate().map(|(index, device)| {
        let own = name(gpu_name(uid, &device.request, index));
        if index == 0 { vec![name(env_name(uid)), own] } else { vec![own] }
    });
    each.collect()
}

fn gpu_name(uid: &str, request: &str, index: usize) -> String {
    format!("{uid}-{request}-{index}")
}

fn env_name(uid: &str) -> String {
    format!("{uid}-env")
}

/// The file's text.
pub fn spec(uid: &str, entry: &Entry, context: &CdiContext) -> String {
    let slice = Device { name: env_name(uid), container_edits: slice_edits(entry, context) };
    let gpus = entry.devices.iter().enumerate().map(|(index, device)| {
        let nodes = context.minors.get(&device.uuid).filter(|_| !context.simulated);
        let nodes = nodes.map(|minor| DeviceNode { path: format!("/dev/nvidia{minor}") });
        Device {
            name: gpu_name(uid, &device.request, index),
            // A device without edits is invalid.
            container_edits: Edits {
                env: vec![format!("STOWAGE_GPU_{index}={}", device.uuid)],
                device_nodes: nodes.into_iter().collect(),
                mounts: Vec::new(),
            },
        }
    });
    let kept = serde_json::to_string(entry).unwrap_or_default();
    let spec = Spec {
        cdi_version: "0.6.0".to_owned(),
        kind: names::CDI_KIND.to_owned(),
        annotations: BTreeMap::from([(ENTRY_ANNOTATION.to_owned(), kept)]),
        devices: std::iter::once(slice).chain(gpus).collect(),
    };
    serde_json::to_string_pretty(&spec).unwrap_or_default()
}

fn slice_edits(entry: &Entry, context: &CdiContext) -> Edits {
    let memory = entry.devices.iter().fold(0u64, |sum, device| sum.saturating_add(device.memory_bytes));
    // A process is as fast as its slowest share.
    let sm = entry.devices.iter().map(|device| device.sm_percent).min().unwrap_or(0);
    let uuids: Vec<&str> = entry.devices.iter().map(|device| device.uuid.as_str()).collect();
    let uuids = uuids.join(",");
    let mut env = vec![
        format!("{}={memory}", names::ENV_GPU_MEMORY_BYTES),
        format!("{}={sm}", names::ENV_GPU_SM_PERCENT),
        format!("{}={uuids}", names::ENV_GPU_UUIDS),
        format!("{}={REPORT_MOUNT}", names::ENV_GPU_REPORT_DIR),
    ];
    // The NVIDIA runtime adds devices by this variable; the claim's are in this file, and no others.
    env.push("NVIDIA_VISIBLE_DEVICES=void".to_owned());
    let mut device_nodes = Vec::new();
    if context.simulated {
        env.push(format!("{}=1", names::ENV_GPU_SIMULATED));
    } else {
        env.push(format!("CUDA_VISIBLE_DEVICES={uuids}"));
        device_nodes.extend(["/dev/nvidiactl", "/dev/nvidia-uvm"].map(|path| DeviceNode { path: path.to_owned() }));
    }
    let mount = Mount {
        host_path: "tmpfs".to_owned(),
        container_path: REPORT_MOUNT.to_owned(),
        fs_type: Some("tmpfs".to_owned()),
        options: REPORT_OPTIONS.map(str::to_owned).into(),
    };
    let model = context.model.as_ref().map(|directory| Mount {
        host_path: directory.display().to_string(),
        container_path: names::MODEL_MOUNT.to_owned(),
        fs_type: None,
        options: MODEL_OPTIONS.map(str::to_owned).into(),
    });
    Edits { env, device_nodes, mounts: std::iter::once(mount).chain(model).collect() }
}

fn file(dir: &Path, uid: &str) -> PathBuf {
    dir.join(format!("{}{uid}.json", file_prefix()))
}

fn file_prefix() -> String {
    format!("{}-claim_", names::DRIVER)
}

pub fn write(dir: &Path, uid: &str, text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    write_atomically(&file(dir, uid), text.as_bytes())
}

pub fn exists(dir: &Path, uid: &str) -> bool {
    file(dir, uid).is_file()
}

/// Removes the claim's file; one that is not there is fine.
pub fn remove(dir: &Path, uid: &str) -> std::io::Result<()> {
    match std::fs::remove_file(file(dir, uid)) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// The claims whose CDI files are in `dir`, as they were when they were prepared. A file that cannot
/// be understood is passed over: the runtime cannot use it either.
pub fn rescue(dir: &Path) -> std::io::Result<BTreeMap<String, Entry>> {
    let files = match std::fs::read_dir(dir) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        files => files?,
    };
    let prefix = file_prefix();
    let entries = files.flatten().filter_map(|found| {
        let name = found.file_name();
        let uid = name.to_str()?.strip_prefix(&prefix)?.strip_suffix(".json")?.to_owned();
        let spec: Spec = serde_json::from_slice(&std::fs::read(found.path()).ok()?).ok()?;
        let mut entry: Entry = serde_json::from_str(spec.annotations.get(ENTRY_ANNOTATION)?).ok()?;
        entry.stage = Stage::Completed;
        Some((uid, entry))
    });
    Ok(entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dra::checkpoint::GrantedDevice;

    fn entry() -> Entry {
        let device = |index: u32, sm_percent| GrantedDevice {
            request: "gpu".to_owned(),
            pool: "node1".to_owned(),
            device: format!("gpu-{index}"),
            uuid: format!("GPU-{index}"),
            memory_bytes: 1 << 30,
            sm_percent,
            share_id: None,
        };
        Entry {
            model: None,
            namespace: "a".to_owned(),
            name: "stowage-x".to_owned(),
            pod: "x".to_owned(),
            pod_uid: "p".to_owned(),
            tenant: "team-a".to_owned(),
            stage: Stage::Completed,
            devices: vec![device(0, 40), device(1, 30)],
        }
    }

    fn context(simulated: bool) -> CdiContext {
        CdiContext {
            simulated,
            model: None,
            minors: BTreeMap::from([("GPU-0".to_owned(), 0), ("GPU-1".to_owned(), 5)]),
        }
    }

    fn parsed(simulated: bool) -> Spec {
        serde_json::from_str(&spec("u", &entry(), &context(simulated))).unwrap()
    }

    #[test]
    fn two_gpus_make_three_devices_of_different_names_that_are_all_referred_to_once() {
        let names: Vec<String> = parsed(true).devices.into_iter().map(|device| device.name).collect();
        assert_eq!(names, ["u-env", "u-gpu-0", "u-gpu-1"]);
        let ids = device_ids("u", &entry()).concat();
        assert_eq!(ids, names.iter().map(|name| format!("gpu.stowage.dev/claim={name}")).collect::<Vec<_>>());
    }

    #[test]
    fn slice_is_the_sum_of_memory_and_the_least_share() {
        let spec = parsed(true);
        let edits = &spec.devices[0].container_edits;
        assert_eq!(
            edits.env,
            [
                "STOWAGE_GPU_MEMORY_BYTES=2147483648",
                "STOWAGE_GPU_SM_PERCENT=30",
                "STOWAGE_GPU_UUIDS=GPU-0,GPU-1",
                "STOWAGE_GPU_REPORT_DIR=/run/stowage/report",
                "NVIDIA_VISIBLE_DEVICES=void",
                "STOWAGE_GPU_SIMULATED=1",
            ]
        );
        assert!(edits.device_nodes.is_empty() && spec.devices[2].container_edits.device_nodes.is_empty());
    }

    #[test]
    fn report_directory_is_on_no_disk_and_has_a_limit() {
        for simulated in [true, false] {
            let spec = parsed(simulated);
            let [mount] = spec.devices[0].container_edits.mounts.as_slice() else { panic!("one mount") };
            assert_eq!((mount.fs_type.as_deref(), mount.host_path.as_str()), (Some("tmpfs"), "tmpfs"));
            for option in ["size=256k", "nr_inodes=32", "nosuid", "nodev", "noexec"] {
                assert!(mount.options.iter().any(|set| set == option), "{option}");
            }
            assert!(spec.devices.iter().skip(1).all(|device| device.container_edits.mounts.is_empty()));
        }
    }

    #[test]
    fn fetched_model_is_mounted_to_be_read_and_no_more() {
        let context = CdiContext { model: Some("/var/lib/stowage/models/claims/u".into()), ..context(true) };
        let spec: Spec = serde_json::from_str(&spec("u", &entry(), &context)).unwrap();
        let mounts = &spec.devices[0].container_edits.mounts;
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (mounts[1].host_path.as_str(), mounts[1].container_path.as_str()),
            ("/var/lib/stowage/models/claims/u", "/models")
        );
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(mounts[1].options.iter().any(|set| set == option), "{option}");
        }
    }

    #[test]
    fn nvidia_runtime_adds_no_devices_of_its_own() {
        for simulated in [true, false] {
            let spec = parsed(simulated);
            let env = spec.devices.iter().flat_map(|device| &device.container_edits.env);
            let visible: Vec<_> = env.filter(|env| env.starts_with("NVIDIA_VISIBLE_DEVICES=")).collect();
            assert_eq!(visible, ["NVIDIA_VISIBLE_DEVICES=void"]);
        }
    }

    #[test]
    fn real_gpus_come_with_their_device_nodes_and_are_not_called_simulated() {
        let spec = parsed(false);
        assert_eq!(spec.devices[2].container_edits.device_nodes[0].path, "/dev/nvidia5");
        assert!(spec.devices[0].container_edits.env.iter().all(|env| !env.contains("SIMULATED")));
    }

    #[test]
    fn lost_checkpoint_is_found_again_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "u", &spec("u", &entry(), &context(true))).unwrap();
        std::fs::write(file(dir.path(), "broken"), "{").unwrap();
        std::fs::write(dir.path().join("other.json"), "{}").unwrap();
        assert_eq!(rescue(dir.path()).unwrap(), BTreeMap::from([("u".to_owned(), entry())]));
        remove(dir.path(), "u").unwrap();
        remove(dir.path(), "u").unwrap();
        assert!(!exists(dir.path(), "u"));
        assert!(rescue(&dir.path().join("nowhere")).unwrap().is_empty());
    }
}
