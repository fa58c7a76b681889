//! `plan -f`: what would come of some manifests, on the live state. Nothing is written.
//!
//! Asked twice. The API server is asked for a dry run of each change with the caller's own rights: it knows the
//! schema, the admission policies, and whether the caller may make the change at all. The operator is asked for
//! the plan with the changes in it; its answer is the planner's, and so is the text.

mod documents;

use std::io::Read as _;
use std::path::Path;

use serde::Serialize;
use stowage_crds::names::{GROUP, MAX_PLAN_BYTES, PATH_PLAN};
use stowage_planner::difference::{DryRun, DryRunRequest};
use stowage_planner::render;

use crate::cluster::{Cluster, Verdict};
use crate::out::{self, Format, Paint, Tone};
use crate::remedy::Right;
use crate::{Answer, Failure};
pub(crate) use documents::objects;
use documents::{Manifest, manifests};

/// What an account that may not ask the operator reads.
const NO_RIGHT: &str = "this account may not ask the operator for a plan; it takes create on services/proxy or pods/proxy in stowage-system";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// File with manifests, - for standard input.
    #[arg(short, long)]
    filename: String,
    /// Plan what `kubectl delete -f` would do.
    #[arg(long)]
    delete: bool,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Planned {
    /// What the API server says of each manifest, in their order.
    admission: Vec<Admission>,
    #[serde(flatten)]
    run: DryRun,
}

/// What the API server says of one manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Admission {
    document: usize,
    admitted: Option<bool>,
    /// Why it is not admitted, or not known.
    message: String,
}

pub(crate) async fn run(
    cluster: &Cluster,
    args: &Args,
    namespace: Option<&str>,
    format: Option<Format>,
    paint: Paint,
) -> Result<Answer, Failure> {
    let text = read(&args.filename, MAX_PLAN_BYTES)?;
    let planned = ask(cluster, &text, shown(&args.filename), args.delete, None, namespace).await?;
    let text = out::machine(format, &planned).unwrap_or_else(|| rendered(&planned, paint));
    Ok(Answer { text, yes: planned.fits() })
}

/// Asks about the manifests in `text`, which came from `source`. Those without a namespace get `default`, or the context's;
/// none may contradict `given`.
pub(crate) async fn ask(
    cluster: &Cluster,
    text: &str,
    source: &str,
    delete: bool,
    default: Option<&str>,
    given: Option<&str>,
) -> Result<Planned, Failure> {
    let default = given.or(default).unwrap_or_else(|| cluster.default_namespace());
    let manifests = manifests(text, default, given).map_err(|why| Failure::Usage(format!("{source}: {why}")))?;
    let mut admission = Vec::new();
    for manifest in &manifests {
        admission.push(admit(cluster, manifest, delete).await?);
    }
    let request = DryRunRequest { manifests: manifests.into_iter().map(|m| m.object).collect(), delete };
    let run = cluster.ask_operator::<_, DryRun>(PATH_PLAN, &request).await;
    let run = run.map_err(|e| if e.forbidden() { e.replaced(NO_RIGHT) } else { e })?;
    Ok(Planned { admission, run })
}

impl Planned {
    /// Whether all is admitted and gets what it asks for.
    pub fn fits(&self) -> bool {
        self.run.fits() && self.admission.iter().all(|a| a.admitted != Some(false))
    }

    /// Without colours.
    pub fn text(&self) -> String {
        rendered(self, Paint::OFF)
    }
}

/// A file as it is named in messages.
pub(crate) fn shown(filename: &str) -> &str {
    if filename == "-" { "standard input" } else { filename }
}

/// Manifests; no more than one byte over `most` is read.
pub(crate) fn read(filename: &str, most: usize) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::Usage(format!("reading {}: {e}", shown(filename)));
    let from: Box<dyn std::io::Read> = match filename {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(std::fs::File::open(Path::new(path)).map_err(failed)?),
    };
    let mut text = String::new();
    from.take(most as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// What the API server would answer to the change itself.
async fn admit(cluster: &Cluster, manifest: &Manifest, delete: bool) -> Result<Admission, Failure> {
    let (verb, resource) = (if delete { "delete" } else { "patch" }, plural(&manifest.kind));
    let right = Right {
        verb,
        group: GROUP,
        resource,
        subresource: "",
        namespace: manifest.namespace.clone(),
        name: manifest.name.clone(),
    };
    let (admitted, message) = match cluster.try_change(&manifest.object, resource, delete).await? {
        Verdict::Admitted => (Some(true), String::new()),
        // Who may not make the change may still ask what it would do.
        Verdict::Forbidden(_) if !cluster.may(&right).await => {
            let place = match manifest.namespace.as_str() {
                "" => String::new(),
                namespace => format!(" in {namespace}"),
            };
            (None, format!("this account may not make the change: it takes {verb} on {resource}.{GROUP}{place}"))
        }
        Verdict::Forbidden(message) | Verdict::Refused(message) => (Some(false), message),
    };
    Ok(Admission { document: manifest.document, admitted, message })
}

/// Of the kinds that a plan takes.
fn plural(kind: &str) -> &'static str {
    if kind == "TenantQuota" { "tenantquotas" } else { "inferencedeployments" }
}

fn rendered(planned: &Planned, paint: Paint) -> String {
    let mut out = String::new();
    for line in render::dry_run(&planned.run).lines() {
        let tone = match line.chars().next() {
            Some('+') => Some(Tone::Good),
            Some('~') => Some(Tone::Warn),
            Some('-' | '!') => Some(Tone::Bad),
            _ => None,
        };
        out.push_str(&tone.map_or_else(|| line.to_owned(), |tone| paint.paint(tone, line)));
        out.push('\n');
    }
    for a in planned.admission.iter().filter(|a| a.admitted != Some(true)) {
        let label = if a.admitted.is_some() { "refused" } else { "note" };
        let text = format!("{label:<10} document {}: {}", a.document, a.message);
        out.push_str(&if a.admitted.is_some() { paint.paint(Tone::Bad, &text) } else { text });
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_says_stands_below_the_plan() {
        let run: DryRun = serde_json::from_value(serde_json::json!({
            "leading": true,
            "documents": [{"number": 1, "kind": "TenantQuota", "name": "team-a", "proposal": "Change", "refusal": null}],
            "difference": {"at": 1_772_366_400_000_u64, "deployments": [], "others": [], "tenants": [],
                "clusterBefore": CLUSTER(), "clusterAfter": CLUSTER()},
        }))
        .unwrap();
        let refused = Admission { document: 1, admitted: Some(false), message: "spec.namespaces: Required".into() };
        let unknown = Admission { document: 2, admitted: None, message: "it takes patch on tenantquotas".into() };
        let text = rendered(&Planned { admission: vec![refused, unknown], run }, Paint::OFF);
        let want = "Nothing is changed. Planned on the state of 12:00:00Z.\n~ TenantQuota team-a\n\
            refused    document 1: spec.namespaces: Required\nnote       document 2: it takes patch on tenantquotas\n";
        assert_eq!(text, want);
    }

    const CLUSTER: fn() -> serde_json::Value =
        || serde_json::to_value(stowage_planner::report::ClusterReport::default()).unwrap_or_default();
}
