//! What an engine reports of its load, in the units of routing.
//!
//! Reports come from the network: a line that cannot be read, or that no engine can have written, is `None`, and the reader takes it for a broken
//! engine; a header that cannot be read changes nothing.

use stowage_contracts::load::{LoadHeader, LoadReport};
use stowage_planner::route::Coefficients;

/// A line of `GET /stowage/v1/load`.
pub fn parse(line: &[u8]) -> Option<LoadReport> {
    serde_json::from_slice(line).ok().filter(LoadReport::plausible)
}

/// The report brought up to date by the header of an answer.
pub fn update(report: &mut LoadReport, header: &str) {
    if let Some(header) = LoadHeader::parse(header) {
        report.update(header);
    }
}

/// Tokens in the KV cache of running requests.
pub fn kv_tokens(report: &LoadReport) -> f64 {
    report.kv_blocks_used as f64 * report.block_tokens as f64
}

/// Tokens that the KV cache can hold; 0 is unknown.
pub fn kv_capacity(report: &LoadReport) -> f64 {
    report.kv_blocks_total as f64 * report.block_tokens as f64
}

/// What routing calculates with; `None` when the engine has learned nothing.
pub fn coefficients(report: &LoadReport) -> Option<Coefficients> {
    report.coefficients
}
