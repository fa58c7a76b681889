//! A model in an object store: how a source is written, and where its keys are.

use serde::{Deserialize, Serialize};

/// The region where a source names none; other stores than AWS take it as well.
pub const DEFAULT_REGION: &str = "us-east-1";
/// Keys of the Secret, as AWS's own tools name them in the environment, and names of the files with them in the directory
/// that a hub's token has (see [`TOKEN_DIR`](crate::hub::TOKEN_DIR)).
pub const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
/// The second one.
pub const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
/// The third one; of temporary credentials alone.
pub const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// Whose keys sign the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Login {
    /// Of the bucket.
    pub region: String,
    /// Of the Secret, and of the deployment.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
}

/// The address of an object, or of all objects under a prefix that ends in `/`. Without an endpoint: AWS's of the region.
pub fn url(endpoint: Option<&str>, region: &str, bucket: &str, key: &str) -> String {
    let aws = || format!("https://s3.{region}.amazonaws.com");
    let endpoint = endpoint.map_or_else(aws, |endpoint| endpoint.trim_end_matches('/').to_owned());
    format!("{endpoint}/{bucket}/{key}")
}

/// A bucket's name.
pub fn is_bucket(text: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    let inner = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || matches!(byte, b'-' | b'.');
    let bytes = text.as_bytes();
    (3..=63).contains(&text.len())
        && end(bytes.first())
        && end(bytes.last())
        && text.bytes().all(inner)
        && !text.contains("..")
}

/// Names of letters, digits, `_`, `-`, `.` and `~`, joined by `/`; a prefix ends in `/`. Such a key is written in an address
/// as it is, and no part of it leads anywhere else.
pub fn is_key(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'~');
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain);
    text.len() <= 1024 && text.strip_suffix('/').unwrap_or(text).split('/').all(part)
}

/// A region's name.
pub fn is_region(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_the_store_with_bucket_and_key() {
        for (endpoint, expect) in [
            (None, "https://s3.eu-west-1.amazonaws.com/models/a/m.gguf"),
            (Some("https://store.example.com"), "https://store.example.com/models/a/m.gguf"),
            (Some("http://10.0.0.7:8333/"), "http://10.0.0.7:8333/models/a/m.gguf"),
        ] {
            assert_eq!(url(endpoint, "eu-west-1", "models", "a/m.gguf"), expect);
        }
    }

    #[test]
    fn buckets_keys_and_regions_are_plain_names() {
        for (bucket, fine) in [
            ("models", true),
            ("a.b-c", true),
            ("ab", false),
            ("-ab", false),
            ("a..b", false),
            ("Ab1", false),
            ("a/b", false),
            ("", false),
        ] {
            assert_eq!(is_bucket(bucket), fine, "{bucket:?}");
        }
        for (key, fine) in [
            ("m.gguf", true),
            ("a/b_c.d~1/", true),
            (".hidden", true),
            ("a..b", true),
            ("", false),
            ("/", false),
            ("/a", false),
            ("a//b", false),
            ("a//", false),
            ("..", false),
            ("../a", false),
            ("a/../b", false),
            ("a/./b", false),
            ("a/..", false),
            ("a%2f..%2fb", false),
            ("a b", false),
            ("a?b", false),
            ("a#b", false),
            ("a\\b", false),
            ("é", false),
        ] {
            assert_eq!(is_key(key), fine, "{key:?}");
        }
        for (region, fine) in [("us-east-1", true), ("auto", true), ("", false), ("a/b", false), ("a b", false)] {
            assert_eq!(is_region(region), fine, "{region:?}");
        }
    }
}
