//! Rooms: the files and folders directly in a crate's `src`. Data flows through them in one direction, so no two of
//! them need each other, directly or over others. And a folder with more than twelve files has no order to read it in.
//!
//! Paths are read from the text (`crate::room::…`, `super::room::…`), not from a compiler: macros can hide a way, and
//! what is behind `#[cfg(test)]` at the end of a file does not count.

use super::sources::Source;
use std::collections::{BTreeMap, BTreeSet};

/// More files than this in one folder want rooms.
const FLAT: usize = 12;

/// Folders with too many Rust files directly in them, and how many.
pub fn flat(sources: &[Source]) -> Vec<String> {
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for source in sources {
        *files.entry(source.path.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default() += 1;
    }
    let many = files.into_iter().filter(|(_, count)| *count > FLAT);
    many.map(|(folder, count)| format!("{folder}: {count} files in one folder; give them rooms by subject")).collect()
}

/// Circles between the rooms of a crate, one per crate that has any, as the way around.
pub fn circles(sources: &[Source]) -> Vec<String> {
    let mut crates: BTreeMap<&str, Vec<(&str, &Source)>> = BTreeMap::new();
    for source in sources {
        if let Some((name, inside)) = source.path.split_once("/src/") {
            crates.entry(name).or_default().push((inside, source));
        }
    }
    crates.into_iter().filter_map(|(name, files)| Some(format!("{name}: {}", circle(&edges(&files))?))).collect()
}

/// Which room needs which other ones.
fn edges<'a>(files: &[(&'a str, &Source)]) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let rooms: BTreeSet<&str> = files.iter().filter_map(|(inside, _)| room(inside)).collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (inside, source) in files {
        let Some(from) = room(inside) else { continue };
        for name in needed(inside, &source.text) {
            if let Some(to) = rooms.get(name.as_str()).filter(|to| **to != from) {
                edges.entry(from).or_default().insert(to);
            }
        }
    }
    edges
}

/// The room of a file, from its path in `src`; `None` for the crate's own face.
fn room(inside: &str) -> Option<&str> {
    let first = inside.split('/').next()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!["lib", "main", "bin"].contains(&name)).then_some(name)
}

/// How many `super::` lead from the file's module to the crate's root.
fn depth(inside: &str) -> usize {
    let parts = inside.split('/').count();
    if inside.ends_with("/mod.rs") { parts - 1 } else { parts }
}

/// Names directly below the crate's root that the text uses.
fn needed(inside: &str, text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let up = "super::".repeat(depth(inside));
    let mut names = BTreeSet::new();
    for root in ["crate::", &up] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && !"_:$".contains(before) {
                names.extend(heads(&code[at + root.len()..]));
            }
        }
    }
    names
}

/// The first name of a path, or of each path in `{…}`.
fn heads(path: &str) -> Vec<String> {
    let name = |text: &str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut heads, mut level, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            ',' if level == 0 => {
                heads.push(name(group[start..at].trim()));
                start = at + 1;
            }
            '}' if level == 0 => {
                heads.push(name(group[start..at].trim()));
                break;
            }
            '}' => level -= 1,
            _ => {}
        }
    }
    heads
}

/// Some way from a room back to itself.
fn circle(edges: &BTreeMap<&str, BTreeSet<&str>>) -> Option<String> {
    edges.keys().find_map(|start| {
        let mut ways = vec![vec![*start]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for next in edges.get(way.last()?).into_iter().flatten() {
                if next == start {
                    return Some([way, vec![start]].concat().join(" → "));
                }
                if seen.insert(*next) {
                    ways.push([way.clone(), vec![next]].concat());
                }
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files.iter().map(|(path, text)| Source { path: (*path).into(), text: (*text).into() }).collect()
    }

    #[test]
    fn rooms_of_this_repository_have_an_order_and_no_folder_is_flat() {
        let sources = super::super::sources::all(&crate::base::paths::repo());
        assert_eq!((circles(&sources), flat(&sources)), (Vec::new(), Vec::new()));
    }
    #[test]
    fn rooms_that_need_each_other_over_a_third_are_a_circle() {
        let files = sources(&[
            ("a/src/one/x.rs", "use crate::{two::{T, U}, base};"),
            ("a/src/two.rs", "use super::three::V;"),
            ("a/src/three/mod.rs", "fn f() { crate::one::g() }"),
            ("a/src/base.rs", "use crate::Root;"),
            ("b/src/one.rs", "use crate::two::T;"),
            ("b/src/two.rs", ""),
        ]);
        assert_eq!(circles(&files), ["a: one → two → three → one"]);
    }
    #[test]
    fn comments_tests_the_own_room_and_other_crates_make_no_circle() {
        let files = sources(&[
            ("a/src/one/x.rs", "use super::y::Y;\nuse crate::one::y;\nuse crate::two::T;"),
            ("a/src/one/y.rs", ""),
            (
                "a/src/two.rs",
                "// crate::one::x\nuse other_crate::one::Z;\n#[cfg(test)]\nmod tests { use crate::one::x; }",
            ),
        ]);
        assert_eq!(circles(&files), Vec::<String>::new());
    }
    #[test]
    fn thirteen_files_in_one_folder_are_too_many() {
        let files: Vec<(String, &str)> = (0..13).map(|i| (format!("a/src/f{i}.rs"), "")).collect();
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert_eq!(flat(&sources(&files)).len(), 1);
        assert_eq!(flat(&sources(&files[1..])), Vec::<String>::new());
    }
}
