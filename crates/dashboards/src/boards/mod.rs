//! The dashboards, one file each.

mod decisions;
mod engine;
mod gpus;
mod serving;
mod tenants;

use crate::grafana::Dashboard;

/// Matchers of the deployments that are chosen at the top.
const CHOSEN: &str = r#"namespace=~"$namespace", deployment=~"$deployment""#;

/// All of them.
pub fn all() -> Vec<Dashboard> {
    vec![decisions::board(), serving::board(), gpus::board(), tenants::board(), engine::board()]
}
