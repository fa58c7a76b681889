//! Decides what to do about the Lease: wait, create, take, renew. Pure; time is an argument.
//!
//! Wall clocks of other machines are not trusted: a foreign holder's lease has run out when the
//! object has not changed for its whole duration *on our monotonic clock*. What is left out on
//! purpose: any preference between candidates; the API server's resource version decides races.

use std::time::{Duration, Instant};

/// What matters of a Lease object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Empty: released by its last holder.
    pub holder: String,
    pub resource_version: String,
    /// How often the holder changed.
    pub transitions: i32,
    pub duration: Duration,
}

/// The next step of the elector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// There is no Lease: create it with us as the holder.
    Create,
    /// Replace the Lease (this resource version only) with us as the holder.
    Write { resource_version: String, transitions: i32 },
    /// Another replica holds it: look again after this time.
    Wait(Duration),
}

/// Timing of the election.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Without a renewal for this long the lease is free.
    pub lease: Duration,
    /// The leader renews this often.
    pub renew: Duration,
    /// Others look this often.
    pub poll: Duration,
}

impl Default for Timing {
    /// Take-over within 8 s + 1 s of the last renewal.
    fn default() -> Self {
        Self { lease: Duration::from_secs(8), renew: Duration::from_secs(2), poll: Duration::from_secs(1) }
    }
}

/// What one process knows about the Lease.
#[derive(Debug)]
pub struct Machine {
    me: String,
    timing: Timing,
    /// The record last seen, and when it was first seen like this.
    seen: Option<(Record, Instant)>,
}

impl Machine {
    pub fn new(me: String, timing: Timing) -> Self {
        Self { me, timing, seen: None }
    }

    /// Takes in what a read of the Lease returned at `now`.
    pub fn observe(&mut self, record: Option<Record>, now: Instant) {
        self.seen = match (record, self.seen.take()) {
            (None, _) => None,
            (Some(new), Some((old, since))) if old == new => Some((old, since)),
            (Some(new), _) => Some((new, now)),
        };
    }

    pub fn next(&self, now: Instant) -> Step {
        let Some((record, since)) = &self.seen else { return Step::Create };
        let version = record.resource_version.clone();
        if record.holder == self.me {
            return Step::Write { resource_version: version, transitions: record.transitions };
        }
        let free_in = (*since + record.duration.max(self.timing.lease)).saturating_duration_since(now);
        if record.holder.is_empty() || free_in.is_zero() {
            return Step::Write { resource_version: version, transitions: record.transitions + 1 };
        }
        Step::Wait(free_in.min(self.timing.poll))
    }

    /// The name under which we hold the lease.
    pub fn me(&self) -> &str {
        &self.me
    }
}

/// Spreads `base` by up to a fifth, so that replicas do not send at the same time. `salt` is any changing number.
pub fn jittered(base: Duration, salt: u64) -> Duration {
    let mixed = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    base.mul_f64(0.9 + 0.2 * (mixed as f64 / 65_536.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: &str) -> Record {
        Record {
            holder: holder.into(),
            resource_version: version.into(),
            transitions: 4,
            duration: Duration::from_secs(8),
        }
    }

    /// Observes the records at the given seconds; answers the step at the end.
    fn after(looks: &[(u64, Option<Record>)]) -> Step {
        let start = Instant::now();
        let mut machine = Machine::new("b".into(), Timing::default());
        let mut now = start;
        for (second, record) in looks {
            now = start + Duration::from_secs(*second);
            machine.observe(record.clone(), now);
        }
        machine.next(now)
    }

    fn write(version: &str, transitions: i32) -> Step {
        Step::Write { resource_version: version.into(), transitions }
    }

    #[test]
    fn without_a_lease_it_is_created() {
        assert_eq!(after(&[(0, None)]), Step::Create);
    }

    #[test]
    fn a_holder_that_renews_is_left_alone() {
        let looks: Vec<_> = (0..20).map(|s| (s, Some(record("a", &s.to_string())))).collect();
        assert_eq!(after(&looks), Step::Wait(Duration::from_secs(1)));
    }

    #[test]
    fn holder_that_stops_renewing_is_replaced_after_the_whole_lease_and_not_before() {
        assert_eq!(
            after(&[(0, Some(record("a", "7"))), (7, Some(record("a", "7")))]),
            Step::Wait(Duration::from_secs(1))
        );
        assert_eq!(after(&[(0, Some(record("a", "7"))), (8, Some(record("a", "7")))]), write("7", 5));
    }

    #[test]
    fn own_lease_is_renewed_without_a_transition() {
        assert_eq!(after(&[(0, Some(record("b", "9")))]), write("9", 4));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        assert_eq!(after(&[(0, Some(record("", "9")))]), write("9", 5));
    }

    #[test]
    fn a_restarted_candidate_waits_a_whole_lease_for_a_holder_it_never_saw_renew() {
        assert!(matches!(after(&[(100, Some(record("a", "1")))]), Step::Wait(_)));
    }

    #[test]
    fn jitter_stays_within_a_tenth_to_each_side() {
        for salt in 0..1000 {
            let wait = jittered(Duration::from_secs(10), salt);
            assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&wait), "{wait:?}");
        }
    }
}
