//! A client's socket that ends when the client does not read, or when unfinished heads hold too much memory.
//!
//! hyper has no timeout for writing: a response to a client that never reads would keep its memory, and the
//! replica's slot behind it, for as long as the connection lasts. The clock here belongs to the socket and
//! wakes the connection's task itself, so it does not depend on anybody asking for the next piece.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use stowage_openai_api::{Share, SharedBudget};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::listen::patience::Patience;
use crate::listen::peers::Peer;

/// Bytes of a head that cost nothing: nearly every head is complete by then.
const FREE_HEAD: usize = 4 << 10;

/// The socket.
pub struct Guarded<S> {
    socket: S,
    peer: Arc<Peer>,
    patience: Patience,
    /// Set while the client keeps us waiting.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes received since the last request began.
    head: usize,
    heads: Arc<SharedBudget>,
    /// What of them is charged.
    charged: Share,
}

impl<S> Guarded<S> {
    /// `heads` bounds the unfinished heads of all connections together.
    pub fn new(socket: S, peer: Arc<Peer>, patience: Duration, heads: &Arc<SharedBudget>) -> Self {
        let charged = heads.share(peer.owner());
        Self { socket, peer, patience: Patience::new(patience), timer: None, head: 0, heads: heads.clone(), charged }
    }

    /// Counts what was received while no request is in flight.
    fn on_received(&mut self, bytes: usize) -> Result<()> {
        if self.peer.take_request_began() {
            self.head = 0;
            self.charged = self.heads.share(self.peer.owner());
        }
        if self.peer.in_flight() > 0 {
            return Ok(());
        }
        self.head += bytes;
        let wanted = self.head.saturating_sub(FREE_HEAD).saturating_sub(self.charged.amount());
        self.charged.grow(wanted).map_err(|_| Error::new(ErrorKind::OutOfMemory, "too many unfinished request heads"))
    }

    fn on_written(&mut self, written: Poll<Result<usize>>, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        let now = Instant::now();
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.patience.on_progress(bytes, now);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.patience.on_blocked(now);
                self.poll_patience(cx).map(Err)
            }
        }
    }

    /// Ready when the client has used its time up.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        loop {
            let left = self.patience.left(Instant::now());
            if left.is_zero() {
                return Poll::Ready(Error::new(ErrorKind::TimedOut, "the client does not read"));
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
            match timer.as_mut().poll(cx) {
                Poll::Ready(()) => timer.as_mut().reset(tokio::time::Instant::now() + left),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.socket).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(self.on_received(buffer.filled().len() - before)),
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.on_written(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.on_written(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        if flushed.is_ready() && self.patience.is_blocked() {
            // hyper flushes when it has written everything.
            self.patience.on_free(Instant::now());
            self.timer = None;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
