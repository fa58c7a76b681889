//! The load report, by which routers and autoscalers decide: what the engine core measures, in the form
//! of the contract.

use stowage_contracts::load::{Coefficients, LoadReport};
use stowage_engine_core::engine::Load;
use stowage_engine_core::executor::BLOCK_TOKENS;

/// The part of a report that never changes while the process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name clients send.
    pub model: String,
    /// Unique to this start of the process. Never empty.
    pub incarnation: String,
}

/// The report of one moment.
pub fn report(identity: &Identity, load: &Load, fit: Coefficients, draining: bool) -> LoadReport {
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    LoadReport {
        incarnation: identity.incarnation.clone(),
        running: narrow(load.running),
        waiting: narrow(load.waiting),
        kv_blocks_used: load.blocks_used as u64,
        kv_blocks_total: load.blocks_total as u64,
        block_tokens: BLOCK_TOKENS as u64,
        prefill_backlog_tokens: load.prefill_backlog as u64,
        draining,
        coefficients: Some(fit),
        model: identity.model.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_figures_reach_the_report_in_its_units() {
        let load = Load {
            running: 3,
            waiting: 4,
            blocks_used: 12,
            blocks_total: 400,
            prefill_backlog: 512,
            ..Load::default()
        };
        let identity = Identity { model: "m".to_owned(), incarnation: "7f".to_owned() };
        let report = report(&identity, &load, Coefficients { a: 1.5, ..Coefficients::default() }, true);
        let expected = LoadReport {
            incarnation: "7f".to_owned(),
            running: 3,
            waiting: 4,
            kv_blocks_used: 12,
            kv_blocks_total: 400,
            block_tokens: 16,
            prefill_backlog_tokens: 512,
            draining: true,
            coefficients: Some(Coefficients { a: 1.5, ..Coefficients::default() }),
            model: "m".to_owned(),
        };
        assert_eq!(report, expected);
    }
}
