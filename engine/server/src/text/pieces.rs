//! The bytes each token stands for.
//!
//! A token is bytes and not text: one character may take several tokens. Vocabularies spell bytes in
//! two ways: byte-level BPE maps every byte to a printable character (a space is `Ġ`), SentencePiece
//! writes `▁` for a space and `<0x0A>` for a byte it has no text for. Which one a vocabulary uses is
//! what its decoder says; the tokens alone do not show it (SentencePiece vocabularies contain `Ġ` too).

use std::collections::HashMap;

use serde_json::Value;

use super::TextError;
use super::alphabet::char_to_byte;

/// How tokens are spelt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Spelling {
    ByteLevel,
    /// Each step changes the text of a token.
    Steps(Vec<Step>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Replace {
        from: String,
        to: String,
    },
    /// `<0x0A>` is a byte.
    Bytes,
    /// Cuts up to so many of a character off both ends of each token.
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
}

/// What the decoder takes away at the beginning of a text: the space that the encoder put there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    #[default]
    AsItIs,
    /// Up to so many of a character.
    Without { content: char, count: usize },
    /// Every space of the first token.
    FirstTokenWithoutSpaces,
}

/// How a vocabulary becomes text again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoder {
    pub spelling: Spelling,
    pub beginning: Beginning,
}

impl Decoder {
    pub(super) fn byte_level() -> Self {
        Self { spelling: Spelling::ByteLevel, beginning: Beginning::AsItIs }
    }

    /// SentencePiece, as GGUF files have it.
    pub(super) fn sentence_piece(prefix: bool) -> Self {
        let steps = vec![Step::Replace { from: "▁".to_owned(), to: " ".to_owned() }, Step::Bytes];
        let beginning = if prefix { Beginning::Without { content: ' ', count: 1 } } else { Beginning::AsItIs };
        Self { spelling: Spelling::Steps(steps), beginning }
    }

    /// The `decoder` of a tokenizer.json.
    pub(super) fn from_json(decoder: &Value) -> Result<Self, TextError> {
        let mut reading = Reading { steps: Vec::new(), byte_level: false, fused: false, beginning: Beginning::AsItIs };
        reading.read(decoder)?;
        match (reading.byte_level, reading.steps.is_empty()) {
            (true, true) => Ok(Self { spelling: Spelling::ByteLevel, beginning: reading.beginning }),
            (true, false) => Err(TextError::Decoder("ByteLevel among others".to_owned())),
            (false, _) => Ok(Self { spelling: Spelling::Steps(reading.steps), beginning: reading.beginning }),
        }
    }

    /// The bytes of a token of the vocabulary.
    pub(super) fn bytes(&self, alphabet: &HashMap<char, u8>, token: &str) -> Box<[u8]> {
        match &self.spelling {
            Spelling::ByteLevel => byte_level(alphabet, token),
            Spelling::Steps(steps) => spelt(steps, token),
        }
    }
}

/// A decoder being read: decoders nest.
struct Reading {
    steps: Vec<Step>,
    byte_level: bool,
    /// From here on the text is one, and no longer a list of tokens.
    fused: bool,
    beginning: Beginning,
}

impl Reading {
    fn read(&mut self, decoder: &Value) -> Result<(), TextError> {
        let text = |name: &str| decoder.get(name).and_then(Value::as_str).unwrap_or_default();
        let character = |name: &str| text(name).chars().next().unwrap_or(' ');
        let count = |name: &str| decoder.get(name).and_then(Value::as_u64).unwrap_or(0) as usize;
        let refuse = |what: &str| Err(TextError::Decoder(what.to_owned()));
        match text("type") {
            "Sequence" => {
                let parts = decoder.get("decoders").and_then(Value::as_array);
                parts.into_iter().flatten().try_for_each(|part| self.read(part))?;
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.steps.push(Step::Bytes),
            "Fuse" => self.fused = true,
            "Replace" => {
                let Some(from) = decoder.pointer("/pattern/String").and_then(Value::as_str) else {
                    return refuse("Replace with a regular expression");
                };
                self.steps.push(Step::Replace { from: from.to_owned(), to: text("content").to_owned() });
            }
            "Metaspace" => {
                let from = character("replacement").to_string();
                self.steps.push(Step::Replace { from, to: " ".to_owned() });
                let add = decoder.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
                if add && text("prepend_scheme") != "never" {
                    self.beginning = Beginning::FirstTokenWithoutSpaces;
                }
            }
            "Strip" if self.fused && count("stop") == 0 => {
                self.beginning = Beginning::Without { content: character("content"), count: count("start") };
            }
            "Strip" if !self.fused => {
                let (start, stop) = (count("start"), count("stop"));
                self.steps.push(Step::Strip { content: character("content"), start, stop });
            }
            "" => return refuse("none"),
            other => return refuse(other),
        }
        Ok(())
    }
}

fn byte_level(alphabet: &HashMap<char, u8>, token: &str) -> Box<[u8]> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
    // Tokens added later are spelt as they are.
    bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into_boxed_slice()
}

fn spelt(steps: &[Step], token: &str) -> Box<[u8]> {
    let mut text = token.to_owned();
    for step in steps {
        match step {
            Step::Replace { from, to } => text = text.replace(from.as_str(), to),
            Step::Bytes => {
                if let Some(byte) = spelt_byte(&text) {
                    return Box::new([byte]);
                }
            }
            Step::Strip { content, start, stop } => {
                let cut = |text: &str, most: usize, end: bool| {
                    let found = |c: &char| c == content;
                    if end {
                        text.chars().rev().take(most).take_while(found).count()
                    } else {
                        text.chars().take(most).take_while(found).count()
                    }
                };
                let (start, stop) = (cut(&text, *start, false), cut(&text, *stop, true));
                let kept = text.chars().count().saturating_sub(start + stop);
                text = text.chars().skip(start).take(kept).collect();
            }
        }
    }
    text.into_bytes().into_boxed_slice()
}

/// `<0x0A>`
fn spelt_byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Bytes per token id. Control tokens stand for nothing and have a name.
#[derive(Clone, Default)]
pub struct Pieces {
    bytes: Vec<Box<[u8]>>,
    names: HashMap<u32, String>,
    beginning: Beginning,
}

impl Pieces {
    /// `vocabulary` as its file spells it; `added` tokens are spelt as they are, and control tokens among
    /// them are only names.
    pub(super) fn new<'a>(
        decoder: &Decoder,
        vocabulary: impl Iterator<Item = (&'a str, u32)>,
        added: impl Iterator<Item = (&'a str, u32, bool)>,
    ) -> Self {
        let alphabet = char_to_byte();
        let mut pieces = Self { beginning: decoder.beginning, ..Self::default() };
        for (text, id) in vocabulary {
            pieces.set(id, decoder.bytes(&alphabet, text));
        }
        for (text, id, special) in added {
            if special {
                pieces.set(id, Box::default());
                pieces.names.insert(id, text.to_owned());
            } else {
                pieces.set(id, text.as_bytes().into());
            }
        }
        pieces
    }

    fn set(&mut self, id: u32, bytes: Box<[u8]>) {
        let at = id as usize;
        if self.bytes.len() <= at {
            self.bytes.resize(at + 1, Box::default());
        }
        self.bytes[at] = bytes;
    }

    /// The bytes of a token; nothing for control tokens and for ids that do not exist.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |piece| piece)
    }

    /// The name of a control token, `<|im_end|>`; `None` for all others.
    pub fn control_name(&self, token: u32) -> Option<&str> {
        self.names.get(&token).map(String::as_str)
    }

    /// What to take away where a text begins.
    pub fn beginning(&self) -> Beginning {
        self.beginning
    }

    /// Every token that stands for bytes.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.iter().map(|piece| &**piece)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(decoder: &Value, token: &str) -> String {
        let decoder = Decoder::from_json(decoder).unwrap();
        String::from_utf8_lossy(&decoder.bytes(&char_to_byte(), token)).into_owned()
    }

    fn llama2() -> Value {
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]})
    }

    #[test]
    fn decoder_decides_how_tokens_are_spelt() {
        assert_eq!(decode(&llama2(), "▁Hello"), " Hello");
        assert_eq!(decode(&llama2(), "<0x0A>"), "\n");
        assert_eq!(decode(&llama2(), "Ġx"), "Ġx");
        assert_eq!(decode(&json!({"type": "ByteLevel"}), "ĠxĊ"), " x\n");
        assert_eq!(decode(&json!({"type": "Metaspace", "replacement": "▁"}), "▁a▁b"), " a b");
    }

    #[test]
    fn decoder_decides_what_begins_a_text() {
        let beginning = |decoder: &Value| Decoder::from_json(decoder).unwrap().beginning;
        assert_eq!(beginning(&llama2()), Beginning::Without { content: ' ', count: 1 });
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme});
        assert_eq!(beginning(&metaspace("first")), Beginning::FirstTokenWithoutSpaces);
        assert_eq!(beginning(&metaspace("never")), Beginning::AsItIs);
    }

    #[test]
    fn unknown_decoder_is_refused_by_name() {
        for (decoder, name) in
            [(json!(null), "none"), (json!({"type": "WordPiece"}), "WordPiece"), (json!({"type": "CTC"}), "CTC")]
        {
            let error = Decoder::from_json(&decoder).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn control_token_has_a_name_and_no_bytes() {
        let pieces = Pieces::new(&Decoder::byte_level(), [("Ġa", 0)].into_iter(), [("<|end|>", 3, true)].into_iter());
        assert_eq!((pieces.control_name(0), pieces.bytes(0)), (None, &b" a"[..]));
        assert_eq!((pieces.control_name(3), pieces.bytes(3)), (Some("<|end|>"), &b""[..]));
    }
}
