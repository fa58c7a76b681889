//! The beginning of a file, in memory: for headers.

use reqwest::Url;

use crate::backoff::Failures;
use crate::client::{ASKED, Answer, cause};
use crate::error::FetchError;
use crate::fetch::Fetcher;
use crate::login::Login;

/// The first bytes of a file, and how long the whole is.
#[derive(Debug)]
pub struct Beginning {
    /// As many as were asked for, or the whole file.
    pub bytes: Vec<u8>,
    /// Length of the file.
    pub total: u64,
}

impl Fetcher {
    /// Reads the first bytes of a file. Nothing is verified: a digest is of the whole file.
    pub async fn beginning(&self, url: &Url, bytes: u64, login: Option<&Login>) -> Result<Beginning, FetchError> {
        let (client, mut failures) = (self.client(login.cloned())?, Failures::default());
        loop {
            let read = match client.range(url, 0, bytes.max(ASKED), None).await {
                Ok(answer) => read(answer, bytes).await,
                Err(e) => Err(e),
            };
            match read {
                Ok(beginning) => return Ok(beginning),
                Err(e) => self.wait_after(e, &mut failures, 0).await?,
            }
        }
    }
}

/// A server without ranges sends the whole file, of which the rest is not read.
async fn read(answer: Answer, wanted: u64) -> Result<Beginning, FetchError> {
    let Answer { mut body, host, total, .. } = answer;
    let Some(total) = total else {
        return Err(FetchError::Broken { host, what: "does not say how long the file is".into() });
    };
    let wanted = usize::try_from(wanted.min(total)).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while bytes.len() < wanted {
        let chunk = body.chunk().await.map_err(|e| FetchError::Connection { host: host.clone(), why: cause(&e) })?;
        let Some(chunk) = chunk else {
            let why = format!("it ended at byte {} of {wanted}", bytes.len());
            return Err(FetchError::Connection { host, why });
        };
        bytes.reserve_exact(wanted - bytes.len());
        bytes.extend_from_slice(&chunk[..chunk.len().min(wanted - bytes.len())]);
    }
    Ok(Beginning { bytes, total })
}
