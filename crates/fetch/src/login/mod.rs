//! Who asks a source: a token, or the keys of an account of an object store. Neither is shown anywhere, and both are for
//! the host that they are for and for no other.

mod s3;

use std::fmt;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::error::FetchError;

/// Longest part of it, in bytes.
const LONGEST: usize = 4096;

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Of a file's or a Secret's content; line ends around it are not part of it.
    pub fn new(text: &str) -> Result<Self, FetchError> {
        plain("it", text).map(Self)
    }
}

/// Keys of an account.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
    /// Of temporary keys.
    pub(crate) session: Option<String>,
}

impl Keys {
    /// Of a Secret's contents; line ends around them are not part of them.
    pub fn new(id: &str, secret: &str, session: Option<&str>) -> Result<Self, FetchError> {
        let session = session.map(|text| plain("the session token", text)).transpose()?;
        Ok(Self { id: plain("the access key's id", id)?, secret: plain("the secret access key", secret)?, session })
    }
}

/// What goes into a header: text without spaces and control characters.
fn plain(what: &str, text: &str) -> Result<String, FetchError> {
    let text = text.trim();
    let fine = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
    let why = || FetchError::Login { why: format!("{what} is empty, too long, or not plain text") };
    if fine { Ok(text.to_owned()) } else { Err(why()) }
}

/// Who asks, and whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    who: Who,
    to: Url,
}

#[derive(Clone, PartialEq, Eq)]
enum Who {
    Token(Token),
    Keys { keys: Keys, region: String },
}

impl Login {
    /// For requests to the same scheme, host and port as this URL.
    pub fn token(token: Token, to: &Url) -> Self {
        Self { who: Who::Token(token), to: to.clone() }
    }

    /// The same with keys, which sign for this region.
    pub fn keys(keys: Keys, region: &str, to: &Url) -> Self {
        Self { who: Who::Keys { keys, region: region.to_owned() }, to: to.clone() }
    }

    /// What may be kept of it, to recognise it.
    pub fn digest(&self) -> [u8; 32] {
        match &self.who {
            Who::Token(Token(token)) => Sha256::digest(token),
            Who::Keys { keys: Keys { id, secret, session }, region: _ } => {
                Sha256::digest(format!("{id}\n{secret}\n{}", session.as_deref().unwrap_or_default()))
            }
        }
        .into()
    }

    /// The headers for a request to this URL.
    pub(crate) fn headers(&self, url: &Url) -> Result<Vec<(HeaderName, HeaderValue)>, FetchError> {
        if !self.is_for(url) {
            return Ok(Vec::new());
        }
        let headers = match &self.who {
            Who::Token(Token(token)) => vec![(AUTHORIZATION, format!("Bearer {token}"))],
            Who::Keys { keys, region } => s3::headers(keys, region, url, jiff::Timestamp::now()),
        };
        headers.into_iter().map(|(name, value)| Ok((name, secret(&value)?))).collect()
    }

    /// Whether a refusal of this URL is one of the keys.
    pub(crate) fn has_keys_for(&self, url: &Url) -> bool {
        matches!(self.who, Who::Keys { .. }) && self.is_for(url)
    }

    fn is_for(&self, url: &Url) -> bool {
        self.to.origin() == url.origin()
    }
}

fn secret(value: &str) -> Result<HeaderValue, FetchError> {
    let header = HeaderValue::from_str(value);
    let mut header = header.map_err(|_| FetchError::Login { why: "it is not plain text".into() })?;
    header.set_sensitive(true);
    Ok(header)
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_keys_are_plain_text_and_are_not_shown() {
        let (token, keys) = (Token::new(" hf_secret\n").unwrap(), Keys::new("id\n", "secret\n", Some("s")).unwrap());
        assert_eq!(token.0, "hf_secret");
        assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("id", "secret"));
        let login = Login::keys(keys.clone(), "r", &"https://h".parse().unwrap());
        assert_eq!(format!("{token:?} {keys:?} {login:?}"), "Token Keys Login");
        for bad in ["", "\n", "a b", "a\r\nHost: b", "é", &"a".repeat(LONGEST + 1)] {
            assert!(Token::new(bad).is_err(), "{bad:?}");
            assert!(Keys::new(bad, "s", None).is_err() && Keys::new("i", bad, None).is_err(), "{bad:?}");
            assert!(Keys::new("i", "s", Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn login_goes_to_its_own_host_alone() {
        let to: Url = "https://hub.example/api".parse().unwrap();
        let keys = Keys::new("i", "s", Some("t")).unwrap();
        for login in [Login::token(Token::new("t").unwrap(), &to), Login::keys(keys, "us-east-1", &to)] {
            for (url, expect) in [
                ("https://hub.example/o/n", true),
                ("https://hub.example:443/o/n", true),
                ("https://hub.example:8443/o/n", false),
                ("http://hub.example/o/n", false),
                ("https://cdn.hub.example/o/n", false),
            ] {
                let headers = login.headers(&url.parse().unwrap()).unwrap();
                assert_eq!(!headers.is_empty(), expect, "{url}");
                assert!(headers.iter().all(|(_, value)| value.is_sensitive()));
            }
        }
    }

    #[test]
    fn digest_differs_with_each_part() {
        let to: Url = "https://h".parse().unwrap();
        let keys = |id: &str, secret: &str, session: Option<&str>| {
            Login::keys(Keys::new(id, secret, session).unwrap(), "r", &to).digest()
        };
        let digests = [keys("a", "b", None), keys("c", "b", None), keys("a", "c", None), keys("a", "b", Some("c"))];
        let token = Login::token(Token::new("a").unwrap(), &to).digest();
        let different: std::collections::BTreeSet<_> = digests.into_iter().chain([token]).collect();
        assert_eq!(different.len(), 5);
    }
}
