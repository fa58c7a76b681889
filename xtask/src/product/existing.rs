//! What a cluster that is not ours has already: `helm upgrade` drops the values of an earlier release, so one that this
//! program did not make is refused.

use super::Target;
use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A value of every release that this program makes. The charts do not read it.
pub const MARK: &str = "global.installedBy=xtask";
/// Releases of both charts.
const RELEASES: &str = "^stowage(-crds)?$";

/// Whether a release of ours is there. Another one of these names is refused: its objects have constant names, so
/// there is room for one.
pub fn release(target: &Target) -> Result<bool> {
    let helm = |args: &[&str]| -> Result<Value> {
        let text = super::helm(target, args)?;
        serde_json::from_str(&text).with_context(|| format!("read what helm {} printed", args[0]))
    };
    let listed = helm(&["list", "--all-namespaces", "--filter", RELEASES, "--output", "json"])
        .context("look for a release that is there already")?;
    let present = present(&listed);
    for (name, namespace) in &present {
        let values = helm(&["get", "values", name, "--namespace", namespace, "--output", "json"])
            .context("look at the release that is there already")?;
        if !is_ours(&values) {
            bail!(
                "the Helm release {name} in namespace {namespace} was not made by this program, and installing would \
                 drop its values and simulate GPUs; use another cluster, or end that one (docs/operations.md, Uninstall)"
            );
        }
    }
    Ok(!present.is_empty())
}

/// Names and namespaces of releases. One that was uninstalled may have left its history.
fn present(listed: &Value) -> Vec<(&str, &str)> {
    let releases = listed.as_array().into_iter().flatten().filter(|release| release["status"] != "uninstalled");
    releases.filter_map(|release| Some((release["name"].as_str()?, release["namespace"].as_str()?))).collect()
}

fn is_ours(values: &Value) -> bool {
    MARK.split_once('=').is_some_and(|(path, value)| {
        let found = path.split('.').try_fold(values, |object, key| object.get(key));
        found.is_some_and(|found| found == value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn release_is_ours_by_its_mark_alone() {
        assert!(is_ours(&json!({"global": {"installedBy": "xtask"}, "image": {"tag": "dev"}})));
        let simulated = json!({"nodeAgent": {"simulated": {"enabled": true}}, "image": {"tag": "dev"}});
        for values in [simulated, Value::Null, json!({"global": {"installedBy": "argocd"}})] {
            assert!(!is_ours(&values), "{values}");
        }
    }

    #[test]
    fn release_that_failed_counts_and_one_that_was_uninstalled_does_not() {
        let release = |name: &str, status: &str| json!({"name": name, "namespace": "infra", "status": status});
        let listed = json!([release("stowage", "uninstalled"), release("stowage-crds", "failed")]);
        assert_eq!(present(&listed), [("stowage-crds", "infra")]);
        assert!(present(&json!([])).is_empty());
    }
}
