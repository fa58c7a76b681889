//! Fetches files from where a tenant says they are, a URL, a directory, an object store or a hub's repository: resumable, in parallel ranges, verified,
//! and from no address that it should not reach.
//!
//! Decided in values: which addresses may be connected to ([`address`]), which pieces are missing ([`pieces`]), when to
//! try again ([`backoff`]), which files of a repository or directory are fetched
//! ([`hub`], [`directory`]), how requests to an object store are signed (`login`). Done at the edge: requests (`client`), the
//! file (`partial`), both together ([`Fetcher`]). A file is complete and has its digest, or it has no final name: what is
//! fetched lies beside its journal until it is renamed.
//!
//! Deliberately absent: caches, where credentials come from, and protocols other than HTTP.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod address;
pub mod backoff;
mod beginning;
mod client;
pub mod directory;
mod error;
mod fetch;
pub mod headers;
pub mod hub;
mod login;
mod partial;
pub mod pieces;
mod room;

use std::path::PathBuf;
use std::time::Duration;

pub use beginning::Beginning;
pub use error::{FetchError, Kind};
pub use fetch::Fetcher;
pub use hub::{Files, RemoteFile};
pub use login::{Keys, Login, Token};
pub use partial::discard;
pub use reqwest::Url;
pub use room::Room;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Request {
    /// As [`parse_url`] accepts it.
    pub url: Url,
    /// What the file must hash to.
    pub digest: FileDigest,
    /// Where it is put together; beside it lies the journal, with the ending `.journal`.
    pub partial: PathBuf,
    /// Who may read it; `None`: everybody.
    pub login: Option<Login>,
}

/// What a file hashes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileDigest {
    /// SHA-256 of its bytes.
    Sha256([u8; 32]),
    /// Its name in git: SHA-1 of a header with its length, and its bytes. For small files of hubs, which have no other one.
    GitBlob([u8; 20]),
}

/// What the fetcher keeps to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest file, and most bytes of a repository's files together.
    pub file_bytes: u64,
    /// Bytes that must stay free on the disk.
    pub disk_reserve_bytes: u64,
    /// A file is given up after this time.
    pub total: Duration,
    /// A connection without a byte for so long is closed.
    pub stall: Duration,
    /// A fetch that gets fewer bytes than these in that time is given up.
    pub slowest: (u64, Duration),
    /// Time to connect.
    pub connect: Duration,
    /// Ranges at once.
    pub parallel: usize,
    /// Bytes per second of all ranges together; 0: no limit.
    pub bytes_per_second: u64,
    /// Pause after the first failure in a row; doubled with each further one.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 2 << 40,
            disk_reserve_bytes: 1 << 30,
            total: Duration::from_secs(24 * 3600),
            stall: Duration::from_secs(30),
            slowest: (4 << 20, Duration::from_secs(600)),
            connect: Duration::from_secs(10),
            parallel: 4,
            bytes_per_second: 0,
            pause: Duration::from_millis(500),
        }
    }
}

/// How far a fetch has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes that are on disk.
    pub bytes: u64,
    /// Length of the file; 0: not known yet.
    pub total: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Bytes are being received.
    #[default]
    Fetch,
    /// The digest is being computed.
    Verify,
}

/// A URL that may be fetched, as far as its text says: http or https, with a host, without a user's name or password
/// (they would be readable in the object).
pub fn parse_url(text: &str) -> Result<Url, FetchError> {
    let bad = |why: &str| FetchError::Url { why: why.to_owned() };
    let url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("its scheme is neither http nor https"));
    }
    if url.host().is_none() {
        return Err(bad("it has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it holds a user's name or password"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::parse_url;

    #[test]
    fn urls_are_http_and_hold_no_credentials() {
        for url in ["https://models.example/a.gguf", "http://models.example:8080/a?b=c", "https://[2001:db8::1]/a"] {
            assert!(parse_url(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "a.gguf",
            "file:///etc/passwd",
            "ftp://a/b",
            "https://",
            "https://u:p@a/b",
            "https://u@a/b",
            "unix:/run/x",
        ] {
            assert!(parse_url(url).is_err(), "{url}");
        }
    }
}
