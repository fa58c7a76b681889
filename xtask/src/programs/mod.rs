//! The programs of the local cluster: what the machine must have to build them, and the build.

pub mod build;
pub mod prereq;
