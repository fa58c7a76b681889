//! Two threads that ask NVML, because its calls block: one takes a reading each second, one waits
//! for events. What they read is sent on; nothing is decided here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::device::model::{DeviceEvent, GpuFacts, GpuReading};
use crate::device::nvml::Reader;

const EVERY: Duration = Duration::from_secs(1);
/// How often the list of GPUs is read again: hardware rarely comes back by itself.
const RELIST_EVERY: Duration = Duration::from_secs(10);
const REOPEN_AFTER: Duration = Duration::from_secs(5);
const EVENT_WAIT_MS: u32 = 1000;

/// What the threads found.
#[derive(Debug)]
pub enum SamplerMessage {
    Facts {
        facts: Vec<GpuFacts>,
        driver_version: Option<String>,
    },
    Readings(Vec<GpuReading>),
    Event(DeviceEvent),
    /// NVML cannot be used; tried again.
    Unavailable(String),
}

/// Starts both threads. They end when `stop` is set or the receiver is gone.
pub fn start(
    library: Option<PathBuf>,
    messages: mpsc::Sender<SamplerMessage>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<()> {
    std::thread::Builder::new().name("nvml".to_owned()).spawn(move || sample(library, &messages, &stop))?;
    Ok(())
}

/// Known devices. None is removed: one that is not listed any more has fallen off the bus.
type Known = Arc<Mutex<Vec<GpuFacts>>>;

fn uuids(known: &Known) -> Vec<String> {
    known.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|gpu| gpu.uuid.clone()).collect()
}

fn sample(library: Option<PathBuf>, messages: &mpsc::Sender<SamplerMessage>, stop: &Arc<AtomicBool>) {
    let reader = loop {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match Reader::open(library.as_deref()) {
            Ok(reader) => break Arc::new(reader),
            Err(err) => {
                let why = std::error::Error::source(&err).map_or_else(String::new, |source| format!(": {source}"));
                if messages.blocking_send(SamplerMessage::Unavailable(format!("{err}{why}"))).is_err() {
                    return;
                }
                std::thread::sleep(REOPEN_AFTER);
            }
        }
    };
    let known: Known = Known::default();
    let events = (Arc::clone(&reader), Arc::clone(&known), messages.clone(), Arc::clone(stop));
    let spawned = std::thread::Builder::new()
        .name("nvml-events".to_owned())
        .spawn(move || watch(&events.0, &events.1, &events.2, &events.3));
    if let Err(err) = spawned {
        tracing::error!(%err, "no thread for NVML events; faults are seen by readings only");
    }
    let mut listed: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        if listed.is_none_or(|at| at.elapsed() >= RELIST_EVERY) {
            listed = Some(started);
            if list(&reader, &known, messages).is_err() {
                return;
            }
        }
        if messages.blocking_send(SamplerMessage::Readings(reader.read(&uuids(&known)))).is_err() {
            return;
        }
        std::thread::sleep(EVERY.saturating_sub(started.elapsed()));
    }
}

/// The receiver is gone.
struct Gone;

fn list(reader: &Reader, known: &Known, messages: &mpsc::Sender<SamplerMessage>) -> Result<(), Gone> {
    let found = match reader.facts() {
        Ok(found) => found,
        Err(err) => return messages.blocking_send(SamplerMessage::Unavailable(err.to_string())).map_err(|_| Gone),
    };
    let facts = {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = merge(&known, found);
        known.clone()
    };
    let driver_version = reader.driver_version();
    messages.blocking_send(SamplerMessage::Facts { facts, driver_version }).map_err(|_| Gone)
}

/// What is found now, and what was known before and is not found: it stays known.
fn merge(known: &[GpuFacts], found: Vec<GpuFacts>) -> Vec<GpuFacts> {
    let missing = known.iter().filter(|old| found.iter().all(|new| new.uuid != old.uuid)).cloned();
    let mut all: Vec<GpuFacts> = missing.chain(found.iter().cloned()).collect();
    all.sort_by(|a, b| (a.index, &a.uuid).cmp(&(b.index, &b.uuid)));
    all
}

fn watch(reader: &Reader, known: &Known, messages: &mpsc::Sender<SamplerMessage>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let wanted = uuids(known);
        let (events, missed) = match reader.events(&wanted) {
            Ok(found) if !wanted.is_empty() => found,
            _ => {
                std::thread::sleep(EVERY);
                continue;
            }
        };
        let registered = Instant::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // A set knows only the GPUs it was made with.
            let outdated = missed > 0 && registered.elapsed() > RELIST_EVERY;
            if outdated || uuids(known) != wanted {
                break;
            }
            match events.wait(EVENT_WAIT_MS) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    if messages.blocking_send(SamplerMessage::Event(event)).is_err() {
                        return;
                    }
                }
                Err(_) => {
                    std::thread::sleep(EVERY);
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, uuid: &str) -> GpuFacts {
        GpuFacts {
            index,
            uuid: uuid.to_owned(),
            product: String::new(),
            memory_bytes: 0,
            reserved_bytes: 0,
            sm_count: 0,
            architecture: None,
            numa_node: None,
            pci_bus_id: None,
            nvlink_bus_ids: Vec::new(),
            minor: None,
            mig_enabled: None,
            mig_profiles: Vec::new(),
        }
    }

    #[test]
    fn gpu_that_is_not_listed_any_more_stays_known() {
        let known = [gpu(0, "a"), gpu(1, "b")];
        assert_eq!(merge(&known, vec![gpu(0, "a")]), known);
        assert_eq!(merge(&[], vec![gpu(1, "b"), gpu(0, "a")]), known);
        assert_eq!(merge(&known, vec![gpu(2, "b")])[1].index, 2);
    }
}
