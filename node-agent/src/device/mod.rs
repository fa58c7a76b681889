//! The GPUs of this node: [`nvml`] asks the driver on the threads of [`sampler`], [`model`] is what
//! comes back; [`health`] decides whether work may run on a GPU, [`inventory`] what is published of it. [`process`]
//! finds the pod of a process.

pub mod health;
pub mod inventory;
pub mod model;
pub mod nvml;
pub mod process;
pub mod sampler;
