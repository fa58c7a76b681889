//! `TenantQuota`, narrow.

use super::{Refusal, Refusals, unique};
use crate::TenantQuotaSpec;
use crate::quantity::parse_milli;
use crate::rules::quota as rules;
use crate::tenant_quota::{ApiKeys, Credentials, GpuQuota};

/// An accepted TenantQuota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedQuota {
    pub namespaces: Vec<String>,
    /// Who borrows from whom; `None`: nobody.
    pub cohort: Option<String>,
    pub gpus: Vec<AcceptedGpuQuota>,
    /// Secrets in `stowage-system`.
    pub key_secrets: Vec<String>,
}

/// GPUs of one class, in thousandths of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedGpuQuota {
    pub class: String,
    pub nominal_milli: u64,
    /// Most that may be held beyond nominal.
    pub borrowing_milli: u64,
    /// Most of nominal that others may use; `None`: all.
    pub lending_milli: Option<u64>,
}

/// Judges a TenantQuota. Whether another one owns a namespace is the operator's question.
pub fn validate_quota(spec: &TenantQuotaSpec) -> Result<AcceptedQuota, Vec<Refusal>> {
    let TenantQuotaSpec { namespaces, cohort, weight, gpus, tokens, spend, min_runtime, reclaim_grace, credentials } =
        spec;
    let mut refusals = Refusals::default();
    refusals.require(weight.is_none_or(|weight| weight == 1), "spec.weight", &rules::WEIGHT);
    refusals.require(tokens.is_none(), "spec.tokens", &rules::TOKENS);
    refusals.require(spend.is_none(), "spec.spend", &rules::SPEND);
    refusals.require(min_runtime.is_none(), "spec.minRuntime", &rules::RECLAIM);
    refusals.require(reclaim_grace.is_none(), "spec.reclaimGrace", &rules::RECLAIM);
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
    let nominal = refusals.parsed(at("nominalQuota"), parse_milli(nominal_quota));
    let borrowing = match borrowing_limit {
        None => Some(0),
        Some(limit) => refusals.parsed(at("borrowingLimit"), parse_milli(limit)),
    };
    let lending = match lending_limit {
        None => Some(None),
        Some(limit) => refusals.parsed(at("lendingLimit"), parse_milli(limit)).map(Some),
    };
    let (nominal_milli, borrowing_milli, lending_milli) = (nominal?, borrowing?, lending?);
    refusals.require(lending_milli.is_none_or(|most| most <= nominal_milli), at("lendingLimit"), &rules::LENDING);
    Some(AcceptedGpuQuota { class: class.clone(), nominal_milli, borrowing_milli, lending_milli })
}

fn secrets(refusals: &mut Refusals, credentials: &Credentials) -> Vec<String> {
    let Credentials { api_keys, jwt, service_accounts } = credentials;
    refusals.require(jwt.is_none(), "spec.credentials.jwt", &rules::JWT);
    refusals.require(*service_accounts != Some(true), "spec.credentials.serviceAccounts", &rules::SERVICE_ACCOUNTS);
    unique(refusals, "spec.credentials.apiKeys", api_keys.iter().map(|keys| keys.secret_name.as_str()));
    api_keys.iter().map(|ApiKeys { secret_name }| secret_name.clone()).collect()
}
