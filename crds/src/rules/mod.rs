//! Every rule of validity that the API server checks, with its message; [`crate::validate`] uses the same messages.
//!
//! A rule stands beside its field (`#[x_kube(validation = …)]`); these files hold the expressions and the messages,
//! so that the refusal at `kubectl apply` and the condition of an object that was stored before the rule existed
//! cannot differ. Each has a manifest in `crds/tests/bad/` that it refuses. Fields that this release does not honour
//! are refused by [`crate::support`].
//!
//! A message gives the true reason and what to write instead.

use kube::core::Rule;
use serde::{Deserialize, Serialize};

pub mod class;
pub mod deployment;
pub mod pod;
pub mod quota;
pub mod runtime;

/// Why something is refused. The variant names are the reasons of `Accepted=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// Contradicts itself, another field, or what the field can hold.
    Invalid,
    /// Makes sense, and this release does not do it.
    NotSupportedYet,
}

impl Reason {
    /// The condition's reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => crate::conditions::reasons::INVALID,
            Self::NotSupportedYet => crate::conditions::reasons::NOT_SUPPORTED_YET,
        }
    }
}

/// A CEL expression that must hold, and the message when it does not.
#[derive(Clone, Copy, Debug)]
pub struct CelRule {
    /// Must be true; `self` is the value that the rule stands beside.
    pub expression: &'static str,
    /// What is wrong and what to write, without the field's path.
    pub message: &'static str,
}

impl CelRule {
    /// For `#[x_kube(validation = …)]`.
    pub fn cel(&self) -> Rule {
        Rule::new(self.expression).message(self.message)
    }
}

const fn invalid(expression: &'static str, message: &'static str) -> CelRule {
    CelRule { expression, message }
}

/// An image reference as container runtimes parse it: `[host[:port]/]path[:tag][@digest]`.
pub const IMAGE_PATTERN: &str = "self.matches('^([a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?([.][a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)*(:[0-9]+)?/)?[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*(:[a-zA-Z0-9_][-a-zA-Z0-9_.]{0,127})?(@[a-zA-Z][a-zA-Z0-9]*([-_+.][a-zA-Z][a-zA-Z0-9]*)*:[a-fA-F0-9]{32,})?$')";
