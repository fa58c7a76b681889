//! What tokens are called in log-probabilities.

use std::collections::BTreeMap;

use stowage_engine_core::sampling::TokenLogprobs;

use crate::text::TextModel;

/// The token's text, the name of a control token, or `bytes:\\x…` where it is a part of a character.
pub(super) fn label(text: &TextModel, token: u32) -> String {
    let bytes = text.shown_bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(label) => label.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |label, byte| format!("{label}\\x{byte:02x}")),
    }
}

/// The likeliest tokens and the chosen one by their labels, as the older API gives them. Where two tokens
/// have the same label (a byte and the letter it stands for), the less likely is named by its id, so that
/// none is lost.
pub(super) fn by_label(text: &TextModel, chosen: u32, logprobs: &TokenLogprobs) -> BTreeMap<String, f32> {
    let mut labels = BTreeMap::new();
    let chosen_again = (!logprobs.top.iter().any(|top| top.token == chosen)).then_some((chosen, logprobs.chosen));
    for (token, logprob) in logprobs.top.iter().map(|top| (top.token, top.logprob)).chain(chosen_again) {
        let label = label(text, token);
        let label = if labels.contains_key(&label) { format!("token_id:{token}") } else { label };
        labels.insert(label, finite(logprob));
    }
    labels
}

/// JSON has no infinities. What is impossible gets the number that vLLM gives it.
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
