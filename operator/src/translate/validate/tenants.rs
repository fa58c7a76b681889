//! Which tenant owns which namespace, and what it may hold. Who owns what is decided by
//! [`Tenancy`], the same for the gateway.

use std::collections::BTreeMap;
use std::time::Duration;

use stowage_contracts::tenancy::{NamespaceClaim, Tenancy};
use stowage_crds::conditions::reasons;
use stowage_crds::validate::{AcceptedQuota, validate_quota};
use stowage_planner::snapshot::{Money, Quota, Tenant, TenantId};

use super::{Refusal, refusal};
use crate::observe::view::{Objects, StoredQuota};

/// The accepted tenants, and why the others are not.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    pub accepted: Vec<Tenant>,
    /// By name.
    pub refused: BTreeMap<String, Refusal>,
    tenancy: Tenancy,
}

impl Tenants {
    pub fn read(quotas: &Objects<StoredQuota>) -> Self {
        let (mut valid, mut tenants) = (BTreeMap::new(), Self::default());
        for stored in quotas.values() {
            match judged(stored) {
                Ok(quota) => drop(valid.insert(stored.name(), (stored, quota))),
                Err(why) => drop(tenants.refused.insert(stored.name().to_owned(), why)),
            }
        }
        let claims = valid.values().map(|(stored, quota)| NamespaceClaim {
            tenant: stored.name().to_owned(),
            created: stored.meta.creation_timestamp.clone(),
            namespaces: quota.namespaces.clone(),
        });
        tenants.tenancy = Tenancy::decide(claims);
        for (name, (_, quota)) in valid {
            match tenants.tenancy.refusal(name) {
                Some(taken) => {
                    tenants.refused.insert(name.to_owned(), (reasons::NAMESPACE_TAKEN, taken.to_string()));
                }
                None => tenants.accepted.push(tenant(name, quota)),
            }
        }
        tenants
    }

    /// Name of the tenant that the namespace belongs to.
    pub fn of(&self, namespace: &str) -> Option<&str> {
        self.tenancy.owner(namespace)
    }
}

fn judged(stored: &StoredQuota) -> Result<AcceptedQuota, Refusal> {
    let spec = stored.spec.as_ref().map_err(|err| (reasons::MALFORMED, err.to_string()))?;
    validate_quota(stored.name(), spec).map_err(|refusals| refusal(&refusals))
}

fn tenant(name: &str, quota: AcceptedQuota) -> Tenant {
    let quotas = quota.gpus.into_iter().map(|gpu| Quota {
        class: gpu.class,
        nominal_milli: gpu.nominal_milli,
        borrowing_limit_milli: Some(gpu.borrowing_milli),
        lending_limit_milli: gpu.lending_milli,
    });
    Tenant {
        id: TenantId(name.to_owned()),
        namespaces: quota.namespaces,
        cohort: quota.cohort,
        weight: quota.weight,
        quotas: quotas.collect(),
        min_runtime_ms: quota.min_runtime.map(millis),
        reclaim_grace_ms: quota.reclaim_grace.map(millis),
        spend_limit: quota.spend.map(|(micros, currency)| Money { micros, currency }),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
