//! Configuration at start: flags, or the environment variables beside them.

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use stowage_crds::names::{LEASE, OPERATOR_ADMIN_PORT, SYSTEM_NAMESPACE};
use stowage_planner::snapshot::Policy;

use crate::lead::Timing;

/// The Stowage operator: decides where models run and keeps them running.
#[derive(Debug, Clone, Parser)]
#[command(name = "stowage-operator", version)]
pub struct Config {
    /// Namespace of the Lease.
    #[arg(long, env = "STOWAGE_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Name of the Lease by which operators agree on a leader.
    #[arg(long, env = "STOWAGE_LEASE", default_value = LEASE)]
    pub lease: String,
    /// Name of this process in the Lease; a random part is added.
    #[arg(long, env = "POD_NAME", default_value = "stowage-operator")]
    pub identity: String,
    /// Address of the administrative port: probes, metrics, decisions.
    #[arg(long, env = "STOWAGE_ADMIN_ADDRESS", default_value_t = format!("0.0.0.0:{OPERATOR_ADMIN_PORT}"))]
    pub admin_address: String,
    /// Address that serves metrics alone, for scrapers. Empty: none.
    #[arg(long, env = "STOWAGE_METRICS_LISTEN", default_value = "")]
    pub metrics_listen: String,
    /// Longest time between two plans, in milliseconds.
    #[arg(long, env = "STOWAGE_PLAN_INTERVAL_MS", default_value_t = 5000)]
    pub plan_interval_ms: u64,
    /// A lease that is not renewed for this long is taken over, in milliseconds.
    #[arg(long, env = "STOWAGE_LEASE_MS", default_value_t = 8000)]
    pub lease_ms: u64,
    /// How often the leader renews, in milliseconds.
    #[arg(long, env = "STOWAGE_RENEW_MS", default_value_t = 2000)]
    pub renew_ms: u64,
    /// Who may read the engines' metrics: a JSON list of NetworkPolicyPeers. Empty: no one.
    #[arg(long, env = "STOWAGE_METRICS_FROM", default_value = "")]
    pub metrics_from: String,
    /// A Prometheus that scrapes the operator: forecasts use the load of earlier days. Empty: none.
    #[arg(long, env = "STOWAGE_PROMETHEUS_URL", default_value = "")]
    pub prometheus_url: String,
    /// Replicas of the cluster that may be moving at one time so that others fit. 0: none is moved.
    #[arg(long, env = "STOWAGE_MAX_MOVES", default_value_t = 0)]
    pub max_moves: u32,
    /// Replicas of the cluster for which another node may be asked for at one time, by a pod that no node takes. 0: none.
    #[arg(long, env = "STOWAGE_MAX_CAPACITY_PODS", default_value_t = 0)]
    pub max_capacity_pods: u32,
    /// Image of such a pod, which only waits.
    #[arg(long, env = "STOWAGE_CAPACITY_IMAGE", default_value = "registry.k8s.io/pause:3.10.1")]
    pub capacity_image: String,
    /// Do not print decisions as JSON lines on stdout.
    #[arg(long, env = "STOWAGE_QUIET_DECISIONS")]
    pub quiet_decisions: bool,
}

impl Config {
    pub fn timing(&self) -> Timing {
        Timing {
            // The Lease holds whole seconds, and a shorter one than three would leave no time to write.
            lease: Duration::from_millis(self.lease_ms.max(3000)),
            renew: Duration::from_millis(self.renew_ms.clamp(200, self.lease_ms / 2)),
            ..Timing::default()
        }
    }

    /// The peers that may read the engines' metrics. A peer that names pods and no namespace means those of ours, as
    /// in the chart; in a policy of a tenant's namespace the same words would mean the tenant's own pods.
    pub fn scrapers(&self) -> anyhow::Result<Vec<NetworkPolicyPeer>> {
        if self.metrics_from.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut peers: Vec<NetworkPolicyPeer> = serde_json::from_str(&self.metrics_from).context(
            "STOWAGE_METRICS_FROM is no JSON list of NetworkPolicyPeers; correct networkPolicies.metricsFrom",
        )?;
        for peer in peers.iter_mut().filter(|peer| peer.ip_block.is_none() && peer.namespace_selector.is_none()) {
            let name = [("kubernetes.io/metadata.name".to_owned(), self.namespace.clone())];
            peer.namespace_selector =
                Some(LabelSelector { match_labels: Some(name.into()), ..LabelSelector::default() });
        }
        Ok(peers)
    }

    /// `None`: none is configured.
    pub fn prometheus(&self) -> anyhow::Result<Option<prometheus_http_query::Client>> {
        if self.prometheus_url.is_empty() {
            return Ok(None);
        }
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        let client = prometheus_http_query::Client::from(http, &self.prometheus_url);
        client.map(Some).with_context(|| format!("STOWAGE_PROMETHEUS_URL is no URL: {}", self.prometheus_url))
    }

    pub fn policy(&self) -> Policy {
        let (max_moves, max_capacity_pods) = (self.max_moves, self.max_capacity_pods);
        Policy { max_moves, max_capacity_pods, ..Policy::default() }
    }

    pub fn period(&self) -> Duration {
        Duration::from_millis(self.plan_interval_ms.clamp(200, 60_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrapers(text: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let config = Config::parse_from(["operator", "--metrics-from", text]);
        Ok(config.scrapers()?.iter().map(|peer| serde_json::to_value(peer).unwrap()).collect())
    }

    #[test]
    fn pods_without_a_namespace_are_those_of_the_operators_own() {
        let check = |text: &str, want: serde_json::Value| assert_eq!(scrapers(text).unwrap(), [want], "{text}");
        let ours = serde_json::json!({"matchLabels": {"kubernetes.io/metadata.name": SYSTEM_NAMESPACE}});
        let pods = serde_json::json!({"matchLabels": {"app": "prometheus"}});
        check(
            r#"[{"podSelector": {"matchLabels": {"app": "prometheus"}}}]"#,
            serde_json::json!({"podSelector": pods, "namespaceSelector": ours}),
        );
        check(r#"[{"ipBlock": {"cidr": "10.0.0.1/32"}}]"#, serde_json::json!({"ipBlock": {"cidr": "10.0.0.1/32"}}));
        check(
            r#"[{"namespaceSelector": {"matchLabels": {"app": "prometheus"}}}]"#,
            serde_json::json!({"namespaceSelector": pods}),
        );
        assert!(scrapers("").unwrap().is_empty());
        assert!(scrapers("{}").unwrap_err().to_string().contains("metricsFrom"));
    }
}
