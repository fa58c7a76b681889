//! The rooms of this crate use one another in one direction: the order in which a request passes them.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// In the order of a request. Each may use those before it, `metrics` and `outcome`.
const ROOMS: [&str; 4] = ["listen", "world", "queue", "relay"];

#[test]
fn rooms_use_only_rooms_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (index, room) in ROOMS.iter().enumerate() {
        let later = ROOMS[index + 1..].iter().chain(&["gateway", "admin"]);
        let forbidden: Vec<_> = later.map(|name| format!("crate::{name}::")).collect();
        for file in std::fs::read_dir(src.join(room)).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for name in &forbidden {
                assert!(!text.contains(name.as_str()), "{} uses {name}", path.display());
            }
        }
    }
}
