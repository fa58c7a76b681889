//! Headers from where a model is: a path, a URL, a repository of a hub, or an object store.

use std::path::Path;
use std::time::Duration;

use stowage_contracts::hub::{self, DEFAULT_ENDPOINT, DEFAULT_REVISION};
use stowage_contracts::model::FETCHED_FILE;
use stowage_contracts::s3::{self, ACCESS_KEY_ID, DEFAULT_REGION, SECRET_ACCESS_KEY, SESSION_TOKEN};
use stowage_engine_models::chain;
use stowage_engine_models::inspect::{self, Facts, MAX_HEAD};
use stowage_fetch::address::Addresses;
use stowage_fetch::headers::{HeaderLimits, HeaderReader, Headers, TooLong};
use stowage_fetch::{FetchError, Fetcher, Keys, Limits, Login, Token, Url, parse_url};

use crate::Failure;

const LIMITS: HeaderLimits = HeaderLimits { longest: MAX_HEAD, all: 4 * MAX_HEAD };

/// What was found, and which fields of a deployment's source name exactly this.
#[derive(Debug)]
pub struct Found {
    pub facts: Facts,
    pub pinned: Option<(&'static str, String)>,
}

/// How a source is written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source<'a> {
    Path(&'a Path),
    /// A file; with `/` at its end, a directory.
    Http(&'a str),
    Hub {
        repo: String,
        revision: String,
        path: Option<String>,
    },
    Object {
        bucket: &'a str,
        key: &'a str,
    },
}

impl<'a> Source<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Source::Http(text));
        }
        if let Some(rest) = text.strip_prefix("hf://") {
            return repository(rest).ok_or_else(|| wrong(text, "hf://owner/name[@revision][/file.gguf]"));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let found = rest.split_once('/').filter(|(bucket, key)| s3::is_bucket(bucket) && s3::is_key(key));
            let (bucket, key) = found.ok_or_else(|| wrong(text, "s3://bucket/key.gguf or s3://bucket/prefix/"))?;
            return Ok(Source::Object { bucket, key });
        }
        Ok(Source::Path(Path::new(text)))
    }
}

/// As `huggingface_hub` writes it: `/` in a revision is `%2F`.
fn repository(text: &str) -> Option<Source<'static>> {
    let (owner, rest) = text.split_once('/')?;
    let (named, path) = rest.split_once('/').map_or((rest, None), |(named, path)| (named, Some(path.to_owned())));
    let (name, revision) = named.split_once('@').unwrap_or((named, DEFAULT_REVISION));
    let (repo, revision) = (format!("{owner}/{name}"), revision.replace("%2F", "/"));
    let sound = hub::HubModel { repo, revision, path, token: None };
    let hub::HubModel { repo, revision, path, .. } = sound.is_sound().then_some(sound)?;
    Some(Source::Hub { repo, revision, path })
}

fn wrong(text: &str, form: &str) -> Failure {
    Failure::Usage(format!("{text}: write {form}"))
}

/// `env`: the environment's variables.
pub async fn facts(source: &str, env: impl Fn(&str) -> Option<String>) -> Result<Found, Failure> {
    let source = Source::parse(source)?;
    if let Source::Path(path) = source {
        let facts = inspect::path(path).map_err(|e| Failure::Model(chain(&e)))?;
        return Ok(Found { facts, pinned: None });
    }
    // The user waits: a source that fails again and again is given up after seconds.
    let limits = Limits { pause: Duration::from_millis(50), ..Limits::default() };
    let remote = Remote { fetcher: Fetcher::new(Addresses { any: true, ..Addresses::default() }, limits) };
    remote.facts(&source, &env).await.map_err(|e| Failure::Model(e.0))
}

/// Why there are no facts, for people.
#[derive(Debug)]
struct Unreadable(String);

macro_rules! unreadable {
    ($($kind:ty),*) => { $(impl From<$kind> for Unreadable {
        fn from(e: $kind) -> Self {
            Unreadable(chain(&e))
        }
    })* };
}
unreadable!(FetchError, TooLong, std::io::Error, stowage_engine_models::LoadError);

struct Remote {
    fetcher: Fetcher,
}

impl Remote {
    async fn facts(&self, source: &Source<'_>, env: &impl Fn(&str) -> Option<String>) -> Result<Found, Unreadable> {
        match source {
            Source::Path(_) => Err(Unreadable("not a remote source".into())),
            Source::Http(url) => self.behind(&parse_url(url)?, None).await,
            Source::Object { bucket, key } => {
                let region = env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION"));
                let region = region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
                let endpoint = env("AWS_ENDPOINT_URL_S3").or_else(|| env("AWS_ENDPOINT_URL"));
                let url = parse_url(&s3::url(endpoint.as_deref(), &region, bucket, key))?;
                let keys = env(ACCESS_KEY_ID).zip(env(SECRET_ACCESS_KEY));
                let keys =
                    keys.map(|(id, secret)| Keys::new(&id, &secret, env(SESSION_TOKEN).as_deref())).transpose()?;
                self.behind(&url, keys.map(|keys| Login::keys(keys, &region, &url))).await
            }
            Source::Hub { repo, revision, path } => {
                let hub = parse_url(&env("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()))?;
                let token = env("HF_TOKEN").map(|token| Token::new(&token)).transpose()?;
                let login = token.map(|token| Login::token(token, &hub));
                self.in_repository(&hub, repo, revision, path.as_deref(), login).await
            }
        }
    }

    /// A file, or the model in safetensors in a directory.
    async fn behind(&self, url: &Url, login: Option<Login>) -> Result<Found, Unreadable> {
        let folder = tempfile::tempdir()?;
        let mut headers = Headers::new(&self.fetcher, login.as_ref(), LIMITS, self);
        if !url.path().ends_with('/') {
            let path = folder.path().join(FETCHED_FILE);
            headers.of(url, &path).await?;
            return Ok(Found { facts: read(&path)?, pinned: None });
        }
        let directory = self.fetcher.directory(url, None, login.as_ref()).await?;
        let named = url.path_segments().and_then(|mut parts| parts.rfind(|part| !part.is_empty()));
        let model = folder.path().join(named.unwrap_or("model"));
        tokio::fs::create_dir(&model).await?;
        headers.of_all(&directory.files, &model).await?;
        Ok(Found { facts: read(&model)?, pinned: Some(("sha256", directory.sha256)) })
    }

    async fn in_repository(
        &self,
        hub: &Url,
        repo: &str,
        revision: &str,
        path: Option<&str>,
        login: Option<Login>,
    ) -> Result<Found, Unreadable> {
        let repository = self.fetcher.repository(hub, repo, revision, login.as_ref()).await?;
        let files = repository.chosen(hub, path)?;
        let temporary = tempfile::tempdir()?;
        // A model in safetensors has the name of its folder.
        let folder = temporary.path().join(repo.rsplit('/').next().unwrap_or(repo));
        tokio::fs::create_dir(&folder).await?;
        Headers::new(&self.fetcher, login.as_ref(), LIMITS, self).of_all(&files, &folder).await?;
        let name = path.and_then(|path| path.rsplit('/').next());
        let model = name.map_or_else(|| folder.clone(), |name| folder.join(name));
        Ok(Found { facts: read(&model)?, pinned: Some(("revision", repository.commit)) })
    }
}

impl HeaderReader for Remote {
    type Error = Unreadable;

    async fn is_whole(&self, path: &Path, have: u64) -> Result<bool, Unreadable> {
        Ok(inspect::header_ends_within(path, have))
    }
}

/// Where the headers lay for a moment helps nobody.
fn read(path: &Path) -> Result<Facts, Unreadable> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let own = format!("{}/", folder.display());
    inspect::path(path).map_err(|e| Unreadable(chain(&e).replace(&own, "")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A GGUF file with one tensor and `filler` bytes of metadata.
    fn gguf(filler: usize) -> Vec<u8> {
        let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
        let entry = |key: &str, value: &str| [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat();
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &2u64.to_le_bytes()].concat();
        file.extend(entry("general.architecture", "llama"));
        file.extend(entry("filler", &"x".repeat(filler)));
        file.extend(text("token_embd.weight"));
        for number in [2u32.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec(), 4u64.to_le_bytes().to_vec()] {
            file.extend(number);
        }
        file.extend([0; 12]);
        file.resize(file.len().next_multiple_of(32) + 512 + (8 << 20), 0);
        file
    }

    #[derive(Clone, Copy)]
    enum Server {
        Ranges,
        WholeFile,
        EndsEarly,
        NoLength,
        Missing,
    }

    /// Serves the file on a loopback port; a thread per test, which ends with the process.
    fn serve(kind: Server, file: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/model.gguf", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
                let range = request.split("range: bytes=").nth(1).unwrap().split("\r\n").next().unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse::<usize>().unwrap() + 1);
                let len = file.len();
                let (head, body) = match kind {
                    Server::Ranges => (
                        format!(
                            "206 Partial Content\r\ncontent-range: bytes {from}-{}/{len}\r\ncontent-length: {}",
                            to - 1,
                            to - from
                        ),
                        &file[from..to],
                    ),
                    Server::WholeFile => (format!("200 OK\r\ncontent-length: {len}"), &file[..]),
                    Server::EndsEarly => (format!("200 OK\r\ncontent-length: {len}"), &file[..9]),
                    Server::NoLength => ("200 OK".to_owned(), &file[..]),
                    Server::Missing => ("404 Not Found\r\ncontent-length: 0".to_owned(), &file[..0]),
                };
                let _ = write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(body);
            }
        });
        url
    }

    async fn check(kind: Server, filler: usize, expected: Result<&str, &str>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        match (facts(&serve(kind, gguf(filler)), |_| None).await, expected) {
            (Ok(found), Ok(architecture)) => assert_eq!(found.facts.architecture, architecture),
            (Err(Failure::Model(message)), Err(part)) => assert!(message.contains(part), "{message}"),
            (found, _) => panic!("{:?} instead of {expected:?}", found.map(|found| found.facts.architecture)),
        }
    }

    #[tokio::test]
    async fn header_is_read_by_ranges_however_long_it_is() {
        check(Server::Ranges, 10, Ok("llama")).await;
        check(Server::Ranges, 3 << 20, Ok("llama")).await;
    }

    #[tokio::test]
    async fn server_without_ranges_is_read_as_far_as_the_header_goes() {
        check(Server::WholeFile, 10, Ok("llama")).await;
        check(Server::WholeFile, 3 << 20, Ok("llama")).await;
    }

    #[tokio::test]
    async fn failures_say_what_happened() {
        check(Server::EndsEarly, 10, Err("check the source")).await;
        check(Server::NoLength, 10, Err("does not say how long")).await;
        check(Server::Missing, 10, Err("404")).await;
    }
}
