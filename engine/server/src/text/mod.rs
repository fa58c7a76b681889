//! Text to tokens and back, as the model file defines it.
//!
//! A [`TextModel`] is built once from what the file says and is shared by all requests. What users
//! wrote can never become a control token: text is encoded without looking for special tokens, and
//! in a chat they are recognised only where the template itself wrote them (see [`template`]).

mod detok;
mod pieces;
mod template;
mod tokenizer;

use stowage_engine_models::{GgufTokenizer, ModelMeta, TokenizerSource, shown};
use stowage_openai_api::{Message, TemplateFields};

pub use detok::{Piece, TextStream};
pub use pieces::Pieces;
pub use template::{TemplateError, longest_prompt};

use template::ChatTemplate;
use tokenizer::{Encoder, Specials};

/// Why a model's text part cannot be used. The model file is to blame, never a request.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(
        "its tokenizer is of kind `{}`, which is not supported; known are gpt2 (byte-level BPE), or a tokenizer.json",
        shown(.0)
    )]
    UnknownTokenizer(String),
    #[error("its splitting rule `{}` is not supported; known are smollm, gpt-2, qwen2 and llama-bpe", shown(.0))]
    UnknownSplitter(String),
    #[error("merge {index} of its tokenizer, {merge:?}, is not two parts")]
    BadMerge { index: usize, merge: String },
    #[error("its tokenizer cannot be built: {}", shown(.0))]
    Tokenizer(String),
    #[error("its chat template cannot be read: {}", shown(.0))]
    Template(String),
}

/// The text side of a model.
pub struct TextModel {
    encoder: Encoder,
    specials: Specials,
    pieces: Pieces,
    template: Option<ChatTemplate>,
    /// Put before a plain prompt when the model was trained so.
    prefix: Option<u32>,
    eog: Vec<u32>,
}

impl TextModel {
    pub fn new(meta: &ModelMeta) -> Result<Self, TextError> {
        let mut eos = meta.eog.first().copied();
        let (encoder, specials, pieces, prefix) = match &meta.tokenizer {
            TokenizerSource::Gguf(gguf) => {
                eos = gguf.eos.or(eos);
                let prefix = if gguf.add_bos { gguf.bos.or(meta.bos) } else { None };
                (Encoder::from_gguf(gguf)?, Specials::from_gguf(gguf), Pieces::from_gguf(gguf), prefix)
            }
            TokenizerSource::File(path) => {
                let encoder = Encoder::from_file(path)?;
                (encoder.clone(), encoder.specials(), encoder.pieces(), encoder.prefix())
            }
        };
        let name = |id: Option<u32>| id.and_then(|id| specials.name(id)).unwrap_or_default().to_owned();
        let template = meta
            .chat_template
            .as_deref()
            .map(|source| ChatTemplate::new(source, name(meta.bos), name(eos)))
            .transpose()?;
        Ok(Self { encoder, specials, pieces, template, prefix, eog: meta.eog.clone() })
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.eog
    }

    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The control token of this name.
    pub fn control_token(&self, name: &str) -> Option<u32> {
        self.specials.id(name)
    }

    /// The bytes of a token, or of its name where it is a control token.
    pub fn shown_bytes(&self, token: u32) -> &[u8] {
        match self.pieces.bytes(token) {
            [] => self.specials.name(token).unwrap_or_default().as_bytes(),
            bytes => bytes,
        }
    }

    pub fn has_chat(&self) -> bool {
        self.template.is_some()
    }

    /// A plain prompt. Control tokens spelt out in it are ordinary text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids: Vec<u32> = self.prefix.into_iter().collect();
        self.encoder.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// A conversation, up to where the assistant is to speak.
    pub fn encode_chat(&self, messages: &[Message], fields: &TemplateFields) -> Result<Vec<u32>, TemplateError> {
        let template = self.template.as_ref().ok_or(TemplateError::Missing)?;
        let rendered = template.render(messages, fields, &self.specials)?;
        let mut ids = Vec::new();
        for part in self.specials.split(rendered.text()) {
            match part {
                tokenizer::Part::Special(id) => ids.push(id),
                tokenizer::Part::Text(text) => {
                    let text = rendered.without_guards(text);
                    self.encoder.encode_into(&text, &mut ids).map_err(|err| TemplateError::Encode(err.to_string()))?;
                }
            }
        }
        Ok(ids)
    }
}

/// The text side of the simulated model: one token per byte, ChatML.
pub fn simulated_meta(context_len: usize) -> ModelMeta {
    let mut tokens: Vec<String> = (0..=255).map(|byte| pieces::byte_to_char(byte).to_string()).collect();
    let mut types = vec![1; 256];
    for special in ["<|im_start|>", "<|im_end|>"] {
        tokens.push(special.to_owned());
        types.push(3);
    }
    let template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let gguf = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        types,
        ..GgufTokenizer::default()
    };
    ModelMeta {
        path: "sim".into(),
        architecture: "simulated".to_owned(),
        name: Some("simulated model".to_owned()),
        parameters: 0,
        context_len,
        digest: [0; 32],
        tokenizer: TokenizerSource::Gguf(Box::new(gguf)),
        chat_template: Some(template.to_owned()),
        bos: None,
        eog: vec![SIMULATED_END],
    }
}

/// Tokens of [`simulated_meta`]: 256 bytes and two markers.
pub const SIMULATED_VOCAB: usize = 258;
/// Its end token.
pub const SIMULATED_END: u32 = 257;

#[cfg(test)]
mod tests;
