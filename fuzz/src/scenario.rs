//! The scenario file of a simulated node, and the way from there to what the agent publishes:
//! through the C interface of the built library, as on a real node.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jiff::Timestamp;
use stowage_gpu_scenario::{Profile, Scenario, Store};
use stowage_node_agent::device::inventory;
use stowage_node_agent::device::model::{GpuFacts, GpuReading};
use stowage_node_agent::device::nvml::Reader;
use stowage_node_agent::dra::checkpoint::Checkpoint;
use stowage_node_agent::serve::summary;
use stowage_node_agent::usage::view::{Attribution, NodeState};

use crate::{one_line, within};

/// What is accepted is what the agent sees, and what it makes of it adds up; what is refused leaves
/// the scenario before it in force, and reports the reason.
pub fn scenario(data: &[u8]) {
    let parsed = within(64, data, || Scenario::parse(data));
    let node = NODE.lock().unwrap_or_else(PoisonError::into_inner);
    node.replace(&sound());
    let reader = &node.reader;
    let mut store = Store::new(&node.scenario);
    let before = reader.facts().expect("a sound scenario is served");
    node.replace(data);
    match parsed {
        Ok(scenario) => {
            let again = Scenario::parse(scenario.to_json().as_bytes()).expect("what was written is read");
            assert_eq!(again, scenario);
            assert_eq!((store.current().as_deref(), store.last_error()), (Some(&scenario), None));
            is_served(reader, &scenario);
        }
        Err(_) => {
            let path = node.scenario.display().to_string();
            let why = store.last_error().expect("a refused file has a reason");
            one_line(why);
            assert!(why.starts_with(&path), "{why} does not name the file");
            assert_eq!(reader.facts().expect("the one before is served"), before);
        }
    }
}

fn sound() -> Vec<u8> {
    Profile::L4x1.scenario("before").to_json().into_bytes()
}

/// The library reads its environment once, keeps one scenario per process, and is never unloaded: the
/// fuzzer goes on reading its coverage.
static NODE: LazyLock<Mutex<Node>> = LazyLock::new(|| Mutex::new(Node::new()));

struct Node {
    scenario: PathBuf,
    reader: Reader,
}

impl Node {
    fn new() -> Self {
        let program = std::env::current_exe().expect("this program");
        let folder = program.parent().expect("its folder");
        let scenario = folder.join("fuzz-scenario.json");
        std::fs::write(&scenario, sound()).expect("write the scenario");
        // SAFETY: once per process; nothing else here reads or writes the environment.
        unsafe { std::env::set_var(stowage_gpu_scenario::SCENARIO_ENV, &scenario) };
        let reader = Reader::open(Some(&library(folder))).expect("the simulated NVML");
        Self { scenario, reader }
    }

    /// Replaces the scenario by rename, as the documentation asks.
    fn replace(&self, text: &[u8]) {
        let draft = self.scenario.with_extension("tmp");
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &self.scenario))
            .expect("write the scenario");
    }
}

/// Where cargo puts the library: beside a program, or in `deps`, where test programs are.
fn library(folder: &Path) -> PathBuf {
    let name = "libfake_nvml.so";
    let places = [folder.join("deps").join(name), folder.join(name), folder.with_file_name(name)];
    let built = |path: &&PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    places.iter().filter(|path| path.is_file()).max_by_key(built).expect("the built libfake_nvml.so").clone()
}

fn is_served(reader: &Reader, scenario: &Scenario) {
    let facts = reader.facts().expect("an accepted scenario is served");
    for gpu in &facts {
        let device = &scenario.devices[gpu.index as usize];
        assert_eq!((&gpu.uuid, &gpu.product), (&device.uuid, &device.product));
        assert_eq!((gpu.memory_bytes, gpu.reserved_bytes), (device.memory_bytes, device.reserved_bytes));
    }
    let sound = scenario.devices.iter().filter(|device| !device.lost && device.errors.is_empty());
    sound.for_each(|device| assert!(facts.iter().any(|gpu| gpu.uuid == device.uuid), "{} is missing", device.uuid));

    let uuids: Vec<String> = scenario.devices.iter().map(|device| device.uuid.clone()).collect();
    let readings = reader.read(&uuids);
    for (reading, device) in readings.iter().zip(&scenario.devices) {
        assert!(reading.used_bytes.is_none_or(|used| used <= device.memory_bytes), "{reading:?}");
        assert!(reading.sm_percent.is_none_or(|percent| percent <= 100), "{reading:?}");
    }
    every_event_is_seen_once(reader, &uuids, scenario);
    can_be_published(&facts, &readings, reader.driver_version());
}

fn every_event_is_seen_once(reader: &Reader, uuids: &[String], scenario: &Scenario) {
    let Ok((events, _)) = reader.events(uuids) else { return };
    let most: usize = scenario.devices.iter().map(|device| device.xid_events.len() + 1).sum();
    let seen = (0..=most).take_while(|_| matches!(events.wait(0), Ok(Some(_)))).count();
    assert!(seen <= most, "more than {most} events");
}

fn can_be_published(facts: &[GpuFacts], readings: &[GpuReading], driver: Option<String>) {
    let now = Timestamp::UNIX_EPOCH;
    let mut state = NodeState::new(true, now);
    state.facts(facts.to_vec(), driver.clone());
    for _ in 0..2 {
        state.readings(readings.to_vec(), Arc::new(Checkpoint::default()), &Evenly, now);
    }
    let published = serde_json::to_string(&summary::of("node1", &state.view, now));
    published.expect("a summary is JSON");
    inventory::slice_devices(facts);
    inventory::node_status(facts, &state.view.verdicts, driver, true);
}

/// Every other process belongs to a claim.
struct Evenly;

impl Attribution for Evenly {
    fn claim_of(&self, pid: u32, _: &Checkpoint) -> Option<String> {
        pid.is_multiple_of(2).then(|| "claim".to_owned())
    }
}
