//! What `top` and `dashboard` draw: the operator's overview, or where the account may not ask the operator, what the objects
//! that it may read show. Then the use of GPUs and the load of deployments are missing, and `missing` says so.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use stowage_crds::conditions::{reasons, types};

use stowage_crds::quantity::{parse_bytes, parse_micros, parse_milli};
use stowage_crds::{GpuNode, InferenceDeployment, TenantQuota};
use stowage_planner::overview::{Deployment, Gpu, Overview, Slice, Tenant, Usage};

use crate::cluster::{Cluster, ClusterError, Read};

/// What one account sees without the operator.
#[derive(Default)]
struct Objects {
    nodes: Vec<GpuNode>,
    deployments: Vec<InferenceDeployment>,
    quotas: Vec<TenantQuota>,
    missing: Vec<String>,
}

/// The state as far as this account may see it. `namespace`: whose deployments are read where it may not list all.
pub(crate) async fn fetch(cluster: &Cluster, namespace: &str, now_ms: u64) -> Result<Overview, ClusterError> {
    match cluster.operator::<Overview>(stowage_planner::overview::PATH).await {
        Ok(overview) => Ok(overview),
        Err(e) if e.unreachable() => Err(e),
        Err(e) => {
            let why = if e.forbidden() { "the account may not ask the operator".to_owned() } else { e.to_string() };
            let mut objects = Objects::default();
            objects.missing.push(format!("use of GPUs and load of deployments: {why}"));
            objects.read(cluster, namespace).await;
            Ok(objects.overview(now_ms))
        }
    }
}

impl Objects {
    async fn read(&mut self, cluster: &Cluster, namespace: &str) {
        let mut missing = Vec::new();
        self.nodes = got(cluster.read_all(cluster.all()).await, "GPUs", &mut missing);
        self.quotas = got(cluster.read_all(cluster.all()).await, "tenants", &mut missing);
        self.deployments = match cluster.read_all(cluster.all()).await {
            Read::Got(all) => all,
            Read::Absent | Read::Failed(_) => {
                missing.push(format!("deployments outside namespace {namespace}: the account may not list them"));
                got(cluster.read_all(cluster.within(namespace)).await, "deployments", &mut missing)
            }
        };
        self.missing.append(&mut missing);
    }

    fn overview(&self, now_ms: u64) -> Overview {
        let mut slices: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
        for d in &self.deployments {
            let (namespace, name) = names(d);
            for share in d.status.iter().flat_map(|s| &s.placements).flat_map(|p| &p.gpus) {
                slices.entry(share.uuid.clone()).or_default().push(Slice {
                    tenant: self.tenant_of(&namespace),
                    owner: format!("{namespace}/{name}"),
                    memory_bytes: parse_bytes(&share.memory).unwrap_or(0),
                    sm_percent: share.compute,
                });
            }
        }
        let mut gpus: Vec<Gpu> = self.nodes.iter().flat_map(|node| gpus_of(node, &mut slices)).collect();
        gpus.sort_by(|a, b| (&a.node, a.index).cmp(&(&b.node, b.index)));
        let mut deployments: Vec<Deployment> = self.deployments.iter().map(|d| self.deployment(d)).collect();
        deployments.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut tenants: Vec<Tenant> = self.quotas.iter().map(tenant).collect();
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        Overview { at_ms: now_ms, paused: None, missing: self.missing.clone(), gpus, deployments, tenants }
    }

    /// The older TenantQuota keeps a namespace that two list.
    fn tenant_of(&self, namespace: &str) -> String {
        let listing = self.quotas.iter().filter(|q| q.spec.namespaces.iter().any(|n| n == namespace));
        let oldest = listing.min_by_key(|q| (q.metadata.creation_timestamp.clone(), q.metadata.name.clone()));
        oldest.and_then(|q| q.metadata.name.clone()).unwrap_or_default()
    }

    fn deployment(&self, d: &InferenceDeployment) -> Deployment {
        let (namespace, name) = names(d);
        let status = d.status.as_ref();
        let conditions: &[Condition] = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == types::READY);
        let cost = status.and_then(|s| s.cost.as_ref());
        Deployment {
            tenant: self.tenant_of(&namespace),
            namespace,
            name,
            state: ready.map_or("NoStatusYet", |c| c.reason.as_str()).to_owned(),
            well: ready.is_some_and(|c| c.status == "True" || c.reason == reasons::SCALED_TO_ZERO),
            wanted: status.map_or(0, |s| s.desired_replicas),
            ready: status.map_or(0, |s| s.ready_replicas),
            price_per_hour_micros: cost.and_then(|c| parse_micros(&c.per_hour).ok()),
            currency: cost.map(|c| c.currency.clone()).unwrap_or_default(),
            message: ready.map(|c| c.message.clone()).unwrap_or_default(),
            ..Deployment::default()
        }
    }
}

fn got<T>(read: Read<Vec<T>>, what: &str, missing: &mut Vec<String>) -> Vec<T> {
    match read {
        Read::Got(all) => return all,
        Read::Absent => missing.push(format!("{what}: the kind is not installed")),
        Read::Failed(why) => missing.push(format!("{what}: {}", why.message)),
    }
    Vec::new()
}

fn names(d: &InferenceDeployment) -> (String, String) {
    (d.metadata.namespace.clone().unwrap_or_default(), d.metadata.name.clone().unwrap_or_default())
}

fn gpus_of(node: &GpuNode, slices: &mut BTreeMap<String, Vec<Slice>>) -> Vec<Gpu> {
    let Some(status) = &node.status else { return Vec::new() };
    let gpu = |device: &stowage_crds::gpu_node::GpuDevice| {
        let mut slices = slices.remove(&device.uuid).unwrap_or_default();
        slices.sort();
        Gpu {
            node: node.metadata.name.clone().unwrap_or_default(),
            index: device.index,
            uuid: device.uuid.clone(),
            product: device.product.clone(),
            health: device.verdict.health,
            reason: device.verdict.reason.clone().unwrap_or_default(),
            simulated: status.simulated,
            memory_bytes: parse_bytes(&device.memory).unwrap_or(0),
            slices,
            ..Gpu::default()
        }
    };
    status.devices.iter().map(gpu).collect()
}

fn tenant(quota: &TenantQuota) -> Tenant {
    let status = quota.status.as_ref();
    let milli = |quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| parse_milli(quantity).unwrap_or(0);
    let nominal = |class: &str| {
        let gpus = quota.spec.gpus.iter().find(|g| g.class == class);
        gpus.map_or(0, |g| milli(&g.nominal_quota))
    };
    let usage = status.into_iter().flat_map(|s| &s.usage).map(|u| Usage {
        class: u.class.clone(),
        nominal_milli: nominal(&u.class),
        held_milli: milli(&u.nominal) + milli(&u.borrowed),
        borrowed_milli: milli(&u.borrowed),
        pending_milli: milli(&u.pending),
    });
    Tenant {
        name: quota.metadata.name.clone().unwrap_or_default(),
        usage: usage.collect(),
        waiting: status.map_or(0, |s| u32::try_from(s.waiting.len()).unwrap_or(u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use stowage_contracts::summary::Health;

    use super::*;
    use crate::testing::yaml;

    #[test]
    fn objects_alone_show_slices_by_tenant_and_name_what_is_missing() {
        let objects = Objects {
            nodes: vec![yaml(
                "{metadata: {name: node2}, spec: {}, status: {simulated: true, devices: [{uuid: GPU-a, index: 0, product: H100, memory: 80Gi}]}}",
            )],
            deployments: vec![yaml(
                "{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {name: chat, namespace: n}, \
                 spec: {model: {source: {image: {reference: 'm:1', path: /m}}}, variants: [{name: v, class: c}]}, \
                 status: {desiredReplicas: 2, readyReplicas: 1, cost: {perHour: '0.905', currency: USD}, \
                 conditions: [{type: Ready, status: 'False', reason: Starting, message: m, lastTransitionTime: 2026-03-01T11:48:00Z}], \
                 placements: [{name: chat-1, node: node2, variant: v, gpus: [{uuid: GPU-a, memory: 2Gi, compute: 10}]}]}}",
            )],
            quotas: vec![yaml(
                "{apiVersion: stowage.dev/v1alpha1, kind: TenantQuota, metadata: {name: team}, spec: {namespaces: [n], gpus: [{class: c, nominalQuota: '4'}]}, \
                 status: {usage: [{class: c, nominal: 200m, borrowed: 100m, lent: '0', pending: 50m}]}}",
            )],
            missing: vec!["load".into()],
        };
        let found = objects.overview(7);
        let slice = Slice { tenant: "team".into(), owner: "n/chat".into(), memory_bytes: 2 << 30, sm_percent: 10 };
        assert_eq!((found.gpus[0].slices.as_slice(), found.gpus[0].health), ([slice].as_slice(), Health::Healthy));
        let d = &found.deployments[0];
        assert_eq!(
            (d.state.as_str(), d.well, d.wanted, d.ready, d.price_per_hour_micros),
            ("Starting", false, 2, 1, Some(905_000))
        );
        let usage =
            Usage { class: "c".into(), nominal_milli: 4000, held_milli: 300, borrowed_milli: 100, pending_milli: 50 };
        assert_eq!(found.tenants[0].usage, [usage]);
        assert_eq!((found.missing.len(), found.at_ms), (1, 7));
    }
}
