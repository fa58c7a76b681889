//! The token or keys of a claim's source, read where the kubelet mounts them: in the container that waits for the model.
//!
//! So this agent needs no right to read Secrets, and they are on a node only while a pod of their namespace that names them
//! is. Paths are resolved with the container's root as the root; small regular files alone are read.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use stowage_contracts::hub::{TOKEN_DIR, TOKEN_FILE, TokenRef};
use stowage_contracts::s3::{ACCESS_KEY_ID, S3Login, SECRET_ACCESS_KEY, SESSION_TOKEN};
use stowage_fetch::{FetchError, Keys, Token};

use crate::device::process::Processes;

/// Longest file, in bytes.
const LONGEST: u64 = 8192;

/// The token that one of these pods has mounted; `None`: none of them has a container yet that would have it.
pub fn token(processes: &Processes, pods: &[String], named: &TokenRef) -> Result<Option<Token>, FetchError> {
    let Some([text]) = files(processes, pods, &named.secret, [TOKEN_FILE])? else { return Ok(None) };
    let text = text.ok_or_else(|| missing(&named.secret, &named.key))?;
    Token::new(&text).map(Some)
}

/// The same of an object store's keys.
pub fn keys(processes: &Processes, pods: &[String], named: &S3Login) -> Result<Option<Keys>, FetchError> {
    let names = [ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN];
    let Some([id, secret, session]) = files(processes, pods, &named.secret, names)? else { return Ok(None) };
    let id = id.ok_or_else(|| missing(&named.secret, ACCESS_KEY_ID))?;
    let secret = secret.ok_or_else(|| missing(&named.secret, SECRET_ACCESS_KEY))?;
    Keys::new(&id, &secret, session.as_deref()).map(Some)
}

fn missing(secret: &str, key: &str) -> FetchError {
    FetchError::Login { why: format!("Secret {secret} has no key {key} or does not exist") }
}

/// The files in the first container that has one of them; else none of them, if a container waits.
fn files<const N: usize>(
    processes: &Processes,
    pods: &[String],
    secret: &str,
    names: [&str; N],
) -> Result<Option<[Option<String>; N]>, FetchError> {
    let mut waits = false;
    for root in processes.roots_of_pods(pods) {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::openat2(&root, TOKEN_DIR, directory, Mode::empty(), inside) else { continue };
        waits = true;
        let folder = generation(&directory);
        let mut found = [const { None }; N];
        for (text, name) in found.iter_mut().zip(names) {
            *text = file(&root, &folder, name, secret)?;
        }
        if found.iter().any(Option::is_some) {
            return Ok(Some(found));
        }
    }
    Ok(waits.then_some([const { None }; N]))
}

/// Where the files of one version of the Secret lie: the kubelet changes to the next one between two reads.
fn generation(directory: &OwnedFd) -> String {
    let link = rustix::fs::readlinkat(directory, "..data", Vec::new()).ok().and_then(|link| link.into_string().ok());
    let version = link.filter(|link| link.starts_with("..") && link.len() > 2 && !link.contains('/'));
    version.map_or_else(|| TOKEN_DIR.to_owned(), |version| format!("{TOKEN_DIR}/{version}"))
}

fn file(root: &OwnedFd, folder: &str, name: &str, secret: &str) -> Result<Option<String>, FetchError> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = format!("{folder}/{name}");
    let Ok(file) = rustix::fs::openat2(root, path, flags, Mode::empty(), inside).map(File::from) else {
        return Ok(None);
    };
    let bad = |what: &str| FetchError::Login { why: format!("file {name} of Secret {secret} is {what}") };
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err(bad("no file"));
    }
    let mut text = String::new();
    let read = file.take(LONGEST).read_to_string(&mut text);
    read.map_err(|_| bad("not plain text"))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    const POD: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    /// A process of the pod whose root has these files below the directory of the token.
    fn process(proc: &Path, pid: u32, pod: &str, files: Option<&[(&str, &[u8])]>) {
        let process = proc.join(pid.to_string());
        let directory = process.join("root").join(TOKEN_DIR);
        std::fs::create_dir_all(process.join("root")).unwrap();
        std::fs::write(process.join("cgroup"), format!("0::/kubepods/pod{pod}/c")).unwrap();
        for (name, content) in files.into_iter().flatten() {
            std::fs::create_dir_all(directory.join("..data")).unwrap();
            std::fs::write(directory.join("..data").join(name), content).unwrap();
            symlink(format!("..data/{name}"), directory.join(name)).unwrap();
        }
        if files.is_some() {
            std::fs::create_dir_all(directory).unwrap();
        }
    }

    fn found(proc: &Path) -> Result<Option<Token>, String> {
        let named = TokenRef { namespace: "a".into(), secret: "hub".into(), key: "token".into() };
        token(&Processes::at(proc), &[POD.to_owned()], &named).map_err(|e| e.to_string())
    }

    #[test]
    fn token_is_read_from_the_container_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(dir.path()), Ok(None));
        process(dir.path(), 1, POD, None);
        process(dir.path(), 2, "ffffffff-1111-2222-3333-444455556666", Some(&[(TOKEN_FILE, b"other")]));
        assert_eq!(found(dir.path()), Ok(None), "another pod's");
        process(dir.path(), 3, POD, Some(&[(TOKEN_FILE, b"hf_secret\n")]));
        assert_eq!(found(dir.path()), Ok(Some(Token::new("hf_secret").unwrap())));
    }

    #[test]
    fn missing_key_and_unusable_content_are_named() {
        for (files, part) in [
            (&[][..], "Secret hub has no key token"),
            (&[(TOKEN_FILE, &b""[..])][..], "it is empty"),
            (&[(TOKEN_FILE, &b"a b"[..])][..], "not plain text"),
            (&[(TOKEN_FILE, &b"\xff"[..])][..], "not plain text"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            process(dir.path(), 1, POD, Some(files));
            let error = found(dir.path()).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn keys_are_read_together_from_one_container() {
        let named = S3Login { region: "us-east-1".into(), namespace: "a".into(), secret: "store".into() };
        let found =
            |proc: &Path| super::keys(&Processes::at(proc), &[POD.to_owned()], &named).map_err(|e| e.to_string());
        let (id, secret) = ((ACCESS_KEY_ID, &b"id"[..]), (SECRET_ACCESS_KEY, &b"secret\n"[..]));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(dir.path()), Ok(None));
        process(dir.path(), 1, POD, Some(&[]));
        assert!(found(dir.path()).unwrap_err().contains("Secret store has no key AWS_ACCESS_KEY_ID"));
        process(dir.path(), 2, POD, Some(&[id, secret]));
        assert_eq!(found(dir.path()), Ok(Some(Keys::new("id", "secret", None).unwrap())));
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), 1, POD, Some(&[id]));
        process(dir.path(), 2, POD, Some(&[secret]));
        assert!(found(dir.path()).unwrap_err().contains("has no key AWS_"));
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), 1, POD, Some(&[id, secret, (SESSION_TOKEN, b"session")]));
        assert_eq!(found(dir.path()), Ok(Some(Keys::new("id", "secret", Some("session")).unwrap())));
    }

    #[test]
    fn links_lead_nowhere_outside_of_the_container() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("host"), "host_secret").unwrap();
        process(dir.path(), 1, POD, Some(&[]));
        symlink("../../../../../../host", dir.path().join("1/root").join(TOKEN_DIR).join(TOKEN_FILE)).unwrap();
        assert!(found(dir.path()).is_err());
        let file = dir.path().join("1/root").join(TOKEN_DIR).join(TOKEN_FILE);
        std::fs::remove_file(&file).unwrap();
        symlink(dir.path().join("host"), file).unwrap();
        assert!(found(dir.path()).is_err());
    }
}
