//! The headers of a model's files, without their weights.
//!
//! They are put into files of the real length that are empty otherwise and take no room: who reads models from files reads
//! these too, and finds what it will find in the whole ones.

use std::io;
use std::path::Path;

use reqwest::Url;
use tokio::io::AsyncWriteExt;

use crate::{FetchError, Fetcher, Login, RemoteFile};

/// The first part of a file that is read; most headers fit in it.
const FIRST: u64 = 1 << 20;
/// Each file counts as at least so much: a model has some hundred at most.
const LEAST: u64 = FIRST / 8;
/// Longest file that is read whole: configurations and tokenizers.
const WHOLE: u64 = 8 << 20;

/// What is read at most, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HeaderLimits {
    /// Of one header.
    pub longest: u64,
    /// Of all files of a model together.
    pub all: u64,
}

/// The headers are longer than the limit of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its headers are longer than {} MiB", .0 >> 20)]
pub struct TooLong(pub u64);

/// Knows where the header of a GGUF file ends.
pub trait HeaderReader: Sync {
    /// What reading may fail with.
    type Error: From<FetchError> + From<TooLong> + From<io::Error>;

    /// Whether it ends within the first `have` bytes of the file. True as well of what is no header.
    fn is_whole(&self, path: &Path, have: u64) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

/// Puts headers into files.
pub struct Headers<'a, R> {
    fetcher: &'a Fetcher,
    login: Option<&'a Login>,
    limits: HeaderLimits,
    reader: &'a R,
    read: u64,
}

impl<'a, R: HeaderReader> Headers<'a, R> {
    /// `login`: who may read the source; `None`: everybody.
    pub fn new(fetcher: &'a Fetcher, login: Option<&'a Login>, limits: HeaderLimits, reader: &'a R) -> Self {
        Self { fetcher, login, limits, reader, read: 0 }
    }

    /// Of all files of a model, into this folder: of weights the headers, of small files everything.
    pub async fn of_all(&mut self, files: &[RemoteFile], folder: &Path) -> Result<(), R::Error> {
        for RemoteFile { url, name, bytes, .. } in files {
            let path = folder.join(name);
            if name.ends_with(".gguf") || name.ends_with(".safetensors") {
                self.of(url, &path).await?;
            } else if *bytes == 0 {
                tokio::fs::write(path, []).await?;
            } else if *bytes <= WHOLE {
                self.count(*bytes)?;
                let whole = self.fetcher.beginning(url, *bytes, self.login).await?;
                tokio::fs::write(path, whole.bytes).await?;
            }
        }
        Ok(())
    }

    /// Of one file, into this one.
    pub async fn of(&mut self, url: &Url, path: &Path) -> Result<(), R::Error> {
        let mut bytes = FIRST;
        loop {
            let beginning = self.fetcher.beginning(url, bytes, self.login).await?;
            let (have, total) = (beginning.bytes.len() as u64, beginning.total);
            let announced = announced(path, &beginning.bytes, total);
            write(path, &beginning.bytes, total).await?;
            drop(beginning);
            let needed = match announced {
                Some(len) => len,
                None if self.reader.is_whole(path, have).await? => have,
                None => have + 1,
            };
            if have >= needed.min(total) {
                return Ok(self.count(needed.min(have).max(LEAST))?);
            }
            bytes = needed.max(2 * have);
            if bytes > self.limits.longest {
                return Err(TooLong(self.limits.longest).into());
            }
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), TooLong> {
        self.read = self.read.saturating_add(bytes);
        if self.read > self.limits.all { Err(TooLong(self.limits.all)) } else { Ok(()) }
    }
}

/// A file of the real length, of which only the beginning takes room.
async fn write(path: &Path, head: &[u8], total: u64) -> io::Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    file.write_all(head).await?;
    file.set_len(total).await?;
    file.flush().await
}

/// Bytes of the header of a safetensors file; more than the file has is not believed. `None`: of no such file.
fn announced(path: &Path, head: &[u8], total: u64) -> Option<u64> {
    path.extension().filter(|ending| *ending == "safetensors")?;
    let len = head.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len).saturating_add(8));
    Some(if len <= total { len } else { 0 })
}
