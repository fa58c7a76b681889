//! A model as an image: one layer with its files, world-readable, because engines run as ordinary users.
//!
//! A single file is `/model.gguf` in the image, the parts of a split one keep their names, and a folder is `/model`, with
//! the files that hold data ([`is_model_file`]); the rest is left out and named.

use std::path::{Path, PathBuf};

use stowage_contracts::model::is_model_file;

use crate::{Config, Entry, Layer, OciError, write};

/// An image of a model.
#[derive(Debug, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the manifest.
    pub digest: String,
    /// The model in the image: `spec.model.source.image.path`.
    pub path: String,
    /// Files of the folder that are not in the image.
    pub left_out: Vec<String>,
}

/// Writes the image `name` of the model at `source` to `archive`.
pub fn pack(source: &Path, archive: &Path, name: &str) -> Result<Packed, OciError> {
    let (path, files, left_out) = if source.is_dir() { folder(source)? } else { file(source) };
    let entries: Vec<Entry> = files.into_iter().map(|(path, file)| Entry::From(path, 0o644, file)).collect();
    let digest = write(archive, name, &[&Layer::new(&entries)?], &Config::default())?;
    Ok(Packed { digest, path: format!("/{path}"), left_out })
}

/// The model's path in the image, each file's path there and its place on disk, and what is left out.
type Files = (String, Vec<(String, PathBuf)>, Vec<String>);

fn file(source: &Path) -> Files {
    let parts = parts(source);
    if parts.len() > 1 {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return (name(source), parts.into_iter().map(|path| (name(&path), path)).collect(), Vec::new());
    }
    let inside = "model.gguf".to_owned();
    (inside.clone(), vec![(inside, source.to_owned())], Vec::new())
}

/// The parts of a split model of which `first` is the first, by its name; itself otherwise.
fn parts(first: &Path) -> Vec<PathBuf> {
    let alone = || vec![first.to_owned()];
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((prefix, count)) = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-00001-of-")) else {
        return alone();
    };
    match count.parse::<u32>() {
        Ok(parts @ 2..=10_000) if count.len() == 5 => {
            (1..=parts).map(|part| first.with_file_name(format!("{prefix}-{part:05}-of-{count}.gguf"))).collect()
        }
        _ => alone(),
    }
}

fn folder(source: &Path) -> Result<Files, OciError> {
    let read = |e| OciError::Read { path: source.into(), source: e };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(source).map_err(read)? {
        names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let taken = |name: &String| is_model_file(name) && source.join(name).is_file();
    let (files, left_out): (Vec<String>, Vec<String>) = names.into_iter().partition(taken);
    if !files.iter().any(|name| name.ends_with(".safetensors") || name.ends_with(".gguf")) {
        return Err(OciError::NoWeights { path: source.into() });
    }
    let files = files.into_iter().map(|name| (format!("model/{name}"), source.join(name))).collect();
    Ok(("model".into(), files, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs `source` among these files; the model's path, the files in the image, and what was left out.
    #[track_caller]
    fn check(files: &[&str], source: &str, path: &str, inside: &[&str], left_out: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for name in files {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, name).unwrap();
        }
        let (found, entries, left) = if dir.path().join(source).is_dir() {
            folder(&dir.path().join(source)).unwrap()
        } else {
            file(&dir.path().join(source))
        };
        let entries: Vec<&str> = entries.iter().map(|(path, _)| path.as_str()).collect();
        let left: Vec<&str> = left.iter().map(String::as_str).collect();
        assert_eq!((found.as_str(), entries.as_slice(), left.as_slice()), (path, inside, left_out));
        let archive = dir.path().join("out/model.tar");
        assert_eq!(pack(&dir.path().join(source), &archive, "localhost/m:1").unwrap().path, format!("/{path}"));
    }

    #[test]
    fn file_is_the_model_whatever_its_name() {
        check(&["mine.gguf", "other.gguf"], "mine.gguf", "model.gguf", &["model.gguf"], &[]);
    }

    #[test]
    fn parts_of_a_split_file_keep_their_names() {
        let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        check(&parts, parts[0], parts[0], &parts, &[]);
    }

    #[test]
    fn folder_is_packed_without_code_and_pickles() {
        let files =
            ["d/config.json", "d/model.safetensors", "d/modeling.py", "d/pytorch_model.bin", "d/onnx/model.onnx"];
        let inside = ["model/config.json", "model/model.safetensors"];
        check(&files, "d", "model", &inside, &["modeling.py", "onnx", "pytorch_model.bin"]);
    }

    #[test]
    fn folder_without_weights_and_a_missing_part_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
        let archive = dir.path().join("model.tar");
        assert!(matches!(pack(dir.path(), &archive, "x"), Err(OciError::NoWeights { .. })));
        let first = dir.path().join("m-00001-of-00002.gguf");
        std::fs::write(&first, "x").unwrap();
        let missing = dir.path().join("m-00002-of-00002.gguf");
        assert!(matches!(pack(&first, &archive, "x"), Err(OciError::Read { path, .. }) if path == missing));
    }
}
