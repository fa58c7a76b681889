//! Which claim uses more GPU memory than was promised.
//!
//! Pure. A claim overshoots when it was above promise + margin in [`SAMPLES`] samples in a row; the
//! margin is 2 % and at least 256 MiB, since allocators round and contexts cost. A single sample at
//! or below ends the row. A second without a reading counts neither way; a gap of more
//! than [`MAX_GAP`] starts anew. What follows from an overshoot is the operator's decision.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

/// Samples in a row above the margin.
pub const SAMPLES: usize = 5;
const MAX_GAP: SignedDuration = SignedDuration::from_secs(5);
const MIN_MARGIN: u64 = 256 << 20;

/// What a claim holds on one GPU at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub claim_uid: String,
    pub gpu: String,
    pub promised_bytes: u64,
    pub used_bytes: u64,
}

/// An overshoot with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overshoot {
    pub claim_uid: String,
    pub gpu: String,
    pub promised_bytes: u64,
    pub margin_bytes: u64,
    /// The last samples in time order, all above promise + margin.
    pub samples: Vec<(Timestamp, u64)>,
    /// How many in a row, since when.
    pub in_a_row: u32,
    pub since: Timestamp,
}

/// What a claim may use above its promise without being reported.
pub fn margin(promised_bytes: u64) -> u64 {
    (promised_bytes / 50).max(MIN_MARGIN)
}

#[derive(Debug)]
struct Row {
    since: Timestamp,
    in_a_row: u32,
    last: VecDeque<(Timestamp, u64)>,
}

/// Remembers the rows of samples above the margin, by (claim, GPU).
#[derive(Debug, Default)]
pub struct Detector {
    rows: BTreeMap<(String, String), Row>,
}

impl Detector {
    /// One second's uses. Returns every overshoot that holds now.
    pub fn observe(&mut self, now: Timestamp, uses: &[Use]) -> Vec<Overshoot> {
        let stale = |row: &Row| row.last.back().is_none_or(|(at, _)| now.duration_since(*at) > MAX_GAP);
        self.rows.retain(|_, row| !stale(row));
        uses.iter().filter_map(|held| self.observe_one(now, held)).collect()
    }

    fn observe_one(&mut self, now: Timestamp, held: &Use) -> Option<Overshoot> {
        let key = (held.claim_uid.clone(), held.gpu.clone());
        let margin_bytes = margin(held.promised_bytes);
        if held.used_bytes <= held.promised_bytes.saturating_add(margin_bytes) {
            self.rows.remove(&key);
            return None;
        }
        let row = self.rows.entry(key).or_insert(Row { since: now, in_a_row: 0, last: VecDeque::new() });
        row.in_a_row = row.in_a_row.saturating_add(1);
        row.last.push_back((now, held.used_bytes));
        if row.last.len() > SAMPLES {
            row.last.pop_front();
        }
        (row.in_a_row as usize >= SAMPLES).then(|| Overshoot {
            claim_uid: held.claim_uid.clone(),
            gpu: held.gpu.clone(),
            promised_bytes: held.promised_bytes,
            margin_bytes,
            samples: row.last.iter().copied().collect(),
            in_a_row: row.in_a_row,
            since: row.since,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Used MiB per second (`None`: no reading) against a promise; how many seconds end in overshoot.
    fn check(name: &str, promised: u64, used_mib: &[Option<u64>], expect: usize) {
        let mut detector = Detector::default();
        let mut found = 0;
        for (second, used) in used_mib.iter().enumerate() {
            let now = Timestamp::from_second(second as i64).unwrap();
            let uses: Vec<Use> = used
                .iter()
                .map(|mib| Use {
                    claim_uid: "c".to_owned(),
                    gpu: "g".to_owned(),
                    promised_bytes: promised,
                    used_bytes: mib * MIB,
                })
                .collect();
            for overshoot in detector.observe(now, &uses) {
                assert_eq!(overshoot.samples.len(), SAMPLES, "{name}");
                assert!(overshoot.samples.iter().all(|(_, b)| *b > promised + overshoot.margin_bytes), "{name}");
                found += 1;
            }
        }
        assert_eq!(found, expect, "{name}");
    }

    fn row(mib: u64, times: usize) -> Vec<Option<u64>> {
        vec![Some(mib); times]
    }

    #[test]
    fn five_samples_in_a_row_above_the_margin_and_nothing_less() {
        check("five in a row", GIB, &row(1281, 5), 1);
        check("six in a row hold on", GIB, &row(1281, 6), 2);
        check("four are a peak", GIB, &row(1281, 4), 0);
        check("exactly at the margin", GIB, &row(1280, 20), 0);
        check("below the margin for long", GIB, &row(1279, 60), 0);
        check("one sample below ends the row", GIB, &[row(1281, 4), row(1280, 1), row(1281, 4)].concat(), 0);
        check("two per cent counts for large slices", 80 * GIB, &row(80 * 1024 + 1638, 10), 0);
        check("and beyond it is an overshoot", 80 * GIB, &row(80 * 1024 + 1639, 5), 1);
        check("a missing second neither confirms", GIB, &[row(1281, 4), vec![None]].concat(), 0);
        check("nor ends the row", GIB, &[row(1281, 4), vec![None], row(1281, 1)].concat(), 1);
        check("a long gap starts anew", GIB, &[row(1281, 4), vec![None; 6], row(1281, 4)].concat(), 0);
        check("a slice of nothing", 0, &row(257, 5), 1);
    }

    #[test]
    fn claims_on_one_gpu_are_judged_separately() {
        let mut detector = Detector::default();
        let held = |claim: &str, used_bytes| Use {
            claim_uid: claim.to_owned(),
            gpu: "g".to_owned(),
            promised_bytes: GIB,
            used_bytes,
        };
        for second in 0..6 {
            let now = Timestamp::from_second(second).unwrap();
            let found = detector.observe(now, &[held("bad", 2 * GIB), held("good", GIB)]);
            assert!(found.iter().all(|overshoot| overshoot.claim_uid == "bad"));
            assert_eq!(found.len(), usize::from(second >= 4));
        }
    }
}
