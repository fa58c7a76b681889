//! Why a fetch failed, and whether trying again can help.

use std::net::IpAddr;
use std::time::Duration;

/// Why a fetch failed. One line each: what happened, why, and what to do; without the URL, whose query may be secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL cannot be used.
    #[error("the URL cannot be fetched: {why}; correct it")]
    Url {
        /// Which part.
        why: String,
    },
    /// The host, or one that it redirects to, is not outside.
    #[error(
        "{host} leads to {what} ({address}), from which nothing is fetched; use a public address, or have the platform allow it"
    )]
    Address {
        /// Name as in the URL.
        host: String,
        /// What it resolves to.
        address: IpAddr,
        /// What the address is.
        what: &'static str,
    },
    /// More redirects than any server needs.
    #[error("more than {0} redirects; use the address that they lead to")]
    Redirects(usize),
    /// From https to http.
    #[error("{host} redirects from https to http; use an address without that")]
    Downgrade {
        /// Of the second URL.
        host: String,
    },
    /// The server refuses: another attempt gives the same answer.
    #[error("{host} answers {status}; check that the address exists and needs no login")]
    Refused {
        /// Of the URL that was asked.
        host: String,
        /// HTTP status.
        status: u16,
    },
    /// The server fails for the moment.
    #[error("{host} answers {status}")]
    Unavailable {
        /// Of the URL that was asked.
        host: String,
        /// HTTP status.
        status: u16,
        /// Its `Retry-After`.
        after: Option<Duration>,
    },
    /// No connection, or one that ended early or stalled.
    #[error("the connection to {host} failed: {why}")]
    Connection {
        /// Of the URL that was asked.
        host: String,
        /// The cause.
        why: String,
    },
    /// A description without an end.
    #[error("{host} describes it in more than {limit} bytes; use a source with fewer files")]
    LongAnswer {
        /// Of the URL that was asked.
        host: String,
        /// The limit.
        limit: u64,
    },
    /// An object store refuses the keys, or what they ask for.
    #[error(
        "{host} answers {status} to the keys; check that they are valid and may read the object, and that bucket, key and region are right"
    )]
    Denied {
        /// Of the URL that was asked.
        host: String,
        /// HTTP status.
        status: u16,
    },
    /// The token or the keys cannot be used or were not found.
    #[error("the token or keys cannot be used: {why}; correct the Secret")]
    Login {
        /// What is wrong with it.
        why: String,
    },
    /// A repository of a hub.
    #[error("repository {name}: {why}")]
    Repository {
        /// `owner/name`.
        name: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A directory with a list of digests.
    #[error("the directory at {host}: {why}")]
    Directory {
        /// Of its URL.
        host: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The same kind of failure again and again.
    #[error("{last}; that was attempt {attempts} without progress between them: check the source")]
    GivenUp {
        /// In a row.
        attempts: u32,
        /// The last one.
        last: Box<FetchError>,
    },
    /// What the server sends contradicts what it says.
    #[error("{host} {what}")]
    Broken {
        /// Of the URL that was asked.
        host: String,
        /// In words.
        what: String,
    },
    /// The file is another one than at the beginning.
    #[error("the file at {host} changed while it was fetched; fetching it from the start")]
    Changed {
        /// Of the URL that was asked.
        host: String,
    },
    /// Longer than allowed.
    #[error("the file has {bytes} bytes, {limit} are allowed; use a smaller model or raise the limit")]
    TooLarge {
        /// Of the file.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No room.
    #[error("the file needs {needed} more bytes, the node's disk has {free} free beyond its reserve; free space on it")]
    DiskFull {
        /// Bytes still to be written.
        needed: u64,
        /// Free beyond the reserve.
        free: u64,
    },
    /// No room beside what is in use.
    #[error(
        "the file needs {needed} more bytes, the node's cache has {free} beside the models in use; use a smaller model, or have the platform raise nodeAgent.models.cacheBytes"
    )]
    CacheFull {
        /// Bytes still to be written.
        needed: u64,
        /// Left in the cache.
        free: u64,
    },
    /// Another file.
    #[error(
        "the file has the digest {found}, not {wanted}; it is another file or damaged: correct the digest or the address"
    )]
    Digest {
        /// Of what was fetched.
        found: String,
        /// Of the request.
        wanted: String,
    },
    /// Too slow.
    #[error("not complete after {0:?}; use a faster source")]
    TooSlow(Duration),
    /// Hardly anything comes.
    #[error("only {bytes} bytes came in {within:?}; use a faster source")]
    Trickle {
        /// Received.
        bytes: u64,
        /// In this time.
        within: Duration,
    },
    /// One of the files of a repository.
    #[error("{name}: {cause}")]
    OfFile {
        /// Its name.
        name: String,
        /// What happened to it.
        cause: Box<FetchError>,
    },
    /// The partial file.
    #[error("cannot write the file: {0}; free space on the node's disk or repair it")]
    File(#[from] std::io::Error),
}

/// The beginning of what a server wrote: an error goes into objects and logs.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let plain = text.chars().filter(|c| !c.is_control());
    if text.len() <= LONGEST { plain.collect() } else { plain.take(LONGEST).chain(['…']).collect() }
}

/// What follows from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The same request may work later.
    Transient,
    /// What was fetched is useless; a request from the start may work.
    Restart,
    /// The request, the source or the node must change first.
    Permanent,
}

impl FetchError {
    /// The same of one file of many.
    pub(crate) fn of_file(self, name: &str) -> Self {
        match self {
            // Errors about the disk and the whole are not about this file.
            e @ (Self::DiskFull { .. }
            | Self::CacheFull { .. }
            | Self::TooSlow(_)
            | Self::Trickle { .. }
            | Self::Address { .. }) => e,
            e => Self::OfFile { name: name.to_owned(), cause: Box::new(e) },
        }
    }

    /// What happened, without the file to which it did.
    pub fn root(&self) -> &Self {
        match self {
            Self::OfFile { cause, .. } => cause.root(),
            other => other,
        }
    }

    /// What follows from it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::OfFile { cause, .. } => cause.kind(),
            Self::Unavailable { .. } | Self::Connection { .. } | Self::GivenUp { .. } => Kind::Transient,
            Self::Changed { .. } | Self::Broken { .. } => Kind::Restart,
            Self::Url { .. }
            | Self::Address { .. }
            | Self::Redirects(_)
            | Self::Downgrade { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::LongAnswer { .. }
            | Self::Denied { .. }
            | Self::Login { .. }
            | Self::Repository { .. }
            | Self::Directory { .. }
            | Self::DiskFull { .. }
            | Self::CacheFull { .. }
            | Self::Digest { .. }
            | Self::TooSlow(_)
            | Self::Trickle { .. }
            | Self::File(_) => Kind::Permanent,
        }
    }
}
