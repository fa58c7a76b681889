//! Carries a checked plan out. Per deployment: pick what belongs to it ([`case`]), build what is
//! missing ([`build`]), write it ([`apply`]), and report what became of it ([`refusal`], [`status`],
//! [`update_status`], [`events`]). [`desk`] decides which deployment is next and starts a [`task`],
//! [`backoff`] when it may be tried again; [`cluster`] reports on the cluster-scoped kinds,
//! [`strays`] ends what nobody owns, [`capacity`] asks for nodes; [`write`] is the only way to change anything.
//!
//! Only `apply`, `update_status`, `events`, `cluster`, `strays`, `capacity` and `write` hold a client.

pub mod apply;
pub mod backoff;
pub mod build;
pub mod capacity;
pub mod case;
pub mod cluster;
pub mod desk;
pub mod events;
pub mod refusal;
pub mod status;
pub mod strays;
pub mod task;
pub mod update_status;
pub mod write;
