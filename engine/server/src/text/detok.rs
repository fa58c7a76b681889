//! Tokens to text, as they come: whole characters only, and never a part of a stop string.

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
    /// The beginning of a character whose end has not come yet; at most 3 bytes.
    bytes: Vec<u8>,
    /// Text that may turn out to be the beginning of a stop string.
    held: String,
}

impl TextStream {
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, bytes: Vec::new(), held: String::new() }
    }

    /// Adds a token's bytes, returns what can be shown now.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        self.bytes.extend_from_slice(bytes);
        self.take_characters();
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.bytes.clear();
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The answer ended for another reason: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        if !std::mem::take(&mut self.bytes).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    }

    /// Moves whole characters from `bytes` to `held`; bytes that can never be one become U+FFFD.
    fn take_characters(&mut self) {
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(err) => {
                    let valid = err.valid_up_to();
                    self.held.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    let Some(broken) = err.error_len() else {
                        self.bytes.drain(..valid);
                        return;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
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
