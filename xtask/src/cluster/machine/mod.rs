//! What a cluster uses of this machine: privileges, control groups, processes, network namespaces.

pub mod cgroup;
pub mod network;
pub mod prereq;
pub mod process;
