//! The shapes that Kubernetes demands of names, labels and environment variables, and registries of image references.
//!
//! The same shapes as the API server's `format` library and the CEL patterns in [`crate::rules`]; a test in
//! `crds/tests/api` compares the two on the same texts.

/// Longest label value, and longest name that becomes one.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain: the names of most objects.
pub const SUBDOMAIN_MAX: usize = 253;

/// Letters, digits, `-`, `_` and `.`, at both ends a letter or digit, at most 63; or nothing.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

/// A key of labels, annotations or taints: a name as in label values, and before it perhaps a DNS subdomain and `/`.
pub fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        None => is_label_name(key),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
    }
}

fn is_label_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= LABEL_MAX && text.bytes().all(inner) && ends(text, |byte| byte.is_ascii_alphanumeric())
}

/// Lower-case letters, digits and `-`, at both ends a letter or digit, at most 63: the name of a Namespace.
pub fn is_dns_label(text: &str) -> bool {
    text.len() <= LABEL_MAX && is_dns_part(text)
}

/// Parts as in a DNS label, without their limit, joined by `.`; at most 253: the names of most objects.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_dns_part)
}

fn is_dns_part(text: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| lower(byte) || byte == b'-') && ends(text, lower)
}

/// Whether the first and the last byte pass; an empty text has none.
fn ends(text: &str, pass: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| pass(*byte)) && bytes.last().is_some_and(|byte| pass(*byte))
}

/// Printable ASCII without `=`, and not empty.
pub fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

/// No control characters, and no space at either end.
pub fn is_model_name(name: &str) -> bool {
    !name.is_empty() && name.trim() == name && !name.contains(|c: char| c.is_ascii_control())
}

/// `http://host/path` or `https://…`, without credentials.
pub fn is_http_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest.filter(|rest| !rest.contains(char::is_whitespace)) else { return false };
    let end = rest.find(['/', '?', '#', '@']).unwrap_or(rest.len());
    end > 0 && matches!(rest.as_bytes().get(end), None | Some(b'/'))
}

/// Such an address without anything behind the host and port.
pub fn is_endpoint(text: &str) -> bool {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    is_http_url(text) && !rest.strip_suffix('/').unwrap_or(rest).contains('/')
}

/// `[host[:port]/]path[:tag][@digest]`, as container runtimes parse it.
pub fn is_image_reference(text: &str) -> bool {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (host, rest) = match rest.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        _ => (None, rest),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let path_ok = path.split('/').all(is_path_part);
    (host.is_none() || !path.is_empty()) && path_ok && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

/// A host with an optional port. A first part that is also a valid path part (`library`) is parsed as one of these
/// too; the result is the same.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let part = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && ends(part, |b| b.is_ascii_alphanumeric())
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(part) && port.is_none_or(digits)
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_part(part: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends(part, lower)
        && separators
            .filter(|between| !between.is_empty())
            .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
        && tag.as_bytes().first().is_some_and(|byte| word(*byte))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let letters = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && part.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
    };
    algorithm.split(['+', '.', '_', '-']).all(letters)
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shape: fn(&str) -> bool, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(shape(text), "{text:?} is refused");
        }
        for text in bad {
            assert!(!shape(text), "{text:?} is accepted");
        }
    }

    #[test]
    fn label_keys_and_values_are_those_of_kubernetes() {
        let long = "a".repeat(64);
        check(is_label_value, &["", "a", "A-b_c.9", &long[..63]], &[&long, "-a", "a.", "a b", "ä", "a/b"]);
        let prefixed = format!("{}/b", "a".repeat(253));
        check(
            is_qualified_name,
            &["team", "example.com/team", "a/B_c.d", &prefixed],
            &["", "/a", "a/", "a/b/c", "Example.com/team", "a b", &long, &format!("a{prefixed}")],
        );
    }

    #[test]
    fn names_of_objects_are_dns_names() {
        check(is_dns_label, &["team-a", "a", "0"], &["", "Team", "a.b", "-a", "a-", &"a".repeat(64)]);
        check(is_dns_subdomain, &["a.b-c", "a"], &["", "a..b", ".a", "a_b", "A", &"a".repeat(254)]);
    }

    #[test]
    fn environment_names_are_printable_without_an_equals_sign() {
        check(is_env_name, &["A", "a.b", "1A", "A B"], &["", "A=B", "A\n", "Ä"]);
    }

    #[test]
    fn model_names_have_no_hidden_characters() {
        check(is_model_name, &["m", "org/name", "My model", "模型"], &["", " m", "m\n", "a\tb"]);
    }

    #[test]
    fn addresses_of_files_hold_no_credentials() {
        let fine = ["https://h/m.gguf", "http://h:8080/a/b?c=d", "https://h", "https://[2001:db8::1]/m"];
        let bad = [
            "",
            "h/m",
            "https://",
            "https:///m",
            "ftp://h/m",
            "https://u:p@h/m",
            "https://h?x",
            "https://h#x",
            "https://h/a b",
            "HTTPS://h/m",
        ];
        check(is_http_url, &fine, &bad);
    }

    #[test]
    fn image_references_are_those_of_container_runtimes() {
        let digest = format!("m@sha256:{}", "a".repeat(64));
        check(
            is_image_reference,
            &[
                "m",
                "models/smollm2:q4",
                "localhost/models/smollm2:q4",
                "localhost:5000/a/b:T_1.2-x",
                "Registry.Example.com/a__b/c--d.e",
                "a:1@sha256:0123456789abcdef0123456789ABCDEF",
                &digest,
            ],
            &[
                "",
                " m",
                "m ",
                "M:1",
                "a/B:1",
                "a//b",
                "a:",
                "a:b:c",
                "a/b:t/c",
                "/a",
                "a/",
                "a___b",
                "a..b",
                "a@sha256",
                "a@sha256:abc",
                "https://a/b",
                "a:.x",
                "a\n",
            ],
        );
    }
}
