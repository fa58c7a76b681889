//! Carries a checked plan out. Per deployment: pick what belongs to it ([`case`]), build what is
//! missing ([`build`]), write it ([`apply`]), and report what is there ([`status`],
//! [`update_status`], [`events`]); [`desk`] decides who is next, [`cluster`] reports on the
//! cluster-scoped kinds, [`write`] is the only way to change anything.
//!
//! Only `apply`, `update_status`, `events`, `cluster` and `write` hold a client.

pub mod apply;
pub mod build;
pub mod case;
pub mod cluster;
pub mod desk;
pub mod events;
pub mod status;
pub mod update_status;
pub mod write;
