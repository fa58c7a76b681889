//! Salts of the tenants' prefix caches, and the key that they are made with.
//!
//! An engine shares cached blocks among requests of one salt. The owner of a shared model can reach its own
//! engine without a gateway, and send any salt there. So another tenant's salt must not be guessable: it is a
//! keyed hash of both names, and the key is a Secret that gateways alone read. One owner sees the salts of its
//! callers in its own engine; they differ from those that another owner's engine is sent. Another key gives
//! other salts, which costs cached prefixes and nothing else.

use std::fmt;

/// Shortest key, in bytes.
const SHORTEST: usize = 32;
/// Separates this use of the key from any other.
const CONTEXT: &str = "stowage.dev 2026-11 salt of a tenant's prefix cache";

/// The key of all salts, the same on every gateway.
#[derive(Clone, PartialEq, Eq)]
pub struct SaltKey([u8; 32]);

impl SaltKey {
    /// The key behind the bytes of a Secret; `None` when they are too few to be one.
    pub fn new(secret: &[u8]) -> Option<Self> {
        (secret.len() >= SHORTEST).then(|| Self(blake3::derive_key(CONTEXT, secret)))
    }

    /// The salt of a caller in the engines of an owner, as a header's value. Names of objects have no NUL.
    pub fn salt(&self, owner: &str, caller: &str) -> String {
        blake3::keyed_hash(&self.0, format!("{owner}\0{caller}").as_bytes()).to_hex().to_string()
    }
}

impl fmt::Debug for SaltKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaltKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SaltKey {
        SaltKey::new(&[byte; 32]).unwrap()
    }

    #[test]
    fn salt_depends_on_both_tenants_and_on_the_key() {
        let salt = key(1).salt("owner", "team-a");
        assert_eq!(salt, key(1).salt("owner", "team-a"));
        assert_eq!(salt.len(), 64);
        let others = [
            ("another caller", key(1).salt("owner", "team-b")),
            ("another owner", key(1).salt("owner-2", "team-a")),
            ("the two exchanged", key(1).salt("team-a", "owner")),
            ("another key", key(2).salt("owner", "team-a")),
        ];
        for (what, other) in others {
            assert_ne!(salt, other, "{what}");
        }
    }

    #[test]
    fn few_bytes_are_no_key() {
        for length in [0, 1, 31] {
            assert_eq!(SaltKey::new(&vec![7; length]), None, "{length}");
        }
    }

    #[test]
    fn key_is_not_printed() {
        assert_eq!(format!("{:?}", key(7)), "SaltKey(..)");
    }
}
