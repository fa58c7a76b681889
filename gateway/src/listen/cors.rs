//! Which web pages may read answers (CORS). Off unless origins are configured.
//!
//! A browser asks before it sends a request from a page of another origin; without a listed origin nothing is
//! answered that it would accept. Credentials are never allowed: keys come in a header that the page sets.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

/// Longest list of headers that a page may ask for.
const MAX_ASKED: usize = 2048;
/// Seconds for which a browser may remember the answer.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");
/// Headers of answers that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after");

/// Origins as browsers send them, for example `https://chat.example.com`, or `*` for all.
#[derive(Debug, Clone, Default)]
pub struct Cors(Vec<String>);

impl Cors {
    /// What is no origin is an error: it would never match.
    pub fn new(origins: Vec<String>) -> Result<Self, String> {
        let origins: Vec<_> = origins.into_iter().filter(|origin| !origin.is_empty()).collect();
        match origins.iter().find(|origin| !is_origin(origin)) {
            Some(bad) => Err(format!("{bad:?} is no origin: write scheme://host or scheme://host:port, or *")),
            None => Ok(Self(origins)),
        }
    }

    /// Whether this is a browser's question before a request.
    pub fn is_preflight(&self, method: &Method, headers: &HeaderMap) -> bool {
        method == Method::OPTIONS
            && !self.0.is_empty()
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Adds what a browser needs in order to let the page read the answer to `request`.
    pub fn allow(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        if self.0.is_empty() {
            return;
        }
        answer.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = request.get(ORIGIN).filter(|origin| self.lists(origin)) else { return };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if !request.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            return;
        }
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        answer.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        // Any header: those that we do not know are not read.
        if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS).filter(|asked| asked.len() <= MAX_ASKED) {
            answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
    }

    fn lists(&self, origin: &HeaderValue) -> bool {
        self.0.iter().any(|listed| listed == "*" || listed.as_bytes() == origin.as_bytes())
    }
}

fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let well_formed = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b))
    };
    text == "*" || host.is_some_and(well_formed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn answered(cors: &Cors, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        cors.allow(request, &mut answer);
        answer
    }

    #[test]
    fn nothing_is_allowed_when_no_origin_is_configured() {
        let cors = Cors::new(vec![String::new()]).unwrap();
        let asked = headers(&[("origin", "https://a.example"), ("access-control-request-method", "POST")]);
        assert!(answered(&cors, &asked).is_empty());
        assert!(!cors.is_preflight(&Method::OPTIONS, &asked));
    }

    #[test]
    fn listed_origin_is_allowed_and_others_are_not() {
        let cors = Cors::new(vec!["https://a.example".into(), "http://localhost:3000".into()]).unwrap();
        for (origin, allowed) in [
            ("https://a.example", true),
            ("http://localhost:3000", true),
            ("http://a.example", false),
            ("https://a.example.evil", false),
            ("https://A.example", false),
            ("null", false),
        ] {
            let answer = answered(&cors, &headers(&[("origin", origin)]));
            assert_eq!(answer.get(ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|o| o == origin), allowed, "{origin}");
            assert_eq!(answer[VARY], "origin");
        }
        assert!(!answered(&cors, &HeaderMap::new()).contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[test]
    fn preflight_names_methods_and_the_headers_asked_for() {
        let cors = Cors::new(vec!["*".into()]).unwrap();
        let asked = headers(&[
            ("origin", "https://a.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-stainless-os"),
        ]);
        assert!(cors.is_preflight(&Method::OPTIONS, &asked));
        assert!(!cors.is_preflight(&Method::POST, &asked));
        let answer = answered(&cors, &asked);
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,x-stainless-os");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_METHODS], "GET, HEAD, POST");
        assert!(!answer.contains_key("access-control-allow-credentials"));
    }

    #[test]
    fn text_that_is_no_origin_is_refused() {
        for bad in ["example.com", "https://", "https://a.example/", "https://A.example", "*.example.com", "ftp://a"] {
            assert!(Cors::new(vec![bad.into()]).is_err(), "{bad}");
        }
    }
}
