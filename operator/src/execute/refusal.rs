//! What people read of a write that is not carried out: which, why, and what to do.

use super::backoff::{Failing, Part};
use super::write::WriteError;

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {name}: {error}")]
pub struct Failure {
    pub part: Part,
    /// The operation without the object's name, as `create pod`.
    pub what: &'static str,
    pub name: String,
    #[source]
    pub error: WriteError,
}

/// A failure that stands until it is tried again, as conditions and events report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub part: Part,
    pub failing: Failing,
    pub message: String,
}

impl Obstacle {
    /// `None`: a conflict of the moment, which is met by trying again and is in the log.
    pub fn of(failure: &Failure) -> Option<Self> {
        let Failure { part, what, name, error } = failure;
        let failing = Failing::of(error);
        let message = match error {
            WriteError::NotLeader(_) | WriteError::AlreadyExists | WriteError::Conflict(_) | WriteError::NotFound => {
                return None;
            }
            WriteError::Refused(words) => {
                let why = cause(words, name);
                format!("The API server refuses to {what}: {why}. {}", next_step(&why))
            }
            WriteError::Foreign(object) => format!(
                "Cannot {what}: {object} exists and does not belong to this deployment. \
                 Rename or delete it, or give the deployment another name; it is tried again every 30 s"
            ),
            WriteError::Unavailable(words) => format!("Cannot {what}: {words}. It is tried again"),
        };
        Some(Self { part: *part, failing, message })
    }

    /// Equal for messages that differ in figures alone.
    pub fn key(&self) -> String {
        self.message.chars().filter(|c| !c.is_ascii_digit()).collect()
    }
}

/// The API server's reason without the name of the object that was refused, which differs each time.
fn cause(words: &str, name: &str) -> String {
    let quoted = format!("\"{name}\" ");
    let from_name = words.find(&quoted).map_or(words, |at| &words[at + quoted.len()..]);
    let without_verb = ["is forbidden: ", "is invalid: "].iter().find_map(|verb| from_name.strip_prefix(verb));
    without_verb.unwrap_or(words).replace(name, "…").trim_end_matches(['.', ' ']).to_owned()
}

fn next_step(cause: &str) -> &'static str {
    const STEPS: [(&str, &str); 8] = [
        ("exceeded quota", "Raise the ResourceQuota or free what it counts"),
        ("must specify", "Set spec.podTemplate.resources as the ResourceQuota demands"),
        ("PriorityClass", "Create the PriorityClass or correct spec.podTemplate.priorityClassName"),
        ("service account", "Create the ServiceAccount or correct spec.podTemplate.serviceAccountName"),
        ("violates PodSecurity", "Change spec.podTemplate or the namespace's pod-security labels"),
        (" usage per ", "Change spec.podTemplate.resources or the LimitRange"),
        ("being terminated", "The namespace is being deleted"),
        ("denied", "Change what the policy asks for, or the policy"),
    ];
    let known = STEPS.iter().find(|(words, _)| cause.contains(words));
    known.map_or("Change the deployment or what refuses it; it is tried again every 5 min at most", |(_, step)| step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: &str) -> String {
        let error = WriteError::Refused(words.to_owned());
        let failure = Failure { part: Part::Make, what: "create pod", name: "chat-x1y2z3".into(), error };
        Obstacle::of(&failure).unwrap().message
    }

    #[test]
    fn a_refusal_names_its_cause_and_the_next_step_and_no_pod() {
        let cases = [
            (
                "pods \"chat-x1y2z3\" is forbidden: exceeded quota: rq, requested: pods=1, used: pods=2, limited: pods=2",
                "The API server refuses to create pod: exceeded quota: rq, requested: pods=1, used: pods=2, limited: pods=2. \
                 Raise the ResourceQuota or free what it counts",
            ),
            (
                "pods \"chat-x1y2z3\" is forbidden: no PriorityClass with name nope was found",
                "The API server refuses to create pod: no PriorityClass with name nope was found. \
                 Create the PriorityClass or correct spec.podTemplate.priorityClassName",
            ),
            (
                "admission webhook \"w\" denied the request: pod chat-x1y2z3 is odd.",
                "The API server refuses to create pod: admission webhook \"w\" denied the request: pod … is odd. \
                 Change what the policy asks for, or the policy",
            ),
        ];
        for (words, expect) in cases {
            assert_eq!(message(words), expect);
        }
    }

    #[test]
    fn a_conflict_of_the_moment_is_no_obstacle() {
        let failure = Failure {
            part: Part::Make,
            what: "create pod",
            name: "chat-x1y2z3".into(),
            error: WriteError::Conflict("changed".into()),
        };
        assert_eq!(Obstacle::of(&failure), None);
    }
}
