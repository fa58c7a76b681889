//! Mock engines on one side, a gateway over a world that the test writes on the other.

#[path = "../../../../crates/telemetry/tests/support/collector.rs"]
pub mod collector;
pub mod engine;
pub mod harness;
pub mod process;
