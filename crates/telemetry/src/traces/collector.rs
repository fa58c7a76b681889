//! Requests to the collector, and what it answered: the library above reports only that one failed, and takes any
//! answer with status 200 for a success.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;

/// Sends with this client.
#[derive(Debug, Clone)]
pub(super) struct Collector {
    http: reqwest::Client,
    said: Arc<Mutex<Said>>,
}

/// What the collector said to the last request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Spans that it did not take.
    pub rejected: u64,
    /// Why it did not take them, or any.
    pub why: Option<String>,
}

impl Collector {
    pub(super) fn new(http: reqwest::Client) -> Self {
        Self { http, said: Arc::default() }
    }

    pub(super) fn said(&self) -> Said {
        std::mem::take(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.http.send_bytes(request).await;
        let said = match &answer {
            Ok(answer) => read(answer),
            Err(error) => Said { rejected: 0, why: Some(chain(error.as_ref())) },
        };
        let refused = said.why.clone().filter(|_| said.rejected == 0);
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
        match refused {
            Some(why) => Err(why.into()),
            None => answer,
        }
    }
}

fn read(answer: &Response<Bytes>) -> Said {
    let refused = |why: String| Said { rejected: 0, why: Some(why) };
    if !answer.status().is_success() {
        return refused(format!("it answered {}", answer.status()));
    }
    let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let Ok(body) = ExportTraceServiceResponse::decode(answer.body().clone()) else {
        return refused(format!("the answer ({kind}) is not a trace collector's; check the address"));
    };
    if !kind.is_empty() && !kind.contains("protobuf") && !answer.body().is_empty() {
        return refused(format!("the answer ({kind}) is not a trace collector's; check the address"));
    }
    let Some(partial) = body.partial_success.filter(|partial| partial.rejected_spans > 0) else {
        return Said::default();
    };
    Said { rejected: partial.rejected_spans.unsigned_abs(), why: Some(partial.error_message) }
}

/// The error and what it comes from.
fn chain(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    #[test]
    fn answers_are_taken_for_what_they_say() {
        let partial = |rejected_spans| {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: "quota".into() };
            ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        };
        let protobuf = "application/x-protobuf";
        for (status, kind, body, rejected, why) in [
            (200, protobuf, Vec::new(), 0, None),
            (200, "", Vec::new(), 0, None),
            (202, "text/plain", Vec::new(), 0, None),
            (200, protobuf, partial(0), 0, None),
            (200, protobuf, partial(3), 3, Some("quota")),
            (200, "text/html", b"<html></html>".to_vec(), 0, Some("check the address")),
            (200, "text/html", partial(0), 0, Some("check the address")),
            (404, protobuf, Vec::new(), 0, Some("it answered 404")),
        ] {
            let answer = Response::builder().status(status).header("content-type", kind).body(body.into()).unwrap();
            let said = read(&answer);
            assert_eq!(said.rejected, rejected, "{status} {kind}");
            assert_eq!(said.why.is_some(), why.is_some(), "{status} {kind}: {:?}", said.why);
            assert!(why.is_none_or(|part| said.why.unwrap().contains(part)), "{status} {kind}");
        }
    }
}
