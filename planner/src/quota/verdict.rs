//! The verdict of quota on one deployment, and what a tenant holds of one class.

use serde::{Deserialize, Serialize};

/// Stage two: may they.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum QuotaVerdict {
    /// All that is wanted.
    Granted {
        borrowed_milli: u64,
    },
    /// `granted` of `asked` replicas.
    Partial {
        granted: u32,
        asked: u32,
        limit: QuotaLimit,
    },
    NoTenant {
        namespace: String,
    },
    /// Needs no GPU.
    NotNeeded,
}

/// What stopped the next replica, in milli-GPU of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct QuotaLimit {
    pub class: String,
    /// Charge of the replica that was refused.
    pub replica_milli: u64,
    /// Held by the tenant, everything granted before it in this plan included.
    pub held_milli: u64,
    pub nominal_milli: u64,
    pub borrowing_limit_milli: Option<u64>,
    /// What the cohort had left to lend at that point.
    pub cohort_free_milli: u64,
    /// Where money binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spend: Option<Spend>,
    pub binding: QuotaBinding,
}

/// Which limit forbids one more replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum QuotaBinding {
    /// The class is not in the tenant's quota.
    ClassNotInQuota,
    /// Nominal is used and there is no cohort to borrow from.
    NominalQuota,
    BorrowingLimit,
    /// The cohort has nothing left to lend.
    CohortExhausted,
    /// One more would cost more per hour than the tenant may spend.
    SpendLimit,
    /// The tenant has a spend limit, and the class has no price.
    ClassNotPriced,
}

/// What a tenant spends per hour, in millionths of the currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Spend {
    pub limit_micros: u64,
    pub spent_micros: u64,
    /// Of the replica that was refused; `None`: its class has no price.
    pub replica_micros: Option<u64>,
}

/// What a tenant holds of one class, in milli-GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct ClassUsage {
    pub class: String,
    pub nominal_milli: u64,
    /// All that the tenant's slices are charged, after this plan.
    pub held_milli: u64,
    pub borrowed_milli: u64,
    /// Of nominal, in use by others.
    pub lent_milli: u64,
    /// Asked for and not granted.
    pub pending_milli: u64,
}
