//! The node agent: one per GPU node.
//!
//! It reads the GPUs through NVML, publishes them (ResourceSlices for the scheduler, a GpuNode with
//! a verdict per GPU for operator and gateways), prepares claims for the kubelet as a DRA driver, and
//! compares each second what is used with what was promised. It places, evicts and routes nothing.
//!
//! | decides, without I/O | acts |
//! |---|---|
//! | [`inventory`]: what is published of a GPU | [`nvml`], [`sampler`]: ask NVML |
//! | [`health`]: may work run on it | [`gpunode`], [`slices`]: write to the API server |
//! | [`overshoot`]: who uses more than promised | [`attribution`]: whose process is it |
//! | [`grant`]: what a claim grants, to whom | [`claims`]: read claims and pods |
//! | [`checkpoint`]: what is promised, may this be too | [`prepare`]: directories, files, order |
//! | [`cdi`]: what a container is given | [`dra`]: the kubelet's sockets |
//! | [`view`], [`summary`]: the picture of the node | [`http`], [`metrics`]: show it |
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod args;
pub mod attribution;
pub mod cdi;
pub mod checkpoint;
pub mod claims;
pub mod dra;
pub mod gpunode;
pub mod grant;
pub mod health;
pub mod http;
pub mod inventory;
pub mod metrics;
pub mod model;
pub mod nvml;
pub mod overshoot;
pub mod prepare;
pub mod sampler;
pub mod slices;
pub mod summary;
pub mod view;
