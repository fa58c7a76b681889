//! The reconcile pipeline of one deployment: dereference ([`case`]) → [`validate`] → [`build`] →
//! [`apply`] → [`status`] and [`update_status`]. Only `apply`, `update_status`, `events` and
//! [`cluster`] hold a client.

pub mod apply;
pub mod build;
pub mod case;
pub mod cluster;
pub mod events;
pub mod status;
pub mod update_status;
pub mod validate;
