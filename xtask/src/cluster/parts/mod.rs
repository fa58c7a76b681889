//! What a cluster consists of: certificates, the control plane, nodes, and the client that talks to them.

pub mod control;
pub mod kubectl;
pub mod node;
pub mod pki;
