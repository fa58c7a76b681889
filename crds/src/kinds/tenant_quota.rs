//! `TenantQuota`: one budget per tenant, for GPUs and for tokens.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::schema;
use crate::rules;

/// One tenant's budget.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "TenantQuota",
    plural = "tenantquotas",
    shortname = "tq",
    category = "stowage",
    status = "TenantQuotaStatus",
    derive = "PartialEq",
    validation = crate::rules::quota::NAME_LENGTH.cel(),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Cohort", type_ = "string", json_path = ".spec.cohort"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.waiting[0].name"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    doc = "One tenant's budget: the namespaces it owns, GPUs, tokens, and the credentials of its clients."
)]
#[x_kube(validation = rules::quota::NEEDS_COHORT.cel())]
#[serde(rename_all = "camelCase")]
pub struct TenantQuotaSpec {
    /// Namespaces of the tenant. One belongs to at most one tenant: the older TenantQuota keeps it.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = rules::quota::NAMESPACES.cel())]
    pub namespaces: Vec<String>,
    /// Tenants of one cohort borrow from each other. Absent: no borrowing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub cohort: Option<String>,
    /// Share of what is contended, relative to other tenants. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
    /// GPUs per class. A class that is not listed has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["class".into()]))]
    pub gpus: Vec<GpuQuota>,
    /// Tokens per minute and requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenQuota>,
    /// Money per hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spend: Option<SpendQuota>,
    /// How long a borrowed replica runs at least before it can be reclaimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub min_runtime: Option<String>,
    /// How long a reclaimed replica may finish its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub reclaim_grace: Option<String>,
    /// How clients of the tenant show who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// How the tenant's clients name models of other tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<ModelNames>,
}

/// Names of models. A model that another tenant shares is always `<tenant>/<model>`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelNames {
    /// Tenants whose shared models have bare names too, after the tenant's own; the first that shares the name serves it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub from: Vec<String>,
}

/// GPUs of one class.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::quota::LENDING.cel())]
#[serde(rename_all = "camelCase")]
pub struct GpuQuota {
    /// Name of a GpuClass.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::deployment::OBJECT_NAME.cel())]
    pub class: String,
    /// GPUs that are guaranteed, for example "4" or "500m". A slice is charged the larger of its memory share and its SM share.
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::quota::QUANTITY.cel())]
    #[x_kube(validation = rules::quota::QUANTITY_RANGE.cel())]
    pub nominal_quota: Quantity,
    /// GPUs that may be borrowed from the cohort beyond it. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::quota::QUANTITY.cel())]
    #[x_kube(validation = rules::quota::QUANTITY_RANGE.cel())]
    pub borrowing_limit: Option<Quantity>,
    /// GPUs of the guaranteed that others may borrow while idle. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::quota::QUANTITY.cel())]
    #[x_kube(validation = rules::quota::QUANTITY_RANGE.cel())]
    pub lending_limit: Option<Quantity>,
}

/// Tokens, input plus output.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenQuota {
    /// Tokens per minute. Absent: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub per_minute: Option<u64>,
    /// How much may be used at once, as time at the rate above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub burst: Option<String>,
    /// Most waiting requests. Absent: the gateway's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000000))]
    pub max_queued: Option<u32>,
    /// Most requests in flight. Absent: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_concurrent: Option<u32>,
}

/// Money.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpendQuota {
    /// Most per hour, decimal text, for example "120.00".
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::quota::PER_HOUR.cel())]
    pub per_hour: String,
    /// ISO 4217, for example USD.
    #[schemars(length(min = 3, max = 3))]
    #[x_kube(validation = rules::class::CURRENCY.cel())]
    pub currency: String,
}

/// How clients show who they are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// Secrets in stowage-system of type stowage.dev/api-keys, with SHA-256 hashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["secretName".into()]))]
    pub api_keys: Vec<ApiKeys>,
    /// Tokens of an OIDC issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// Whether tokens of ServiceAccounts in the tenant's namespaces are accepted. Absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<bool>,
}

/// A Secret with hashed keys.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeys {
    /// Name of the Secret in stowage-system.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::pod::OBJECT_NAME.cel())]
    pub secret_name: String,
}

/// Tokens of an OIDC issuer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Jwt {
    /// Issuer URL.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// Expected audience.
    #[schemars(length(min = 1, max = 256))]
    pub audience: String,
    /// Claim that names the tenant.
    #[schemars(length(min = 1, max = 128))]
    pub claim: String,
    /// Its value for this tenant.
    #[schemars(length(min = 1, max = 256))]
    pub claim_value: String,
}

/// Status of a TenantQuota.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantQuotaStatus {
    /// The generation that this status was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted always; KeysUsable where the spec names Secrets and a gateway has read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// GPUs per class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["class".into()]))]
    pub usage: Vec<GpuUsage>,
    /// Tokens in the last minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenUsage>,
    /// Money in the last hour, decimal text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub spend: Option<String>,
    /// Deployments that wait, the next one first; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub waiting: Vec<Waiting>,
}

/// GPUs of one class; quantities in GPUs, thousandths as `m`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuUsage {
    /// Name of the GpuClass.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Used of the guaranteed.
    #[schemars(schema_with = "schema::quantity")]
    pub nominal: Quantity,
    /// Used beyond it.
    #[schemars(schema_with = "schema::quantity")]
    pub borrowed: Quantity,
    /// Of the guaranteed, used by others.
    #[schemars(schema_with = "schema::quantity")]
    pub lent: Quantity,
    /// Wanted and not placed.
    #[schemars(schema_with = "schema::quantity")]
    pub pending: Quantity,
}

/// Tokens in the last minute.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenUsage {
    /// Used.
    #[serde(default)]
    pub per_minute: u64,
    /// Requests refused.
    #[serde(default)]
    pub throttled: u64,
}

/// A deployment that waits.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// `namespace/name`.
    #[schemars(length(max = 320))]
    pub name: String,
    /// Place in the queue, from 1.
    pub position: u32,
    /// Why it waits.
    #[schemars(length(max = 1024))]
    pub reason: String,
}
