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

/// The models to remove so that the rest takes at most `limit` bytes, and `room` bytes more fit.
pub fn evict(cached: &[Cached], limit: u64, room: u64) -> Vec<ModelKey> {
    let mut held: u64 = cached.iter().map(|model| model.bytes).sum();
    if held.saturating_add(room) <= limit {
        return Vec::new();
    }
    let low = (limit / 100 * LOW).saturating_sub(room);
    let mut unused: Vec<&Cached> = cached.iter().filter(|model| !model.in_use).collect();
    unused.sort_by_key(|model| (model.used_at, &model.key));
    let mut gone = Vec::new();
    for model in unused {
        if held <= low {
            break;
        }
        held -= model.bytes;
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
}
