//! Where things lie: the checkout, and the cache that outlives it.

use std::path::{Path, PathBuf};

/// The root of this checkout.
pub fn repo() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// What a second clone can use again: the cluster's programs, the demo's model.
pub fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    base.unwrap_or_else(home).join("stowage")
}

/// Where Cargo builds: CARGO_TARGET_DIR, or `target` in the checkout.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").filter(|v| !v.is_empty()).map_or_else(|| repo().join("target"), PathBuf::from)
}

/// Where the OCI archive of an image lies.
pub fn image_archive(name: &str) -> PathBuf {
    target().join("images").join(format!("{name}.tar"))
}
