//! Claims on this node's GPUs: [`slices`] publishes the devices, [`plugin`] answers the kubelet.
//! A claim is read by [`claims`], checked by [`grant`], admitted and recorded by [`checkpoint`], and
//! handed to its containers by [`cdi`]; [`prepare`] does this in the order that survives a crash.

pub mod cdi;
pub mod checkpoint;
pub mod claims;
pub mod files;
pub mod grant;
pub mod model_dirs;
pub mod plugin;
pub mod prepare;
pub mod remove;
pub mod slices;
