//! Wide to narrow, once: what a user wrote becomes a type that cannot be wrong, or a list of refusals.
//!
//! The operator turns refusals into `Accepted=False`, the CLI prints them, and both call the same
//! functions. They repeat the CRD's own rules on purpose: an object may have been stored before a rule
//! existed. What is *not* here is anything that needs another object (does the class exist, is the flag
//! allowed by the runtime); that is the operator's and the `runtimes` crate's.
//!
//! Every spec field is destructured without `..`: a new field does not compile until somebody decides
//! whether it is honoured or refused.

mod class;
mod deployment;
mod quota;
mod runtime;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use class::{AcceptedClass, validate_class};
pub use deployment::{
    AcceptedAccelerator, AcceptedDeployment, AcceptedImage, AcceptedOptions, AcceptedPod, AcceptedResources,
    AcceptedVariant, validate_deployment,
};
pub use quota::{AcceptedGpuQuota, AcceptedQuota, validate_quota};
pub use runtime::{AcceptedRuntime, validate_runtime};

use crate::quantity::ParseError;
use crate::rules::{CelRule, Reason};
use crate::{InferenceBatchSpec, rules};

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refusal {
    /// Path from the object's root, for example `spec.variants[0].memory`.
    pub field: String,
    /// Why.
    pub reason: Reason,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All refusals as one message, for a condition.
pub fn message(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join(" · ")
}

/// The reason that the condition carries: what is wrong comes before what is not done yet.
pub fn reason(refusals: &[Refusal]) -> Reason {
    refusals.iter().map(|refusal| refusal.reason).min().unwrap_or(Reason::Invalid)
}

/// No InferenceBatch is accepted by this release.
pub fn validate_batch(_: &InferenceBatchSpec) -> Result<(), Vec<Refusal>> {
    let mut refusals = Refusals::default();
    refusals.rule("spec", &rules::batch::NO_BATCHES);
    refusals.into_result(())
}

/// Collects, so that a user sees everything at once.
#[derive(Debug, Default)]
struct Refusals(Vec<Refusal>);

impl Refusals {
    fn push(&mut self, field: impl Into<String>, reason: Reason, message: impl Into<String>) {
        self.0.push(Refusal { field: field.into(), reason, message: message.into() });
    }

    fn rule(&mut self, field: impl Into<String>, rule: &CelRule) {
        self.push(field, rule.reason, rule.message);
    }

    /// Refuses by the rule unless it holds.
    fn require(&mut self, holds: bool, field: impl Into<String>, rule: &CelRule) {
        if !holds {
            self.rule(field, rule);
        }
    }

    /// The value, or a refusal and nothing.
    fn parsed<T>(&mut self, field: impl Into<String>, result: Result<T, ParseError>) -> Option<T> {
        result.map_err(|error| self.push(field, Reason::Invalid, error.to_string())).ok()
    }

    /// What was accepted, unless anything was refused.
    fn into_result<T>(self, accepted: T) -> Result<T, Vec<Refusal>> {
        if self.0.is_empty() { Ok(accepted) } else { Err(self.0) }
    }
}

/// Whether every name occurs once; the API server sees to it where a list is a map.
fn unique<'a>(refusals: &mut Refusals, field: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            refusals.push(field, Reason::Invalid, format!("\"{name}\" occurs twice; write each name once"));
        }
    }
}
