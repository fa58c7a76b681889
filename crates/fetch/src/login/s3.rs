//! Requests to object stores, signed with an account's keys: AWS Signature Version 4, which the stores that speak S3 check.
//!
//! The secret key is never sent. A signature is for the method, path, query and host of one request, and for a few minutes.
//! Only GET is signed.

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderName};
use sha2::{Digest, Sha256};

use super::Keys;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The headers that sign a GET request to this URL.
pub fn headers(keys: &Keys, region: &str, url: &Url, now: Timestamp) -> Vec<(HeaderName, String)> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = time.split('T').next().unwrap_or_default();
    let empty = hex(&Sha256::digest(b""));
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = format!("{}{port}", url.host_str().unwrap_or_default());
    let mut signed = vec![("host", host), ("x-amz-content-sha256", empty.clone()), ("x-amz-date", time.clone())];
    signed.extend(keys.session.clone().map(|session| ("x-amz-security-token", session)));

    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let request = format!("GET\n{}\n{}\n{lines}\n{names}\n{empty}", path(url), query(url));
    let scope = format!("{day}/{region}/s3/aws4_request");
    let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", hex(&Sha256::digest(request)));
    let key = [day, region, "s3", "aws4_request"]
        .iter()
        .fold(format!("AWS4{}", keys.secret).into_bytes(), |key, part| mac(&key, part));
    let signature = hex(&mac(&key, &text));
    let id = &keys.id;
    let authorization = format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
    let sent = signed.into_iter().filter(|(name, _)| *name != "host");
    sent.map(|(name, value)| (HeaderName::from_static(name), value)).chain([(AUTHORIZATION, authorization)]).collect()
}

/// The path with each character encoded that can be.
fn path(url: &Url) -> String {
    url.path().split('/').map(|part| encoded(&decoded(part))).collect::<Vec<_>>().join("/")
}

/// The query's pairs in the order of their bytes.
fn query(url: &Url) -> String {
    let mut pairs: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (encoded(name.as_bytes()), encoded(value.as_bytes()))).collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn encoded(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    bytes.iter().map(one).collect()
}

/// Undoes percent-encoding; what is none stays.
fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *byte == b'%') {
            Some(decoded) => {
                found.push(decoded);
                at += 3;
            }
            None => {
                found.push(*byte);
                at += 1;
            }
        }
    }
    found
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    // The first error that never comes: HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature of a request with the keys of AWS's own examples.
    fn signature(url: &str, session: Option<&str>) -> String {
        let keys = Keys::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", session).unwrap();
        let now = "2013-05-24T00:00:00Z".parse().unwrap();
        let headers = headers(&keys, "us-east-1", &url.parse().unwrap(), now);
        let (_, authorization) = headers.iter().find(|(name, _)| *name == AUTHORIZATION).unwrap();
        assert!(authorization.contains("Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "));
        assert!(!headers.iter().any(|(_, value)| value.contains("wJalr")));
        authorization.rsplit('=').next().unwrap().to_owned()
    }

    #[test]
    fn signatures_are_those_of_the_examples_in_aws_documentation() {
        for (url, expect) in [
            ("?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
            ("?prefix=J&max-keys=2", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
            ("?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ] {
            assert_eq!(signature(&format!("https://examplebucket.s3.amazonaws.com/{url}"), None), expect, "{url}");
        }
    }

    #[test]
    fn signature_is_for_one_path_host_port_and_session() {
        let urls = ["https://h/b/a", "https://h/b/c", "https://i/b/a", "https://h:8333/b/a"];
        let mut all: std::collections::BTreeSet<String> = urls.iter().map(|url| signature(url, None)).collect();
        all.insert(signature(urls[0], Some("token")));
        assert_eq!(all.len(), 5);
        assert_eq!(signature("https://h:443/b/a", None), signature("https://h/b/a", None));
    }

    #[test]
    fn paths_are_signed_as_the_store_reads_them() {
        for (url, expect) in [
            ("https://h/b/a.gguf", "/b/a.gguf"),
            ("https://h/b/a=1+(2)", "/b/a%3D1%2B%282%29"),
            ("https://h/b/a%3D1", "/b/a%3D1"),
            ("https://h/b/100%25", "/b/100%25"),
            ("https://h/b/%zz%", "/b/%25zz%25"),
            ("https://h", "/"),
        ] {
            assert_eq!(path(&url.parse().unwrap()), expect, "{url}");
        }
    }
}
