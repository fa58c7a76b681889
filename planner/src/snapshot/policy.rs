//! Constants of the decisions.

use serde::{Deserialize, Serialize};

use crate::snapshot::Rule;

/// Constants of the decisions. The defaults are what the design was judged with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Policy {
    /// How long after the scheduler refused it a pinned pod is removed and its node excluded. One at which it has not
    /// looked stays.
    pub schedule_patience_ms: u64,
    /// How long a node may refuse to prepare a bound pod's slice before the same.
    pub prepare_patience_ms: u64,
    /// First and longest exclusion of (replica, node), and of back-off after a failed pod; doubles
    /// with each failure in a row.
    pub backoff_base_ms: u64,
    pub backoff_max_ms: u64,
    /// Longest drain of a replica that overshoots its slice while there is headroom.
    pub overshoot_drain_ms: u64,
    /// Width of a fragmentation bucket, and the reserve for GPU types that others name.
    pub frag_bucket_milli: u32,
    pub frag_reserve_milli: u32,
    /// Signals older than this freeze the count.
    pub signals_stale_ms: u64,
    /// Constants of the autoscaling rule, by [`Room`](crate::snapshot::Room).
    pub standard_rule: Rule,
    pub tight_rule: Rule,
    /// After this long, what a tenant borrowed counts half.
    pub share_half_life_ms: u64,
    /// Where a TenantQuota does not say: how long a borrowed replica runs at least, and how long a reclaimed
    /// one may finish its requests.
    pub min_runtime_ms: u64,
    pub reclaim_grace_ms: u64,
    /// A replica waits for room at least this long before running ones move for it.
    pub move_after_ms: u64,
    /// Moves in progress at a time, in the whole cluster; 0: nothing moves so that another fits.
    pub max_moves: u32,
    /// A replacement that is not Ready after this long is ended.
    pub move_patience_ms: u64,
    /// Replicas that move for one tenant's within the window, of any tenant; and the time in which a slot moves once.
    pub moves_per_claimant: u32,
    pub move_window_ms: u64,
    /// Replicas for which another node is asked for at a time, in the whole cluster; 0: none is.
    pub max_capacity_pods: u32,
    /// A replica waits for room at least this long before that.
    pub capacity_after_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            schedule_patience_ms: 10_000,
            prepare_patience_ms: 20_000,
            backoff_base_ms: 5_000,
            backoff_max_ms: 300_000,
            overshoot_drain_ms: 10_000,
            frag_bucket_milli: 60,
            frag_reserve_milli: 700,
            share_half_life_ms: 3_600_000,
            min_runtime_ms: 600_000,
            reclaim_grace_ms: 30_000,
            move_after_ms: 60_000,
            max_moves: 0,
            move_patience_ms: 600_000,
            moves_per_claimant: 4,
            move_window_ms: 3_600_000,
            max_capacity_pods: 0,
            capacity_after_ms: 10_000,
            signals_stale_ms: 15_000,
            standard_rule: Rule::STANDARD,
            tight_rule: Rule::TIGHT,
        }
    }
}
