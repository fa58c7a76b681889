//! Tokens that are found in text before it is split: control tokens, and words that were added to a
//! vocabulary later.
//!
//! They are looked for here and not in the tokenizer, because who wrote the text decides which of them
//! count: a template writes control tokens, a chat message does not.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use stowage_engine_models::AddedToken;

/// Which tokens count in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseSpecial {
    /// Control tokens too.
    Yes,
    /// A control token that is spelt out is ordinary text.
    No,
}

/// A stretch of text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

/// The added tokens of a model.
pub(super) struct AddedTokens {
    all: Finder,
    ordinary: Finder,
    special: Finder,
    by_id: HashMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
}

impl AddedTokens {
    pub(super) fn new(tokens: Vec<AddedToken>) -> Result<Self, String> {
        let tokens: Vec<AddedToken> = tokens.into_iter().filter(|token| !token.content.is_empty()).collect();
        let of =
            |keep: fn(&AddedToken) -> bool| Finder::new(tokens.iter().filter(|token| keep(token)).cloned().collect());
        Ok(Self {
            all: of(|_| true)?,
            ordinary: of(|token| !token.special)?,
            special: of(|token| token.special)?,
            ids: tokens.iter().map(|token| (token.content.clone(), token.id)).collect(),
            by_id: tokens.into_iter().map(|token| (token.id, token)).collect(),
        })
    }

    /// The text of an added token.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|token| token.content.as_str())
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.by_id.values()
    }

    /// Cuts a text at the tokens that count in it.
    pub(super) fn split<'a>(&self, text: &'a str, special: ParseSpecial) -> Vec<Part<'a>> {
        match special {
            ParseSpecial::Yes => self.all.split(text),
            ParseSpecial::No => self.ordinary.split(text),
        }
    }

    /// The text with `guard` inside each control token that it spells out, so that none is left.
    pub(super) fn guarded(&self, text: &str, guard: char) -> String {
        let Some(finder) = &self.special.finder else { return text.to_owned() };
        let mut out = String::with_capacity(text.len());
        let (mut copied, mut at) = (0, 0);
        // Matches may overlap, so the search goes on after the first character of each.
        while let Some(found) = finder.find(Input::new(text).range(at..)) {
            let first = text[found.start()..].chars().next().map_or(1, char::len_utf8);
            at = found.start() + first;
            out.push_str(&text[copied..at]);
            out.push(guard);
            copied = at;
        }
        out.push_str(&text[copied..]);
        out
    }
}

/// Finds some of the tokens: the leftmost, and of those the longest.
struct Finder {
    tokens: Vec<AddedToken>,
    /// `None` without tokens.
    finder: Option<AhoCorasick>,
}

impl Finder {
    fn new(tokens: Vec<AddedToken>) -> Result<Self, String> {
        let texts = tokens.iter().map(|token| token.content.as_bytes());
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        let finder = finder.map_err(|err| err.to_string())?;
        Ok(Self { finder: (!tokens.is_empty()).then_some(finder), tokens })
    }

    fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let (mut parts, mut from) = (Vec::new(), 0);
        for found in self.finder.iter().flat_map(|finder| finder.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (before, after) = (&text[..found.start()], &text[found.end()..]);
            if token.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
                continue;
            }
            // Space that another token took is not there for this one.
            if found.start() < from {
                continue;
            }
            let start = if token.lstrip { before.trim_end().len().max(from) } else { found.start() };
            let end = if token.rstrip { text.len() - after.trim_start().len() } else { found.end() };
            if from < start {
                parts.push(Part::Text(&text[from..start]));
            }
            parts.push(Part::Token(token.id));
            from = end;
        }
        if from < text.len() {
            parts.push(Part::Text(&text[from..]));
        }
        parts
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str) -> AddedToken {
        AddedToken { id, content: content.to_owned(), special: true, ..AddedToken::default() }
    }

    fn tokens() -> AddedTokens {
        AddedTokens::new(vec![
            token(1, "<a>"),
            token(2, "<a><b>"),
            AddedToken { rstrip: true, ..token(3, "<r>") },
            AddedToken { lstrip: true, ..token(4, "<l>") },
            AddedToken { special: false, ..token(5, "<tool>") },
            AddedToken { single_word: true, ..token(6, "word") },
        ])
        .unwrap()
    }

    #[track_caller]
    fn check(text: &str, special: ParseSpecial, want: &[Part<'_>]) {
        assert_eq!(tokens().split(text, special), want, "{text:?}");
    }

    #[test]
    fn longest_of_several_tokens_is_found() {
        check("x<a><b>y<a>", ParseSpecial::Yes, &[Part::Text("x"), Part::Token(2), Part::Text("y"), Part::Token(1)]);
    }

    #[test]
    fn tokens_that_strip_take_white_space_along() {
        check("a <r> \n b", ParseSpecial::Yes, &[Part::Text("a "), Part::Token(3), Part::Text("b")]);
        check("a \n<l> b", ParseSpecial::Yes, &[Part::Text("a"), Part::Token(4), Part::Text(" b")]);
        check("<r> <l>", ParseSpecial::Yes, &[Part::Token(3), Part::Token(4)]);
    }

    #[test]
    fn single_word_is_not_found_inside_another() {
        check("sword", ParseSpecial::Yes, &[Part::Text("sword")]);
        check("a word.", ParseSpecial::Yes, &[Part::Text("a "), Part::Token(6), Part::Text(".")]);
    }

    #[test]
    fn control_tokens_are_text_where_they_do_not_count_and_other_added_tokens_are_not() {
        check("<a><tool>", ParseSpecial::No, &[Part::Text("<a>"), Part::Token(5)]);
    }

    #[test]
    fn guarded_text_spells_no_control_token() {
        let tokens = tokens();
        for text in ["<a><b>", "<<a>", "é<a>é<r><l><tool>"] {
            let guarded = tokens.guarded(text, '\u{FDD0}');
            assert!(guarded.contains('\u{FDD0}'));
            let found = tokens.split(&guarded, ParseSpecial::Yes);
            assert!(!found.iter().any(|part| matches!(part, Part::Token(1..=4))), "{found:?}");
            assert_eq!(guarded.replace('\u{FDD0}', ""), text);
        }
        assert_eq!(tokens.guarded("plain", '\u{FDD0}'), "plain");
    }
}
