//! Which tenant owns which namespace, and what it may hold.
//!
//! A namespace belongs to the oldest TenantQuota that lists it. A younger one that lists it too is
//! not accepted at all: half a tenant would be charged for the wrong pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use stowage_crds::conditions::reasons;
use stowage_crds::validate::{AcceptedQuota, validate_quota};
use stowage_planner::snapshot::{Quota, Tenant, TenantId};

use crate::observe::view::{Objects, StoredQuota};
use crate::translate::validate::told;

/// The accepted tenants, and why the others are not.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    pub accepted: Vec<Tenant>,
    /// Condition reason and message, by name.
    pub refused: BTreeMap<String, (&'static str, String)>,
    owners: BTreeMap<String, String>,
}

impl Tenants {
    pub fn read(quotas: &Objects<StoredQuota>) -> Self {
        let mut oldest_first: Vec<&Arc<StoredQuota>> = quotas.values().collect();
        oldest_first.sort_by_key(|quota| (quota.meta.creation_timestamp.clone(), quota.name().to_owned()));
        let mut tenants = Self::default();
        for quota in oldest_first {
            if let Err(refusal) = tenants.admit(quota) {
                tenants.refused.insert(quota.name().to_owned(), refusal);
            }
        }
        tenants
    }

    /// Name of the tenant that the namespace belongs to.
    pub fn of(&self, namespace: &str) -> Option<&str> {
        self.owners.get(namespace).map(String::as_str)
    }

    fn admit(&mut self, stored: &StoredQuota) -> Result<(), (&'static str, String)> {
        let spec = stored.spec.as_ref().map_err(|err| (reasons::MALFORMED, err.to_string()))?;
        let quota = validate_quota(stored.name(), spec).map_err(|refusals| told(&refusals))?;
        let taken = quota.namespaces.iter().find_map(|namespace| Some((namespace, self.owners.get(namespace)?)));
        if let Some((namespace, owner)) = taken {
            let message = format!(
                "namespace {namespace} belongs to the older TenantQuota {owner}; remove it from one of the two"
            );
            return Err((reasons::NAMESPACE_TAKEN, message));
        }
        for namespace in &quota.namespaces {
            self.owners.insert(namespace.clone(), stored.name().to_owned());
        }
        self.accepted.push(tenant(stored.name(), quota));
        Ok(())
    }
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
        weight: 1,
        quotas: quotas.collect(),
    }
}
