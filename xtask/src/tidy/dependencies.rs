//! The dependency rule: crates that decide reach no I/O, so that what is decided there can be replayed from values
//! alone.

use crate::base::paths;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::process::Command;

/// A crate that decides, and the dependency behind which the search stops.
struct Pure {
    package: &'static str,
    through: &'static [&'static str],
}

const PURE: &[Pure] = &[
    Pure { package: "stowage-contracts", through: &[] },
    Pure { package: "stowage-planner", through: &[] },
    Pure { package: "stowage-openai-api", through: &[] },
    Pure { package: "stowage-engine-core", through: &[] },
    Pure { package: "stowage-engine-models", through: &[] },
    Pure { package: "stowage-engine-kernels", through: &[] },
    // Adapters take and give API types, whose derive brings all of kube; they call none of it.
    Pure { package: "stowage-runtimes", through: &["stowage-crds"] },
];

/// Runtimes, clients, servers and devices.
const IO: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "kube-client",
    "kube-runtime",
    "hyper",
    "axum",
    "reqwest",
    "tonic",
    "nvml-wrapper",
    "nvml-wrapper-sys",
    "cudarc",
];

/// The API types have no behaviour. `kube` is there for its derive (its client comes along, because
/// features are shared in the workspace), so only direct dependencies are checked.
const TYPES: &str = "stowage-crds";

/// Broken rules of the workspace, each as the way to what must not be reached.
pub fn broken() -> Result<Vec<String>> {
    Ok(broken_rules(&Graph::of_workspace()?))
}

fn broken_rules(graph: &Graph) -> Vec<String> {
    let mut broken: Vec<String> = PURE.iter().filter_map(|rule| graph.path_to_io(rule)).collect();
    let direct = graph.edges.get(TYPES).into_iter().flatten().filter(|d| IO.contains(&d.as_str()));
    broken.extend(direct.map(|d| format!("{TYPES} → {d}")));
    broken
}

/// Who needs whom: normal and build dependencies, not those of tests.
struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn of_workspace() -> Result<Self> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let out = Command::new(cargo).args(["metadata", "--format-version=1"]).current_dir(paths::repo()).output()?;
        if !out.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        let metadata: Metadata = serde_json::from_slice(&out.stdout).context("reading cargo metadata")?;
        let names: BTreeMap<&str, &str> = metadata.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            let needed = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind.as_deref() != Some("dev")));
            let name = |id: &str| names.get(id).copied().unwrap_or(id).to_string();
            edges.entry(name(&node.id)).or_default().extend(needed.map(|d| name(&d.pkg)));
        }
        Ok(Self { edges })
    }

    /// The shortest way from the crate to something that does I/O.
    fn path_to_io(&self, rule: &Pure) -> Option<String> {
        let mut queue = VecDeque::from([vec![rule.package.to_string()]]);
        let mut seen = BTreeSet::new();
        while let Some(path) = queue.pop_front() {
            let last = path.last()?.clone();
            if IO.contains(&last.as_str()) {
                return Some(path.join(" → "));
            }
            let stop = rule.through.contains(&last.as_str()) || !seen.insert(last.clone());
            if !stop {
                let next = self.edges.get(&last).into_iter().flatten();
                queue.extend(next.map(|d| path.iter().chain([d]).cloned().collect::<Vec<_>>()));
            }
        }
        None
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}
#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}
#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}
#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dep>,
}
#[derive(Deserialize)]
struct Dep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}
#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let set = |to: &[&str]| to.iter().map(|t| t.to_string()).collect();
        Graph { edges: edges.iter().map(|(from, to)| (from.to_string(), set(to))).collect() }
    }

    #[test]
    fn the_deciding_crates_do_no_io() {
        let graph = Graph::of_workspace().unwrap();
        assert_eq!(broken_rules(&graph), Vec::<String>::new());
        let known = PURE.iter().map(|r| r.package).chain([TYPES]);
        assert!(known.clone().all(|p| graph.edges.contains_key(p)), "a rule names a crate that does not exist");
    }
    #[test]
    fn a_runtime_behind_two_crates_is_found_and_its_way_is_named() {
        let graph = graph(&[("stowage-planner", &["a"]), ("a", &["b", "serde"]), ("b", &["tokio"])]);
        assert_eq!(broken_rules(&graph), ["stowage-planner → a → b → tokio"]);
    }
    #[test]
    fn adapters_may_use_the_api_types_but_nothing_else_with_io() {
        let types: (&str, &[&str]) = ("stowage-crds", &["kube-client"]);
        assert_eq!(
            broken_rules(&graph(&[types, ("stowage-runtimes", &["stowage-crds"])])),
            ["stowage-crds → kube-client"]
        );
        let direct = graph(&[("stowage-runtimes", &["stowage-crds", "hyper"])]);
        assert_eq!(broken_rules(&direct), ["stowage-runtimes → hyper"]);
    }
    #[test]
    fn a_circle_ends_the_search() {
        assert!(broken_rules(&graph(&[("stowage-planner", &["a"]), ("a", &["stowage-planner"])])).is_empty());
    }
}
