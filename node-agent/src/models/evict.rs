//! Which cached models make room: the longest unused first, and none that a claim reads.

use stowage_contracts::model::ModelKey;

/// A complete model on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    pub key: ModelKey,
    pub bytes: u64,
    /// A claim reads it, or waits for it.
    pub in_use: bool,
    /// When a claim got it last, in seconds since 1970.
    pub used_at: u64,
}

/// Share of the limit down to which models are removed once it is exceeded, in per cent: not one more per fetch.
const LOW: u64 = 90;

/// Most models that are kept: small ones fill no disk, but each is looked at.
const MAX_MODELS: usize = 1000;

/// The models to remove for a file for which the disk has `bytes` too few; none where all that is unused would not do.
pub fn make_free(cached: &[Cached], bytes: u64) -> Vec<ModelKey> {
    let unused: u64 = cached.iter().filter(|model| !model.in_use).map(|model| model.bytes).sum();
    let held = cached.iter().map(|model| model.bytes).sum();
    if unused < bytes { Vec::new() } else { evict(cached, held, bytes) }
}

/// The models to remove so that the rest takes at most `limit` bytes, and `room` bytes more fit.
pub fn evict(cached: &[Cached], limit: u64, room: u64) -> Vec<ModelKey> {
    let mut held: u64 = cached.iter().map(|model| model.bytes).sum();
    let mut count = cached.len();
    let low = if held.saturating_add(room) <= limit { u64::MAX } else { (limit / 100 * LOW).saturating_sub(room) };
    let mut unused: Vec<&Cached> = cached.iter().filter(|model| !model.in_use).collect();
    unused.sort_by_key(|model| (model.used_at, &model.key));
    let mut gone = Vec::new();
    for model in unused {
        if held <= low && count <= MAX_MODELS {
            break;
        }
        held -= model.bytes;
        count -= 1;
        gone.push(model.key.clone());
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `models`: name, bytes, in use, used at.
    #[track_caller]
    fn check(models: &[(&str, u64, bool, u64)], limit: u64, room: u64, gone: &[&str]) {
        let cached: Vec<Cached> = models
            .iter()
            .map(|(name, bytes, in_use, used_at)| Cached {
                key: ModelKey::read(name),
                bytes: *bytes,
                in_use: *in_use,
                used_at: *used_at,
            })
            .collect();
        let found = evict(&cached, limit, room);
        assert_eq!(found.iter().map(ModelKey::as_str).collect::<Vec<_>>(), gone);
    }

    #[test]
    fn longest_unused_models_go_down_to_the_low_mark() {
        let models = [("a", 400, false, 3), ("b", 400, false, 1), ("c", 400, false, 2)];
        check(&models, 1200, 0, &[]);
        check(&models, 1100, 0, &["b"]);
        check(&models, 850, 0, &["b", "c"]);
        check(&models, 1300, 200, &["b"]);
    }

    #[test]
    fn models_in_use_stay_whatever_the_limit() {
        check(&[("a", 400, true, 1), ("b", 400, false, 2), ("c", 400, true, 3)], 100, 0, &["b"]);
        check(&[("a", 400, true, 1)], 0, 0, &[]);
        check(&[], 0, 1000, &[]);
    }

    #[test]
    fn file_for_which_nothing_would_make_room_removes_nothing() {
        let models = [("a", 400, true, 1), ("b", 400, false, 2), ("c", 400, false, 3)];
        let cached: Vec<Cached> = models
            .map(|(name, bytes, in_use, used_at)| Cached { key: ModelKey::read(name), bytes, in_use, used_at })
            .into();
        let gone = |bytes| make_free(&cached, bytes).iter().map(|key| key.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(gone(2 << 40), Vec::<String>::new());
        assert_eq!(gone(801), Vec::<String>::new());
        assert_eq!(gone(800), ["b", "c"]);
        assert_eq!(gone(10), ["b"]);
    }

    #[test]
    fn number_of_models_is_limited_too() {
        let many: Vec<String> = (0..MAX_MODELS + 2).map(|n| format!("m{n:05}")).collect();
        let models: Vec<(&str, u64, bool, u64)> = many.iter().map(|name| (name.as_str(), 1, false, 1)).collect();
        check(&models, 1 << 40, 0, &["m00000", "m00001"]);
    }
}
