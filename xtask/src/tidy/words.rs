//! Plain words: names and comments use the field's terms, because most readers are not native speakers.

use super::sources::Source;

/// What was found in this project's first versions, and what the field says.
const WORDS: &[(&str, &str)] = &[
    ("told", "reported, received"),
    ("homeless", "unplaced"),
    ("sick", "unhealthy"),
    ("stranger", "client, other tenant"),
    ("strangers", "clients, other tenants"),
    ("somebody", "the caller, a client"),
    ("whoever", "the caller, the reader"),
    ("mended", "fixed"),
    ("mend", "fix"),
    ("mischief", "fault"),
    ("weather", "noise"),
];

/// Lines with a word of the list, as `file:line: word (write …)`. Names count by their parts (`a_sick_gpu`).
pub fn found(sources: &[Source]) -> Vec<String> {
    let own = |source: &&Source| !source.path.ends_with("tidy/words.rs");
    sources.iter().filter(own).flat_map(in_source).collect()
}

fn in_source(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        let parts = line.split(|c: char| !c.is_ascii_alphabetic()).map(str::to_ascii_lowercase);
        for part in parts {
            if let Some((word, instead)) = WORDS.iter().find(|(word, _)| *word == part) {
                found.push(format!("{}:{}: {word} (write {instead})", source.path, number + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, count: usize) {
        let source = Source { path: "a.rs".into(), text: line.into() };
        assert_eq!(in_source(&source).len(), count, "{line}");
    }

    #[test]
    fn a_word_counts_in_comments_and_as_a_part_of_a_name() {
        check("/// Whoever asks is told.", 2);
        check("fn moved_off_the_sick_gpu() {}", 1);
    }
    #[test]
    fn a_longer_word_that_contains_one_does_not_count() {
        check("let foretold = classics;", 0);
    }
}
