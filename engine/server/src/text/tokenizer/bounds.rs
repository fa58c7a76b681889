//! How few tokens a text can possibly have, without tokenising it.
//!
//! A token of n bytes that contains the byte b is at most as long as the longest token with b in it. So
//! if each byte of a text counts as one over that length, no token's bytes count for more than one, and
//! the sum is a lower bound of the number of tokens. It costs a look at a table per byte and no memory;
//! texts that are far too long are refused by it alone.

/// The table.
pub(super) struct LeastTokens {
    /// Parts of a token that a byte of this value makes at least; 0 where nothing is known.
    parts: Box<[f64; 256]>,
    /// Only bytes between ASCII characters count: normalisation may join the others.
    ascii_only: bool,
}

/// What is known of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    /// Each byte of a text is a byte of one token.
    Kept,
    /// Characters beyond ASCII may be joined (Unicode's NFC).
    AsciiKept,
    /// Text may vanish.
    Unknown,
}

impl LeastTokens {
    /// `tokens` are the bytes of every token that text can become; bytes in `uncounted` never count.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>, lengths: Lengths, uncounted: &[u8]) -> Self {
        let mut longest = [0usize; 256];
        for token in tokens {
            for byte in token {
                let longest = &mut longest[*byte as usize];
                *longest = (*longest).max(token.len());
            }
        }
        let mut parts = Box::new(longest.map(|n| if n == 0 { 0.0 } else { 1.0 / n as f64 }));
        uncounted.iter().for_each(|byte| parts[*byte as usize] = 0.0);
        if lengths == Lengths::Unknown {
            parts.fill(0.0);
        }
        Self { parts, ascii_only: lengths == Lengths::AsciiKept }
    }

    /// A number of tokens that the text does not get below. Counting ends when there are more than `enough`.
    pub(super) fn of(&self, text: &str, enough: usize) -> usize {
        whole(self.sum(text, enough))
    }

    /// The same before rounding: sums of parts of a text add up to that of the text, or to a little more.
    pub(super) fn sum(&self, text: &str, enough: usize) -> f64 {
        let mut sum = 0.0;
        let (mut rest, enough) = (text.as_bytes(), enough as f64 + 1.0);
        while !rest.is_empty() && sum <= enough {
            let (chunk, after) = rest.split_at(rest.len().min(CHUNK));
            sum += self.sum_of(chunk, after.first().copied().unwrap_or(b' '));
            rest = after;
        }
        sum
    }

    /// How many bytes of the text make more than `enough` tokens already, up to a few too many; `None` when the
    /// whole text may be no more.
    pub(super) fn prefix(&self, text: &str, enough: usize) -> Option<usize> {
        let (mut sum, mut end) = (0.0, 0);
        while sum <= enough as f64 + 1.0 {
            let chunk = text.as_bytes().get(end..text.len().min(end + CHUNK)).filter(|chunk| !chunk.is_empty())?;
            end += chunk.len();
            sum += self.sum_of(chunk, text.as_bytes().get(end).copied().unwrap_or(b' '));
        }
        (end..=text.len()).find(|end| text.is_char_boundary(*end))
    }

    fn sum_of(&self, bytes: &[u8], following: u8) -> f64 {
        if self.ascii_only {
            let next = bytes[1.min(bytes.len())..].iter().chain([&following]);
            bytes
                .iter()
                .zip(next)
                .filter(|(b, n)| b.is_ascii() && n.is_ascii())
                .map(|(b, _)| self.parts[*b as usize])
                .sum()
        } else {
            bytes.iter().map(|b| self.parts[*b as usize]).sum()
        }
    }
}

/// Bytes between two looks at whether it is enough.
const CHUNK: usize = 4096;

/// Tokens are whole; rounding errors of the sum must not make it too large.
pub(super) fn whole(sum: f64) -> usize {
    (sum - sum.abs() * 1e-9 - 1e-6).max(0.0).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [&[u8]; 5] = [b"a", b"b", b"aaaa", b"ab", "é".as_bytes()];

    fn least(lengths: Lengths, uncounted: &[u8], text: &str) -> usize {
        LeastTokens::new(TOKENS.into_iter(), lengths, uncounted).of(text, usize::MAX)
    }

    #[test]
    fn text_of_one_byte_needs_as_many_as_the_longest_token_allows() {
        assert_eq!(least(Lengths::Kept, &[], &"a".repeat(400)), 100);
        assert_eq!(least(Lengths::Kept, &[], &"b".repeat(400)), 200);
    }

    #[test]
    fn counting_ends_when_it_is_enough() {
        let found = LeastTokens::new(TOKENS.into_iter(), Lengths::Kept, &[]).of(&"b".repeat(1 << 20), 100);
        assert!((101..10_000).contains(&found), "{found}");
    }

    #[test]
    fn prefix_of_a_long_text_is_long_enough_by_itself() {
        let tokens = LeastTokens::new(TOKENS.into_iter(), Lengths::Kept, &[]);
        let text = "bé".repeat(1 << 20);
        let end = tokens.prefix(&text, 100).unwrap();
        assert!(tokens.of(&text[..end], usize::MAX) > 100);
        assert!(end <= CHUNK + 1, "{end}");
        assert_eq!(tokens.prefix(&text[..150], 100), None);
    }

    #[test]
    fn unknown_and_uncounted_bytes_need_none() {
        assert_eq!(least(Lengths::Kept, &[], "zzzz"), 0);
        assert_eq!(least(Lengths::Kept, b"b", &"b".repeat(400)), 0);
        assert_eq!(least(Lengths::Unknown, &[], &"a".repeat(400)), 0);
    }

    #[test]
    fn characters_that_may_be_joined_do_not_count() {
        assert_eq!(least(Lengths::AsciiKept, &[], &"aé".repeat(400)), 0);
        assert_eq!(least(Lengths::AsciiKept, &[], &"aa".repeat(200)), 100);
    }
}
