//! InferenceRuntimes, judged once for all deployments that name them.

use std::collections::BTreeMap;

use stowage_crds::conditions::reasons;
use stowage_crds::validate::{AcceptedRuntime, validate_runtime};

use super::{Refusal, refusal};
use crate::observe::view::{Objects, StoredRuntime};

/// All runtimes by name: what each is, or why it is not accepted.
#[derive(Debug, Clone, Default)]
pub struct Runtimes(BTreeMap<String, Result<AcceptedRuntime, Refusal>>);

impl Runtimes {
    pub fn read(stored: &Objects<StoredRuntime>) -> Self {
        let judged = |stored: &StoredRuntime| {
            let spec = stored.spec.as_ref().map_err(|err| (reasons::MALFORMED, err.to_string()))?;
            validate_runtime(spec).map_err(|refusals| refusal(&refusals))
        };
        Self(stored.values().map(|stored| (stored.name().to_owned(), judged(stored))).collect())
    }

    /// The runtime of this name, for a deployment that names it.
    pub fn get(&self, name: &str) -> Result<&AcceptedRuntime, Refusal> {
        match self.0.get(name) {
            Some(Ok(runtime)) => Ok(runtime),
            Some(Err((_, why))) => {
                Err((reasons::RUNTIME_NOT_FOUND, format!("InferenceRuntime {name} cannot be used: {why}")))
            }
            None => {
                let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
                let known = known.join(", ");
                let message = format!("spec.runtime.ref names no InferenceRuntime \"{name}\"; known are: {known}");
                Err((reasons::RUNTIME_NOT_FOUND, message))
            }
        }
    }

    /// The runtime of this name, for its own condition; `None`: there is none.
    pub fn judged(&self, name: &str) -> Option<&Result<AcceptedRuntime, Refusal>> {
        self.0.get(name)
    }
}
