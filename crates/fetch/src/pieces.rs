//! Which parts of a file are on disk: the journal of a fetch, so that it goes on where it was after a restart.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Bytes of a piece: what is fetched again at most when a node is killed, per range.
pub const PIECE: u64 = 16 << 20;

/// The file that is being fetched, and its complete pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Length of the file.
    pub total: u64,
    /// Its strong validator. Without one a fetch does not go on after a restart.
    pub etag: Option<String>,
    /// Numbers of the pieces that are on disk.
    done: BTreeSet<u64>,
}

impl Journal {
    /// Nothing of the file yet.
    pub fn new(total: u64, etag: Option<String>) -> Self {
        Self { total, etag, done: BTreeSet::new() }
    }

    /// This journal where it describes the same file as one of `total` bytes with this validator; else an empty one.
    pub fn resumed(self, total: u64, etag: Option<&str>) -> Self {
        let same = self.total == total && self.etag.is_some() && self.etag.as_deref() == etag;
        if same { self } else { Self::new(total, etag.map(str::to_owned)) }
    }

    /// The missing pieces: number, first byte and end.
    pub fn missing(&self) -> Vec<(u64, u64, u64)> {
        let place = |piece: u64| (piece, piece * PIECE, ((piece + 1) * PIECE).min(self.total));
        (0..self.total.div_ceil(PIECE)).filter(|piece| !self.done.contains(piece)).map(place).collect()
    }

    /// A piece is on disk.
    pub fn complete(&mut self, piece: u64) {
        self.done.insert(piece);
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.total - self.missing().iter().map(|(_, from, to)| to - from).sum::<u64>()
    }

    /// Whether the pieces exist: a journal is read from disk.
    pub fn is_sound(&self) -> bool {
        let pieces = self.total.div_ceil(PIECE);
        self.done.len() as u64 <= pieces && self.done.iter().all(|piece| *piece < pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_pieces_cover_what_is_not_done() {
        let mut journal = Journal::new(2 * PIECE + 5, Some("\"a\"".into()));
        assert_eq!(journal.missing(), [(0, 0, PIECE), (1, PIECE, 2 * PIECE), (2, 2 * PIECE, 2 * PIECE + 5)]);
        journal.complete(2);
        journal.complete(0);
        journal.complete(0);
        assert_eq!(journal.missing(), [(1, PIECE, 2 * PIECE)]);
        assert_eq!(journal.bytes(), PIECE + 5);
        journal.complete(1);
        assert_eq!((journal.missing(), journal.bytes()), (vec![], 2 * PIECE + 5));
    }

    #[test]
    fn fetch_goes_on_only_where_the_file_is_provably_the_same() {
        let mut journal = Journal::new(PIECE, Some("\"a\"".into()));
        journal.complete(0);
        let bytes = |journal: Journal| journal.bytes();
        assert_eq!(bytes(journal.clone().resumed(PIECE, Some("\"a\""))), PIECE);
        assert_eq!(bytes(journal.clone().resumed(PIECE, Some("\"b\""))), 0);
        assert_eq!(bytes(journal.clone().resumed(PIECE + 1, Some("\"a\""))), 0);
        assert_eq!(bytes(journal.resumed(PIECE, None)), 0);
        let mut unknown = Journal::new(PIECE, None);
        unknown.complete(0);
        assert_eq!(bytes(unknown.resumed(PIECE, None)), 0);
    }

    #[test]
    fn journal_with_impossible_pieces_is_not_sound() {
        let mut journal = Journal::new(PIECE, None);
        assert!(journal.is_sound());
        journal.done = [1].into();
        assert!(!journal.is_sound());
    }
}
