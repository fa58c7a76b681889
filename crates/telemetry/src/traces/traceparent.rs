//! The header `traceparent` of W3C Trace Context: which trace a request belongs to.
//!
//! `tracestate`, which comes along with it, is not read and not passed on: nothing here needs it, and its length is
//! the client's to choose.

use std::fmt;

use axum::http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

pub const HEADER: &str = "traceparent";

/// Bytes of `00-<32 digits>-<16 digits>-<2 digits>`.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// A valid one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    flags: u8,
}

impl TraceParent {
    pub fn new(trace_id: TraceId, span_id: SpanId, sampled: bool) -> Option<Self> {
        let flags = if sampled { SAMPLED } else { 0 };
        (trace_id != TraceId::INVALID && span_id != SpanId::INVALID).then_some(Self { trace_id, span_id, flags })
    }

    /// `None` where the header is absent, invalid, or there twice: the request begins a trace of its own.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(HEADER).into_iter();
        let value = values.next()?;
        values.next().is_none().then(|| Self::parse(value.as_bytes())).flatten()
    }

    /// Later versions may have more behind it, which is ignored, as the standard wants.
    fn parse(text: &[u8]) -> Option<Self> {
        let (known, rest) = text.split_at_checked(LENGTH)?;
        let dashes = [2, 35, 52].into_iter().all(|at| known[at] == b'-');
        let version = hex(&known[..2])?;
        let length_is_right = rest.is_empty() || (version != 0 && rest[0] == b'-');
        if !dashes || version == 0xff || !length_is_right {
            return None;
        }
        let parent = Self::new(TraceId::from(hex(&known[3..35])?), SpanId::from(hex(&known[36..52])? as u64), false)?;
        Some(Self { flags: hex(&known[53..])? as u8, ..parent })
    }

    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Lower-case digits only; at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn valid_ones_are_read_and_written_as_version_0() {
        for (text, written) in [
            (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-01")),
            (format!("00-{TRACE}-{SPAN}-00"), format!("00-{TRACE}-{SPAN}-00")),
            (format!("00-{TRACE}-{SPAN}-03"), format!("00-{TRACE}-{SPAN}-03")),
            (format!("cc-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-01")),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"), format!("00-{TRACE}-{SPAN}-01")),
        ] {
            let parent = TraceParent::parse(text.as_bytes()).unwrap();
            assert_eq!(parent.to_string(), written);
            assert_eq!(parent.sampled(), !written.ends_with("00"));
        }
    }

    #[test]
    fn invalid_ones_are_none() {
        for text in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-011"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01more"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("0x-{TRACE}-{SPAN}-01"),
            "é".repeat(40),
            "0".repeat(1 << 16),
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let mut headers = HeaderMap::new();
        let value = || HeaderValue::try_from(format!("00-{TRACE}-{SPAN}-01")).unwrap();
        headers.append(HEADER, value());
        assert!(TraceParent::of(&headers).is_some());
        headers.append(HEADER, value());
        assert_eq!(TraceParent::of(&headers), None);
    }
}
