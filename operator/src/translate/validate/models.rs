//! Who serves which model name in which tenant.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::tenants::Tenants;
use crate::observe::view::StoredDeployment;

/// Of each (tenant, model name) the deployment that has it: the oldest one. Two models of one name in
/// one tenant would leave it open which one a client means.
#[derive(Debug)]
pub struct Models<'a> {
    tenants: &'a Tenants,
    oldest: BTreeMap<(&'a str, &'a str), Age<'a>>,
}

/// Creation, then namespace and name.
type Age<'a> = (Option<&'a Time>, &'a str, &'a str);

impl<'a> Models<'a> {
    /// A deployment whose spec is refused keeps its name: its replicas go on serving under it.
    pub fn read(deployments: impl IntoIterator<Item = (&'a StoredDeployment, &'a str)>, tenants: &'a Tenants) -> Self {
        let mut models = Self { tenants, oldest: BTreeMap::new() };
        for (stored, model) in deployments {
            let Some(tenant) = tenants.of(stored.namespace()) else { continue };
            let oldest = models.oldest.entry((tenant, model)).or_insert_with(|| age(stored));
            *oldest = (*oldest).min(age(stored));
        }
        models
    }

    /// Tenant, namespace and name of an older deployment that serves this model to the same clients.
    pub fn older(&self, stored: &StoredDeployment, model: &str) -> Option<(&str, &str, &str)> {
        let tenant = self.tenants.of(stored.namespace())?;
        let oldest = self.oldest.get(&(tenant, model))?;
        (*oldest < age(stored)).then_some((tenant, oldest.1, oldest.2))
    }
}

fn age(stored: &StoredDeployment) -> Age<'_> {
    (stored.meta.creation_timestamp.as_ref(), stored.namespace(), stored.name())
}
