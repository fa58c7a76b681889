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
    /// Another file.
    #[error(
        "the file has the sha256 {found}, not {wanted}; it is another file or damaged: correct the digest or the address"
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
    /// The partial file.
    #[error("cannot write the file: {0}; free space on the node's disk or repair it")]
    File(#[from] std::io::Error),
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
    /// What follows from it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unavailable { .. } | Self::Connection { .. } => Kind::Transient,
            Self::Changed { .. } | Self::Broken { .. } => Kind::Restart,
            Self::Url { .. }
            | Self::Address { .. }
            | Self::Redirects(_)
            | Self::Downgrade { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::DiskFull { .. }
            | Self::Digest { .. }
            | Self::TooSlow(_)
            | Self::File(_) => Kind::Permanent,
        }
    }
}
