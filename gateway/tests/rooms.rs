//! The rooms of this crate use one another in one direction: the order in which a request passes them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// In the order of a request. Each may use those before it, `metrics` and `outcome`.
const ROOMS: [&str; 4] = ["listen", "world", "queue", "relay"];

/// With those of the folders in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let within = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    std::fs::read_dir(folder).unwrap().flat_map(|entry| within(entry.unwrap().path())).collect()
}

#[test]
fn rooms_use_only_rooms_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (index, room) in ROOMS.iter().enumerate() {
        let later = ROOMS[index + 1..].iter().chain(&["gateway", "admin"]);
        let forbidden: Vec<_> = later.map(|name| format!("crate::{name}::")).collect();
        for path in files(&src.join(room)) {
            let text = std::fs::read_to_string(&path).unwrap();
            for name in &forbidden {
                assert!(!text.contains(name.as_str()), "{} uses {name}", path.display());
            }
        }
    }
}
