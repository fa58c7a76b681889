//! Statuses of the cluster-scoped kinds: TenantQuota, GpuClass, InferenceRuntime. They own nothing,
//! so reporting is all there is to do.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Resource};
use serde_json::{Value, json};
use stowage_contracts::signals::{Fault, KeyFault};
use stowage_crds::conditions::{reasons, types};
use stowage_crds::names::{API_KEYS_SECRET_TYPE, API_VERSION};
use stowage_crds::quantity::milli_quantity;
use stowage_crds::tenant_quota::{GpuUsage, Waiting};
use stowage_crds::{
    GpuClass, GpuClassStatus, InferenceRuntime, InferenceRuntimeStatus, TenantQuota, TenantQuotaStatus,
};
use stowage_planner::DecisionReport;
use stowage_planner::report::TenantReport;

use super::status::{condition, differs};
use crate::execute::write::{WriteError, Writer};
use crate::observe::view::{Stored, View};
use crate::translate::Built;

/// A status that differs from the stored one.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    resource: ApiResource,
    name: String,
    uid: String,
    pub status: Value,
}

/// All statuses that have to be written.
pub fn statuses(view: &View, built: &Built, report: &DecisionReport) -> Vec<ClusterStatus> {
    let mut due = Vec::new();
    for stored in view.quotas.values() {
        let status = json(&quota(stored, view, built, report));
        push::<TenantQuota, _, _>(&mut due, stored, status);
    }
    for stored in view.classes.values() {
        let status = json(&class(stored, built, view.now));
        push::<GpuClass, _, _>(&mut due, stored, status);
    }
    for stored in view.runtimes.values() {
        let Some(judged) = built.runtimes.judged(stored.name()) else { continue };
        let accepted = judged.clone().map(|runtime| format!("Serves with {} {}.", runtime.image, runtime.version));
        let previous = stored.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let conditions = vec![accepted_condition(accepted, stored.generation(), previous, view.now)];
        let status = InferenceRuntimeStatus { observed_generation: stored.meta.generation, conditions };
        push::<InferenceRuntime, _, _>(&mut due, stored, json(&status));
    }
    due
}

fn push<K, S, T>(due: &mut Vec<ClusterStatus>, stored: &Stored<S, T>, status: Value)
where
    K: Resource<DynamicType = ()>,
    S: serde::de::DeserializeOwned,
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    if !stored.deleting() && differs(&stored.raw_status(), &status) {
        due.push(ClusterStatus {
            resource: ApiResource::erase::<K>(&()),
            name: stored.name().to_owned(),
            uid: stored.uid().to_owned(),
            status,
        });
    }
}

fn quota(
    stored: &crate::observe::view::StoredQuota,
    view: &View,
    built: &Built,
    report: &DecisionReport,
) -> TenantQuotaStatus {
    let now = view.now;
    let accepted = match built.tenants.refused.get(stored.name()) {
        None => {
            let tenant = built.tenants.accepted.iter().find(|tenant| tenant.id.0 == stored.name());
            let namespaces = tenant.map(|tenant| tenant.namespaces.join(", ")).unwrap_or_default();
            Ok(format!("The tenant owns {namespaces}."))
        }
        Some(refusal) => Err(refusal.clone()),
    };
    let previous = stored.status.as_ref();
    let conditions = previous.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let tenant = report.tenants.iter().find(|tenant| tenant.tenant.0 == stored.name());
    TenantQuotaStatus {
        observed_generation: stored.meta.generation,
        conditions: std::iter::once(accepted_condition(accepted.clone(), stored.generation(), conditions, now))
            .chain(accepted.ok().and_then(|_| keys(stored, view, conditions)))
            .collect(),
        usage: tenant.map(usage).unwrap_or_default(),
        // Written by the gateway's figures once there are any.
        tokens: previous.and_then(|status| status.tokens.clone()),
        spend: previous.and_then(|status| status.spend.clone()),
        waiting: tenant.map(|tenant| waiting(tenant, report)).unwrap_or_default(),
    }
}

/// Faults named in one condition.
const SHOWN_FAULTS: usize = 5;

/// Whether clients get access with the tenant's keys. Gateways alone read Secrets and report; while none does, what
/// they reported last stands.
fn keys(stored: &crate::observe::view::StoredQuota, view: &View, previous: &[Condition]) -> Option<Condition> {
    let secrets = stored.spec.as_ref().ok()?.credentials.as_ref().map_or(0, |given| given.api_keys.len());
    if secrets == 0 {
        return None;
    }
    let Some(all) = &view.gateways.keys else {
        return previous.iter().find(|condition| condition.type_ == types::KEYS_USABLE).cloned();
    };
    let faults: Vec<&KeyFault> = all.iter().filter(|fault| fault.tenant == stored.name()).collect();
    let Some(first) = faults.first() else {
        let message = format!("Clients get access with every key in {secrets} Secrets.");
        let (kind, reason) = (types::KEYS_USABLE, reasons::KEYS_USABLE);
        return Some(condition(kind, true, reason, message, stored.generation(), previous, view.now));
    };
    let reason = match first.fault {
        Fault::NotFound | Fault::Unknown => reasons::SECRET_NOT_FOUND,
        Fault::Empty => reasons::NO_KEY,
        Fault::NotAHash { .. } => reasons::KEY_NOT_A_HASH,
        Fault::Taken { .. } => reasons::KEY_TAKEN,
    };
    let mut named: Vec<String> = faults.iter().take(SHOWN_FAULTS).map(ToString::to_string).collect();
    if faults.len() > named.len() {
        named.push(format!("and {} more", faults.len() - named.len()));
    }
    let message = format!(
        "Requests with some of the tenant's keys get 401. {}. A key Secret has the type {API_KEYS_SECRET_TYPE} and holds, \
         for each key, the output of `printf %s \"$KEY\" | sha256sum | cut -d' ' -f1`.",
        named.join("; ")
    );
    Some(condition(types::KEYS_USABLE, false, reason, message, stored.generation(), previous, view.now))
}

fn usage(tenant: &TenantReport) -> Vec<GpuUsage> {
    let one = |usage: &stowage_planner::report::ClassUsage| GpuUsage {
        class: usage.class.clone(),
        nominal: milli_quantity(usage.held_milli.saturating_sub(usage.borrowed_milli)),
        borrowed: milli_quantity(usage.borrowed_milli),
        lent: milli_quantity(usage.lent_milli),
        pending: milli_quantity(usage.pending_milli),
    };
    tenant.usage.iter().take(32).map(one).collect()
}

fn waiting(tenant: &TenantReport, report: &DecisionReport) -> Vec<Waiting> {
    let reason = |id| report.of(id).map(|deployment| format!("{:?}", deployment.outcome)).unwrap_or_default();
    let numbered = tenant.waiting.iter().take(32).zip(1u32..);
    numbered.map(|(id, position)| Waiting { name: id.to_string(), position, reason: reason(id) }).collect()
}

fn class(stored: &crate::observe::view::StoredClass, built: &Built, now: Timestamp) -> GpuClassStatus {
    let name = Some(stored.name().to_owned());
    let on = |node: &stowage_planner::snapshot::Node| node.gpus.iter().filter(|gpu| gpu.class == name).count();
    let counts: Vec<usize> = built.snapshot.nodes.iter().map(|node| on(node)).filter(|count| *count > 0).collect();
    let (gpus, nodes) = (counts.iter().sum::<usize>(), counts.len());
    let accepted = match built.classes.refused.get(stored.name()) {
        Some(refusal) => Err(refusal.clone()),
        None if gpus == 0 => Err((
            reasons::SELECTS_NOTHING,
            "No GPU of the cluster matches spec.selector; compare it with `kubectl get gpunodes -o yaml`.".into(),
        )),
        None => Ok(format!("Selects {gpus} GPUs on {nodes} nodes.")),
    };
    let previous = stored.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    GpuClassStatus {
        observed_generation: stored.meta.generation,
        conditions: vec![accepted_condition(accepted, stored.generation(), previous, now)],
        gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
        nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
    }
}

fn accepted_condition(
    accepted: Result<String, (&'static str, String)>,
    generation: i64,
    previous: &[Condition],
    now: Timestamp,
) -> Condition {
    match accepted {
        Ok(message) => condition(types::ACCEPTED, true, reasons::ACCEPTED, message, generation, previous, now),
        Err((reason, message)) => condition(types::ACCEPTED, false, reason, message, generation, previous, now),
    }
}

fn json(status: &impl serde::Serialize) -> Value {
    serde_json::to_value(status).unwrap_or_default()
}

impl ClusterStatus {
    /// Kind and name.
    pub fn key(&self) -> String {
        format!("{} {}", self.resource.kind, self.name)
    }

    pub async fn write(&self, writer: &Writer) -> Result<(), WriteError> {
        let api: Api<DynamicObject> = Api::all_with(writer.client(), &self.resource);
        let object = json!({
            "apiVersion": API_VERSION,
            "kind": self.resource.kind,
            "metadata": {"name": self.name, "uid": self.uid},
            "status": self.status,
        });
        match writer.apply_status::<DynamicObject>(&api, &self.name, &object).await {
            Ok(_) | Err(WriteError::NotFound) => Ok(()),
            Err(err) => Err(err),
        }
    }
}
