//! What a check reports, and helpers that all checks use.

use jiff::Timestamp;
use serde::Serialize;

use crate::cluster::{Read, Unreadable};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Finding {
    Ok,
    Warn,
    Fail,
    /// The check could not be made.
    Unknown,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    pub name: &'static str,
    pub finding: Finding,
    pub found: String,
    /// What follows from it.
    pub means: Option<String>,
    /// The command or action that fixes it.
    pub fix: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, finding: Finding::Ok, found: found.into(), means: None, fix: None }
    }

    pub(super) fn bad(
        name: &'static str,
        finding: Finding,
        found: impl Into<String>,
        means: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        let (found, means, fix) = (found.into(), Some(means.into()), Some(fix.into()));
        Check { name, finding, found, means, fix }
    }

    pub(super) fn fail(
        name: &'static str,
        found: impl Into<String>,
        means: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check::bad(name, Finding::Fail, found, means, fix)
    }

    pub(super) fn warn(
        name: &'static str,
        found: impl Into<String>,
        means: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check::bad(name, Finding::Warn, found, means, fix)
    }

    pub(super) fn unknown(name: &'static str, why: &Unreadable) -> Check {
        let fix = match why.forbidden {
            true => "ask for read access, or run as a cluster administrator",
            false => "run this again; if it stays, look at the API server: kubectl get --raw /readyz?verbose",
        };
        Check::bad(name, Finding::Unknown, "could not be read", why.message.as_str(), fix)
    }

    /// The API server does not know the kind.
    pub(super) fn absent(name: &'static str, why: &str) -> Check {
        let fix = "the checks of Kubernetes, the device API and the CRDs say what is missing";
        Check::bad(name, Finding::Unknown, "could not be read", why, fix)
    }
}

pub(super) fn read_list<'a, T>(name: &'static str, read: &'a Read<Vec<T>>) -> Result<&'a [T], Check> {
    match read {
        Read::Got(list) => Ok(list),
        Read::Absent => Err(Check::absent(name, "the kind is not installed")),
        Read::Failed(why) => Err(Check::unknown(name, why)),
    }
}

pub(super) fn ago(t: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(t).as_millis()).unwrap_or(0)
}

pub(super) fn join<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let all: Vec<String> = items.into_iter().map(|s| s.as_ref().to_owned()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
