//! Reading a request's body: bounded in size, in time, and in what all bodies together may hold.
//!
//! The whole body is kept until the first byte of the answer, because a retry sends it again. So
//! memory is the resource to defend: a size per body, a total for the process of which no tenant gets all,
//! charged before anything is read, and a clock that a trickle cannot outlast.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use stowage_openai_api::{ApiError, Exceeded, Share, SharedBudget};
use tokio::time::{Instant, timeout_at};

use crate::listen::encoding::{Encoding, Excess};
use crate::metrics::Metrics;
use crate::outcome::{Outcome, Refused};

/// Bounds for bodies.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes of one body, as sent and decoded.
    pub max_bytes: usize,
    /// Bytes of all bodies held at a time.
    pub max_total_bytes: usize,
    /// Time for a body to arrive, before what its size earns.
    pub patience: Duration,
}

/// A body earns a second per this many bytes.
const BYTES_PER_SECOND: u64 = 64 << 10;
/// Decoded at a time.
const DECODED_PIECE: usize = 64 << 10;

/// Reads bodies.
#[derive(Debug)]
pub struct Bodies {
    limits: BodyLimits,
    budget: Arc<SharedBudget>,
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
    share: Share,
    metrics: Arc<Metrics>,
}

// === impl Bodies ===

impl Bodies {
    pub fn new(limits: BodyLimits, metrics: Arc<Metrics>) -> Self {
        Self { limits, budget: SharedBudget::new(limits.max_total_bytes), metrics }
    }

    /// Reads a body of `tenant` to its end, or reports why not.
    pub async fn read<B>(&self, headers: &HeaderMap, body: B, tenant: &str) -> Result<HeldBody, Refused>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let encoding = Encoding::of(headers).map_err(Refused::invalid)?;
        let announced = announced_length(headers).unwrap_or(0);
        if announced > self.limits.max_bytes as u64 {
            return Err(Refused::invalid(ApiError::body_too_large(self.limits.max_bytes)));
        }
        let mut place = self.place(tenant);
        place.hold(announced as usize, tenant)?;
        let bytes = self.collect(body, announced as usize, &mut place, tenant).await?;
        if encoding == Encoding::Identity {
            return Ok(HeldBody { bytes, _place: place });
        }
        let (limit, window, tenant) = (self.limits.max_bytes, self.place(tenant), tenant.to_owned());
        // Eight MiB take tens of milliseconds, which other requests of this thread must not wait for.
        let decoded =
            tokio::task::spawn_blocking(move || decode(encoding, &bytes, limit, (place, window), &tenant)).await;
        decoded.unwrap_or_else(|_| Err(Refused::invalid(ApiError::internal("cannot decode the body"))))
    }

    /// An empty place for a body of the tenant.
    fn place(&self, tenant: &str) -> Place {
        Place { share: self.budget.share(tenant.as_bytes()), metrics: self.metrics.clone() }
    }

    async fn collect<B>(&self, mut body: B, announced: usize, place: &mut Place, tenant: &str) -> Result<Bytes, Refused>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let started = Instant::now();
        let mut pieces = BytesMut::new();
        loop {
            let deadline = started + allowed_time(self.limits.patience, pieces.len());
            let frame = match timeout_at(deadline, body.frame()).await {
                Err(_) => return Err(Refused::invalid(ApiError::body_timeout(started.elapsed().as_secs()))),
                Ok(None) => return Ok(pieces.freeze()),
                // The connection broke, or the chunks were malformed; the client is rarely there to read this.
                Ok(Some(Err(_))) => {
                    let error = ApiError::invalid_json("The request body ended early.");
                    return Err(Refused::new(Outcome::ClientGone, error));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let length = pieces.len() + data.len();
            if length > self.limits.max_bytes {
                return Err(Refused::invalid(ApiError::body_too_large(self.limits.max_bytes)));
            }
            place.hold(length, tenant)?;
            if pieces.is_empty() && body.is_end_stream() {
                return Ok(data);
            }
            if pieces.is_empty() {
                // Room for what is announced takes no memory before it is written to.
                pieces.reserve(announced.max(data.len()));
            }
            pieces.extend_from_slice(&data);
        }
    }
}

impl Place {
    /// Holds `bytes` in all.
    fn hold(&mut self, bytes: usize, tenant: &str) -> Result<(), Refused> {
        let more = bytes.saturating_sub(self.share.amount());
        self.share.grow(more).map_err(|exceeded| match exceeded {
            Exceeded::Total => {
                let message = "The gateway holds as many request bodies as it may. Try again.";
                Refused::new(Outcome::QueueFull, ApiError::unavailable("overloaded", message, 2))
            }
            Exceeded::Part => {
                let message = format!(
                    "The request bodies of {tenant} take as much of the gateway's memory as one tenant may have now. \
                     Send fewer large requests at once."
                );
                Refused::new(Outcome::TenantLimited, ApiError::rate_limited("tenant_bodies", message, 2))
            }
        })?;
        self.metrics.buffered_bytes.inc_by(more as i64);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.buffered_bytes.dec_by(self.share.amount() as i64);
    }
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn allowed_time(patience: Duration, bytes: usize) -> Duration {
    patience + Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND)
}

/// The body behind `encoded`. What it grows to is charged as it grows, so a small text that unpacks to a large
/// one ends at the limit; and so is what the decoder itself holds meanwhile, to the second place.
fn decode(
    encoding: Encoding,
    encoded: &[u8],
    limit: usize,
    (mut place, mut window): (Place, Place),
    tenant: &str,
) -> Result<HeldBody, Refused> {
    let mut reader = encoding.reader(encoded);
    let mut decoded = Vec::new();
    loop {
        let read = reader.by_ref().take(DECODED_PIECE as u64).read_to_end(&mut decoded).map_err(|error| {
            let excess = error.get_ref().and_then(|inner| inner.downcast_ref::<Excess>());
            Refused::invalid(excess.map_or_else(not_as_encoded, |excess| excess.refusal(limit)))
        })?;
        if decoded.len() > limit {
            return Err(Refused::invalid(ApiError::body_too_large(limit)));
        }
        if read == 0 {
            return Ok(HeldBody { bytes: decoded.into(), _place: place });
        }
        place.hold(encoded.len() + decoded.len(), tenant)?;
        window.hold(encoding.window(decoded.len()), tenant)?;
    }
}

fn not_as_encoded() -> ApiError {
    ApiError::invalid_json("The request body is not encoded as its content-encoding says.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_ENCODING;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    const LIMITS: BodyLimits =
        BodyLimits { max_bytes: 1000, max_total_bytes: 1500, patience: Duration::from_millis(200) };

    fn bodies() -> Bodies {
        Bodies::new(LIMITS, Metrics::register(&mut stowage_telemetry::metrics::registry()))
    }

    async fn read_pieces(pieces: Vec<(u64, usize)>, bodies: &Bodies, tenant: &str) -> Result<HeldBody, Refused> {
        let stream = futures::stream::unfold(pieces.into_iter(), async |mut pieces| {
            let (wait, size) = pieces.next()?;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; size]))), pieces))
        });
        bodies.read(&HeaderMap::new(), StreamBody::new(Box::pin(stream)), tenant).await
    }

    fn status(result: &Result<HeldBody, Refused>) -> u16 {
        result.as_ref().map_or_else(|refused| refused.error.status, |_| 200)
    }

    #[tokio::test]
    async fn pieces_are_joined_and_given_back() {
        let bodies = bodies();
        let body = read_pieces(vec![(0, 10), (0, 20)], &bodies, "a").await.unwrap();
        assert_eq!((body.bytes.len(), bodies.budget.held()), (30, 30));
        drop(body);
        assert_eq!(bodies.budget.held(), 0);
    }

    #[tokio::test]
    async fn too_large_is_413_announced_or_not() {
        let bodies = bodies();
        assert_eq!(status(&read_pieces(vec![(0, 600), (0, 600)], &bodies, "a").await), 413);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, "1001".parse().unwrap());
        let result = bodies.read(&headers, Full::new(Bytes::new()), "a").await;
        assert_eq!(status(&result), 413);
        assert_eq!(bodies.budget.held(), 0);
    }

    #[tokio::test]
    async fn body_that_trickles_is_408_and_a_slow_one_is_read() {
        let bodies = bodies();
        assert_eq!(status(&read_pieces(vec![(40, 1); 20], &bodies, "a").await), 408);
        assert_eq!(status(&read_pieces(vec![(150, 900), (0, 1)], &bodies, "a").await), 200);
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded_and_no_tenant_gets_all() {
        let bodies = bodies();
        let first = read_pieces(vec![(0, 900)], &bodies, "a").await.unwrap();
        assert_eq!(status(&read_pieces(vec![(0, 900)], &bodies, "b").await), 503, "all of it");
        assert_eq!(status(&read_pieces(vec![(0, 300)], &bodies, "a").await), 429, "its part");
        assert_eq!(status(&read_pieces(vec![(0, 300)], &bodies, "b").await), 200);
        drop(first);
        assert_eq!(status(&read_pieces(vec![(0, 900)], &bodies, "b").await), 200);
        assert_eq!((bodies.budget.held(), bodies.metrics.buffered_bytes.get()), (0, 0));
    }

    #[tokio::test]
    async fn body_is_charged_before_it_is_read() {
        let bodies = bodies();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, "800".parse().unwrap());
        let never = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        let mut reading = Box::pin(bodies.read(&headers, never, "a"));
        assert!(futures::poll!(&mut reading).is_pending());
        assert_eq!(bodies.budget.held(), 800);
        drop(reading);
        assert_eq!(bodies.budget.held(), 0);
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
    }

    async fn read_encoded(encoding: &str, body: Vec<u8>) -> Result<HeldBody, Refused> {
        let bodies = bodies();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        bodies.read(&headers, Full::new(Bytes::from(body)), "a").await
    }

    #[tokio::test]
    async fn encoded_body_is_decoded() {
        let plain = br#"{"model":"m"}"#.repeat(20);
        for name in ["gzip", "GZIP", "x-gzip"] {
            assert_eq!(read_encoded(name, gzip(&plain)).await.unwrap().bytes, plain, "{name}");
        }
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        assert_eq!(read_encoded("deflate", encoder.finish().unwrap()).await.unwrap().bytes, plain);
        assert_eq!(read_encoded("zstd", zstd(&plain)).await.unwrap().bytes, plain);
        assert_eq!(read_encoded("identity", plain.clone()).await.unwrap().bytes, plain);
    }

    #[tokio::test]
    async fn encoded_body_that_unpacks_beyond_the_limit_is_413() {
        assert_eq!(status(&read_encoded("gzip", gzip(&vec![b'x'; 1 << 20])).await), 413);
        assert_eq!(status(&read_encoded("gzip", gzip(&vec![b'x'; 1000])).await), 200);
        assert_eq!(status(&read_encoded("zstd", zstd(&vec![b'x'; 1 << 20])).await), 413);
        assert_eq!(status(&read_encoded("zstd", zstd(&[b'x'; 500])).await), 200);
        // A window of 2^31 bytes behind six bytes of a header.
        assert_eq!(status(&read_encoded("zstd", vec![0x28, 0xB5, 0x2F, 0xFD, 0, 21 << 3, 1, 0, 0]).await), 415);
    }

    #[tokio::test]
    async fn what_a_decoder_holds_is_charged_while_it_decodes() {
        let bodies = bodies();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "zstd".parse().unwrap());
        let read = async |plain: usize| {
            let body = Full::new(Bytes::from(zstd(&vec![b'x'; plain])));
            bodies.read(&headers, body, "a").await
        };
        // Of 1,500 bytes one tenant gets 1,125: a body of 700 and its window are more.
        assert_eq!(status(&read(700).await), 429);
        let held = read(500).await.unwrap();
        assert!(bodies.budget.held() < 600, "the window is given back: {}", bodies.budget.held());
        drop(held);
        assert_eq!(bodies.budget.held(), 0);
    }

    #[tokio::test]
    async fn encodings_that_are_not_read_are_415_and_false_ones_400() {
        for name in ["br", "zstd, gzip", "gzip, gzip", "compress", "gzip;q=1"] {
            assert_eq!(status(&read_encoded(name, gzip(b"{}")).await), 415, "{name}");
        }
        assert_eq!(status(&read_encoded("gzip", b"{}".to_vec()).await), 400);
        let mut cut = gzip(&[b'x'; 900]);
        cut.truncate(cut.len() - 9);
        assert_eq!(status(&read_encoded("gzip", cut).await), 400);
    }
}
