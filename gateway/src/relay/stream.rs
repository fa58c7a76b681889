//! The answer on its way to the client: piece by piece, counted, and ended in good order.
//!
//! The client pulls and we pull from the engine, one piece at a time, so a slow client slows its
//! engine and nothing piles up here. Dropping the body (the client went away) drops the engine's
//! connection with it. A stream is passed on in whole events, so that when its replica is lost the
//! error event stands by itself.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::outcome::Outcome;
use crate::queue::pool::Lease;
use crate::relay::account::Account;
use crate::relay::refusals;
use crate::relay::usage::{self, StreamUsage};

/// An event larger than this is passed on in parts.
const MAX_EVENT: usize = 1 << 20;

/// When an open stream that brings nothing is given up.
#[derive(Debug, Clone, Copy)]
pub struct StreamPatience {
    /// On a replica that lives.
    pub idle: Duration,
    /// On a replica that is lost.
    pub lost: Duration,
}

/// The body of every response.
pub enum OutBody {
    /// In hand.
    Full(Option<Bytes>),
    /// Passed on as it comes.
    Relay(Box<Relay>),
}

/// What an answer needs until its end.
pub struct Relay {
    rest: Option<Incoming>,
    lease: Lease,
    account: Account,
    /// The bytes that were read before the head was sent.
    first: Option<Bytes>,
    /// The beginning of an event whose end has not come.
    partial: BytesMut,
    stream: Option<StreamUsage>,
    patience: StreamPatience,
    last_piece: Instant,
    tick: Pin<Box<Sleep>>,
}

// === impl OutBody ===

impl OutBody {
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Relay(relay) => relay.poll_piece(cx).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Relay(_) => SizeHint::default(),
        }
    }
}

// === impl Relay ===

impl Relay {
    /// `stream`: whether the answer is a stream of events.
    pub fn new(
        first: Bytes,
        rest: Incoming,
        stream: bool,
        lease: Lease,
        account: Account,
        patience: StreamPatience,
    ) -> Box<Self> {
        Box::new(Self {
            rest: Some(rest),
            lease,
            account,
            first: Some(first),
            partial: BytesMut::new(),
            stream: stream.then(StreamUsage::default),
            patience,
            last_piece: Instant::now(),
            tick: Box::pin(tokio::time::sleep(patience.tick())),
        })
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, std::io::Error>>> {
        loop {
            let piece = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => match self.poll_rest(cx) {
                    Poll::Ready(piece) => piece,
                    Poll::Pending => {
                        ready!(self.poll_patience(cx));
                        return Poll::Ready(self.broken("nothing came for too long"));
                    }
                },
            };
            match piece {
                Some(Ok(data)) => {
                    if let Some(piece) = self.whole_events(data) {
                        return Poll::Ready(Some(Ok(piece)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(self.broken(&error.to_string())),
                None => return Poll::Ready(self.ended().map(Ok)),
            }
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            match ready!(Pin::new(rest).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => {
                    // Trailers are nothing that a client of this API reads.
                    if let Ok(data) = frame.into_data() {
                        self.last_piece = Instant::now();
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }

    /// Ready when the silence has lasted too long. The clock is looked at now and then rather than
    /// set anew with every token.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.tick.as_mut().poll(cx));
            if self.lease.renewed() {
                return Poll::Ready(());
            }
            let limit = if self.lease.replica.state().lost { self.patience.lost } else { self.patience.idle };
            if self.last_piece.elapsed() >= limit {
                return Poll::Ready(());
            }
            self.tick.as_mut().reset(tokio::time::Instant::now() + self.patience.tick());
        }
    }

    /// What of `data` can be passed on now. A stream's unfinished event waits for its end.
    fn whole_events(&mut self, data: Bytes) -> Option<Bytes> {
        let Some(usage) = &mut self.stream else { return Some(data) };
        let data = if self.partial.is_empty() {
            data
        } else {
            self.partial.extend_from_slice(&data);
            self.partial.split().freeze()
        };
        let end = match last_event_end(&data) {
            Some(end) => end,
            None if data.len() > MAX_EVENT => data.len(),
            None => 0,
        };
        self.partial.extend_from_slice(&data[end..]);
        let whole = data.slice(..end);
        usage.observe(&whole);
        self.account.on_events(usage.events());
        (!whole.is_empty()).then_some(whole)
    }

    /// The engine ended its answer.
    fn ended(&mut self) -> Option<Bytes> {
        self.rest = None;
        let remaining = self.partial.split().freeze();
        if let Some(usage) = &mut self.stream {
            usage.observe(&remaining);
            let tokens = usage.tokens(self.account.estimated_prompt());
            self.account.finish(Outcome::Ok, Some(tokens));
        } else {
            self.account.finish(Outcome::Ok, None);
        }
        (!remaining.is_empty()).then_some(remaining)
    }

    /// The engine was lost half way. A stream ends with an error event; a whole answer cannot be
    /// completed, so its connection is cut, which every client notices.
    fn broken(&mut self, why: &str) -> Option<Result<Bytes, std::io::Error>> {
        drop(self.rest.take()?);
        tracing::warn!(
            pod = self.lease.replica.pod,
            request = self.account.request_id(),
            why,
            "replica lost after the first byte"
        );
        self.lease.broken();
        self.partial.clear();
        let tokens = self.stream.as_ref().map(|usage| usage.tokens(self.account.estimated_prompt()));
        self.account.finish(Outcome::StreamBroken, tokens);
        Some(match self.stream {
            Some(_) => {
                Ok(Bytes::from(stowage_openai_api::data_line(&refusals::stream_broken(self.account.model()).body())))
            }
            None => Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the engine was lost")),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Not at its end: the client went away. What was produced so far was still used.
        let tokens = self.stream.as_ref().map(|usage| usage.tokens(self.account.estimated_prompt()));
        self.account.finish(Outcome::ClientGone, tokens);
    }
}

impl StreamPatience {
    fn tick(self) -> Duration {
        self.idle.min(self.lost) / 4
    }
}

/// Where the last whole event ends.
fn last_event_end(data: &[u8]) -> Option<usize> {
    if data.ends_with(b"\n\n") {
        return Some(data.len());
    }
    let newline = memchr::memmem::rfind(data, b"\n\n").map(|at| at + 2);
    let carriage = memchr::memmem::rfind(data, b"\r\n\r\n").map(|at| at + 4);
    newline.max(carriage)
}

/// A whole answer in hand: counted, and ready to be sent.
pub fn whole(body: Bytes, stream: bool, mut account: Account) -> OutBody {
    let tokens = if stream {
        let mut usage = StreamUsage::default();
        usage.observe(&body);
        Some(usage.tokens(account.estimated_prompt()))
    } else {
        usage::read(&body)
    };
    account.finish(Outcome::Ok, tokens);
    OutBody::full(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_at_blank_lines() {
        assert_eq!(last_event_end(b"data: 1\n\n"), Some(9));
        assert_eq!(last_event_end(b"data: 1\n\ndata: 2"), Some(9));
        assert_eq!(last_event_end(b"data: 1\r\n\r\ndata: 2"), Some(11));
        assert_eq!(last_event_end(b"data: 1\n"), None);
        assert_eq!(last_event_end(b""), None);
    }
}
