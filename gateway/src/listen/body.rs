//! Reading a request's body: bounded in size, in time, and in what all bodies together may hold.
//!
//! The whole body is kept until the first byte of the answer, because a retry sends it again. So
//! memory is the resource to defend: a size per body, a total for the process, and a clock that a
//! trickle cannot outlast.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use stowage_openai_api::ApiError;
use tokio::time::{Instant, timeout_at};

use crate::metrics::Metrics;
use crate::outcome::{Outcome, Refused};

/// Bounds for bodies.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes of one body.
    pub max_bytes: usize,
    /// Bytes of all bodies held at a time.
    pub max_total_bytes: usize,
    /// Time for a body to arrive, before what its size earns.
    pub patience: Duration,
}

/// A body earns a second per this many bytes.
const BYTES_PER_SECOND: u64 = 64 << 10;

/// What all bodies hold together.
#[derive(Debug)]
pub struct BodyBudget {
    held: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// A body and its place in the budget.
#[derive(Debug)]
pub struct HeldBody {
    pub bytes: Bytes,
    _place: Place,
}

#[derive(Debug)]
struct Place {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyBudget {
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), metrics })
    }
}

impl Place {
    fn grow(&mut self, bytes: usize, limit: usize) -> Result<(), Refused> {
        self.bytes += bytes;
        self.budget.metrics.buffered_bytes.inc_by(bytes as i64);
        if self.budget.held.fetch_add(bytes, Ordering::Relaxed) + bytes <= limit {
            return Ok(());
        }
        let message = "The gateway holds as many request bodies as it may. Try again.";
        Err(Refused::new(Outcome::QueueFull, ApiError::unavailable("overloaded", message, 2)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.metrics.buffered_bytes.dec_by(self.bytes as i64);
    }
}

/// Reads a body to its end, or says why not.
pub async fn read<B>(
    headers: &HeaderMap,
    mut body: B,
    limits: BodyLimits,
    budget: &Arc<BodyBudget>,
) -> Result<HeldBody, Refused>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let announced = announced_length(headers);
    if announced.is_some_and(|length| length > limits.max_bytes as u64) {
        return Err(Refused::invalid(ApiError::body_too_large(limits.max_bytes)));
    }
    let started = Instant::now();
    let mut place = Place { budget: budget.clone(), bytes: 0 };
    let mut pieces = BytesMut::new();
    loop {
        let deadline = started + allowed_time(limits.patience, pieces.len());
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(Refused::invalid(ApiError::body_timeout(started.elapsed().as_secs()))),
            Ok(None) => break,
            // The connection broke, or the chunks were malformed; whoever reads this is rarely there.
            Ok(Some(Err(_))) => {
                return Err(Refused::new(Outcome::ClientGone, ApiError::invalid_json("The request body ended early.")));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if pieces.len() + data.len() > limits.max_bytes {
            return Err(Refused::invalid(ApiError::body_too_large(limits.max_bytes)));
        }
        place.grow(data.len(), limits.max_total_bytes)?;
        if pieces.is_empty() && body.is_end_stream() {
            return Ok(HeldBody { bytes: data, _place: place });
        }
        if pieces.is_empty() {
            // Reserve what is announced only as far as it has begun to come true.
            let announced = announced.unwrap_or(0) as usize;
            pieces.reserve(announced.min(data.len() * 4));
        }
        pieces.extend_from_slice(&data);
    }
    Ok(HeldBody { bytes: pieces.freeze(), _place: place })
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn allowed_time(patience: Duration, bytes: usize) -> Duration {
    patience + Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    const LIMITS: BodyLimits =
        BodyLimits { max_bytes: 1000, max_total_bytes: 1500, patience: Duration::from_millis(200) };

    fn budget() -> Arc<BodyBudget> {
        BodyBudget::new(Metrics::register(&mut stowage_telemetry::metrics::registry()))
    }

    async fn read_pieces(pieces: Vec<(u64, usize)>, budget: &Arc<BodyBudget>) -> Result<HeldBody, Refused> {
        let stream = futures::stream::unfold(pieces.into_iter(), async |mut pieces| {
            let (wait, size) = pieces.next()?;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; size]))), pieces))
        });
        read(&HeaderMap::new(), StreamBody::new(Box::pin(stream)), LIMITS, budget).await
    }

    fn status(result: &Result<HeldBody, Refused>) -> u16 {
        result.as_ref().map_or_else(|refused| refused.error.status, |_| 200)
    }

    #[tokio::test]
    async fn pieces_are_joined_and_given_back() {
        let budget = budget();
        let body = read_pieces(vec![(0, 10), (0, 20)], &budget).await.unwrap();
        assert_eq!((body.bytes.len(), budget.held.load(Ordering::Relaxed)), (30, 30));
        drop(body);
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn too_large_is_413_announced_or_not() {
        let budget = budget();
        assert_eq!(status(&read_pieces(vec![(0, 600), (0, 600)], &budget).await), 413);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, "1001".parse().unwrap());
        let result = read(&headers, Full::new(Bytes::new()), LIMITS, &budget).await;
        assert_eq!(status(&result), 413);
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_trickle_is_408_and_a_slow_but_honest_body_passes() {
        let budget = budget();
        assert_eq!(status(&read_pieces(vec![(40, 1); 20], &budget).await), 408);
        assert_eq!(status(&read_pieces(vec![(150, 900), (0, 1)], &budget).await), 200);
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded() {
        let budget = budget();
        let first = read_pieces(vec![(0, 900)], &budget).await.unwrap();
        assert_eq!(status(&read_pieces(vec![(0, 900)], &budget).await), 503);
        drop(first);
        assert_eq!(status(&read_pieces(vec![(0, 900)], &budget).await), 200);
    }
}
