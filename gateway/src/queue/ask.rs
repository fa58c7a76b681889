//! What a request asks for.

use std::sync::Arc;
use std::time::Instant;

use stowage_planner::route::RequestView;

/// What a request asks a pool for.
#[derive(Debug, Clone)]
pub struct Ask {
    pub tenant: Arc<str>,
    pub request: RequestView,
    /// Prompts times choices: what the request occupies on its replica.
    pub sequences: u32,
    /// When this wait began: the arrival at the gateway, or the moment at which its replica was lost.
    pub since: Instant,
    /// Most requests of this tenant that may wait here.
    pub max_queued: Option<u32>,
}
