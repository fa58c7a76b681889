//! The file that is being put together, and its journal.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::FileDigest;
use crate::error::FetchError;
use crate::pieces::Journal;

/// Longest journal: a file of 2 TiB has 131,072 pieces.
const JOURNAL_BYTES: u64 = 4 << 20;

/// An open partial file.
pub struct Partial {
    file: File,
    path: PathBuf,
    pub journal: Journal,
}

impl Partial {
    /// Goes on where an earlier fetch of the same file ended.
    pub fn open(path: &Path, total: u64, etag: Option<&str>) -> io::Result<Self> {
        let found = read_journal(&journal_path(path));
        let journal =
            found.map_or_else(|| Journal::new(total, etag.map(str::to_owned)), |found| found.resumed(total, etag));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        // Pieces beyond the end of a file that was cut would read as zeros.
        let whole = file.metadata()?.len() == total;
        let journal = if whole { journal } else { Journal::new(total, etag.map(str::to_owned)) };
        file.set_len(total)?;
        let partial = Self { file, path: path.to_owned(), journal };
        partial.save()?;
        Ok(partial)
    }

    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// A piece is complete: it is on disk before the journal says so.
    pub fn complete(&mut self, piece: u64) -> io::Result<()> {
        self.file.sync_data()?;
        self.journal.complete(piece);
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let (path, next) = (journal_path(&self.path), self.path.with_extension("journal.next"));
        std::fs::write(&next, serde_json::to_vec(&self.journal)?)?;
        std::fs::rename(next, path)
    }

    /// Reads the file back and compares its digest.
    pub fn verify(&mut self, wanted: FileDigest) -> Result<(), FetchError> {
        self.file.sync_all()?;
        let (found, wanted) = match wanted {
            FileDigest::Sha256(wanted) => (self.digest(Sha256::new())?, wanted.to_vec()),
            // A file in git is hashed with what it is and how long it is before it.
            FileDigest::GitBlob(wanted) => {
                let head = format!("blob {}\0", self.file.metadata()?.len());
                (self.digest(Sha1::new().chain_update(head))?, wanted.to_vec())
            }
        };
        if found == wanted {
            return Ok(());
        }
        Err(FetchError::Digest { found: hex(&found), wanted: hex(&wanted) })
    }

    fn digest<D: Digest>(&mut self, mut hasher: D) -> io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(hasher.finalize().to_vec()),
                read => hasher.update(&buffer[..read]),
            }
        }
    }
}

/// Removes a partial file and its journal.
pub fn discard(path: &Path) -> io::Result<()> {
    for file in [journal_path(path), path.to_owned()] {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Where the journal of a partial file is.
pub fn journal_path(path: &Path) -> PathBuf {
    path.with_extension("journal")
}

fn read_journal(path: &Path) -> Option<Journal> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(JOURNAL_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok().filter(Journal::is_sound)
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
