//! Tags that the template engine does not know.

/// `{% generation %}` and `{% endgeneration %}` mark what a model is trained on and print nothing. They
/// become an `if` that is always true, with the white space control that they had.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') => end_of(rest, "}}"),
            Some(b'%') => end_of(rest, "%}"),
            _ => 1,
        };
        let (tag, after) = rest.split_at(len);
        match statement(tag) {
            Some("generation") => out.push_str(&tag.replacen("generation", "if true", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            Some("raw") => {
                let end = after.find("endraw").unwrap_or(after.len());
                out.push_str(tag);
                out.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The statement in a tag: `endfor` for `{%- endfor -%}`.
fn statement(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

/// Where a tag ends. Ends within its strings are none.
fn end_of(tag: &str, end: &str) -> usize {
    let (bytes, mut at, mut quote) = (tag.as_bytes(), 2, None);
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', Some(_)) => at += 1,
            (c, Some(open)) if c == open => quote = None,
            (c @ (b'"' | b'\''), None) => quote = Some(c),
            (_, None) if bytes[at..].starts_with(end.as_bytes()) => return at + end.len(),
            _ => {}
        }
        at += 1;
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags;

    #[track_caller]
    fn check(source: &str, want: &str) {
        assert_eq!(without_generation_tags(source), want);
    }

    #[test]
    fn generation_tags_become_a_condition_that_holds() {
        check("a{%- generation %}b{% endgeneration -%}c", "a{%- if true %}b{% endif -%}c");
    }

    #[test]
    fn text_strings_comments_and_raw_blocks_stay() {
        for source in [
            "generation { generation }",
            "{{ '{% generation %}' }}",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set generation = 1 %}{{ generation }}",
            "{{ \"it\\\"s %}\" }}{%",
            "é{% if x %}ü{% endif %}",
        ] {
            check(source, source);
        }
    }
}
