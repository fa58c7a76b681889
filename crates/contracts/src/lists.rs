//! Whether an empty list of the API server is to be trusted where there were objects before.
//!
//! A server that lost its storage, or a proxy's mistake, looks the same as a cluster in which everything was deleted.
//! Deletions arrive as events, so nothing is lost by asking again: what was known stays until the list has been empty
//! for [`TRUSTED_AFTER`].

use std::time::{Duration, Instant};

/// An empty list is trusted when it was returned again and again for this long.
pub const TRUSTED_AFTER: Duration = Duration::from_secs(30);
/// Between two lists of which the first was not trusted.
pub const LIST_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The lists of one kind, as far as they are empty.
#[derive(Debug, Default)]
pub struct EmptyLists {
    since: Option<Instant>,
}

/// An empty list that is not trusted yet: keep what is known and list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untrusted {
    /// When the first of these lists arrived.
    pub since: Instant,
}

impl EmptyLists {
    /// Judges a complete list. `known`: whether there are objects that it would replace.
    pub fn judge(&mut self, known: bool, empty: bool, now: Instant) -> Result<(), Untrusted> {
        if known && empty {
            let since = *self.since.get_or_insert(now);
            if now.saturating_duration_since(since) < TRUSTED_AFTER {
                return Err(Untrusted { since });
            }
        }
        self.since = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_list_in_place_of_objects_is_trusted_only_when_it_lasts() {
        let (mut lists, start) = (EmptyLists::default(), Instant::now());
        let mut judge =
            |known, empty, after: u64| lists.judge(known, empty, start + Duration::from_secs(after)).is_ok();
        assert!(judge(false, true, 0), "nothing was there");
        assert!(judge(true, false, 0));
        assert!(!judge(true, true, 1));
        assert!(!judge(true, true, 30), "29 s");
        assert!(judge(true, false, 30), "objects again: the suspicion ends");
        assert!(!judge(true, true, 40), "and begins anew");
        assert!(judge(true, true, 70));
        assert!(!judge(true, true, 71), "a later one is judged by itself");
    }
}
