//! `TenantQuota`, narrow.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Refusal, Refusals, unique};
use crate::quantity::{parse_duration, parse_micros, parse_milli};
use crate::rules::{class, deployment, pod, quota as rules};
use crate::syntax::{LABEL_MAX, is_dns_label, is_dns_subdomain};
use crate::tenant_quota::{ApiKeys, Credentials, GpuQuota, SpendQuota};
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
    /// Relative to other tenants of the cohort; at least 1.
    pub weight: u32,
    /// Most per hour in millionths of the currency, and the currency; `None`: no limit.
    pub spend: Option<(u64, String)>,
    /// A borrowed replica runs at least this long; `None`: the operator's default.
    pub min_runtime: Option<Duration>,
    /// A reclaimed replica may finish its requests for this long; `None`: the operator's default.
    pub reclaim_grace: Option<Duration>,
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
        weight,
        gpus,
        tokens: _,
        spend,
        min_runtime,
        reclaim_grace,
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
    // The schema's range, for what was stored before it had one.
    let weight = weight.unwrap_or(1).clamp(1, 1000);
    let spend = spend.as_ref().and_then(|given| money(&mut refusals, given));
    let mut duration = |field: &str, text: &Option<String>| {
        text.as_ref().and_then(|text| refusals.parsed(field, parse_duration(text)))
    };
    let min_runtime = duration("spec.minRuntime", min_runtime);
    let reclaim_grace = duration("spec.reclaimGrace", reclaim_grace);
    let key_secrets = credentials.as_ref().map(|given| secrets(&mut refusals, given)).unwrap_or_default();
    refusals.into_result(AcceptedQuota {
        namespaces: namespaces.clone(),
        cohort: cohort.clone(),
        gpus: accepted,
        weight,
        spend,
        min_runtime,
        reclaim_grace,
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

fn money(refusals: &mut Refusals, given: &SpendQuota) -> Option<(u64, String)> {
    let SpendQuota { per_hour, currency } = given;
    let letters = currency.len() == 3 && currency.bytes().all(|b| b.is_ascii_uppercase());
    refusals.require(letters, "spec.spend.currency", &class::CURRENCY);
    Some((refusals.parsed("spec.spend.perHour", parse_micros(per_hour))?, currency.clone()))
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
