//! Which variants carry a load at the least price.
//!
//! A variant's capacity is the load that one of its replicas is planned with. The variants are filled in
//! the order of their price per capacity; what is left at the end goes to the cheapest that covers it.
//! That costs at most one replica more than the best there is. Not here: where the replicas go.

/// One variant, as far as the choice depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kind {
    /// Load that one replica carries, in any unit that is the same for all. Not positive: unknown, not
    /// used.
    pub capacity: f64,
    /// Per hour of one replica; `None`: not priced, used after all that are.
    pub price_micros: Option<u64>,
    /// Most replicas that quota and inventory allow.
    pub most: u32,
}

/// Replicas of each kind that carry `load` at the least price. Where all of them together cannot: all of
/// them.
pub fn cheapest(load: f64, kinds: &[Kind]) -> Vec<u32> {
    let mut counts = vec![0; kinds.len()];
    let mut left = load;
    for kind in by_value(kinds) {
        if left <= 0.0 {
            break;
        }
        let Kind { capacity, most, .. } = kinds[kind];
        let full = (left / capacity + TOLERANCE).floor().min(f64::from(most)) as u32;
        counts[kind] = full;
        left -= f64::from(full) * capacity;
        if left <= TOLERANCE * capacity {
            break;
        }
        if full < most {
            // This one covers the rest, and perhaps a cheaper one does, too.
            let covers = last(left, kinds, &counts).unwrap_or(kind);
            counts[covers] += 1;
            break;
        }
    }
    counts
}

/// Kinds in the order in which they are added; the reverse is the order in which they go.
pub fn by_value(kinds: &[Kind]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..kinds.len()).filter(|i| kinds[*i].capacity > 0.0 && kinds[*i].most > 0).collect();
    let value = |i: &usize| kinds[*i].price_micros.map_or(f64::INFINITY, |price| price as f64 / kinds[*i].capacity);
    order.sort_by(|a, b| value(a).total_cmp(&value(b)).then(a.cmp(b)));
    order
}

/// The cheapest kind of which one more covers the rest.
fn last(left: f64, kinds: &[Kind], counts: &[u32]) -> Option<usize> {
    let covers = |i: &usize| counts[*i] < kinds[*i].most && kinds[*i].capacity * (1.0 + TOLERANCE) >= left;
    by_value(kinds).into_iter().filter(covers).min_by_key(|i| kinds[*i].price_micros.unwrap_or(u64::MAX))
}

/// Of a division that should be whole.
const TOLERANCE: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(capacity: f64, price: u64, most: u32) -> Kind {
        Kind { capacity, price_micros: Some(price), most }
    }

    #[track_caller]
    fn check(load: f64, kinds: &[Kind], want: &[u32]) {
        assert_eq!(cheapest(load, kinds), want, "{load} on {kinds:?}");
    }

    #[test]
    fn cheapest_per_load_is_filled_and_the_cheapest_that_covers_it_takes_the_rest() {
        let (large, small) = (kind(4.0, 30, 9), kind(1.0, 10, 9));
        check(8.0, &[small, large], &[0, 2]);
        check(8.5, &[small, large], &[1, 2]);
        check(10.0, &[small, large], &[0, 3]);
        check(0.0, &[small, large], &[0, 0]);
    }

    #[test]
    fn what_quota_does_not_allow_goes_to_the_next() {
        check(8.0, &[kind(1.0, 10, 9), kind(4.0, 30, 1)], &[4, 1]);
        check(99.0, &[kind(1.0, 10, 3), kind(4.0, 30, 2)], &[3, 2]);
    }

    #[test]
    fn unknown_capacity_is_not_used_and_no_price_comes_last() {
        let unpriced = Kind { price_micros: None, ..kind(4.0, 0, 9) };
        check(3.0, &[kind(0.0, 1, 9), kind(f64::NAN, 1, 9), unpriced, kind(1.0, 50, 2)], &[0, 0, 1, 2]);
    }
}
