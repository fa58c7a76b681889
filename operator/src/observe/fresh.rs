//! Lists that come as streams are as fresh as the question, like lists in pages.
//!
//! kube asks for them from version 0, which is whatever the cache of that API server holds: after a switch to another one a
//! pod that we made could be missing, and its claim would be taken for an orphan. Without a version the API server answers
//! once its cache has caught up with the moment of the question.

use http::{Request, Uri};
use kube::Client;
use kube::client::ClientBuilder;
use tower::util::MapRequestLayer;

/// A client for reading.
pub fn client(config: kube::Config) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&MapRequestLayer::new(as_fresh_as_the_question)).build())
}

fn as_fresh_as_the_question<B>(mut request: Request<B>) -> Request<B> {
    if let Some(uri) = without_version(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

/// `None`: it does not ask for a list as a stream.
fn without_version(uri: &Uri) -> Option<Uri> {
    let query = uri.query().filter(|query| query.contains("sendInitialEvents=true"))?;
    let kept: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("resourceVersion=")).collect();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{}", uri.path(), kept.join("&")).parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::WatchParams;
    use kube::core::request;

    #[test]
    fn list_that_comes_as_a_stream_names_no_version_and_other_requests_stay() {
        let watch = |params: WatchParams, version: &str| {
            let request = request::Request::new("/api/v1/pods").watch(&params, version).unwrap();
            as_fresh_as_the_question(request).uri().to_string()
        };
        let streamed = watch(WatchParams::default().initial_events(), "0");
        assert!(streamed.contains("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"), "{streamed}");
        assert!(!streamed.contains("resourceVersion="), "{streamed}");
        let plain = watch(WatchParams::default(), "7");
        assert!(plain.contains("resourceVersion=7"), "{plain}");
    }
}
