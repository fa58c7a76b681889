//! The project's own Rust files, with their text.

use std::path::{Path, PathBuf};

/// A Rust file.
pub struct Source {
    /// Below the root of the checkout, with `/` between the parts.
    pub path: String,
    pub text: String,
}

/// All of them, in the order of their paths; build outputs and hidden folders are left out.
pub fn all(root: &Path) -> Vec<Source> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path()) {
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.') || n == "target");
            if path.is_dir() && !path.is_symlink() && !hidden {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(source(root, path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn source(root: &Path, path: PathBuf) -> Source {
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    Source { path: path.strip_prefix(root).unwrap_or(&path).display().to_string(), text }
}
