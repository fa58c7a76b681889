//! Configuration at start: flags, or the environment variables beside them.

use std::time::Duration;

use clap::Parser;
use stowage_crds::names::{LEASE, OPERATOR_ADMIN_PORT, SYSTEM_NAMESPACE};

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
    /// Longest time between two plans, in milliseconds.
    #[arg(long, env = "STOWAGE_PLAN_INTERVAL_MS", default_value_t = 5000)]
    pub plan_interval_ms: u64,
    /// A lease that is not renewed for this long is taken over, in milliseconds.
    #[arg(long, env = "STOWAGE_LEASE_MS", default_value_t = 8000)]
    pub lease_ms: u64,
    /// How often the leader renews, in milliseconds.
    #[arg(long, env = "STOWAGE_RENEW_MS", default_value_t = 2000)]
    pub renew_ms: u64,
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

    pub fn period(&self) -> Duration {
        Duration::from_millis(self.plan_interval_ms.clamp(200, 60_000))
    }
}
