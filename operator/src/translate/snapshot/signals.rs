//! A deployment's signals, as the planner wants them, from what the gateways report.

use std::sync::Arc;
use std::time::Duration;

use stowage_planner::snapshot::{ColdStart, EngineSignals, GatewaySignals, ReplicaCost, Signals, TimeMs};

use crate::observe::history::Earlier;
use crate::observe::signals::Load;
use crate::observe::view::KnownPod;
use crate::translate::learned::Learned;
use crate::translate::snapshot::replicas::serves;

/// An engine whose KV cache is fuller than this can take no more, whatever its batch has room for. Thousandths.
const KV_BOUND_MILLI: u64 = 900;

/// `load`: of the deployment with this UID; `None`: no gateway knows it.
pub fn of(
    load: Option<&Load>,
    pods: &[Arc<KnownPod>],
    learned: Option<&Learned>,
    cold_start: ColdStart,
    earlier: Option<&Earlier>,
) -> Signals {
    let start = cold_start.measured_ms().map(Duration::from_millis);
    Signals {
        gateway: load.and_then(gateway),
        engines: load.and_then(|load| engines(load, pods)),
        costs: learned.map(Learned::costs).unwrap_or_default(),
        cold_start,
        history: earlier.and_then(|earlier| earlier.history(start)),
    }
}

fn gateway(load: &Load) -> Option<GatewaySignals> {
    let counted = load.counted?;
    Some(GatewaySignals {
        from_ms: counted.from_ms,
        to_ms: counted.to_ms,
        arrivals: counted.arrivals,
        sequences: counted.sequences,
        placed: counted.placed,
        input_tokens: counted.input_tokens,
        cached_tokens: counted.cached_tokens,
        mean_output_tokens: load.mean_output_tokens,
        queued: load.queued.saturating_add(load.held),
        queued_tokens: load.waiting_tokens,
        held: load.held,
    })
}

/// Of the Ready replicas, of which each must have reported. `None`: one has not, or none is Ready.
fn engines(load: &Load, pods: &[Arc<KnownPod>]) -> Option<EngineSignals> {
    let ready = pods.iter().filter(|pod| serves(pod));
    let mut sum: Option<EngineSignals> = None;
    for pod in ready {
        let (at_ms, engine) = load.replicas.get(pod.metadata.uid.as_deref()?)?.engine.as_ref()?;
        let kv_milli = (engine.kv_blocks_used.saturating_mul(1000)).checked_div(engine.kv_blocks_total).unwrap_or(0);
        let all = sum.get_or_insert(EngineSignals { at_ms: TimeMs::MAX, ..EngineSignals::default() });
        all.at_ms = all.at_ms.min(*at_ms);
        all.unprefilled_tokens = all.unprefilled_tokens.saturating_add(engine.unprefilled_tokens);
        all.kv_used_milli = all.kv_used_milli.saturating_add(kv_milli);
        all.kv_bound += u32::from(kv_milli > KV_BOUND_MILLI);
        if let (Some(coefficients), Some(replica)) = (engine.coefficients, pod.metadata.name.clone()) {
            all.replicas.push(ReplicaCost { replica, coefficients });
        }
    }
    sum
}
