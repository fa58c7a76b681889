//! What one can do with a cluster, one file per command.

pub mod check;
pub mod down;
pub mod forward;
pub mod load;
pub mod observe;
pub mod status;
pub mod up;
