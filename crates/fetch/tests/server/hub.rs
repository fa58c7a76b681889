//! A hub of one repository on loopback, with a store of large files under another port, and what was asked of both.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// Files above this are in the store.
const LARGE: usize = 1000;
pub const FIRST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const SECOND: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// What the tests change while it runs.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The commit of `main`.
    pub main: String,
    /// Empty: everybody may read.
    pub token: String,
    /// Files that are sent with another content than is listed.
    pub damaged: Vec<String>,
    /// Files that are not sent at all.
    pub missing: Vec<String>,
    /// Each request: port, path, and the token, or the id of the keys, that came with it.
    pub asked: Vec<(u16, String, Option<String>)>,
}

pub struct Hub {
    pub address: SocketAddr,
    pub store: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start(files: &[(&str, &[u8])]) -> Hub {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, main: FIRST.into(), ..State::default() }));
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, store] = [0, 1].map(|n| listeners[n].local_addr().unwrap());
        for listener in listeners {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || answer(&stream.unwrap(), store, &state));
                }
            });
        }
        Hub { address, store, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Paths that were asked for, of the hub and the store.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.iter().map(|(_, path, _)| path.clone()).collect()
    }
}

fn answer(mut stream: &TcpStream, store: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    let (mut first, mut line, mut range, mut token) = (String::new(), String::new(), None, None);
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        let lower = line.trim_end().to_lowercase();
        if first.is_empty() {
            first = line.clone();
        } else if let Some(value) = lower.strip_prefix("range: bytes=") {
            let (from, last) = value.split_once('-').unwrap();
            range = Some((from.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1));
        } else if lower.starts_with("authorization: ") {
            let last = line.trim_end().rsplit(' ').next().unwrap_or_default();
            let id = line.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next());
            token = Some(id.unwrap_or(last).to_owned());
        }
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let port = stream.local_addr()?.port();
    let mut state = state.lock().unwrap();
    state.asked.push((port, path.clone(), token.clone()));
    let (head, body) = reply(&state, store, port, &path, token.as_deref(), range);
    drop(state);
    write!(stream, "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

type Reply = (String, Vec<u8>);

fn reply(
    state: &State,
    store: SocketAddr,
    port: u16,
    path: &str,
    token: Option<&str>,
    range: Option<(usize, usize)>,
) -> Reply {
    let not_found = || ("404 Not Found".to_owned(), Vec::new());
    if port == store.port() {
        let name = path.trim_start_matches('/');
        let Some(bytes) = state.files.get(name).filter(|_| token.is_none()) else { return not_found() };
        return content(state, name, bytes, range);
    }
    if !state.token.is_empty() && token != Some(&state.token) {
        return ("401 Unauthorized".into(), Vec::new());
    }
    let commit = |revision: &str| match revision {
        "main" => Some(state.main.clone()),
        commit if commit.len() == 40 => Some(commit.to_owned()),
        _ => None,
    };
    if let Some(revision) = path.strip_prefix("/api/models/o/n/revision/") {
        let revision = revision.split('?').next().unwrap_or_default();
        let Some(commit) = commit(revision) else { return not_found() };
        return ("200 OK".into(), listing(state, &commit).into_bytes());
    }
    let Some((_, name)) = path.strip_prefix("/o/n/resolve/").and_then(|rest| rest.split_once('/')) else {
        return not_found();
    };
    match state.files.get(name).filter(|_| !state.missing.iter().any(|missing| missing == name)) {
        None => not_found(),
        Some(bytes) if bytes.len() > LARGE => (format!("302 Found\r\nlocation: http://{store}/{name}"), Vec::new()),
        Some(bytes) => content(state, name, bytes, range),
    }
}

fn content(state: &State, name: &str, bytes: &[u8], range: Option<(usize, usize)>) -> Reply {
    let mut bytes = bytes.to_vec();
    if state.damaged.iter().any(|damaged| damaged == name) {
        bytes[0] ^= 1;
    }
    let Some((from, to)) = range else { return ("200 OK".into(), bytes) };
    let (from, to, total) = (from.min(bytes.len()), to.min(bytes.len()), bytes.len());
    let head = format!("206 Partial Content\r\netag: \"{name}\"\r\ncontent-range: bytes {from}-{}/{total}", to - 1);
    (head, bytes[from..to].to_vec())
}

fn listing(state: &State, commit: &str) -> String {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let blob = hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize());
        let size = bytes.len();
        let lfs =
            format!(",\"lfs\":{{\"sha256\":\"{}\",\"size\":{size},\"pointerSize\":1}}", hex(&Sha256::digest(bytes)));
        let lfs = if size > LARGE { lfs } else { String::new() };
        format!("{{\"rfilename\":\"{name}\",\"size\":{size},\"blobId\":\"{blob}\"{lfs}}}")
    };
    let siblings: Vec<String> = state.files.iter().map(sibling).collect();
    format!("{{\"id\":\"o/n\",\"sha\":\"{commit}\",\"siblings\":[{}]}}", siblings.join(","))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
