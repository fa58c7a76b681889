//! Whether work may run on a GPU: a verdict per device from readings and from NVML's events.
//!
//! Pure; time comes in as an argument. A complaint counts at once, because gateways stop routing on it;
//! a GPU is healthy again after [`CALM_READINGS`] readings without one, so that a GPU that comes and goes
//! does not move replicas each time.
//!
//! An Xid by which only the application died (a wrong address, an assertion) changes no verdict:
//! it is counted. One that ends work on the GPU holds until the driver, which
//! is asked each second, has wanted a recovery and wants none any more, or for
//! [`NO_RECOVERY_AFTER`] has not wanted any. Where the driver cannot be asked (older than r560),
//! it holds until the GPU was lost and came back, which is what a reset looks like from here.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use stowage_crds::conditions::reasons;

use crate::device::model::{GpuReading, Health, Reach, Recovery, Verdict};

/// Readings in a row without a complaint before a GPU is healthy again.
pub const CALM_READINGS: u32 = 3;
/// Failed readings in a row (of a GPU that is not lost) before it is called degraded.
const FAILED_READINGS: u32 = 3;
/// Slowed-down readings in a row before it is called degraded.
const SLOW_READINGS: u32 = 10;
/// How long an Xid that calls for attention, but ends nothing, keeps a GPU degraded.
const ATTENTION_FOR: SignedDuration = SignedDuration::from_mins(10);
/// After so long without a request for recovery by the driver, an Xid no longer counts.
const NO_RECOVERY_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// What an Xid means for the GPU it happened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XidClass {
    /// The application's fault; the GPU is fine.
    Application,
    /// The GPU works on; an engineer should look at it.
    Attention,
    /// It does no work until it is reset.
    Ends,
}

/// After NVIDIA's catalogue of Xid errors. A number we do not know calls for attention: ending a
/// GPU for it would let one new driver empty a fleet.
pub fn classify(xid: u64) -> XidClass {
    match xid {
        // Application or user error: illegal address or instruction, engine exception, preemptive
        // clean-up, push buffer, context switch, assertion, breakpoint, video, killed by the user.
        7..=9 | 11 | 13 | 31 | 32 | 37 | 38 | 41 | 43..=45 | 59 | 65 | 66 | 68..=70 | 77 | 80 | 82 | 83 | 109 => {
            XidClass::Application
        }
        // Contained memory error: one process died of it. Recorded for the count.
        94 => XidClass::Attention,
        // Stuck, double-bit ECC, micro-controller halt, failed row remapping, off the bus,
        // uncontained error, security fault, GSP time-out, unrecovered ECC.
        46 | 48 | 61 | 62 | 64 | 79 | 95 | 110 | 119 | 120 | 140 => XidClass::Ends,
        _ => XidClass::Attention,
    }
}

#[derive(Debug, Clone)]
struct Ended {
    xid: u64,
    at: Timestamp,
    /// The driver has wanted a recovery, or the GPU was lost, since.
    recovery_seen: bool,
}

#[derive(Debug, Clone)]
struct Record {
    ended: Option<Ended>,
    attention: Option<(u64, Timestamp)>,
    failed: u32,
    slow: u32,
    /// Readings in a row without a complaint.
    calm: u32,
    verdict: Verdict,
}

/// The verdicts on one node's GPUs.
#[derive(Debug, Default)]
pub struct HealthBook {
    records: BTreeMap<String, Record>,
}

impl HealthBook {
    pub fn verdicts(&self) -> BTreeMap<String, Verdict> {
        self.records.iter().map(|(uuid, record)| (uuid.clone(), record.verdict.clone())).collect()
    }

    /// NVML reported an Xid.
    pub fn xid(&mut self, uuid: &str, xid: u64, now: Timestamp) {
        let record = self.record(uuid, now);
        match classify(xid) {
            XidClass::Application => return,
            XidClass::Attention => record.attention = Some((xid, now)),
            XidClass::Ends => record.ended = Some(Ended { xid, at: now, recovery_seen: false }),
        }
        record.judge_complaint(None, now);
    }

    /// One reading of one GPU.
    pub fn reading(&mut self, reading: &GpuReading, now: Timestamp) {
        let record = self.record(&reading.uuid, now);
        record.note(reading, now);
        record.judge_complaint(Some(reading), now);
    }

    fn record(&mut self, uuid: &str, now: Timestamp) -> &mut Record {
        self.records.entry(uuid.to_owned()).or_insert_with(|| Record {
            ended: None,
            attention: None,
            failed: 0,
            slow: 0,
            calm: CALM_READINGS,
            verdict: Verdict { health: Health::Healthy, reason: "", message: String::new(), since: now },
        })
    }
}

impl Record {
    /// Takes from a reading what the verdict needs to remember.
    fn note(&mut self, reading: &GpuReading, now: Timestamp) {
        self.failed = if matches!(reading.reach, Reach::Failed(_)) { self.failed.saturating_add(1) } else { 0 };
        self.slow = if reading.slowed_down { self.slow.saturating_add(1) } else { 0 };
        if self.attention.is_some_and(|(_, at)| now.duration_since(at) > ATTENTION_FOR) {
            self.attention = None;
        }
        let Some(ended) = &mut self.ended else { return };
        let lost = matches!(reading.reach, Reach::Lost(_));
        if lost || reading.recovery.is_some_and(|wanted| wanted != Recovery::None) {
            ended.recovery_seen = true;
        } else if reading.reach == Reach::Ok {
            let content = reading.recovery == Some(Recovery::None);
            let long = now.duration_since(ended.at) > NO_RECOVERY_AFTER;
            if ended.recovery_seen && reading.recovery != Some(Recovery::Needed) || content && long {
                self.ended = None;
                self.attention = None;
            }
        }
    }

    fn judge_complaint(&mut self, reading: Option<&GpuReading>, now: Timestamp) {
        let (health, reason, message) = match self.complaint(reading) {
            Some(complaint) => {
                self.calm = 0;
                complaint
            }
            // Nothing was looked at: a calm reading has to come from a reading.
            None if reading.is_none() => return,
            None => {
                self.calm = self.calm.saturating_add(1);
                if self.calm < CALM_READINGS {
                    return;
                }
                (Health::Healthy, "", String::new())
            }
        };
        let since =
            if self.verdict.health == health && self.verdict.reason == reason { self.verdict.since } else { now };
        self.verdict = Verdict { health, reason, message, since };
    }

    /// The gravest complaint.
    fn complaint(&self, reading: Option<&GpuReading>) -> Option<(Health, &'static str, String)> {
        if let Some(Reach::Lost(why)) = reading.map(|r| &r.reach) {
            let message = format!("the driver no longer sees the GPU ({why}); reset the GPU or reboot the node");
            return Some((Health::Unhealthy, reasons::FELL_OFF_BUS, message));
        }
        if let Some(ended) = &self.ended {
            let message = format!("Xid {} ended work on the GPU; it is taken back after a reset", ended.xid);
            return Some((Health::Unhealthy, reasons::XID, message));
        }
        if let Some(errors) = reading.and_then(|r| r.ecc_uncorrected).filter(|errors| *errors > 0) {
            let message = format!("{errors} uncorrectable memory errors since the last reset; reset the GPU");
            return Some((Health::Unhealthy, reasons::ECC_UNCORRECTABLE, message));
        }
        if reading.and_then(|r| r.recovery) == Some(Recovery::Needed) {
            let message = "the driver asks for a reset of the GPU".to_owned();
            return Some((Health::Unhealthy, reasons::XID, message));
        }
        if self.failed >= FAILED_READINGS {
            let why = match reading.map(|r| &r.reach) {
                Some(Reach::Failed(why)) => why.as_str(),
                _ => "unknown",
            };
            // No count in the text: it would change each second, and each change is written.
            let message = format!("reading it fails: {why}; shown is what was last known");
            return Some((Health::Degraded, reasons::TELEMETRY_FAILED, message));
        }
        if reading.and_then(|r| r.recovery) == Some(Recovery::DrainPeers) {
            return Some((Health::Degraded, reasons::XID, "the driver asks to end peer-to-peer traffic".to_owned()));
        }
        if let Some((xid, _)) = self.attention {
            return Some((
                Health::Degraded,
                reasons::XID,
                format!("Xid {xid} in the last 10 minutes; look at the node's kernel log"),
            ));
        }
        if self.slow >= SLOW_READINGS {
            let message = "heat or the power supply holds its clocks down; check cooling and power".to_owned();
            return Some((Health::Degraded, reasons::THROTTLED, message));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "GPU-0";

    /// A second-by-second script: each step is what happens, then the verdict expected after it.
    enum Step {
        Xid(u64),
        Read(fn(&mut GpuReading)),
        Wait(i64),
    }
    use Step::{Read, Wait, Xid};

    fn fine(_: &mut GpuReading) {}
    fn lost(r: &mut GpuReading) {
        r.reach = Reach::Lost("GPU is lost".to_owned());
    }
    fn failed(r: &mut GpuReading) {
        r.reach = Reach::Failed("timeout".to_owned());
    }
    fn wants_reset(r: &mut GpuReading) {
        r.recovery = Some(Recovery::Needed);
    }
    fn cannot_be_asked(r: &mut GpuReading) {
        r.recovery = None;
    }
    fn bad_memory(r: &mut GpuReading) {
        r.ecc_uncorrected = Some(2);
    }
    fn hot(r: &mut GpuReading) {
        r.slowed_down = true;
    }

    fn check(name: &str, steps: &[Step], expect: &str) {
        let mut book = HealthBook::default();
        let mut now = Timestamp::UNIX_EPOCH;
        for step in steps {
            now += SignedDuration::from_secs(1);
            match step {
                Xid(xid) => book.xid(UUID, *xid, now),
                Wait(seconds) => now += SignedDuration::from_secs(*seconds),
                Read(change) => {
                    let mut reading = GpuReading::unreachable(UUID, Reach::Ok);
                    reading.recovery = Some(Recovery::None);
                    reading.ecc_uncorrected = Some(0);
                    change(&mut reading);
                    book.reading(&reading, now);
                }
            }
        }
        let got = book
            .verdicts()
            .get(UUID)
            .map_or_else(|| "unknown".to_owned(), |v| format!("{:?} {}", v.health, v.reason).trim().to_owned());
        assert_eq!(got, expect, "{name}");
    }

    #[test]
    fn verdicts() {
        check("an application's Xid is not held against the GPU", &[Read(fine), Xid(31)], "Healthy");
        check("an Xid that ends work counts at once, before any reading", &[Xid(79)], "Unhealthy Xid");
        check("an Xid that calls for attention degrades", &[Read(fine), Xid(63)], "Degraded Xid");
        check("an unknown Xid degrades only", &[Read(fine), Xid(999)], "Degraded Xid");
        check(
            "attention passes after ten minutes",
            &[Xid(63), Wait(601), Read(fine), Read(fine), Read(fine)],
            "Healthy",
        );
        check("a lost GPU", &[Read(fine), Read(lost)], "Unhealthy FellOffBus");
        check(
            "one good reading does not bring a lost GPU back",
            &[Read(lost), Read(fine), Read(fine)],
            "Unhealthy FellOffBus",
        );
        check("three do", &[Read(lost), Read(fine), Read(fine), Read(fine)], "Healthy");
        check("uncorrectable errors", &[Read(bad_memory)], "Unhealthy ECCUncorrectable");
        check("counters reset by a reset", &[Read(bad_memory), Read(fine), Read(fine), Read(fine)], "Healthy");
        check("the driver wants a reset", &[Read(wants_reset)], "Unhealthy Xid");
        check(
            "an ended GPU stays so while the driver wants a reset",
            &[Xid(48), Read(wants_reset), Read(wants_reset)],
            "Unhealthy Xid",
        );
        check(
            "and comes back after the reset",
            &[Xid(48), Read(wants_reset), Read(fine), Read(fine), Read(fine)],
            "Healthy",
        );
        check(
            "without a wanted recovery it stays ended for a minute",
            &[Xid(48), Read(fine), Read(fine), Read(fine), Read(fine)],
            "Unhealthy Xid",
        );
        check("then the driver is believed", &[Xid(48), Wait(61), Read(fine), Read(fine), Read(fine)], "Healthy");
        check(
            "an old driver's GPU is taken back after it was lost and came again",
            &[
                Xid(48),
                Read(cannot_be_asked),
                Wait(600),
                Read(cannot_be_asked),
                Read(lost),
                Read(cannot_be_asked),
                Read(cannot_be_asked),
                Read(cannot_be_asked),
            ],
            "Healthy",
        );
        check(
            "and not by waiting",
            &[Xid(48), Wait(600), Read(cannot_be_asked), Read(cannot_be_asked), Read(cannot_be_asked)],
            "Unhealthy Xid",
        );
        check("fewer than three failed readings are ignored", &[Read(fine), Read(failed), Read(failed)], "Healthy");
        check(
            "three are a complaint",
            &[Read(fine), Read(failed), Read(failed), Read(failed)],
            "Degraded TelemetryFailed",
        );
        check("a short heat wave is nothing", &[Read(hot), Read(hot), Read(fine)], "Healthy");
        let long: Vec<Step> = (0..10).map(|_| Read(hot)).collect();
        check("a long one is", &long, "Degraded Throttled");
    }

    #[test]
    fn since_is_when_the_verdict_began_not_when_it_was_last_confirmed() {
        let mut book = HealthBook::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        for second in 1..5 {
            book.reading(&GpuReading::unreachable(UUID, Reach::Lost(String::new())), at(second));
        }
        assert_eq!(book.verdicts()[UUID].since, at(1));
    }
}
