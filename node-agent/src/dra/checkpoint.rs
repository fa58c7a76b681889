//! What this node has promised: the claims that were prepared, kept in one file over restarts.
//!
//! A claim is written as `PrepareStarted` before anything is done for it and as `Completed` after,
//! so whatever a crash leaves behind is known and its room stays taken. The file is replaced by
//! rename after fsync: a reader sees the old or the new one. The last line of defence against
//! promising a GPU twice is here too ([`Checkpoint::admit`]), because only this node knows what is
//! really prepared on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::inventory::Promisable;
use crate::dra::files::write_atomically;

const VERSION: u32 = 1;

use stowage_contracts::model::ClaimModel;
pub use stowage_contracts::summary::Stage;

/// One GPU's part of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantedDevice {
    /// Request of the claim, without subrequest.
    pub request: String,
    pub pool: String,
    pub device: String,
    pub uuid: String,
    pub memory_bytes: u64,
    pub sm_percent: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
}

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub namespace: String,
    pub name: String,
    pub pod: String,
    pub pod_uid: String,
    /// The TenantQuota that pays; empty: unknown.
    #[serde(default)]
    pub tenant: String,
    pub stage: Stage,
    pub devices: Vec<GrantedDevice>,
    /// What is fetched for it; absent: the kubelet mounts its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ClaimModel>,
}

/// All claims of the node, by uid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    version: u32,
    pub claims: BTreeMap<String, Entry>,
}

/// What is promised on one GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promised {
    pub memory_bytes: u64,
    pub sm_percent: u32,
}

/// The claim would have a GPU promised beyond what it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "refusing to over-commit {uuid}: {what} asked {asked}, promised to others {promised}, the GPU has {capacity}. \
     Delete the pod, it will be placed again; the log of the node agent names the claims there"
)]
pub struct OverCommit {
    pub uuid: String,
    pub what: &'static str,
    pub asked: u64,
    pub promised: u64,
    pub capacity: u64,
    /// Namespaces and names of the claims there, for the log only: the message reaches the tenant of another one.
    pub holders: String,
    /// Uids of the claims in the way.
    pub in_the_way: Vec<String>,
}

impl Checkpoint {
    /// What is promised on a GPU, this claim not counted.
    pub fn promised(&self, uuid: &str, without: Option<&str>) -> Promised {
        let others = self.claims.iter().filter(|(uid, _)| Some(uid.as_str()) != without);
        others.flat_map(|(_, entry)| &entry.devices).filter(|device| device.uuid == uuid).fold(
            Promised::default(),
            |sum, device| Promised {
                memory_bytes: sum.memory_bytes.saturating_add(device.memory_bytes),
                sm_percent: sum.sm_percent.saturating_add(device.sm_percent),
            },
        )
    }

    /// Whether these devices can be promised to the claim, besides all that is promised already.
    pub fn admit(&self, uid: &str, devices: &[GrantedDevice], gpus: &[Promisable]) -> Result<(), OverCommit> {
        let mut asked: BTreeMap<&str, Promised> = BTreeMap::new();
        for device in devices {
            let sum = asked.entry(&device.uuid).or_default();
            sum.memory_bytes = sum.memory_bytes.saturating_add(device.memory_bytes);
            sum.sm_percent = sum.sm_percent.saturating_add(device.sm_percent);
        }
        for (uuid, asked) in asked {
            let gpu = gpus.iter().find(|gpu| gpu.uuid == uuid);
            let (memory, sm) = gpu.map_or((0, 0), |gpu| (gpu.memory_bytes, gpu.sm_percent));
            let promised = self.promised(uuid, Some(uid));
            let refuse =
                |what, asked, promised, capacity| Err(self.over_commit(uid, uuid, what, asked, promised, capacity));
            if promised.memory_bytes.saturating_add(asked.memory_bytes) > memory {
                return refuse("memory bytes", asked.memory_bytes, promised.memory_bytes, memory);
            }
            if promised.sm_percent.saturating_add(asked.sm_percent) > sm {
                return refuse("SM per cent", asked.sm_percent.into(), promised.sm_percent.into(), sm.into());
            }
        }
        Ok(())
    }

    fn over_commit(
        &self,
        uid: &str,
        uuid: &str,
        what: &'static str,
        asked: u64,
        promised: u64,
        capacity: u64,
    ) -> OverCommit {
        let there = self
            .claims
            .iter()
            .filter(|(other, entry)| other.as_str() != uid && entry.devices.iter().any(|device| device.uuid == uuid));
        let (in_the_way, names): (Vec<_>, Vec<_>) =
            there.map(|(other, entry)| (other.clone(), format!("{}/{}", entry.namespace, entry.name))).unzip();
        let holders = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        OverCommit { uuid: uuid.to_owned(), what, asked, promised, capacity, holders, in_the_way }
    }

    /// The claim of a pod, by the pod's uid.
    pub fn of_pod(&self, pod_uid: &str) -> Option<&str> {
        let found = self.claims.iter().find(|(_, entry)| !pod_uid.is_empty() && entry.pod_uid == pod_uid);
        found.map(|(uid, _)| uid.as_str())
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let found: Self = serde_json::from_slice(text).map_err(|err| err.to_string())?;
        if found.version != VERSION {
            return Err(format!("version {}, this agent writes {VERSION}", found.version));
        }
        Ok(found)
    }
}

/// The checkpoint cannot be written; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the checkpoint {path}; free space on the node's disk or repair it")]
pub struct SaveError {
    path: String,
    source: std::io::Error,
}

/// A checkpoint and its file.
#[derive(Debug)]
pub struct CheckpointStore {
    path: PathBuf,
    state: Checkpoint,
}

impl CheckpointStore {
    /// Reads the file. A missing one is an empty checkpoint. One that cannot be parsed is set
    /// aside, and `rescue` finds what is prepared on this node by other evidence; then the text reports it.
    /// A disk that cannot be read is an error: what is promised is unknown.
    pub fn open(
        path: &Path,
        rescue: impl FnOnce() -> std::io::Result<BTreeMap<String, Entry>>,
    ) -> std::io::Result<(Self, Option<String>)> {
        let empty = || Checkpoint { version: VERSION, claims: BTreeMap::new() };
        let store = |state| Self { path: path.to_owned(), state };
        let why = match std::fs::read(path) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok((store(empty()), None)),
            Err(err) => return Err(err),
            Ok(text) => match Checkpoint::parse(&text) {
                Ok(state) => return Ok((store(state), None)),
                Err(why) => why,
            },
        };
        let claims = rescue()?;
        let aside = path.with_extension("json.corrupt");
        let kept = match std::fs::rename(path, &aside) {
            Ok(()) => format!("kept as {}", aside.display()),
            Err(err) => format!("could not be set aside: {err}"),
        };
        let found = claims.len();
        let mut store = store(Checkpoint { version: VERSION, claims });
        let state = store.state.clone();
        let written =
            store.write(&state).map_or_else(|err| format!(" (not yet written: {})", err.source), |()| String::new());
        let message = format!(
            "checkpoint {} could not be read ({why}), {kept}; rebuilt from the CDI files with {found} claims{written}",
            path.display()
        );
        Ok((store, Some(message)))
    }

    pub fn state(&self) -> &Checkpoint {
        &self.state
    }

    /// Changes the checkpoint on disk, then in memory; on failure in neither.
    pub fn change(&mut self, change: impl FnOnce(&mut Checkpoint)) -> Result<(), SaveError> {
        let mut next = self.state.clone();
        change(&mut next);
        if next == self.state {
            return Ok(());
        }
        self.write(&next)?;
        self.state = next;
        Ok(())
    }

    fn write(&mut self, state: &Checkpoint) -> Result<(), SaveError> {
        let text = serde_json::to_vec_pretty(state).unwrap_or_default();
        write_atomically(&self.path, &text)
            .map_err(|source| SaveError { path: self.path.display().to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: u64 = 256 << 20;

    fn open(path: &Path) -> (CheckpointStore, Option<String>) {
        CheckpointStore::open(path, || Ok(BTreeMap::new())).unwrap()
    }

    fn gpus() -> Vec<Promisable> {
        let gpu = |index: u32| Promisable {
            device: format!("gpu-{index}"),
            uuid: format!("GPU-{index}"),
            memory_bytes: 8 * STEP,
            sm_percent: 100,
        };
        vec![gpu(0), gpu(1)]
    }

    fn device(gpu: u32, steps: u64, sm_percent: u32) -> GrantedDevice {
        GrantedDevice {
            request: "gpu".to_owned(),
            pool: "n".to_owned(),
            device: format!("gpu-{gpu}"),
            uuid: format!("GPU-{gpu}"),
            memory_bytes: steps * STEP,
            sm_percent,
            share_id: None,
        }
    }

    fn entry(devices: Vec<GrantedDevice>) -> Entry {
        Entry {
            model: None,
            namespace: "a".to_owned(),
            name: "stowage-x".to_owned(),
            pod: "x".to_owned(),
            pod_uid: "p".to_owned(),
            tenant: String::new(),
            stage: Stage::PrepareStarted,
            devices,
        }
    }

    fn with(entries: &[(&str, Vec<GrantedDevice>)]) -> Checkpoint {
        let claims = entries.iter().map(|(uid, devices)| ((*uid).to_owned(), entry(devices.clone()))).collect();
        Checkpoint { version: VERSION, claims }
    }

    #[test]
    fn over_commit_is_refused_with_the_claims_in_the_way() {
        let check = |devices: Vec<GrantedDevice>, expect: Result<(), &str>| {
            let state = with(&[("one", vec![device(0, 5, 40)])]);
            let got = state.admit("new", &devices, &gpus());
            match expect {
                Ok(()) => assert_eq!(got, Ok(())),
                Err(text) => {
                    let err = got.unwrap_err();
                    assert!(err.to_string().contains(text), "{err}");
                    assert!(err.uuid != "GPU-0" || err.in_the_way == ["one"]);
                }
            }
        };
        check(vec![device(0, 3, 60)], Ok(()));
        check(vec![device(0, 4, 10)], Err("memory bytes"));
        check(vec![device(0, 1, 61)], Err("SM per cent"));
        check(vec![device(1, 8, 100)], Ok(()));
        check(vec![device(1, 4, 10), device(1, 5, 10)], Err("memory bytes"));
        check(vec![device(7, 1, 1)], Err("the GPU has 0"));
        check(vec![device(0, u64::MAX / STEP, 1)], Err("memory bytes"));
    }

    #[test]
    fn claim_that_is_prepared_again_does_not_stand_in_its_own_way() {
        let state = with(&[("one", vec![device(0, 8, 100)])]);
        assert_eq!(state.admit("one", &[device(0, 8, 100)], &gpus()), Ok(()));
    }

    #[test]
    fn what_was_written_is_read_again_and_a_broken_file_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.json");
        let (mut store, problem) = open(&path);
        assert_eq!(problem, None);
        store.change(|state| drop(state.claims.insert("one".to_owned(), entry(vec![device(0, 1, 1)])))).unwrap();
        let (again, problem) = open(&path);
        assert_eq!((again.state(), problem), (store.state(), None));

        let text = std::fs::read(&path).unwrap();
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            std::fs::write(&path, &text[..cut]).unwrap();
            let rescued = store.state().claims.clone();
            let (rebuilt, problem) = CheckpointStore::open(&path, || Ok(rescued)).unwrap();
            assert!(problem.unwrap().contains("rebuilt from the CDI files with 1 claims"));
            assert_eq!(rebuilt.state(), store.state());
            assert_eq!(open(&path).1, None);
        }
    }

    #[test]
    fn failed_write_changes_nothing_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone").join("checkpoint.json");
        let (mut store, _) = open(&path);
        let err = store.change(|state| drop(state.claims.insert("one".to_owned(), entry(vec![])))).unwrap_err();
        assert!(err.to_string().contains("free space"));
        assert!(store.state().claims.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Act {
        Prepare(u8, u32, u64, u32),
        Unprepare(u8),
        Restart,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0u8..6, 0u32..2, 0u64..10, 0u32..120).prop_map(|(c, g, m, s)| Act::Prepare(c, g, m, s)),
            2 => (0u8..6).prop_map(Act::Unprepare),
            1 => Just(Act::Restart),
        ];
        proptest::collection::vec(act, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_asked_in_whatever_order_no_gpu_is_promised_twice(acts in acts()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("checkpoint.json");
            let mut store = open(&path).0;
            for act in acts {
                match act {
                    Act::Prepare(claim, gpu, steps, sm) => {
                        let (uid, devices) = (claim.to_string(), vec![device(gpu, steps, sm)]);
                        if store.state().admit(&uid, &devices, &gpus()).is_ok() {
                            store.change(|state| drop(state.claims.insert(uid, entry(devices)))).unwrap();
                        }
                    }
                    Act::Unprepare(claim) => {
                        store.change(|state| drop(state.claims.remove(&claim.to_string()))).unwrap();
                    }
                    Act::Restart => {
                        let (again, problem) = open(&path);
                        prop_assert!(problem.is_none());
                        prop_assert_eq!(again.state().claims.clone(), store.state().claims.clone());
                        store = again;
                    }
                }
                for gpu in gpus() {
                    let promised = store.state().promised(&gpu.uuid, None);
                    prop_assert!(promised.memory_bytes <= gpu.memory_bytes && promised.sm_percent <= 100);
                }
            }
        }

        #[test]
        fn parser_does_not_panic_whatever_the_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Checkpoint::parse(&bytes);
        }
    }

    #[test]
    fn unreadable_checkpoint_is_an_error_and_stays_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        // A directory in its place: reading it fails, whatever its content.
        let path = dir.path().join("checkpoint.json");
        std::fs::create_dir(&path).unwrap();
        assert!(CheckpointStore::open(&path, || Ok(BTreeMap::new())).is_err());
        std::fs::remove_dir(&path).unwrap();
        // Damaged, and the other evidence cannot be read either: nothing is rebuilt from nothing.
        std::fs::write(&path, "{").unwrap();
        assert!(CheckpointStore::open(&path, || Err(std::io::ErrorKind::Other.into())).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"{");
    }
}
