//! Tenants: what they may hold, and what they borrowed of late.

use serde::{Deserialize, Serialize};

use crate::snapshot::{TenantId, TimeMs};

/// What a tenant borrowed of late: old use counts half after each half-life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct DecayedShare {
    pub tenant: TenantId,
    /// Largest part, over the classes, that it borrows of its cohort's nominal quota, in billionths.
    pub share_billionths: u64,
    pub at_ms: TimeMs,
}

/// A TenantQuota as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Tenant {
    pub id: TenantId,
    pub namespaces: Vec<String>,
    /// `None`: the tenant neither lends nor borrows.
    #[serde(default)]
    pub cohort: Option<String>,
    /// Its part of what the cohort can lend, relative to the weights of others; 0: only what is left.
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default)]
    pub quotas: Vec<Quota>,
    /// A borrowed replica runs at least this long before it can be reclaimed; `None`: the policy's.
    #[serde(default)]
    pub min_runtime_ms: Option<u64>,
    /// A reclaimed replica may finish its requests for this long; `None`: the policy's.
    #[serde(default)]
    pub reclaim_grace_ms: Option<u64>,
    /// Most that its GPUs may cost per hour; `None`: no limit.
    #[serde(default)]
    pub spend_limit: Option<Money>,
}

/// An amount of one currency.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Money {
    /// Millionths.
    pub micros: u64,
    /// Amounts of different currencies are never compared.
    pub currency: String,
}

fn one() -> u32 {
    1
}

/// A tenant's share of one GPU class, in thousandths of a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Quota {
    pub class: String,
    pub nominal_milli: u64,
    /// Most that may be held above nominal; `None`: whatever the cohort has unused.
    #[serde(default)]
    pub borrowing_limit_milli: Option<u64>,
    /// Most of nominal that others may use; `None`: all of it.
    #[serde(default)]
    pub lending_limit_milli: Option<u64>,
}
