//! Text to tokens and back, as the model file defines it.
//!
//! A [`TextModel`] is built once from what the files say and is shared by all requests. What people write
//! in a chat can never become a control token: those are recognised only where the template itself
//! wrote them (see [`template`]). A plain prompt is its client's own text, so control tokens in it count
//! unless the caller switches that off ([`ParseSpecial`]).

mod added;
mod alphabet;
mod detok;
mod pieces;
mod simulated;
mod template;
mod tokenizer;

use stowage_engine_models::{ModelMeta, shown};
use stowage_openai_api::Message;

pub use added::ParseSpecial;
pub use detok::{Piece, TextStream};
pub use pieces::{Beginning, Pieces};
pub use simulated::{SIMULATED_END, SIMULATED_VOCAB, simulated_meta};
pub use template::{Chat, TemplateError, longest_prompt};
pub use tokenizer::EncodeError;

use added::Part;
use template::ChatTemplate;
use tokenizer::{Place, Tokens};

/// Why a model's text part cannot be used. The model file is to blame, never a request.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(
        "its tokenizer is of kind `{}`, which is not supported; known are gpt2 (byte-level BPE), llama (SentencePiece) or a tokenizer.json",
        shown(.0)
    )]
    UnknownTokenizer(String),
    #[error(
        "its splitting rule `{}` is not supported; known are smollm, gpt-2, qwen2, llama-bpe, tekken and others that split like them",
        shown(.0)
    )]
    UnknownSplitter(String),
    #[error("its tokenizer's decoder is {}; ByteLevel, Metaspace and SentencePiece's sequence are supported", shown(.0))]
    Decoder(String),
    #[error("merge {index} of its tokenizer, {merge:?}, is not two parts")]
    BadMerge { index: usize, merge: String },
    #[error("its tokenizer has {scores} scores for {tokens} tokens: it is damaged")]
    Scores { scores: usize, tokens: usize },
    #[error("its tokenizer cannot be built: {}", shown(.0))]
    Tokenizer(String),
}

/// The text side of a model.
pub struct TextModel {
    tokens: Tokens,
    template: Result<ChatTemplate, TemplateError>,
}

impl TextModel {
    /// A chat template that cannot be read is no reason to refuse the model: only chats need it.
    pub fn new(meta: &ModelMeta) -> Result<Self, TextError> {
        let tokens = Tokens::of(meta)?;
        let template = meta.chat_template.as_deref().ok_or(TemplateError::Missing);
        let template = template.and_then(|source| ChatTemplate::new(source, tokens.bos.clone(), tokens.eos.clone()));
        if let Err(err @ TemplateError::Unreadable(_)) = &template {
            tracing::warn!(%err, "chats are refused, text completions work");
        }
        Ok(Self { tokens, template })
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.tokens.ends
    }

    pub fn pieces(&self) -> &Pieces {
        &self.tokens.pieces
    }

    /// The control token of this name.
    pub fn control_token(&self, name: &str) -> Option<u32> {
        self.tokens.added.id(name).filter(|id| self.pieces().control_name(*id).is_some())
    }

    /// The bytes of a token, or of its name where it is a control token.
    pub fn shown_bytes(&self, token: u32) -> &[u8] {
        match self.pieces().control_name(token) {
            Some(name) => name.as_bytes(),
            None => self.pieces().bytes(token),
        }
    }

    pub fn has_chat(&self) -> bool {
        self.template.is_ok()
    }

    /// A plain prompt of at most `limit` tokens, with what the model expects around it.
    pub fn encode(&self, text: &str, special: ParseSpecial, limit: usize) -> Result<Vec<u32>, EncodeError> {
        let Tokens { before, after, .. } = &self.tokens;
        let mut ids = before.clone();
        self.encode_into((text, 0), special, &str::to_owned, (&mut ids, limit))?;
        ids.extend(after);
        if ids.len() > limit { Err(EncodeError::TooLong { at_least: ids.len(), limit }) } else { Ok(ids) }
    }

    /// A conversation of at most `limit` tokens, up to where the assistant is to speak.
    ///
    /// A message that is far too long is rendered cut first: when that is too long already, nothing has been done
    /// with the rest of it. Templates do not show less of a message because there is more of it.
    pub fn encode_chat(&self, chat: &Chat<'_>, limit: usize) -> Result<Vec<u32>, TemplateError> {
        let template = self.template.as_ref().map_err(TemplateError::clone)?;
        if let Some(messages) = self.cut(chat.messages, limit) {
            let cut = self.encode_rendered(template, &Chat { messages: &messages, ..chat.clone() }, limit);
            if let Err(TemplateError::Encode(EncodeError::TooLong { .. })) = &cut {
                return cut;
            }
        }
        self.encode_rendered(template, chat, limit)
    }

    /// The messages, of those that are far too long as much as is too long in any case; `None` when none is.
    fn cut(&self, messages: &[Message], limit: usize) -> Option<Vec<Message>> {
        let enough = limit.saturating_mul(2);
        let ends: Vec<_> = messages.iter().map(|m| self.tokens.encoder.prefix(&m.content, enough)).collect();
        ends.iter().any(Option::is_some).then(|| {
            let cut = |(message, end): (&Message, &Option<usize>)| Message {
                role: message.role,
                content: message.content[..end.unwrap_or(message.content.len())].to_owned(),
                name: message.name.clone(),
                tool_calls: message.tool_calls.clone(),
                tool_call_id: message.tool_call_id.clone(),
            };
            messages.iter().zip(&ends).map(cut).collect()
        })
    }

    fn encode_rendered(
        &self,
        template: &ChatTemplate,
        chat: &Chat<'_>,
        limit: usize,
    ) -> Result<Vec<u32>, TemplateError> {
        let rendered = template.render(chat, &self.tokens.added)?;
        let mut ids = Vec::new();
        let plain = |part: &str| rendered.without_guards(part);
        self.encode_into((rendered.text(), rendered.guards()), ParseSpecial::Yes, &plain, (&mut ids, limit))?;
        Ok(ids)
    }

    fn encode_into(
        &self,
        (text, guards): (&str, usize),
        special: ParseSpecial,
        plain: &dyn Fn(&str) -> String,
        (ids, limit): (&mut Vec<u32>, usize),
    ) -> Result<(), EncodeError> {
        let Tokens { encoder, added, .. } = &self.tokens;
        // Guards are taken out again, three bytes each.
        let least = (ids.len() + encoder.least(text, limit.saturating_add(3 * guards))).saturating_sub(3 * guards);
        if least > limit {
            return Err(EncodeError::TooLong { at_least: least, limit });
        }
        let mut place = Place::First;
        for part in added.split(text, special) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => encoder.encode_into(&plain(text), place, ids, limit)?,
            }
            if ids.len() > limit {
                return Err(EncodeError::TooLong { at_least: ids.len(), limit });
            }
            place = Place::Later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
