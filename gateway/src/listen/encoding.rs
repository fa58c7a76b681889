//! How a request's body is encoded, and a reader of what is behind it.
//!
//! Readers decode as far as they are asked: how much may come out is the caller's bound. What the decoder itself
//! holds is bounded here: for zstd the window, which a few bytes of a header may claim to be gigabytes.

use std::io::{self, Read};

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use stowage_openai_api::{ApiError, ErrorKind};

/// The largest window that a sender may rely on (RFC 9659), in bytes.
const MAX_WINDOW: usize = 8 << 20;
/// Frames of one zstd body, the skippable ones included. Encoders write one, or one per thread.
const MAX_FRAMES: usize = 1000;
/// In the descriptor of a frame: its window is the whole content.
const SINGLE_SEGMENT: u8 = 0x20;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

/// Why a body cannot be decoded, where its bytes are not simply damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    #[error("the content is larger than the window that is read")]
    Content,
    #[error("the window is larger than {MAX_WINDOW} bytes")]
    Window,
    #[error("there are more than {MAX_FRAMES} frames")]
    Frames,
}

impl Encoding {
    /// What the headers say.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut values = headers.get_all(CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Self::Identity) };
        let name = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            _ if values.next().is_some() => {}
            "" | "identity" => return Ok(Self::Identity),
            "gzip" | "x-gzip" => return Ok(Self::Gzip),
            "deflate" => return Ok(Self::Deflate),
            "zstd" => return Ok(Self::Zstd),
            _ => {}
        }
        Err(unsupported("This content-encoding is not read. Send the body with gzip, deflate or zstd, or as it is."))
    }

    /// Reads what is behind `encoded`.
    pub fn reader(self, encoded: &[u8]) -> Box<dyn Read + '_> {
        match self {
            Self::Identity => Box::new(encoded),
            Self::Gzip => Box::new(MultiGzDecoder::new(encoded)),
            Self::Deflate => Box::new(ZlibDecoder::new(encoded)),
            Self::Zstd => Box::new(Zstd::new(encoded)),
        }
    }

    /// The most that a reader holds beside what it gave out, when that was so much.
    pub fn window(self, decoded: usize) -> usize {
        match self {
            Self::Zstd => decoded.min(MAX_WINDOW),
            Self::Identity | Self::Gzip | Self::Deflate => 0,
        }
    }
}

impl Excess {
    /// The refusal; `limit` is the bound of a body.
    pub fn refusal(self, limit: usize) -> ApiError {
        match self {
            Self::Content => ApiError::body_too_large(limit),
            Self::Window => unsupported(
                "This zstd body needs a window of more than 8 MiB. Compress it with a lower level and without long distance matching.",
            ),
            Self::Frames => unsupported("This zstd body has more than 1,000 frames. Compress it as one."),
        }
    }
}

fn unsupported(message: &str) -> ApiError {
    ApiError::new(415, ErrorKind::InvalidRequest, "unsupported_encoding", message)
}

/// Frames of zstd one after the other, checksums compared.
struct Zstd<'a> {
    decoder: FrameDecoder,
    rest: &'a [u8],
    frames: usize,
}

impl<'a> Zstd<'a> {
    fn new(encoded: &'a [u8]) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW as u64);
        Self { decoder, rest: encoded, frames: 0 }
    }

    /// Begins the next frame, or skips it. `false` when there is none.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.rest.is_empty() {
            return Ok(false);
        }
        self.frames += 1;
        if self.frames > MAX_FRAMES {
            return Err(io::Error::other(Excess::Frames));
        }
        let descriptor = self.rest.get(4).copied().unwrap_or(0);
        match self.decoder.reset(&mut self.rest) {
            Ok(()) => Ok(true),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                self.rest = self.rest.get(length as usize..).ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(true)
            }
            Err(FrameDecoderError::WindowSizeTooBig { .. }) if descriptor & SINGLE_SEGMENT != 0 => {
                Err(io::Error::other(Excess::Content))
            }
            Err(FrameDecoderError::WindowSizeTooBig { .. }) => Err(io::Error::other(Excess::Window)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn check_sum(&self) -> io::Result<()> {
        let sent = self.decoder.get_checksum_from_data();
        if sent.is_some() && sent != self.decoder.get_calculated_checksum() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

impl Read for Zstd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.rest, one).map_err(io::Error::other)?;
                continue;
            }
            self.check_sum()?;
            if !self.next_frame()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn zstd(plain: &[u8]) -> Vec<u8> {
        compress_to_vec(plain, CompressionLevel::Fastest)
    }

    fn read(encoded: &[u8]) -> io::Result<Vec<u8>> {
        let mut decoded = Vec::new();
        Encoding::Zstd.reader(encoded).read_to_end(&mut decoded).map(|_| decoded)
    }

    #[track_caller]
    fn exceeds(encoded: &[u8], want: Excess) {
        let error = read(encoded).unwrap_err();
        assert_eq!(error.get_ref().and_then(|inner| inner.downcast_ref()), Some(&want), "{error}");
    }

    /// `zstd -19 --no-check` of the reference implementation, 1.5.7.
    const BY_ANOTHER_ENCODER: &[u8] = include_bytes!("../../tests/data_plane/body.json.zst");

    #[test]
    fn frames_follow_each_other_and_skippable_ones_are_skipped() {
        let skippable = [0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let plain = b"one two one two ".repeat(1000);
        let body = [&zstd(&plain)[..], &skippable, &zstd(b"end"), &skippable].concat();
        assert_eq!(read(&body).unwrap(), [&plain[..], b"end"].concat());
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&skippable).unwrap(), b"");
    }

    #[test]
    fn frame_of_the_reference_encoder_is_read() {
        let body = read(BY_ANOTHER_ENCODER).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok(), "{body:?}");
    }

    #[test]
    fn damaged_frames_are_errors() {
        let whole = zstd(&b"one two ".repeat(100));
        for cut in 0..whole.len() {
            if cut > 0 {
                assert!(read(&whole[..cut]).is_err(), "{cut} bytes");
            }
            let mut damaged = whole.clone();
            damaged[cut] ^= 0x55;
            // Whatever comes out, it ends.
            let _ = read(&damaged);
        }
        assert!(read(b"{\"model\":1}").is_err());
        assert!(read(&[0x50, 0x2A, 0x4D, 0x18, 200, 0, 0, 0, 1]).is_err(), "a skippable frame that is cut");
    }

    #[test]
    fn checksum_that_does_not_fit_is_an_error() {
        let mut body = BY_ANOTHER_ENCODER.to_vec();
        // Sets the flag of a checksum, and adds a false one.
        body[4] |= 4;
        body.extend([1, 2, 3, 4]);
        assert_eq!(read(&body).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// A frame without content and with this descriptor and window.
    fn empty(descriptor: u8, rest: &[u8]) -> Vec<u8> {
        [&[0x28, 0xB5, 0x2F, 0xFD, descriptor], rest, &[1, 0, 0]].concat()
    }

    #[test]
    fn window_above_eight_mib_is_refused_before_anything_is_decoded() {
        // The window is 2^(10 + byte / 8).
        assert_eq!(read(&empty(0, &[13 << 3])).unwrap(), b"");
        exceeds(&empty(0, &[(13 << 3) + 1]), Excess::Window);
        exceeds(&empty(0, &[30 << 3]), Excess::Window);
        // One segment of 2^33 bytes.
        exceeds(&empty(0xE0, &[0, 0, 0, 0, 2, 0, 0, 0]), Excess::Content);
    }

    #[test]
    fn number_of_frames_is_bounded() {
        let frame = empty(0, &[0]);
        assert_eq!(read(&frame.repeat(MAX_FRAMES)).unwrap(), b"");
        exceeds(&frame.repeat(MAX_FRAMES + 1), Excess::Frames);
    }
}
