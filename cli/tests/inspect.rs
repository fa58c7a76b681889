//! `model inspect` of models that are not here, against what it says of the same files on disk.

#![allow(clippy::unwrap_used)]

#[path = "../../engine/server/tests/support/clockwork.rs"]
mod clockwork;
#[path = "../../crates/fetch/tests/server/hub.rs"]
mod hub;

use std::path::Path;
use std::process::{Command, Output};

use clockwork::{Clockwork, Directory, Gguf};
use hub::{FIRST, Hub};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The program's answer, in an environment of its own.
fn inspect(source: &str, env: &[(&str, &str)], options: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_kubectl-stowage");
    let mut command = Command::new(program);
    command.args(["model", "inspect", source]).args(options).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn facts(source: &str, env: &[(&str, &str)]) -> Value {
    let output = inspect(source, env, &["-o", "json"]);
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn digest(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A repository with a model in both formats and the list of a directory; its paths on disk, and the list's digest.
fn repository(dir: &Path) -> (Hub, [String; 2], String) {
    let hello = Clockwork::hello();
    let whole = Directory::new(&hello).write(&dir.join("whole"));
    let gguf = Gguf::new(&hello).write(&dir.join("m.gguf"));
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let mut files: Vec<(&str, Vec<u8>)> = names.map(|name| (name, std::fs::read(whole.join(name)).unwrap())).into();
    let list: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", digest(bytes))).collect();
    files.extend([("m.gguf", std::fs::read(&gguf).unwrap()), ("SHA256SUMS", list.clone().into())]);
    let hub = Hub::start(&files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect::<Vec<_>>());
    (hub, [&whole, &gguf].map(|path| path.display().to_string()), digest(list))
}

#[test]
fn model_elsewhere_is_what_the_same_files_are_here() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, [whole, gguf], list) = repository(dir.path());
    let endpoint = hub.endpoint();
    let hf = [("HF_ENDPOINT", endpoint.as_str())];
    let store = format!("{endpoint}/o/n");
    let s3 = [("AWS_ENDPOINT_URL", store.as_str()), ("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let (file, folder) = (format!("{store}/resolve/{FIRST}/m.gguf"), format!("{store}/resolve/{FIRST}/"));
    let (object, prefix) = (format!("s3://resolve/{FIRST}/m.gguf"), format!("s3://resolve/{FIRST}/"));
    let pin = |field: &str, value: &str| Some((field.to_owned(), value.to_owned()));
    for (source, env, same, pinned) in [
        (file.as_str(), &[][..], &gguf, None),
        (&folder, &[], &whole, pin("sha256", &list)),
        ("hf://o/n", &hf, &whole, pin("revision", FIRST)),
        ("hf://o/n@main/m.gguf", &hf, &gguf, pin("revision", FIRST)),
        (&object, &s3, &gguf, None),
        (&prefix, &s3, &whole, pin("sha256", &list)),
    ] {
        let (mut found, mut here) = (facts(source, env), facts(same, &[]));
        let named = pinned.map(|(field, value)| serde_json::json!({field: value}));
        assert_eq!(found.as_object_mut().unwrap().remove("pinned"), named, "{source}");
        let name = found["name"].as_str().unwrap_or_default();
        let folder = if source.starts_with("hf:") { "n" } else { FIRST };
        assert!(name == folder || same == &gguf, "{source}: {name}");
        for report in [&mut found, &mut here] {
            let report = report.as_object_mut().unwrap();
            report.remove("source");
            report.remove("name");
        }
        assert_eq!(found, here, "{source}");
    }
    let with = |id: &str| {
        hub.state
            .lock()
            .unwrap()
            .asked
            .iter()
            .any(|(_, path, login)| path.ends_with("m.gguf") && login.as_deref() == Some(id))
    };
    assert!(with("id"), "requests to the store are signed");
}

#[test]
fn what_cannot_be_inspected_says_why_and_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, ..) = repository(dir.path());
    hub.state.lock().unwrap().token = "hf_right".into();
    let endpoint = hub.endpoint();
    let env = |token| vec![("HF_ENDPOINT", endpoint.as_str()), ("HF_TOKEN", token)];
    for (source, token, code, part) in [
        ("hf://o/n/m.gguf", "hf_right", 0, ""),
        ("hf://o/n/m.gguf", "hf_wrong", 1, "o/n"),
        ("hf://o/n/absent.gguf", "hf_right", 1, "its GGUF files: m.gguf"),
        ("hf://o", "hf_right", 2, "write hf://owner/name"),
        ("hf://o/../n", "hf_right", 2, "write hf://owner/name"),
        ("s3://b", "hf_right", 2, "write s3://bucket"),
        ("s3://bucket/a/../b.gguf", "hf_right", 2, "write s3://bucket"),
    ] {
        let output = inspect(source, &env(token), &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{source}: {said}");
        assert!(said.contains(part) && !said.contains(token), "{source}: {said}");
    }
}
