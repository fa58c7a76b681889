//! NVIDIA's management library without a GPU: `libfake_nvml.so` exports the C symbols of NVML that
//! Stowage calls and answers them from a scenario file.
//!
//! The node agent loads this library instead of `libnvidia-ml.so`; nothing else differs, so the
//! NVML code that runs in tests and in the demo is the code that ships. What the library knows:
//! - the **scenario** (`STOWAGE_FAKE_NVML_SCENARIO`, see [`stowage_gpu_scenario`]): devices, faults, explicit
//!   processes. Re-read when the file changes; a broken file leaves the last good one in force.
//! - the **reports** (`STOWAGE_FAKE_NVML_REPORTS`, see `reports`): the claims, whose pods' processes
//!   are found by the lock they hold, their size reported or read from `/proc`.
//!
//! It computes nothing that a GPU would compute, enforces no limit, and leaves out every symbol
//! that Stowage does not call: a missing symbol is an error of that call, as with an old driver.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod events;
mod ffi;
mod reports;

/// Environment variable with the directory that replaces `/proc`, read at `nvmlInit`. For tests.
pub const PROC_ENV: &str = "STOWAGE_FAKE_NVML_PROC";
