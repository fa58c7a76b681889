//! The node agent: one per GPU node.
//!
//! It reads the GPUs through NVML, publishes them (ResourceSlices for the scheduler, a GpuNode with
//! a verdict per GPU for operator and gateways), prepares claims for the kubelet as a DRA driver, and
//! compares each second what is used with what was promised. It places, evicts and routes nothing.
//!
//! Data flows in this order, and a module uses only those before it: [`device`] reads the GPUs and
//! decides what they are and whether work may run on them; [`dra`] promises them to claims and hands
//! them to containers; [`models`] fetches and keeps the models that claims read; [`usage`] compares what runs with what was promised; [`serve`] reports all of
//! it; [`agent`] starts the parts and connects them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod args;
pub mod device;
pub mod dra;
pub mod models;
pub mod serve;
pub mod usage;
