//! When a deployment's writes may be tried again. Pure; time is an argument.
//!
//! A write that fails for the moment (overload, network, a conflict) pauses everything of its
//! deployment for a short while, longer each time nothing goes through. A write that is *refused*
//! (quota, admission, an object of that name that is not ours) will be refused again, so it pauses
//! its own part of the work much longer, whatever else could be written in between. Only an act of a
//! person ends that early: see [`Backoff::acted`] and [`Backoff::cause_changed`].

use std::time::{Duration, Instant};

use super::write::WriteError;

/// The two halves of a deployment's writes: they are refused, and wait, independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What exists is changed or ended: drains, deletions, the finalizer's removal.
    End,
    /// What is missing is made: finalizer, policy, Service, budget, claims, pods.
    Make,
}

/// How a failed write is to be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// May well work in a moment.
    Transient,
    /// Will be refused again until something changes.
    Refused,
    /// An object of that name exists and is not ours. Its removal is not watched, so the longest pause is shorter.
    Clash,
}

/// First and longest pause.
struct Bounds(Duration, Duration);

/// The pauses of one deployment.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    /// The deployment's UID and generation that the pauses belong to, and whether it was being deleted.
    subject: Option<(String, i64, bool)>,
    transient: Option<Pause>,
    make: Option<Pause>,
    end: Option<Pause>,
}

#[derive(Debug, Clone)]
struct Pause {
    attempts: u32,
    last: Instant,
    until: Instant,
}

impl Failing {
    pub fn of(error: &WriteError) -> Self {
        match error {
            WriteError::Refused(_) => Self::Refused,
            WriteError::Foreign(_) => Self::Clash,
            WriteError::NotLeader(_)
            | WriteError::AlreadyExists
            | WriteError::Conflict(_)
            | WriteError::NotFound
            | WriteError::Unavailable(_) => Self::Transient,
        }
    }

    fn bounds(self) -> Bounds {
        match self {
            Self::Transient => Bounds(Duration::from_millis(500), Duration::from_secs(60)),
            Self::Refused => Bounds(Duration::from_secs(1), Duration::from_secs(300)),
            Self::Clash => Bounds(Duration::from_secs(1), Duration::from_secs(30)),
        }
    }
}

impl Backoff {
    /// A user's act ends all pauses: a new object, a new generation, a deletion.
    /// Answers whether there was one.
    pub fn acted(&mut self, uid: &str, generation: i64, deleting: bool) -> bool {
        let subject = (uid.to_owned(), generation, deleting);
        let acted = self.subject.as_ref() != Some(&subject);
        if acted {
            *self = Self { subject: Some(subject), ..Self::default() };
        }
        acted
    }

    /// Something that may have caused a refusal changed: what waits is tried again, a second after its
    /// last attempt at the earliest. The next refusal pauses longer than the last one did.
    pub fn cause_changed(&mut self) {
        let first = Failing::Refused.bounds().0;
        for pause in [&mut self.make, &mut self.end].into_iter().flatten() {
            pause.until = pause.until.min(pause.last + first);
        }
    }

    /// A write of this part failed. `progress`: others went through, which shortens transient pauses alone.
    pub fn failed(&mut self, part: Part, failing: Failing, progress: bool, now: Instant) {
        let Bounds(first, longest) = failing.bounds();
        let slot = match (failing, part) {
            (Failing::Transient, _) => &mut self.transient,
            (_, Part::Make) => &mut self.make,
            (_, Part::End) => &mut self.end,
        };
        let before = slot.as_ref().map_or(0, |pause| pause.attempts);
        let attempts = if progress && failing == Failing::Transient { 1 } else { before.saturating_add(1) };
        let pause = first.saturating_mul(2u32.saturating_pow(attempts - 1)).min(longest);
        *slot = Some(Pause { attempts, last: now, until: now + pause });
    }

    /// All writes of this part went through.
    pub fn succeeded(&mut self, part: Part) {
        match part {
            Part::Make => self.make = None,
            Part::End => self.end = None,
        }
    }

    /// No write failed for the moment.
    pub fn settled(&mut self) {
        self.transient = None;
    }

    /// Whether this part must not be tried now.
    pub fn holds(&self, part: Part, now: Instant) -> bool {
        let slot = match part {
            Part::Make => &self.make,
            Part::End => &self.end,
        };
        slot.as_ref().is_some_and(|pause| pause.until > now)
    }

    /// Whether nothing at all may be tried now, the status included.
    pub fn holds_all(&self, now: Instant) -> bool {
        self.transient.as_ref().is_some_and(|pause| pause.until > now)
    }

    /// Until when creations are refused; `None`: they are not.
    pub fn refused_until(&self) -> Option<Instant> {
        self.make.as_ref().map(|pause| pause.until)
    }

    /// The ends of all pauses.
    pub fn ends(&self) -> impl Iterator<Item = Instant> + '_ {
        [&self.transient, &self.make, &self.end].into_iter().flatten().map(|pause| pause.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// The pauses of this many failures in a row, each met as soon as the last pause is over.
    fn pauses(failing: Failing, progress: bool, count: usize) -> Vec<Duration> {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let pause = |_| {
            backoff.failed(Part::Make, failing, progress, now);
            let until = backoff.ends().max().unwrap();
            let pause = until - now;
            now = until;
            pause
        };
        (0..count).map(pause).collect()
    }

    #[test]
    fn refusals_back_off_from_one_second_to_five_minutes_whatever_was_written_in_between() {
        for progress in [false, true] {
            let found = pauses(Failing::Refused, progress, 11);
            assert_eq!(found[..4], [seconds(1), seconds(2), seconds(4), seconds(8)]);
            assert_eq!(found[8..], [seconds(256), seconds(300), seconds(300)]);
        }
    }

    #[test]
    fn transient_failures_back_off_to_one_minute_and_progress_begins_anew() {
        assert_eq!(pauses(Failing::Transient, false, 9).last(), Some(&seconds(60)));
        assert_eq!(pauses(Failing::Transient, true, 9).last(), Some(&Duration::from_millis(500)));
    }

    #[test]
    fn a_refused_part_holds_itself_and_a_transient_failure_holds_everything() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        backoff.failed(Part::Make, Failing::Refused, false, now);
        assert!(backoff.holds(Part::Make, now) && !backoff.holds(Part::End, now) && !backoff.holds_all(now));
        backoff.failed(Part::End, Failing::Transient, false, now);
        assert!(backoff.holds_all(now));
        backoff.settled();
        assert!(backoff.holds(Part::Make, now) && !backoff.holds_all(now));
        assert!(!backoff.holds(Part::Make, now + seconds(1)));
    }

    #[test]
    fn a_new_generation_or_a_deletion_ends_the_pause_and_the_same_object_does_not() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let refuse =
            |backoff: &mut Backoff| (0..9).for_each(|_| backoff.failed(Part::Make, Failing::Refused, false, now));
        backoff.acted("u", 1, false);
        refuse(&mut backoff);
        backoff.acted("u", 1, false);
        assert!(backoff.holds(Part::Make, now + seconds(200)));
        for (uid, generation, deleting) in [("u", 2, false), ("u", 2, true), ("v", 1, false)] {
            refuse(&mut backoff);
            backoff.acted(uid, generation, deleting);
            assert!(!backoff.holds(Part::Make, now), "{uid} {generation} {deleting}");
        }
    }

    #[test]
    fn a_changed_cause_ends_the_pause_and_the_next_refusal_pauses_longer() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        (0..5).for_each(|_| backoff.failed(Part::Make, Failing::Refused, false, now));
        backoff.cause_changed();
        assert!(backoff.holds(Part::Make, now), "not within a second of the last attempt");
        let retry = now + seconds(1);
        assert!(!backoff.holds(Part::Make, retry));
        backoff.failed(Part::Make, Failing::Refused, false, retry);
        assert!(backoff.holds(Part::Make, retry + seconds(31)));
    }
}
