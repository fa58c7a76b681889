//! Who may talk to the page's server, and what its answers allow a browser to do.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What the page's own script sends with a POST. A page of another origin would have to ask first, and is not answered.
const OWN_HEADER: &str = "x-stowage-dashboard";

/// The page loads its own script and style, talks to its own server, and does nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub port: u16,
    /// Known to those who were given the address.
    pub token: String,
}

impl Address {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{}/", self.port, self.token)
    }

    fn hosts(&self) -> [String; 2] {
        [format!("127.0.0.1:{}", self.port), format!("localhost:{}", self.port)]
    }

    /// Why a request is not answered.
    pub fn refusal(&self, method: &Method, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let hosts = self.hosts();
        if !text(header::HOST).is_some_and(|host| hosts.iter().any(|own| own == host)) {
            return Some((StatusCode::MISDIRECTED_REQUEST, "the Host header names another address than this page's\n"));
        }
        let own = |origin: &str| hosts.iter().any(|host| origin.strip_prefix("http://") == Some(host));
        if text(header::ORIGIN).is_some_and(|origin| !own(origin)) {
            return Some((StatusCode::FORBIDDEN, "the request comes from another page\n"));
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if !reads && text(HeaderName::from_static(OWN_HEADER)).is_none() {
            return Some((StatusCode::FORBIDDEN, "the request does not come from this page's script\n"));
        }
        None
    }
}

pub(super) async fn check(address: Address, request: Request, next: Next) -> Response {
    let mut answer = match address.refusal(request.method(), request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        // The address holds the token.
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    answer
}
