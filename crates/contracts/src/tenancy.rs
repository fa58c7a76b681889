//! Which tenant owns which namespace. Operator and gateway both decide by this function.
//!
//! A namespace belongs to the oldest TenantQuota that lists it. A younger one that lists it too is
//! refused as a whole (its other namespaces and its keys do not count either): half a tenant would
//! be charged for the wrong pods.

use std::collections::BTreeMap;

/// What one valid TenantQuota claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceClaim<Time> {
    /// Name of the TenantQuota, which is the tenant's name.
    pub tenant: String,
    /// When it was created. Anything that orders; an absent time (`None`) is older than all.
    pub created: Time,
    /// The namespaces it lists.
    pub namespaces: Vec<String>,
}

/// Why a TenantQuota owns nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceTaken {
    /// The namespace in dispute; the first in the order of the list.
    pub namespace: String,
    /// The older tenant that owns it.
    pub owner: String,
}

impl std::fmt::Display for NamespaceTaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, owner } = self;
        write!(f, "namespace {namespace} belongs to the older TenantQuota {owner}; remove it from one of the two")
    }
}

/// The owners of all namespaces, and the tenants that were refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenancy {
    owners: BTreeMap<String, String>,
    refused: BTreeMap<String, NamespaceTaken>,
}

impl Tenancy {
    /// Decides over all valid TenantQuotas together, in whatever order they come.
    pub fn decide<Time: Ord>(claims: impl IntoIterator<Item = NamespaceClaim<Time>>) -> Self {
        let mut oldest_first: Vec<_> = claims.into_iter().collect();
        oldest_first.sort_by(|a, b| (&a.created, &a.tenant).cmp(&(&b.created, &b.tenant)));
        let mut tenancy = Self::default();
        for claim in oldest_first {
            tenancy.add(claim);
        }
        tenancy
    }

    fn add<Time>(&mut self, claim: NamespaceClaim<Time>) {
        let taken = claim.namespaces.iter().find_map(|namespace| Some((namespace, self.owners.get(namespace)?)));
        if let Some((namespace, owner)) = taken.filter(|(_, owner)| **owner != claim.tenant) {
            let taken = NamespaceTaken { namespace: namespace.clone(), owner: owner.clone() };
            self.refused.insert(claim.tenant, taken);
            return;
        }
        for namespace in claim.namespaces {
            self.owners.insert(namespace, claim.tenant.clone());
        }
    }

    /// The tenant that owns the namespace; `None`: nobody does, and nothing may run there.
    pub fn owner(&self, namespace: &str) -> Option<&str> {
        self.owners.get(namespace).map(String::as_str)
    }

    /// Why the tenant owns nothing; `None`: it was not refused.
    pub fn refusal(&self, tenant: &str) -> Option<&NamespaceTaken> {
        self.refused.get(tenant)
    }

    /// Each owned namespace with its owner, by namespace.
    pub fn owners(&self) -> impl Iterator<Item = (&str, &str)> {
        self.owners.iter().map(|(namespace, tenant)| (namespace.as_str(), tenant.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(tenant: &str, created: i64, namespaces: &[&str]) -> NamespaceClaim<i64> {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        NamespaceClaim { tenant: tenant.to_owned(), created, namespaces }
    }

    #[test]
    fn oldest_quota_owns_the_namespace_in_any_order() {
        let claims = [claim("young", 2, &["a", "b"]), claim("old", 1, &["a"]), claim("other", 3, &["b"])];
        let tenancy = Tenancy::decide(claims.clone());
        assert_eq!(tenancy, Tenancy::decide(claims.into_iter().rev()));
        assert_eq!(tenancy.owner("a"), Some("old"));
        // The younger quota is refused as a whole, so the next one gets its other namespace.
        assert_eq!(tenancy.owner("b"), Some("other"));
        let refused = tenancy.refusal("young").unwrap();
        assert_eq!((refused.namespace.as_str(), refused.owner.as_str()), ("a", "old"));
        assert_eq!(tenancy.refusal("old"), None);
    }

    #[test]
    fn equal_ages_are_ordered_by_name() {
        let tenancy = Tenancy::decide([claim("b", 1, &["x"]), claim("a", 1, &["x"])]);
        assert_eq!(tenancy.owner("x"), Some("a"));
    }

    #[test]
    fn namespace_listed_twice_by_one_quota_is_no_conflict() {
        let tenancy = Tenancy::decide([claim("a", 1, &["x", "x"])]);
        assert_eq!((tenancy.owner("x"), tenancy.refusal("a")), (Some("a"), None));
    }
}
