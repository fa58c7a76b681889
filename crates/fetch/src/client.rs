//! Requests: each host is resolved here, each address is judged here, and the connection goes to an address that was
//! judged. Redirects are followed by hand, so that all of this holds for each of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use crate::address::Addresses;
use crate::error::{FetchError, shown};
use crate::login::Login;
use crate::{Limits, parse_url};

const REDIRECTS: usize = 5;
/// Bytes by which a length is asked for: some servers read `bytes=0-0` as a range without an end.
pub const ASKED: u64 = 2;

/// Asks for ranges of one file.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    addresses: Arc<Addresses>,
    refused: Arc<Mutex<Option<FetchError>>>,
    login: Option<Login>,
}

/// What an answer says about the file.
#[derive(Debug)]
pub struct Answer {
    pub body: Response,
    pub host: String,
    /// Whether the body is the range that was asked for; else it is the whole file.
    pub ranged: bool,
    /// Where the body ends in the file, as announced.
    pub end: u64,
    /// Length of the whole file; `None`: not said.
    pub total: Option<u64>,
    /// The file's strong validator.
    pub etag: Option<String>,
}

impl Client {
    /// `login`: for the host that it is for, and for no other.
    pub fn new(addresses: Arc<Addresses>, limits: &Limits, login: Option<Login>) -> Result<Self, FetchError> {
        let refused = Arc::new(Mutex::new(None));
        let resolver = Resolver { addresses: Arc::clone(&addresses), refused: Arc::clone(&refused) };
        let builder = reqwest::Client::builder();
        // A proxy would connect instead of us, to whatever it likes.
        let builder = if addresses.any { builder } else { builder.no_proxy() };
        let http = builder
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(resolver))
            .connect_timeout(limits.connect)
            .read_timeout(limits.stall)
            .user_agent("stowage")
            // Parallel ranges of one file are parallel connections.
            .http1_only()
            .build()
            .map_err(|e| FetchError::Connection { host: "the client".into(), why: cause(&e) })?;
        Ok(Self { http, addresses, refused, login })
    }

    /// Asks for `from..to` of the file, if it is still the one with this validator.
    pub async fn range(&self, url: &Url, from: u64, to: u64, etag: Option<&str>) -> Result<Answer, FetchError> {
        let range = format!("bytes={from}-{}", to.saturating_sub(1));
        let headers: Vec<_> = [(RANGE, range.as_str())].into_iter().chain(etag.map(|etag| (IF_RANGE, etag))).collect();
        let (last, response) = self.get(url, &headers).await?;
        answer(&last, response, from, to).map_err(|e| self.denied(url, e))
    }

    /// How long the file is.
    pub async fn length(&self, url: &Url) -> Result<u64, FetchError> {
        let Answer { host, total, .. } = self.range(url, 0, ASKED, None).await?;
        total.ok_or_else(|| FetchError::Broken { host, what: "does not say how long the file is".into() })
    }

    /// A whole document of at most `limit` bytes.
    pub async fn document(&self, url: &Url, limit: u64) -> Result<Vec<u8>, FetchError> {
        let (last, mut response) = self.get(url, &[]).await?;
        let host = host(&last);
        if response.status() != StatusCode::OK {
            return Err(self.denied(url, refusal(host, &response)));
        }
        let mut document = Vec::new();
        loop {
            let chunk = response.chunk().await;
            let chunk = chunk.map_err(|e| FetchError::Connection { host: host.clone(), why: cause(&e) })?;
            let Some(chunk) = chunk else { return Ok(document) };
            document.extend_from_slice(&chunk);
            if document.len() as u64 > limit {
                return Err(FetchError::LongAnswer { host, limit });
            }
        }
    }

    /// The answer of the last of all redirects, and where it came from.
    async fn get(&self, url: &Url, headers: &[(HeaderName, &str)]) -> Result<(Url, Response), FetchError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            self.check_literal(&url)?;
            let mut request = self.http.get(url.clone());
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            if let Some(login) = &self.login {
                for (name, value) in login.headers(&url)? {
                    request = request.header(name, value);
                }
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(e) => return Err(self.failed(&url, &e)),
            };
            // A store answers so where its bucket is in another region: to whom it does not say.
            let leads_nowhere = !response.headers().contains_key(LOCATION);
            if !response.status().is_redirection() || leads_nowhere {
                return Ok((url, response));
            }
            url = next(&url, &response)?;
        }
        Err(FetchError::Redirects(REDIRECTS))
    }

    /// Stores do not tell a missing object from one that the keys may not read.
    fn denied(&self, url: &Url, e: FetchError) -> FetchError {
        let with_keys = self.login.as_ref().is_some_and(|login| login.has_keys_for(url));
        match e {
            FetchError::Refused { host, status } if with_keys => FetchError::Denied { host, status },
            e => e,
        }
    }

    /// Hosts that are addresses already are not resolved.
    fn check_literal(&self, url: &Url) -> Result<(), FetchError> {
        let text = url.host_str().unwrap_or_default();
        let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() else { return Ok(()) };
        match self.addresses.refusal(address) {
            None => Ok(()),
            Some(what) => Err(FetchError::Address { host: host(url), address, what }),
        }
    }

    fn failed(&self, url: &Url, e: &reqwest::Error) -> FetchError {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        refused.unwrap_or_else(|| FetchError::Connection { host: host(url), why: cause(e) })
    }
}

fn next(url: &Url, response: &Response) -> Result<Url, FetchError> {
    let bad = |why: &str| FetchError::Url { why: why.to_owned() };
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target =
        location.and_then(|location| url.join(location).ok()).ok_or_else(|| bad("it redirects to no address"))?;
    let target = parse_url(target.as_str())?;
    if url.scheme() == "https" && target.scheme() == "http" {
        return Err(FetchError::Downgrade { host: host(&target) });
    }
    Ok(target)
}

fn answer(url: &Url, response: Response, from: u64, to: u64) -> Result<Answer, FetchError> {
    let host = host(url);
    let broken = |what: String| FetchError::Broken { host: host.clone(), what };
    let header = |name| response.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    // A weak validator does not promise equal bytes.
    let etag = header(ETAG).filter(|etag| !etag.starts_with("W/") && etag.len() <= 256).map(str::to_owned);
    let status = response.status();
    let (ranged, end, total) = match status {
        StatusCode::PARTIAL_CONTENT => {
            let said = header(CONTENT_RANGE).unwrap_or_default().to_owned();
            let parsed = content_range(&said).ok_or_else(|| broken(format!("sends the range {:?}", shown(&said))))?;
            if parsed.0 != from || parsed.1 > to {
                return Err(broken(format!("sends the bytes {}..{} when asked for {from}..{to}", parsed.0, parsed.1)));
            }
            (true, parsed.1, Some(parsed.2))
        }
        StatusCode::OK => (false, response.content_length().unwrap_or(u64::MAX), response.content_length()),
        _ => return Err(refusal(host, &response)),
    };
    Ok(Answer { body: response, host, ranged, end, total, etag })
}

/// Of an answer that is none: whether another attempt may get one.
fn refusal(host: String, response: &Response) -> FetchError {
    let status = response.status();
    let passes =
        matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error();
    if !passes {
        return FetchError::Refused { host, status: status.as_u16() };
    }
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    FetchError::Unavailable { host, status: status.as_u16(), after: after.map(Duration::from_secs) }
}

/// `bytes 0-9/100` as first byte, end and length of the file.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, last) = range.split_once('-')?;
    let (from, last, total): (u64, u64, u64) = (from.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (from <= last && last < total).then_some((from, last + 1, total))
}

pub fn host(url: &Url) -> String {
    shown(url.host_str().unwrap_or_default())
}

/// The innermost cause; the outer ones repeat the URL.
pub fn cause(e: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = e;
    while let Some(inner) = source.source() {
        source = inner;
    }
    if e.is_timeout() && !e.is_connect() { "nothing came for too long".into() } else { source.to_string() }
}

/// Resolves with the system's resolver and hands out only addresses that may be connected to.
struct Resolver {
    addresses: Arc<Addresses>,
    /// Why the last host was refused: it does not survive the way through the client as an error.
    refused: Arc<Mutex<Option<FetchError>>>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (addresses, refused) = (Arc::clone(&self.addresses), Arc::clone(&self.refused));
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            match judged(&addresses, &host, found) {
                Ok(fine) => Ok(Box::new(fine.into_iter()) as Addrs),
                Err(why) => {
                    let text = why.to_string();
                    *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                    Err(text.into())
                }
            }
        })
    }
}

/// All addresses of a host if it may be connected to. One that may not refuses the host: the owner of the name
/// could give the other one next time.
fn judged(addresses: &Addresses, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, FetchError> {
    match found.iter().find_map(|found| Some((found.ip(), addresses.refusal(found.ip())?))) {
        Some((address, what)) => Err(FetchError::Address { host: shown(host), address, what }),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_answers_are_checked() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 10, 100)));
        assert_eq!(content_range("bytes 0-99/100"), Some((0, 100, 100)));
        for bad in
            ["", "bytes */100", "bytes 0-9/*", "bytes 9-0/100", "bytes 0-100/100", "bytes -1-3/9", "items 0-9/100"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn host_with_one_address_inside_is_refused_as_a_whole() {
        let found = |ips: &[&str]| ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect();
        let rules = Addresses::default();
        assert!(judged(&rules, "a", found(&["8.8.8.8", "2606:4700::1111"])).is_ok());
        assert!(judged(&rules, "a", found(&["8.8.8.8", "10.0.0.1"])).is_err());
        assert!(judged(&rules, "a", found(&["::ffff:127.0.0.1"])).is_err());
    }
}
