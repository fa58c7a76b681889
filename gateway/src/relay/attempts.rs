//! What one request went through until now, and whether it may be sent again.
//!
//! A request of which the client has seen nothing is sent again as long as that can help: to another replica,
//! or to the next incarnation of the one that was lost. It is refused when it is the probable cause itself,
//! that is when two incarnations ended while they had it, or when processes that live failed it twice. How long
//! it may wait is the queue's to decide.

use crate::metrics::Retry;

/// Incarnations that may end with a request before it counts as the cause.
const MAX_ENDED: usize = 2;
/// Failures on incarnations that live.
const MAX_FAILED: usize = 2;

/// The attempts of one request.
#[derive(Debug, Default)]
pub struct Attempts {
    /// Incarnations that the request came back from.
    tried: Vec<u64>,
    /// Those of them on which its connection broke, or which were lost while they had it.
    broken: Vec<u64>,
    /// Answers that made no sense, and refusals by full replicas.
    failed: usize,
}

/// Why a request is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// Two incarnations ended while they had it.
    ProbableCause,
    /// Replicas that live failed it twice.
    Failed,
}

impl Attempts {
    /// Incarnations to avoid.
    pub fn tried(&self) -> &[u64] {
        &self.tried
    }

    /// The request came back from `incarnation`.
    pub fn record(&mut self, incarnation: u64, reason: Retry) {
        if !self.tried.contains(&incarnation) {
            self.tried.push(incarnation);
        }
        match reason {
            // Nothing ran.
            Retry::Unreachable | Retry::Draining => {}
            Retry::Broken | Retry::Lost => self.broken.push(incarnation),
            Retry::Refused | Retry::Garbled => self.failed += 1,
        }
    }

    /// Whether another refusal by a full replica would be the last.
    pub fn is_last_refusal(&self) -> bool {
        self.failed + 1 >= MAX_FAILED
    }

    /// Whether answers alone decide that the request is given up.
    pub fn is_exhausted(&self) -> bool {
        self.failed >= MAX_FAILED
    }

    /// Asked when a replica is free for the request: which incarnations have ended is known by then.
    pub fn give_up(&self, has_ended: impl Fn(u64) -> bool) -> Option<GiveUp> {
        let (ended, living): (Vec<u64>, Vec<u64>) =
            self.broken.iter().copied().partition(|incarnation| has_ended(*incarnation));
        // A connection to one incarnation can break more than once before it ends.
        let ended: std::collections::BTreeSet<u64> = ended.into_iter().collect();
        if ended.len() >= MAX_ENDED {
            Some(GiveUp::ProbableCause)
        } else if living.len() + self.failed >= MAX_FAILED {
            Some(GiveUp::Failed)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(history: &[(u64, Retry)]) -> Attempts {
        let mut attempts = Attempts::default();
        history.iter().for_each(|(incarnation, reason)| attempts.record(*incarnation, *reason));
        attempts
    }

    #[test]
    fn request_that_ended_two_incarnations_is_the_probable_cause() {
        let attempts = after(&[(1, Retry::Broken), (2, Retry::Lost)]);
        assert_eq!(attempts.give_up(|_| true), Some(GiveUp::ProbableCause));
        assert_eq!(attempts.give_up(|incarnation| incarnation == 1), None, "the second one lives");
        assert_eq!(attempts.tried(), [1, 2]);
    }

    #[test]
    fn one_incarnation_that_ended_is_no_evidence() {
        assert_eq!(after(&[(1, Retry::Broken)]).give_up(|_| true), None);
        assert_eq!(after(&[(1, Retry::Broken), (1, Retry::Broken)]).give_up(|_| true), None);
    }

    #[test]
    fn request_that_processes_which_live_fail_twice_is_given_up() {
        for history in [[(1, Retry::Broken), (1, Retry::Broken)], [(1, Retry::Garbled), (2, Retry::Broken)]] {
            assert_eq!(after(&history).give_up(|_| false), Some(GiveUp::Failed), "{history:?}");
        }
    }

    #[test]
    fn attempts_that_ran_nothing_do_not_count() {
        let history: Vec<_> = (0..50).flat_map(|n| [(n, Retry::Unreachable), (n, Retry::Draining)]).collect();
        assert_eq!(after(&history).give_up(|_| true), None);
    }
}
