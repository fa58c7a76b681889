//! Which route a request means: exact matches from a closed list, everything else is 404.
//!
//! The path is compared as it came. Nothing is decoded, collapsed or resolved, because a path
//! that is normalised here may be read differently by the next program: `/%70ause`, `//pause` and
//! `/v1/../pause` are simply not on the list. Engine-private routes cannot be reached, since the path
//! sent to an engine is a constant of ours ([`Inference::path`]) and never the client's text.

use http::Method;
use stowage_openai_api::ApiError;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// Sent on to an engine.
    Inference(Inference),
    /// The models that the caller may use.
    Models,
    /// One of them.
    Model(&'a str),
    Healthz,
    Readyz,
}

/// The routes that engines answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inference {
    ChatCompletions,
    Completions,
}

impl Inference {
    /// The path on the engine, and here.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// Routes of the API that this release does not serve. The answer names them, so that clients do not look for a typo.
const NOT_YET: [&str; 4] = ["/v1/embeddings", "/v1/responses", "/v1/files", "/v1/batches"];

/// Query parameters in which clients put keys. A URL ends up in logs and histories, so these are
/// refused and not merely ignored.
const KEY_PARAMETERS: [&str; 8] =
    ["key", "api_key", "apikey", "api-key", "access_token", "token", "authorization", "auth"];

/// The route that `method` and `path` name.
pub fn route<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, ApiError> {
    let (wanted, route) = match path {
        "/v1/chat/completions" => (Method::POST, Route::Inference(Inference::ChatCompletions)),
        "/v1/completions" => (Method::POST, Route::Inference(Inference::Completions)),
        "/v1/models" => (Method::GET, Route::Models),
        "/healthz" => (Method::GET, Route::Healthz),
        "/readyz" => (Method::GET, Route::Readyz),
        _ if NOT_YET.contains(&path) => return Err(not_yet(path)),
        _ => match path.strip_prefix("/v1/models/").filter(|name| is_model_name(name)) {
            Some(name) => (Method::GET, Route::Model(name)),
            None => return Err(ApiError::no_route(method.as_str(), path)),
        },
    };
    let fits = *method == wanted || (*method == Method::HEAD && wanted == Method::GET);
    if fits { Ok(route) } else { Err(ApiError::method_not_allowed(method.as_str(), path)) }
}

/// Refuses a query that carries a key.
pub fn check_query(query: Option<&str>) -> Result<(), ApiError> {
    for pair in query.unwrap_or_default().split('&') {
        let name = pair.split('=').next().unwrap_or_default();
        if KEY_PARAMETERS.iter().any(|key| name.eq_ignore_ascii_case(key)) {
            return Err(ApiError::unauthenticated(format!(
                "API keys are not read from the URL, because URLs are logged. Remove `{name}`, \
                 replace the key, and send the new one as `Authorization: Bearer …`."
            )));
        }
    }
    Ok(())
}

/// Names as `org/model:tag`: no empty or dotted segment, nothing encoded.
fn is_model_name(name: &str) -> bool {
    name.split('/').all(|part| {
        !part.is_empty()
            && part.bytes().any(|b| b != b'.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:@+".contains(&b))
    })
}

fn not_yet(path: &str) -> ApiError {
    ApiError::new(
        404,
        stowage_openai_api::ErrorKind::NotFound,
        "not_supported_yet",
        format!(
            "{path} is not served by this release. It serves /v1/chat/completions, /v1/completions and /v1/models."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: Method, path: &str) -> u16 {
        route(&method, path).map_or_else(|e| e.status, |_| 200)
    }

    #[test]
    fn the_listed_routes_are_served_with_their_method_only() {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            assert_eq!((status(Method::POST, path), status(Method::GET, path)), (200, 405), "{path}");
        }
        for path in ["/v1/models", "/v1/models/org/m-1:q4", "/healthz", "/readyz"] {
            assert_eq!((status(Method::GET, path), status(Method::POST, path)), (200, 405), "{path}");
        }
        for path in ["/v1/models", "/v1/models/m", "/healthz", "/readyz"] {
            assert_eq!(status(Method::HEAD, path), 200, "{path}");
        }
        assert_eq!(status(Method::HEAD, "/v1/completions"), 405);
        assert_eq!(status(Method::DELETE, "/v1/models"), 405);
    }

    #[test]
    fn engine_private_routes_are_404_in_every_spelling() {
        let private = [
            "/metrics",
            "/pause",
            "/sleep",
            "/update_weights",
            "/tokenize",
            "/stowage/v1/load",
            "/v1/load_lora_adapter",
            "/v1/../pause",
            "/v1/./models",
            "//pause",
            "/v1//chat/completions",
            "//v1/chat/completions",
            "/v1/chat/completions/",
            "/%70ause",
            "/v1/%2e%2e/pause",
            "/v1%2fchat%2fcompletions",
            "/v1/chat/completions%00",
            "/V1/chat/completions",
            "/v1/chat/completions;x=1",
            "/v1/models/..",
            "/v1/models/../../pause",
            "/v1/models//m",
            "/v1/models/%2e%2e/pause",
            "/v1/models/",
            "/v1/models/a/./b",
            "",
            "/",
            "*",
            "v1/models",
            "/v1\\chat\\completions",
            "/v1/embeddings",
            "/signals",
            "/stowage/v1/signals",
        ];
        for path in private {
            for method in [Method::GET, Method::POST, Method::PUT, Method::CONNECT] {
                assert_eq!(status(method.clone(), path), 404, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_key_in_the_query_is_refused_and_other_parameters_are_not() {
        for query in ["key=sk-1", "a=b&api_key=x", "API-KEY=x", "access_token", "token="] {
            let error = check_query(Some(query)).expect_err(query);
            assert_eq!((error.status, error.code), (401, "invalid_api_key"));
            assert!(error.message.contains("Authorization: Bearer"));
        }
        for query in [None, Some(""), Some("api-version=1"), Some("monkey=1")] {
            assert!(check_query(query).is_ok(), "{query:?}");
        }
    }
}
