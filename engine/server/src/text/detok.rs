//! Tokens to text, as they come: whole characters only, and never a part of a stop string.

use super::pieces::Beginning;

/// What one token added.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    /// A stop string is complete; the text before it is all there is.
    pub stopped: bool,
}

/// The text of one answer.
#[derive(Debug, Default)]
pub struct TextStream {
    stops: Vec<String>,
    /// A stop string is part of the text that it ends.
    include_stop: bool,
    /// Whole characters decoded so far, shown or held.
    characters: usize,
    /// The beginning of a character whose end has not come yet; at most 3 bytes.
    bytes: Vec<u8>,
    /// Text that may turn out to be the beginning of a stop string.
    held: String,
    beginning: Beginning,
}

impl TextStream {
    pub fn new(stops: Vec<String>, include_stop: bool) -> Self {
        let mut stream = Self { include_stop, ..Self::default() };
        stream.watch_for(stops);
        stream
    }

    /// A text of its own: at its beginning there is no space that only the encoder put there.
    #[must_use]
    pub fn with_beginning(mut self, beginning: Beginning) -> Self {
        self.beginning = beginning;
        self
    }

    /// From now on these are the stop strings.
    pub fn watch_for(&mut self, stops: Vec<String>) {
        self.stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
    }

    /// Whole characters decoded so far. The text of the next token begins at this one, or in the middle of
    /// it.
    pub fn characters(&self) -> usize {
        self.characters
    }

    /// Adds a token's bytes, returns what can be shown now.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        let bytes = self.without_beginning(bytes);
        self.bytes.extend_from_slice(bytes);
        self.take_characters();
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.len())));
        if let Some((at, len)) = found.min() {
            self.held.truncate(if self.include_stop { at + len } else { at });
            self.bytes.clear();
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The answer ended for another reason: what was held back is text after all. The beginning of a
    /// character whose end never came is dropped.
    pub fn finish(&mut self) -> String {
        self.bytes.clear();
        std::mem::take(&mut self.held)
    }

    fn without_beginning<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if bytes.is_empty() {
            return bytes;
        }
        let (content, most) = match self.beginning {
            Beginning::AsItIs => return bytes,
            Beginning::Without { content, count } => (content, count),
            Beginning::FirstTokenWithoutSpaces => (' ', usize::MAX),
        };
        let mut utf8 = [0; 4];
        let unit = content.encode_utf8(&mut utf8).as_bytes();
        let (mut rest, mut cut) = (bytes, 0);
        while cut < most
            && let Some(after) = rest.strip_prefix(unit)
        {
            (rest, cut) = (after, cut + 1);
        }
        // A token that was all taken away leaves the rest of the rule to the next.
        self.beginning = match self.beginning {
            Beginning::Without { count, .. } if rest.is_empty() => Beginning::Without { content, count: count - cut },
            _ => Beginning::AsItIs,
        };
        rest
    }

    /// Moves whole characters from `bytes` to `held`; bytes that can never be one become U+FFFD.
    fn take_characters(&mut self) {
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.characters += text.chars().count();
                    self.bytes.clear();
                    return;
                }
                Err(err) => {
                    let valid = err.valid_up_to();
                    let text = String::from_utf8_lossy(&self.bytes[..valid]);
                    self.characters += text.chars().count();
                    self.held.push_str(&text);
                    let Some(broken) = err.error_len() else {
                        self.bytes.drain(..valid);
                        return;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    self.characters += 1;
                    self.bytes.drain(..valid + broken);
                }
            }
        }
    }
}

/// Length of the longest end of `text` that begins `stop` (and is not all of it).
fn overlap(text: &str, stop: &str) -> usize {
    let longest = (stop.len() - 1).min(text.len());
    (1..=longest).rev().find(|len| text.as_bytes().ends_with(&stop.as_bytes()[..*len])).unwrap_or(0)
}
