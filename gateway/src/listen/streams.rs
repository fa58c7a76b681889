//! The answers on their way out, and HTTP/2 streams whose client does not take them.
//!
//! With HTTP/2 a client can leave a single stream unread while its socket works (a window of zero), and hyper
//! then asks for nothing more of that answer. So the task of each stream has a clock of its own, which ends
//! the stream when the client has used its time up.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::listen::patience::Patience;
use crate::listen::peers::InFlight;

/// Most that is handed to HTTP/2 at a time: it keeps what the client's window has no room for.
const PIECE: usize = 16 << 10;

tokio::task_local! {
    /// Set in the tasks of HTTP/2 streams.
    static STREAM: Arc<Stream>;
}

/// Runs the streams of HTTP/2 connections.
#[derive(Debug, Clone)]
pub struct StreamExecutor {
    pub patience: Duration,
}

/// What a stream's task and the body in it share.
#[derive(Debug)]
struct Stream(Mutex<Patience>);

/// A response's body as the connection sees it.
pub struct Outbound<B> {
    body: B,
    /// The rest of a piece that was too large to be handed over at once.
    rest: Bytes,
    stream: Option<Arc<Stream>>,
    _in_flight: InFlight,
}

/// A stream's task with its clock.
struct Watched<F> {
    task: Pin<Box<F>>,
    stream: Arc<Stream>,
    timer: Pin<Box<Sleep>>,
}

// === impl StreamExecutor ===

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let stream = Arc::new(Stream(Mutex::new(Patience::new(self.patience))));
        let timer = Box::pin(tokio::time::sleep(self.patience));
        tokio::spawn(STREAM.scope(stream.clone(), Watched { task: Box::pin(task), stream, timer }));
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let left = self.stream.lock().left(Instant::now());
            if left.is_zero() {
                // Dropping the task resets the stream and gives everything behind it back.
                tracing::debug!("stream ended: its client does not read");
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(tokio::time::Instant::now() + left);
        }
    }
}

// === impl Stream ===

impl Stream {
    fn lock(&self) -> MutexGuard<'_, Patience> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Outbound ===

impl<B> Outbound<B> {
    /// Called in the task that answers the request.
    pub fn new(body: B, in_flight: InFlight) -> Self {
        let stream = STREAM.try_with(Arc::clone).ok();
        if let Some(stream) = &stream {
            // The client has to make room for the first byte.
            stream.lock().on_blocked(Instant::now());
        }
        Self { body, rest: Bytes::new(), stream, _in_flight: in_flight }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Outbound<B> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let most = if self.stream.is_some() { PIECE } else { usize::MAX };
        let piece = self.rest.split_to(self.rest.len().min(most));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Outbound<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let polled = this.poll_piece(cx);
        if let Some(stream) = &this.stream {
            let (now, mut patience) = (Instant::now(), stream.lock());
            match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    patience.on_progress(frame.data_ref().map_or(0, Bytes::len), now);
                    // Until the next piece is asked for.
                    patience.on_blocked(now);
                }
                // Nothing is there to be read.
                Poll::Pending | Poll::Ready(_) => patience.on_free(now),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
