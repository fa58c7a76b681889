//! Which replica serves a request: the cost function of routing, pure.
//!
//! Decides one thing: given what is known of each replica and of the request, the replica on which
//! the request costs least, counting its own time to first token, its decode, the delay it puts on
//! requests already running, and the cache it destroys. All terms are milliseconds, so heterogeneous
//! pools need no special case: each replica brings its own coefficients.
//!
//! It leaves out what only the caller knows: queues, retries, which replicas exist. A caller that
//! will not use a replica gives its reason in [`ReplicaView::refused`], and finds it in the answer.

pub use stowage_contracts::load::Coefficients;

/// Prefill tokens an engine takes into one iteration.
pub const PREFILL_CHUNK: f64 = 8192.0;
/// Tokens in the unit in which destroyed cache is charged.
const CACHE_BLOCK: f64 = 512.0;
/// Weights of the terms, tuned on the routing protocol's traces.
const OWN_DECODE: f64 = 0.10;
const DELAY_ON_OTHERS: f64 = 0.02;
const CACHE_DESTROYED: f64 = 0.30;

/// Why a replica is not a candidate. Each is a metric label and appears in a decision record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It finishes what it has and takes nothing new.
    Draining,
    /// Its last answers failed, or it does not answer at all.
    BreakerOpen,
    /// The device under it is unhealthy.
    UnhealthyDevice,
    /// This request was there already and came back.
    TriedBefore,
    /// It has as much in flight or un-prefilled as the caller lets one replica have.
    AtLimit,
    /// Its KV cache has no room for this prompt while others run.
    NoKvRoom,
}

impl Refusal {
    /// The closed label value of this refusal.
    pub fn label(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::BreakerOpen => "breaker_open",
            Self::UnhealthyDevice => "unhealthy_device",
            Self::TriedBefore => "tried_before",
            Self::AtLimit => "at_limit",
            Self::NoKvRoom => "no_kv_room",
        }
    }
}

/// What is known of one replica at the moment of the decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicaView {
    /// Ends every comparison; stable across calls.
    pub id: u64,
    /// The replica's own fit; `None` or zeros fall back to the pool's.
    pub coefficients: Option<Coefficients>,
    /// Requests decoding or waiting there.
    pub running: u32,
    /// Tokens resident in its KV cache.
    pub kv_tokens: f64,
    /// Tokens its KV cache can hold; 0 means unknown, and nothing is refused for room.
    pub kv_capacity: f64,
    /// Tokens accepted there and not yet prefilled.
    pub backlog_tokens: f64,
    /// Tokens of this request's prompt that its prefix cache holds.
    pub cached_tokens: f64,
    /// The caller's reason not to use it.
    pub refused: Option<Refusal>,
}

/// The request, in expected tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct RequestView {
    pub prompt_tokens: f64,
    /// Expected output; the learned mean where the request sets no limit.
    pub output_tokens: f64,
}

/// The terms of one replica's cost, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Cost {
    pub time_to_first_token: f64,
    pub own_decode: f64,
    pub delay_on_others: f64,
    pub cache_destroyed: f64,
}

impl Cost {
    /// The sum of all terms, in milliseconds.
    pub fn total(&self) -> f64 {
        self.time_to_first_token + self.own_decode + self.delay_on_others + self.cache_destroyed
    }
}

/// What was found out about one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Verdict {
    Cost(Cost),
    Refused(Refusal),
}

/// The winner and, in the order of the replicas given, why not the others.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "an unused choice routes no request"]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Choice {
    /// Index into the replicas given; `None` when each was refused.
    pub winner: Option<usize>,
    pub verdicts: Vec<Verdict>,
}

impl Choice {
    /// How many replicas each reason left out, most frequent first: "2 breaker_open, 1 at_limit".
    pub fn refusals(&self) -> Vec<(Refusal, usize)> {
        let mut counts: Vec<(Refusal, usize)> = Vec::new();
        for verdict in &self.verdicts {
            if let Verdict::Refused(reason) = verdict {
                match counts.iter_mut().find(|(seen, _)| seen == reason) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((*reason, 1)),
                }
            }
        }
        counts.sort_by_key(|&(reason, count)| (std::cmp::Reverse(count), reason.label()));
        counts
    }
}

/// The replica on which `request` costs least. Replicas of equal cost are drawn by `seed`.
pub fn choose(replicas: &[ReplicaView], request: &RequestView, pool: &Coefficients, seed: u64) -> Choice {
    let pool = pool.or_known(Coefficients::REFERENCE);
    let mut best: Option<(f64, u64, usize)> = None;
    let mut verdicts = Vec::with_capacity(replicas.len());
    for (index, replica) in replicas.iter().enumerate() {
        let verdict = judge(replica, request, pool);
        if let Verdict::Cost(cost) = verdict {
            let candidate = (cost.total(), draw(seed, replica.id), index);
            let better = best
                .is_none_or(|(total, ticket, _)| candidate.0.total_cmp(&total).then(candidate.1.cmp(&ticket)).is_lt());
            if better {
                best = Some(candidate);
            }
        }
        verdicts.push(verdict);
    }
    Choice { winner: best.map(|(_, _, index)| index), verdicts }
}

fn judge(replica: &ReplicaView, request: &RequestView, pool: Coefficients) -> Verdict {
    if let Some(reason) = replica.refused {
        return Verdict::Refused(reason);
    }
    let new_tokens = (request.prompt_tokens - replica.cached_tokens).max(0.0);
    // An idle replica is never refused for room: whether the prompt fits at all is the engine's to
    // say, and its error names the limit.
    let room = replica.kv_capacity - replica.kv_tokens;
    if replica.running > 0 && replica.kv_capacity > 0.0 && room < new_tokens {
        return Verdict::Refused(Refusal::NoKvRoom);
    }
    let coefficients = replica.coefficients.map_or(pool, |own| own.or_known(pool));
    Verdict::Cost(cost(replica, request, coefficients, new_tokens))
}

fn cost(replica: &ReplicaView, request: &RequestView, c: Coefficients, new_tokens: f64) -> Cost {
    let running = f64::from(replica.running);
    let resident = replica.kv_tokens;
    let output = request.output_tokens;
    // The context half way through the answer.
    let context = request.prompt_tokens + output / 2.0;
    let ahead = replica.backlog_tokens + new_tokens;
    let iteration = c.a + c.d * running + c.k * resident / 1000.0;
    let free_blocks = if replica.kv_capacity > 0.0 {
        ((replica.kv_capacity - resident) / CACHE_BLOCK).max(0.0)
    } else {
        f64::INFINITY
    };
    let evicted = (new_tokens / CACHE_BLOCK - free_blocks).max(0.0);
    Cost {
        time_to_first_token: (ahead / PREFILL_CHUNK).ceil() * iteration + c.p * ahead / 1000.0,
        own_decode: OWN_DECODE * output * (c.a + c.d * (running + 1.0) + c.k * (resident + context) / 1000.0),
        delay_on_others: DELAY_ON_OTHERS
            * running
            * (c.p * new_tokens / 1000.0 + output * (c.d + c.k * context / 1000.0)),
        cache_destroyed: CACHE_DESTROYED * c.p * CACHE_BLOCK * evicted / 1000.0,
    }
}

/// A number for (seed, id) that looks random and is the same every time (splitmix64).
fn draw(seed: u64, id: u64) -> u64 {
    let mut z = seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(id: u64) -> ReplicaView {
        ReplicaView {
            id,
            coefficients: None,
            running: 0,
            kv_tokens: 0.0,
            kv_capacity: 650_000.0,
            backlog_tokens: 0.0,
            cached_tokens: 0.0,
            refused: None,
        }
    }

    const REQUEST: RequestView = RequestView { prompt_tokens: 1000.0, output_tokens: 200.0 };

    fn pick(replicas: &[ReplicaView]) -> Option<usize> {
        choose(replicas, &REQUEST, &Coefficients::REFERENCE, 7).winner
    }

    fn cost_of(replica: ReplicaView) -> Cost {
        match choose(&[replica], &REQUEST, &Coefficients::REFERENCE, 0).verdicts[0] {
            Verdict::Cost(cost) => cost,
            Verdict::Refused(reason) => panic!("refused: {reason:?}"),
        }
    }

    #[test]
    fn an_idle_replica_costs_what_the_formula_says() {
        let cost = cost_of(idle(0));
        // One iteration of a, then the prefill; c = 1000 + 200/2.
        assert!((cost.time_to_first_token - (11.020 + 44.571)).abs() < 1e-9);
        let decode = 0.10 * 200.0 * (11.020 + 0.0547 + 0.02791 * 1.1);
        assert!((cost.own_decode - decode).abs() < 1e-9);
        assert_eq!((cost.delay_on_others, cost.cache_destroyed), (0.0, 0.0));
    }

    #[test]
    fn running_requests_pay_for_our_prefill_and_we_pay_for_theirs() {
        let cost = cost_of(ReplicaView { running: 10, kv_tokens: 20_000.0, ..idle(0) });
        let iteration = 11.020 + 0.547 + 0.02791 * 20.0;
        assert!((cost.time_to_first_token - (iteration + 44.571)).abs() < 1e-9);
        let delay = 0.02 * 10.0 * (44.571 + 200.0 * (0.0547 + 0.02791 * 1.1));
        assert!((cost.delay_on_others - delay).abs() < 1e-9);
    }

    #[test]
    fn a_full_cache_charges_the_blocks_it_would_lose() {
        // Idle, so not refused: 512 tokens free, 1,000 needed, 488/512 of a block evicted.
        let cost = cost_of(ReplicaView { kv_tokens: 650_000.0 - 512.0, ..idle(0) });
        assert!((cost.cache_destroyed - 0.30 * 44.571 * 488.0 / 1000.0).abs() < 1e-9);
    }

    #[test]
    fn the_less_loaded_replica_wins() {
        assert_eq!(pick(&[ReplicaView { running: 3, ..idle(1) }, idle(2)]), Some(1));
        assert_eq!(pick(&[ReplicaView { backlog_tokens: 4000.0, ..idle(1) }, idle(2)]), Some(1));
    }

    #[test]
    fn a_cached_prefix_outweighs_a_little_load_but_not_a_long_backlog() {
        let cached = ReplicaView { cached_tokens: 900.0, running: 2, ..idle(1) };
        assert_eq!(pick(&[cached, idle(2)]), Some(0));
        assert_eq!(pick(&[ReplicaView { backlog_tokens: 5000.0, ..cached }, idle(2)]), Some(1));
    }

    #[test]
    fn a_faster_replica_wins_in_a_mixed_pool() {
        let slow = ReplicaView { coefficients: Some(Coefficients { a: 40.0, d: 0.2, k: 0.1, p: 200.0 }), ..idle(1) };
        assert_eq!(pick(&[slow, ReplicaView { running: 4, ..idle(2) }]), Some(1));
    }

    #[test]
    fn a_zero_coefficient_is_unknown_and_not_free() {
        let zeros = Coefficients { a: 0.0, d: 0.0, k: -1.0, p: f64::NAN };
        let replica = ReplicaView { coefficients: Some(zeros), ..idle(1) };
        assert_eq!(cost_of(replica), cost_of(idle(1)));
        let choice = choose(&[idle(1)], &REQUEST, &zeros, 0);
        assert_eq!(choice.verdicts[0], Verdict::Cost(cost_of(idle(1))));
    }

    #[test]
    fn refused_replicas_lose_and_say_why() {
        let refused = |id, reason| ReplicaView { refused: Some(reason), ..idle(id) };
        let replicas = [
            refused(1, Refusal::BreakerOpen),
            refused(2, Refusal::Draining),
            ReplicaView { running: 50, ..idle(3) },
            refused(4, Refusal::BreakerOpen),
        ];
        let choice = choose(&replicas, &REQUEST, &Coefficients::REFERENCE, 0);
        assert_eq!(choice.winner, Some(2));
        assert_eq!(choice.refusals(), [(Refusal::BreakerOpen, 2), (Refusal::Draining, 1)]);
    }

    #[test]
    fn nothing_wins_when_all_are_refused_or_none_exist() {
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[ReplicaView { refused: Some(Refusal::AtLimit), ..idle(1) }]), None);
    }

    #[test]
    fn a_busy_replica_without_kv_room_is_refused_but_an_idle_one_is_not() {
        let full = ReplicaView { kv_tokens: 649_500.0, running: 1, ..idle(1) };
        let choice = choose(&[full], &REQUEST, &Coefficients::REFERENCE, 0);
        assert_eq!(choice.verdicts, [Verdict::Refused(Refusal::NoKvRoom)]);
        assert_eq!(pick(&[ReplicaView { running: 0, ..full }]), Some(0));
        assert_eq!(pick(&[ReplicaView { kv_capacity: 0.0, ..full }]), Some(0));
    }

    #[test]
    fn ties_are_spread_by_the_seed_and_repeatable() {
        let replicas: Vec<_> = (0..4).map(idle).collect();
        let winner = |seed| choose(&replicas, &REQUEST, &Coefficients::REFERENCE, seed).winner.unwrap_or(9);
        let mut hits = [0; 4];
        for seed in 0..400 {
            hits[winner(seed)] += 1;
            assert_eq!(winner(seed), winner(seed));
        }
        assert!(hits.iter().all(|&n| n > 60), "{hits:?}");
    }
}
