//! One continuation of one prompt: from the engine's tokens to pieces of text.

use std::sync::Arc;

use stowage_engine_core::engine::StopToken;
use stowage_engine_core::request;
use stowage_engine_core::sampling::TokenLogprobs;
use stowage_openai_api::{ApiError, FinishReason, Output};
use tokio::sync::mpsc;

use super::App;
use super::account::Account;
use crate::engine_thread::Update;
use crate::text::{Beginning, Piece, TextModel, TextStream};

/// A token with its log-probability and those of the likeliest at its place, as ids.
pub(super) struct Scored {
    pub(super) token: u32,
    /// `None` for the first token of a prompt, which nothing predicts.
    pub(super) logprobs: Option<TokenLogprobs>,
    /// Where its text begins, in characters from the start of the choice's text.
    pub(super) offset: usize,
}

/// What one update of one choice adds to the answer.
pub(super) struct Delta {
    pub(super) index: u32,
    pub(super) text: String,
    pub(super) scored: Vec<Scored>,
    pub(super) finish: Option<FinishReason>,
}

/// What ends an answer, the same for all choices of a request.
#[derive(Clone)]
pub(super) struct Ends(Arc<EndsOf>);

struct EndsOf {
    strings: Vec<String>,
    /// Those of the model, of `stop_token_ids`, and control tokens that a stop string names.
    tokens: Vec<u32>,
    /// The last among them.
    named: Vec<u32>,
    include: bool,
    /// The names of control tokens are text.
    show_control: bool,
    /// Stop strings count from this many tokens on.
    min_tokens: usize,
    /// The token that ended the answer has log-probabilities too.
    score_stop: bool,
    /// What is taken away where the answer begins.
    beginning: Beginning,
}

impl Ends {
    pub(super) fn new(text: &TextModel, output: &Output, score_stop: bool, beginning: Beginning) -> Self {
        let named: Vec<u32> = output.stop.iter().filter_map(|stop| text.control_token(stop)).collect();
        let own = if output.ignore_eos { &[] } else { text.end_tokens() };
        let mut tokens: Vec<u32> = [own, &output.stop_token_ids, &named].concat();
        tokens.sort_unstable();
        tokens.dedup();
        Self(Arc::new(EndsOf {
            strings: output.stop.clone(),
            tokens,
            named,
            include: output.include_stop,
            show_control: !output.skip_special_tokens,
            min_tokens: output.min_tokens as usize,
            score_stop,
            beginning,
        }))
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.0.tokens
    }
}

/// One prompt.
pub(super) struct JobPrompt {
    pub(super) tokens: Vec<u32>,
    /// What the answer begins with.
    pub(super) echo: Option<Echo>,
}

/// The prompt, as the beginning of an answer.
#[derive(Clone)]
pub(super) struct Echo {
    text: String,
    /// Per token, where its text begins, in characters.
    offsets: Vec<usize>,
}

impl Echo {
    /// `original` is the text that was tokenized, if it was text. Then it is given back as it came, and
    /// what decoding puts before it (a token that opens each text, a space) has no place in it.
    pub(super) fn new(model: &TextModel, tokens: &[u32], original: Option<&str>) -> Self {
        let mut stream = TextStream::new(Vec::new(), false);
        let (mut text, mut offsets) = (String::new(), Vec::with_capacity(tokens.len()));
        for token in tokens {
            offsets.push(stream.characters());
            text.push_str(&stream.push(model.shown_bytes(*token)).text);
        }
        text.push_str(&stream.finish());
        let lead = original.and_then(|original| text.strip_suffix(original)).map_or(0, |lead| lead.chars().count());
        offsets.iter_mut().for_each(|offset| *offset = offset.saturating_sub(lead));
        Self { text: original.map_or(text, str::to_owned), offsets }
    }
}

/// One continuation of one prompt.
pub(super) struct Choice {
    index: u32,
    updates: mpsc::Receiver<Update>,
    text: TextStream,
    ends: Ends,
    generated: usize,
    prompt: Opening,
    /// Characters of the prompt that the answer begins with.
    base: usize,
    /// The first choice of its prompt: the one whose prompt is counted.
    is_first: bool,
    done: bool,
    /// Received by `ready` and not looked at yet.
    peeked: Option<Option<Update>>,
}

/// The prompt's part of an answer.
struct Opening {
    tokens: Vec<u32>,
    /// Taken when it is sent.
    echo: Option<Echo>,
    /// How many scores come, once they are asked for; less one than tokens.
    awaited: usize,
    scores: Vec<TokenLogprobs>,
    scored: bool,
}

impl Choice {
    pub(super) fn new(
        index: u32,
        updates: mpsc::Receiver<Update>,
        prompt: &JobPrompt,
        scored: bool,
        ends: &Ends,
        is_first: bool,
    ) -> Self {
        let has_min = ends.0.min_tokens > 0;
        let strings = if has_min { Vec::new() } else { ends.0.strings.clone() };
        let echo = prompt.echo.clone();
        Self {
            index,
            updates,
            text: TextStream::new(strings, ends.0.include).with_beginning(ends.0.beginning),
            ends: ends.clone(),
            generated: 0,
            base: echo.as_ref().map_or(0, |echo| echo.text.chars().count()),
            prompt: Opening {
                awaited: if scored { prompt.tokens.len().saturating_sub(1) } else { 0 },
                tokens: prompt.tokens.clone(),
                echo,
                scores: Vec::new(),
                scored,
            },
            is_first,
            done: false,
            peeked: None,
        }
    }

    /// Resolves when `next` has something to look at. Dropping it half-way loses nothing.
    pub(super) async fn ready(&mut self) {
        if !self.done && self.peeked.is_none() && !self.prompt.is_due() {
            self.peeked = Some(self.updates.recv().await);
        }
    }

    /// The next thing to show, `None` after the last. Updates that show nothing are passed over.
    pub(super) async fn next(&mut self, app: &App, account: &mut Account) -> Option<Result<Delta, ApiError>> {
        if self.done {
            return None;
        }
        loop {
            if let Some((text, scored)) = self.prompt.take() {
                return Some(Ok(Delta { index: self.index, text, scored, finish: None }));
            }
            let received = match self.peeked.take() {
                Some(peeked) => peeked,
                None => self.updates.recv().await,
            };
            let Some(update) = received else {
                self.done = true;
                return Some(Err(ApiError::unavailable(
                    "engine_gone",
                    "The engine has stopped. Try another replica.",
                    1,
                )));
            };
            match update {
                Update::Admitted { cached_tokens, at } => {
                    let counted = self.prompt.tokens.len();
                    account.admitted(if self.is_first { cached_tokens.min(counted) } else { 0 }, at);
                }
                Update::Prompt { logprobs } => self.prompt.scores.extend(logprobs),
                Update::Token { token, logprobs } => {
                    account.token();
                    if let Some(delta) = self.token(app, token, logprobs) {
                        return Some(Ok(delta));
                    }
                }
                Update::Finished { reason, stop } => {
                    self.done = true;
                    return Some(self.end(app, reason, stop, account));
                }
            }
        }
    }

    fn token(&mut self, app: &App, token: u32, logprobs: Option<TokenLogprobs>) -> Option<Delta> {
        self.generated += 1;
        if self.generated == self.ends.0.min_tokens {
            // Earlier text may not stop the answer, not even as the beginning of a stop string.
            self.text.watch_for(self.ends.0.strings.clone());
        }
        let offset = self.base + self.text.characters();
        let bytes = if self.ends.0.show_control { app.text.shown_bytes(token) } else { app.text.pieces().bytes(token) };
        let Piece { text, stopped } = self.text.push(bytes);
        let scored: Vec<Scored> =
            logprobs.map(|logprobs| Scored { token, logprobs: Some(logprobs), offset }).into_iter().collect();
        if stopped {
            self.done = true;
            // Dropping the receiving end cancels what the engine still computes.
            self.updates.close();
        }
        let finish = stopped.then_some(FinishReason::Stop);
        let shows = !text.is_empty() || !scored.is_empty() || stopped;
        shows.then_some(Delta { index: self.index, text, scored, finish })
    }

    fn end(
        &mut self,
        app: &App,
        reason: request::FinishReason,
        stop: Option<StopToken>,
        account: &mut Account,
    ) -> Result<Delta, ApiError> {
        let offset = self.base + self.text.characters();
        let mut text = self.text.finish();
        let finish = match reason {
            request::FinishReason::Stop => {
                // The token that ended the answer is one too, though the client does not see it.
                account.completion += 1;
                text.push_str(&stop.as_ref().map(|stop| self.ends.text_of(&app.text, stop.token)).unwrap_or_default());
                FinishReason::Stop
            }
            request::FinishReason::Length => FinishReason::Length,
            request::FinishReason::Failed => {
                return Err(ApiError::internal("The engine failed while it computed this answer. Try again."));
            }
        };
        let score = |stop: StopToken| Some(Scored { token: stop.token, logprobs: Some(stop.logprobs?), offset });
        let scored = stop.filter(|_| self.ends.0.score_stop).and_then(score).into_iter().collect();
        Ok(Delta { index: self.index, text, scored, finish: Some(finish) })
    }
}

impl Ends {
    /// What an answer shows of the token that ended it: nothing, unless that was asked for. The end token
    /// of the model is a control token, whose name is shown only where names are, or where it is the stop.
    fn text_of(&self, model: &TextModel, token: u32) -> String {
        if !self.0.include {
            return String::new();
        }
        let shows_name = self.0.show_control || self.0.named.contains(&token);
        let bytes = if shows_name { model.shown_bytes(token) } else { model.pieces().bytes(token) };
        String::from_utf8_lossy(bytes).into_owned()
    }
}

impl Opening {
    /// The echo can be sent: at once, or when the last score is there.
    fn is_due(&self) -> bool {
        self.echo.is_some() && self.scores.len() >= self.awaited
    }

    fn take(&mut self) -> Option<(String, Vec<Scored>)> {
        if !self.is_due() {
            return None;
        }
        let Echo { text, offsets } = self.echo.take()?;
        if !self.scored {
            return Some((text, Vec::new()));
        }
        let scores = std::iter::once(None).chain(std::mem::take(&mut self.scores).into_iter().map(Some));
        let scored = self.tokens.iter().zip(offsets).zip(scores);
        let scored = scored.map(|((token, offset), logprobs)| Scored { token: *token, logprobs, offset }).collect();
        Some((text, scored))
    }
}
