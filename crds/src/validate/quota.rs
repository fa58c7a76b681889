//! `TenantQuota`, narrow.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Refusal, Refusals, unique};
use crate::quantity::parse_milli;
use crate::rules::{deployment, pod, quota as rules};
use crate::syntax::{LABEL_MAX, is_dns_label, is_dns_subdomain};
use crate::tenant_quota::{ApiKeys, Credentials, GpuQuota};
use crate::{TenantQuotaSpec, support};

/// A million GPUs.
const MAX_GPUS_MILLI: u64 = 1_000_000_000;

/// An accepted TenantQuota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedQuota {
    /// Each once; at least one.
    pub namespaces: Vec<String>,
    /// Tenants with the same text borrow from each other; `None`: no borrowing.
    pub cohort: Option<String>,
    /// One per class; a class that is not listed has none.
    pub gpus: Vec<AcceptedGpuQuota>,
    /// Secrets in `stowage-system`.
    pub key_secrets: Vec<String>,
}

/// GPUs of one class, in thousandths of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedGpuQuota {
    /// Name of a GpuClass.
    pub class: String,
    /// Guaranteed; 0: everything is borrowed.
    pub nominal_milli: u64,
    /// Most that may be held beyond nominal.
    pub borrowing_milli: u64,
    /// Most of nominal that others may use; `None`: all.
    pub lending_milli: Option<u64>,
}

/// Parses and checks a TenantQuota of this name. Whether another one owns a namespace is decided with all of them at
/// hand, by the operator.
pub fn validate_quota(name: &str, spec: &TenantQuotaSpec) -> Result<AcceptedQuota, Vec<Refusal>> {
    let TenantQuotaSpec {
        namespaces,
        cohort,
        weight: _,
        gpus,
        tokens: _,
        spend: _,
        min_runtime: _,
        reclaim_grace: _,
        credentials,
        // The names of models are the gateway's alone.
        models: _,
    } = spec;
    let mut refusals = Refusals::default();
    refusals.unsupported(spec, support::QUOTA);
    refusals.require(name.len() <= LABEL_MAX, "metadata.name", &rules::NAME_LENGTH);
    let possible = namespaces.iter().all(|namespace| is_dns_label(namespace));
    refusals.require(possible, "spec.namespaces", &rules::NAMESPACES);
    unique(&mut refusals, "spec.namespaces", namespaces.iter().map(String::as_str));
    unique(&mut refusals, "spec.gpus", gpus.iter().map(|gpu| gpu.class.as_str()));
    let borrows = gpus.iter().any(|gpu| gpu.borrowing_limit.is_some() || gpu.lending_limit.is_some());
    refusals.require(cohort.is_some() || !borrows, "spec.gpus", &rules::NEEDS_COHORT);

    let accepted = gpus.iter().enumerate().filter_map(|(index, quota)| gpu(&mut refusals, index, quota)).collect();
    let key_secrets = credentials.as_ref().map(|given| secrets(&mut refusals, given)).unwrap_or_default();
    refusals.into_result(AcceptedQuota {
        namespaces: namespaces.clone(),
        cohort: cohort.clone(),
        gpus: accepted,
        key_secrets,
    })
}

fn gpu(refusals: &mut Refusals, index: usize, quota: &GpuQuota) -> Option<AcceptedGpuQuota> {
    let GpuQuota { class, nominal_quota, borrowing_limit, lending_limit } = quota;
    let at = |field: &str| format!("spec.gpus[{index}].{field}");
    refusals.require(is_dns_subdomain(class), at("class"), &deployment::OBJECT_NAME);
    let mut number = |field: &str, quantity: &Quantity| {
        let milli = refusals.parsed(at(field), parse_milli(quantity))?;
        refusals.require(milli <= MAX_GPUS_MILLI, at(field), &rules::QUANTITY_RANGE);
        Some(milli)
    };
    let nominal = number("nominalQuota", nominal_quota);
    let borrowing = borrowing_limit.as_ref().map_or(Some(0), |limit| number("borrowingLimit", limit));
    let lending = lending_limit.as_ref().map_or(Some(None), |limit| number("lendingLimit", limit).map(Some));
    let (nominal_milli, borrowing_milli, lending_milli) = (nominal?, borrowing?, lending?);
    refusals.require(lending_milli.is_none_or(|most| most <= nominal_milli), at("lendingLimit"), &rules::LENDING);
    Some(AcceptedGpuQuota { class: class.clone(), nominal_milli, borrowing_milli, lending_milli })
}

fn secrets(refusals: &mut Refusals, credentials: &Credentials) -> Vec<String> {
    let Credentials { api_keys, jwt: _, service_accounts: _ } = credentials;
    for (index, ApiKeys { secret_name }) in api_keys.iter().enumerate() {
        let field = format!("spec.credentials.apiKeys[{index}].secretName");
        refusals.require(is_dns_subdomain(secret_name), field, &pod::OBJECT_NAME);
    }
    unique(refusals, "spec.credentials.apiKeys", api_keys.iter().map(|keys| keys.secret_name.as_str()));
    api_keys.iter().map(|ApiKeys { secret_name }| secret_name.clone()).collect()
}
