//! Wide to narrow, once: what a user wrote becomes a type that cannot be wrong, or a list of refusals.
//!
//! The operator turns refusals into `Accepted=False`, the CLI prints them, and both call the same
//! functions. They repeat the CRD's own rules on purpose: an object may have been stored before a rule
//! existed. Not here: anything that needs another object (whether the class exists, whether the runtime allows
//! the flag); the operator and the `runtimes` crate decide that.
//!
//! Every spec field is destructured without `..`, so a new field compiles only once it is used here or refused by
//! a row of [`crate::support`].

mod class;
mod deployment;
mod pod;
mod quota;
mod runtime;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use class::{AcceptedClass, validate_class};
pub use deployment::{
    AcceptedAccelerator, AcceptedDeployment, AcceptedHub, AcceptedImage, AcceptedOptions, AcceptedS3, AcceptedScaling,
    AcceptedSource, AcceptedVariant, AcceptedVolume, objectives, validate_deployment,
};
pub use pod::{AcceptedPod, AcceptedResources};
pub use quota::{AcceptedGpuQuota, AcceptedQuota, validate_quota};
pub use runtime::{AcceptedRuntime, validate_runtime};

use crate::quantity::ParseError;
use crate::rules::{CelRule, Reason};
use crate::support::Unsupported;
use crate::{InferenceBatchSpec, support};

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
pub fn validate_batch(spec: &InferenceBatchSpec) -> Result<(), Vec<Refusal>> {
    let mut refusals = Refusals::default();
    refusals.unsupported(spec, support::BATCH);
    refusals.into_result(())
}

/// Collects all of them, so that a user sees everything at once.
#[derive(Debug, Default)]
struct Refusals(Vec<Refusal>);

impl Refusals {
    fn push(&mut self, field: impl Into<String>, reason: Reason, message: impl Into<String>) {
        self.0.push(Refusal { field: field.into(), reason, message: message.into() });
    }

    /// Refuses by the rule unless it holds.
    fn require(&mut self, holds: bool, field: impl Into<String>, rule: &CelRule) {
        if !holds {
            self.push(field, Reason::Invalid, rule.message);
        }
    }

    /// Refuses every field that this release does not honour.
    fn unsupported<S>(&mut self, spec: &S, table: &[Unsupported<S>]) {
        for row in table.iter().filter(|row| (row.given)(spec)) {
            self.push(row.path(), Reason::NotSupportedYet, row.message);
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

/// Refuses names that occur twice; where a list is a map, the API server refuses them first.
fn unique<'a>(refusals: &mut Refusals, field: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            refusals.push(field, Reason::Invalid, format!("\"{name}\" occurs twice; write each name once"));
        }
    }
}
