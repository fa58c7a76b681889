//! The threat model names a test for each defence: every one of them must exist.

use super::sources::Source;
use std::collections::BTreeSet;

/// Below the root of the checkout.
pub const DOCUMENT: &str = "docs/design/threat-model.md";
/// Names in code spans that are this long are tests; shorter ones are fields and files.
const SHORTEST: usize = 18;

/// Tests that the document names and no source file has.
pub fn missing(document: &str, sources: &[Source]) -> Vec<String> {
    let functions: BTreeSet<&str> =
        sources.iter().flat_map(|source| source.text.lines()).filter_map(function).collect();
    let missing = tests_named(document).filter(|name| !functions.contains(name));
    missing.map(|name| format!("{DOCUMENT}: there is no test {name}; correct the name")).collect()
}

/// The tests in the last column of each table row.
fn tests_named(document: &str) -> impl Iterator<Item = &str> {
    let cells = document.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|')?.rsplit('|').next());
    let spans = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    spans.filter(|span| {
        let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        span.len() >= SHORTEST && span.bytes().all(name)
    })
}

fn function(line: &str) -> Option<&str> {
    let name = line.split_once("fn ")?.1;
    let end = name.find(['(', '<'])?;
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_the_long_names_of_the_last_column() {
        let document = "| a | `not_this_long_name_here` | what | `first_test_of_the_row`, `short`, `path/x.yaml`; `second_test_of_the_row` |\ntext `not_in_a_table_at_all`";
        assert_eq!(tests_named(document).collect::<Vec<_>>(), ["first_test_of_the_row", "second_test_of_the_row"]);
    }

    #[test]
    fn function_names_are_found_with_and_without_async() {
        assert_eq!(function("    pub async fn a_test(w: World) {"), Some("a_test"));
        assert_eq!(function("fn generic<T>(t: T)"), Some("generic"));
        assert_eq!(function("// no function"), None);
    }

    #[test]
    fn every_test_of_the_threat_model_exists() {
        let root = crate::base::paths::repo();
        let document = std::fs::read_to_string(root.join(DOCUMENT)).unwrap();
        assert_eq!(missing(&document, &super::super::sources::all(&root)), Vec::<String>::new());
    }
}
