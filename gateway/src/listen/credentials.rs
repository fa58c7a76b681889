//! From the API key to the tenant.
//!
//! Keys are known by their SHA-256 only. A presented key is hashed, the table is entered by the
//! first eight bytes of the hash, and what stands there is compared in constant time. The time can
//! show at most those eight bytes of a *hash*, which do not help to find a key.
//!
//! The tenant comes from the credential and from nothing else: no header, no query, no body.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use stowage_openai_api::ApiError;
use subtle::ConstantTimeEq;

/// SHA-256 of a key, as the Secret stores it (there in hex).
pub type KeyHash = [u8; 32];

/// Keys longer than this are refused before they are hashed.
const MAX_KEY_BYTES: usize = 512;

/// All keys of all tenants.
#[derive(Debug, Default, Clone)]
pub struct KeyTable(HashMap<[u8; 8], Vec<(KeyHash, Arc<str>)>>);

impl KeyTable {
    /// Adds a key. The first tenant to name a hash keeps it: `false` when another tenant has it.
    pub fn insert(&mut self, hash: KeyHash, tenant: Arc<str>) -> bool {
        let entries = self.0.entry(prefix(&hash)).or_default();
        match entries.iter().find(|(known, _)| *known == hash) {
            Some((_, owner)) => *owner == tenant,
            None => {
                entries.push((hash, tenant));
                true
            }
        }
    }

    /// The tenant whose key this is.
    pub fn tenant_of(&self, key: &str) -> Option<&Arc<str>> {
        let hash = hash_key(key);
        let entries = self.0.get(&prefix(&hash))?;
        entries.iter().find(|(known, _)| known.ct_eq(&hash).into()).map(|(_, tenant)| tenant)
    }

    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// SHA-256 of a key.
pub fn hash_key(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

/// A hash as a Secret holds it: 64 hex digits, surrounding white space allowed.
pub fn parse_hash(text: &str) -> Option<KeyHash> {
    let text = text.trim().as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(hash)
}

/// The key in `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(ApiError::unauthenticated(
            "No API key. Send it as `Authorization: Bearer <key>`; your platform team issues keys per tenant.",
        ));
    };
    if values.next().is_some() {
        return Err(ApiError::unauthenticated("More than one Authorization header. Send exactly one."));
    }
    let malformed = || ApiError::unauthenticated("The Authorization header is not `Bearer <key>`.");
    let (scheme, key) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(malformed)?;
    let key = key.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(malformed());
    }
    Ok(key)
}

/// The refusal for an unknown key. It does not show whether the key ever existed.
pub fn unknown_key() -> ApiError {
    ApiError::unauthenticated(
        "This API key is not known or was revoked. Check it, or ask your platform team for a new one.",
    )
}

fn prefix(hash: &KeyHash) -> [u8; 8] {
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&hash[..8]);
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn key_finds_its_tenant_and_unknown_key_finds_none() {
        let mut table = KeyTable::default();
        assert!(table.insert(hash_key("sk-a"), "team-a".into()));
        assert!(table.insert(hash_key("sk-b"), "team-b".into()));
        assert_eq!(table.tenant_of("sk-a").map(|t| &**t), Some("team-a"));
        assert_eq!(table.tenant_of("sk-b").map(|t| &**t), Some("team-b"));
        assert_eq!(table.tenant_of("sk-A"), None);
        assert_eq!(table.tenant_of(""), None);
        // The hash is not the key.
        let hex: String = hash_key("sk-a").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(table.tenant_of(&hex), None);
    }

    #[test]
    fn key_of_two_tenants_stays_with_the_first() {
        let mut table = KeyTable::default();
        assert!(table.insert(hash_key("k"), "a".into()));
        assert!(!table.insert(hash_key("k"), "b".into()));
        assert!(table.insert(hash_key("k"), "a".into()));
        assert_eq!((table.tenant_of("k").map(|t| &**t), table.len()), (Some("a"), 1));
    }

    #[test]
    fn hashes_are_sixty_four_hex_digits() {
        let hex = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        assert_eq!(parse_hash(hex), Some(hash_key("foo")));
        assert_eq!(parse_hash(&format!(" {hex}\n")), Some(hash_key("foo")));
        for bad in ["", "foo", &hex[1..], &format!("{}g", &hex[1..]), &"ä".repeat(32)] {
            assert_eq!(parse_hash(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_one_well_formed_bearer_header_is_read() {
        assert_eq!(bearer(&headers(&["Bearer sk-1"])).unwrap(), "sk-1");
        assert_eq!(bearer(&headers(&["bearer  sk-1 "])).unwrap(), "sk-1");
        let long = format!("Bearer {}", "x".repeat(600));
        for bad in [&[][..], &["sk-1"], &["Basic abc"], &["Bearer "], &["Bearer a", "Bearer b"], &[&long]] {
            assert_eq!(bearer(&headers(bad)).unwrap_err().status, 401, "{bad:?}");
        }
    }
}
