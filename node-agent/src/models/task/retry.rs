//! When a model whose fetch failed is tried again.

use std::time::Duration;

use stowage_fetch::{FetchError, Kind};

/// A failed fetch is tried again after this time; one that needs a change elsewhere, after the longer one.
pub(super) const RETRY: Duration = Duration::from_secs(60);
const RETRY_LATER: Duration = Duration::from_secs(300);
/// One for which room was just made.
pub(super) const RETRY_SOON: Duration = Duration::from_secs(1);
const ROOM_COMES: Duration = Duration::from_secs(10);
const SOON_AT_MOST: u32 = 3;
/// One that fetched everything in vain waits twice as long each time, up to this.
const RETRY_LATEST: Duration = Duration::from_secs(6 * 3600);

/// Whether room lacks, in the cache or on the disk.
pub(super) fn is_full(err: &FetchError) -> bool {
    matches!(err.root(), FetchError::DiskFull { .. } | FetchError::CacheFull { .. })
}

/// When to try again after this many failures in a row. `made_room`: how long ago room was made; what comes of it, a fetch
/// finds out a few times and not for ever.
pub(super) fn retry_after(err: &FetchError, in_a_row: u32, made_room: Option<Duration>) -> Duration {
    let room_comes = is_full(err) && in_a_row <= SOON_AT_MOST && made_room.is_some_and(|ago| ago < ROOM_COMES);
    if room_comes { RETRY_SOON } else { pause(err, in_a_row) }
}

/// The pause after this many failures in a row.
fn pause(err: &FetchError, in_a_row: u32) -> Duration {
    let in_vain =
        matches!(err.root(), FetchError::Digest { .. } | FetchError::TooLarge { .. } | FetchError::Changed { .. })
            || err.kind() == Kind::Restart;
    match err {
        _ if in_vain => RETRY_LATER.saturating_mul(1 << (in_a_row - 1).min(16)).min(RETRY_LATEST),
        FetchError::DiskFull { .. } | FetchError::CacheFull { .. } => RETRY,
        _ if err.kind() == Kind::Permanent => RETRY_LATER,
        _ => RETRY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_for_what_was_fetched_in_vain() {
        let digest = || FetchError::Digest { found: String::new(), wanted: String::new() };
        let unavailable = || FetchError::Unavailable { host: String::new(), status: 503, after: None };
        let refused = || FetchError::Refused { host: String::new(), status: 404 };
        for (err, in_a_row, seconds) in [
            (digest(), 1, 300),
            (digest(), 2, 600),
            (digest(), 5, 4800),
            (digest(), 50, 6 * 3600),
            (FetchError::OfFile { name: String::new(), cause: Box::new(digest()) }, 2, 600),
            (unavailable(), 9, 60),
            (refused(), 9, 300),
            (FetchError::DiskFull { needed: 1, free: 0 }, 9, 60),
        ] {
            assert_eq!(pause(&err, in_a_row).as_secs(), seconds, "{err} × {in_a_row}");
        }
    }

    #[test]
    fn room_that_was_made_is_looked_at_soon_and_not_for_ever() {
        let (disk, cache) = (FetchError::DiskFull { needed: 2, free: 1 }, FetchError::CacheFull { needed: 2, free: 1 });
        let stalled = FetchError::Refused { host: String::new(), status: 404 };
        for (err, in_a_row, made_room, seconds) in [
            (&disk, 1, Some(0), 1),
            (&cache, 3, Some(9), 1),
            (&disk, 4, Some(0), 60),
            (&disk, 1, Some(10), 60),
            (&disk, 1, None, 60),
            (&stalled, 1, Some(0), 300),
        ] {
            let after = retry_after(err, in_a_row, made_room.map(Duration::from_secs));
            assert_eq!(after.as_secs(), seconds, "{err} × {in_a_row}, room made {made_room:?} s ago");
        }
    }
}
