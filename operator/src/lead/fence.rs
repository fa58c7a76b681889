//! The fence: may this process still write?
//!
//! A leader that was paused or partitioned does not know that another one took over, so it must not
//! ask the cluster but its own clock: a lease that was renewed by a request *sent* at `t` cannot be
//! taken by anybody before `t + lease`, because a candidate starts counting when it sees the
//! renewal, which is later. The fence closes [`MARGIN`] earlier, so that a request on its way lands
//! before the take-over. Every write asks the fence right before it is sent.
//!
//! The clock is `Instant`, which goes on while a process is stopped (SIGSTOP, debugger). It does
//! not count the suspend of a whole machine; there, names, uid preconditions and resource versions
//! keep a late write harmless, as they do for the instant between the check and the socket.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Closes this much before anybody else may take the lease.
pub const MARGIN: Duration = Duration::from_millis(1500);

/// Which term of leadership a write belongs to: the lease's count of transitions.
pub type Term = i32;

/// This process does not lead, or can no longer be sure that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the leader any more: nothing is written")]
pub struct NotLeader;

/// Open until a moment of the local monotonic clock; closed at start.
#[derive(Debug, Default)]
pub struct Fence(Mutex<Option<(Term, Instant)>>);

impl Fence {
    /// Opens, or keeps open, for a lease whose renewal was sent at `sent`.
    pub fn renewed(&self, term: Term, sent: Instant, lease: Duration) {
        *self.lock() = Some((term, sent + lease.saturating_sub(MARGIN)));
    }

    /// Closes at once.
    pub fn close(&self) {
        *self.lock() = None;
    }

    /// The term in which a write sent at `now` would be made.
    pub fn check(&self, now: Instant) -> Result<Term, NotLeader> {
        match *self.lock() {
            Some((term, until)) if now < until => Ok(term),
            _ => Err(NotLeader),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Term, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(8);

    #[test]
    fn closed_until_a_renewal_and_again_before_anybody_may_take_over() {
        let (fence, start) = (Fence::default(), Instant::now());
        assert_eq!(fence.check(start), Err(NotLeader));
        fence.renewed(3, start, LEASE);
        assert_eq!(fence.check(start + Duration::from_secs(6)), Ok(3));
        assert_eq!(fence.check(start + LEASE - MARGIN), Err(NotLeader));
    }

    #[test]
    fn leader_that_was_paused_for_half_a_minute_writes_nothing() {
        let (fence, start) = (Fence::default(), Instant::now());
        fence.renewed(1, start, LEASE);
        assert_eq!(fence.check(start + Duration::from_secs(30)), Err(NotLeader));
    }

    #[test]
    fn a_lost_lease_closes_at_once() {
        let (fence, start) = (Fence::default(), Instant::now());
        fence.renewed(1, start, LEASE);
        fence.close();
        assert_eq!(fence.check(start), Err(NotLeader));
    }
}
