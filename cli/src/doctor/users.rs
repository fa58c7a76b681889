//! Checks of what people wrote, and of what is left of what they deleted.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stowage_crds::conditions::types;
use stowage_crds::{TenantQuota, names};

use super::check::{Check, join, read_list};
use super::{Facts, helm};
use crate::cluster::Read;

pub(super) fn runtimes(f: &Facts) -> Check {
    let runtimes = match read_list("runtimes", &f.runtimes) {
        Ok(runtimes) => runtimes,
        Err(check) => return check,
    };
    let exists = |name: &str| runtimes.iter().any(|runtime| runtime.metadata.name.as_deref() == Some(name));
    if !exists(names::DEFAULT_RUNTIME) {
        return Check::fail(
            "runtimes",
            format!("no InferenceRuntime {}, which the chart installs", names::DEFAULT_RUNTIME),
            "deployments that name it, or no runtime, are not accepted",
            helm::chart(f),
        );
    }
    let deployments = f.deployments.got().map(Vec::as_slice).unwrap_or_default();
    let asks = |d: &&stowage_crds::InferenceDeployment| !exists(&d.spec.runtime.r#ref);
    let mut missing: Vec<String> = deployments
        .iter()
        .filter(asks)
        .map(|d| format!("{} (named by {})", d.spec.runtime.r#ref, full_name(&d.metadata)))
        .collect();
    missing.sort_unstable();
    if let Some(first) = deployments.iter().find(asks) {
        return Check::fail(
            "runtimes",
            format!("no InferenceRuntime {}", join(missing)),
            "these deployments are not accepted",
            format!(
                "kubectl get irt lists those that exist; then kubectl -n {} edit infd {} and change spec.runtime.ref, or create the InferenceRuntime",
                first.metadata.namespace.as_deref().unwrap_or_default(),
                first.metadata.name.as_deref().unwrap_or_default()
            ),
        );
    }
    Check::ok("runtimes", join(runtimes.iter().filter_map(|runtime| runtime.metadata.name.as_deref())))
}

pub(super) fn tenants(f: &Facts) -> Check {
    let (quotas, deployments) = match (read_list("tenants", &f.quotas), read_list("tenants", &f.deployments)) {
        (Ok(quotas), Ok(deployments)) => (quotas, deployments),
        (Err(check), _) | (_, Err(check)) => return check,
    };
    let mut unowned: Vec<&str> = deployments
        .iter()
        .filter_map(|d| d.metadata.namespace.as_deref())
        .filter(|ns| !quotas.iter().any(|q| q.spec.namespaces.iter().any(|n| n == ns)))
        .collect();
    unowned.sort_unstable();
    unowned.dedup();
    let refused: Vec<&str> = quotas
        .iter()
        .filter(|q| {
            let conditions = q.status.iter().flat_map(|s| &s.conditions);
            conditions.into_iter().any(|c| c.type_ == "Accepted" && c.status == "False")
        })
        .filter_map(|q| q.metadata.name.as_deref())
        .collect();
    if !refused.is_empty() {
        return Check::fail(
            "tenants",
            format!("not accepted: {}", join(&refused)),
            "these budgets are not in force, and deployments of these tenants are not accepted",
            format!("kubectl describe tq {} shows the reason in condition Accepted", refused[0]),
        );
    }
    if !unowned.is_empty() {
        return Check::warn(
            "tenants",
            format!("namespaces without a TenantQuota: {}", join(&unowned)),
            "deployments there are refused with NoTenant",
            format!("kubectl edit tq NAME and add {} to spec.namespaces, or create a TenantQuota", unowned[0]),
        );
    }
    Check::ok("tenants", format!("{} accepted", quotas.len()))
}

/// Tenants whose clients get no access with some key: what gateways report, in the condition of the TenantQuota.
pub(super) fn keys(f: &Facts) -> Check {
    let quotas = match read_list("API keys", &f.quotas) {
        Ok(quotas) => quotas,
        Err(check) => return check,
    };
    let (mut wrong, mut unknown, mut usable) = (Vec::new(), Vec::new(), 0);
    for quota in quotas.iter().filter(|quota| names_keys(quota)) {
        let tenant = quota.metadata.name.clone().unwrap_or_default();
        let mut conditions = quota.status.iter().flat_map(|status| &status.conditions);
        match conditions.find(|condition| condition.type_ == types::KEYS_USABLE) {
            Some(condition) if condition.status == "True" => usable += 1,
            Some(condition) => wrong.push(format!("{tenant} ({}): {}", condition.reason, condition.message)),
            None => unknown.push(tenant),
        }
    }
    if !wrong.is_empty() {
        return Check::warn(
            "API keys",
            wrong.join("; "),
            "requests with these keys are answered 401",
            format!(
                "kubectl -n {} create secret generic NAME --type={} --from-literal=KEYNAME=$(printf %s \"$KEY\" | sha256sum | cut -d' ' -f1)",
                names::SYSTEM_NAMESPACE,
                names::API_KEYS_SECRET_TYPE
            ),
        );
    }
    if !unknown.is_empty() {
        return Check::warn(
            "API keys",
            format!("no gateway has reported on the keys of {}", join(unknown)),
            "whether requests with these keys get access is not known",
            "see gateway and tenants above; a gateway reports within seconds of its start",
        );
    }
    Check::ok("API keys", format!("tenants whose keys can be used: {usable}"))
}

fn names_keys(quota: &TenantQuota) -> bool {
    quota.spec.credentials.as_ref().is_some_and(|given| !given.api_keys.is_empty())
}

/// Objects of ours whose InferenceDeployment is gone; garbage collection removes those that carry an owner.
pub(super) fn leftovers(f: &Facts) -> Check {
    let (objects, deployments) = match (&f.owned, read_list("leftovers", &f.deployments)) {
        (Read::Got(objects), Ok(deployments)) => (objects, deployments),
        (Read::Failed(why), _) => return Check::unknown("leftovers", why),
        (Read::Absent, _) => return Check::absent("leftovers", "the API server does not serve one of the kinds"),
        (_, Err(check)) => return check,
    };
    let living: BTreeSet<&str> = deployments.iter().filter_map(|d| d.metadata.uid.as_deref()).collect();
    let owned = |meta: &ObjectMeta| {
        let mut owners = meta.owner_references.iter().flatten();
        owners.any(|owner| owner.kind == "InferenceDeployment" && living.contains(owner.uid.as_str()))
    };
    let alone: Vec<&super::Owned> =
        objects.iter().filter(|o| o.meta.deletion_timestamp.is_none() && !owned(&o.meta)).collect();
    let Some(first) = alone.first() else {
        return Check::ok("leftovers", format!("each of {} objects belongs to an InferenceDeployment", objects.len()));
    };
    let named = |o: &&super::Owned| format!("{} {}", o.kind, full_name(&o.meta));
    let namespace = first.meta.namespace.as_deref().unwrap_or_default();
    let here = alone.iter().filter(|o| o.meta.namespace.as_deref() == Some(namespace));
    let names: Vec<String> =
        here.map(|o| format!("{}/{}", o.kind, o.meta.name.as_deref().unwrap_or_default())).collect();
    Check::warn(
        "leftovers",
        format!("without an InferenceDeployment: {}", alone.iter().map(named).collect::<Vec<_>>().join(", ")),
        "they hold their GPUs and count against their tenant until they are deleted",
        format!("kubectl -n {namespace} delete {}", names.join(" ")),
    )
}

fn full_name(meta: &ObjectMeta) -> String {
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}
