//! Text for a dry run: what would be created, drained and refused, where, and what it costs.

use std::fmt::Write as _;

use crate::explain::difference::{
    ClassMilli, DeploymentDifference, Difference, Document, DryRun, Effect, Ended, OtherDifference, Proposal,
    TenantDifference,
};
use crate::explain::render::{
    ask, because, change, count, end_reason, fitting, placement, price, refused_lines, trouble, wait, why_no_change,
};
use crate::explain::report::{ClassUsage, DeploymentReport, PlacementVerdict, QuotaVerdict};
use crate::explain::units::{age, clock, gpus};
use crate::plan::CreateReason;

/// Pods that are named one by one.
const NAMED: usize = 8;

/// `kubectl stowage plan`: one paragraph per manifest, then what becomes of others and of the quotas.
pub fn dry_run(run: &DryRun) -> String {
    let mut out = format!("Nothing is changed. Planned on the state of {}.\n", clock(run.difference.at));
    if !run.leading {
        detail(&mut out, "note", "answered by an operator that does not lead; it knows of no back-offs");
    }
    for document in &run.documents {
        paragraph(&mut out, document, &run.difference);
    }
    for other in &run.difference.others {
        let _ = writeln!(out, "{}", other_line(other));
    }
    for tenant in &run.difference.tenants {
        for (n, usage) in quota_lines(tenant).into_iter().enumerate() {
            let label = if n == 0 { "quota" } else { "" };
            let _ = writeln!(out, "{label:<10} {usage}");
        }
    }
    out
}

fn paragraph(out: &mut String, document: &Document, difference: &Difference) {
    let object = match document.namespace.as_str() {
        "" => format!("{} {}", document.kind, document.name),
        namespace => format!("{namespace}/{}", document.name),
    };
    if let Some(refused) = &document.refusal {
        let _ = writeln!(out, "! {object}  {}", refused.reason);
        return detail(out, "refused", &refused.message);
    }
    let mark = match document.proposal {
        Proposal::Create => '+',
        Proposal::Change => '~',
        Proposal::Delete => '-',
        Proposal::Unchanged => '=',
    };
    let found = difference.deployments.iter().find(|d| {
        document.kind == "InferenceDeployment"
            && d.deployment.namespace == document.namespace
            && d.deployment.name == document.name
    });
    let Some(found) = found else {
        let _ = writeln!(out, "{mark} {object}");
        return;
    };
    let _ = writeln!(out, "{mark} {object}  {}", headline(document.proposal, found));
    deployment(out, found);
}

fn headline(proposal: Proposal, d: &DeploymentDifference) -> String {
    let Some(after) = &d.after else { return "nothing is planned for it".to_owned() };
    let (was, is) = (d.before.as_ref().map_or(0, |s| s.counts.wanted), after.counts.wanted);
    let of = after.placements.first().map_or(String::new(), |v| format!(" of {}", ask(&v.ask)));
    match proposal {
        Proposal::Create => format!("{}{of}", count(is.into(), "replica")),
        Proposal::Delete => match d.ended.len() {
            0 => "no replica runs".to_owned(),
            1 => "1 replica ends".to_owned(),
            n => format!("{n} replicas end"),
        },
        Proposal::Unchanged => "is as the manifest says".to_owned(),
        Proposal::Change if is != was => format!("{was} → {}{of}", count(is.into(), "replica")),
        Proposal::Change if d.created.is_empty() && d.ended.is_empty() => "no effect at present".to_owned(),
        Proposal::Change => format!("{} as before{of}", count(is.into(), "replica")),
    }
}

fn deployment(out: &mut String, d: &DeploymentDifference) {
    let Some(after) = &d.after else { return };
    for c in &d.created {
        let verdict = after.placements.iter().find(|v| v.index == c.index && v.winner.is_some());
        detail(out, verb(c.reason), &format!("replica {} on {}", c.index, place(verdict, &c.placement)));
    }
    for e in d.ended.iter().take(NAMED) {
        detail(out, "ends", &end(e));
    }
    if d.ended.len() > NAMED {
        detail(out, "", &format!("and {} more", d.ended.len() - NAMED));
    }
    for (label, amounts) in [("takes", &d.takes), ("frees", &d.frees)] {
        if !amounts.is_empty() {
            detail(out, label, &amounts.iter().map(amount).collect::<Vec<_>>().join(", "));
        }
    }
    reasons(out, after);
    if let Some(ms) = after.prediction.ready_in_ms.filter(|_| !d.created.is_empty()) {
        detail(out, "ready", &format!("in about {}, by the starts measured", age(ms)));
    }
    if let Some(cost) = cost(d) {
        detail(out, "cost", &cost);
    }
}

/// Why not everything is placed, and what would help.
fn reasons(out: &mut String, r: &DeploymentReport) {
    if let QuotaVerdict::Partial { granted, asked, limit } = &r.quota {
        detail(out, "quota", &format!("grants {granted} of {asked}: {}", super::quota_limit(r, limit)));
    }
    if let QuotaVerdict::NoTenant { namespace } = &r.quota {
        detail(out, "quota", &format!("namespace {namespace} belongs to no TenantQuota"));
    }
    for v in r.placements.iter().filter(|v| v.winner.is_none()) {
        let mut lines = String::new();
        refused_lines(&mut lines, v);
        for line in lines.lines() {
            let _ = writeln!(out, "    {line}");
        }
    }
    for t in &r.troubles {
        detail(out, "trouble", &trouble(t));
    }
    for w in &r.waits {
        detail(out, "waits", &wait(w));
    }
    for (n, c) in r.counterfactuals.iter().enumerate() {
        let label = if n == 0 { "would fit" } else { "or" };
        detail(out, label, &format!("{} → {}", change(&c.change), placement(&c.placement)));
    }
    if let Some(none) = &r.no_counterfactual {
        detail(out, "no change", &why_no_change(none));
    }
}

fn verb(reason: CreateReason) -> &'static str {
    match reason {
        CreateReason::ScaleOut => "creates",
        CreateReason::Replace => "replaces",
        CreateReason::Rollout => "renews",
        CreateReason::Move => "moves",
    }
}

fn place(verdict: Option<&PlacementVerdict>, at: &crate::snapshot::Placement) -> String {
    let winner = verdict.and_then(|v| Some((v, v.winner.as_ref()?))).filter(|(_, w)| &w.placement == at);
    match winner {
        Some((v, w)) => format!("{}: {} ({})", placement(at), because(&w.because), fitting(v)),
        None => placement(at),
    }
}

fn end(e: &Ended) -> String {
    match e.drain_until_ms {
        Some(at) => format!("{} drains until {} at the latest: {}", e.pod, clock(at), end_reason(e.reason)),
        None => format!("{} is removed: {}", e.pod, end_reason(e.reason)),
    }
}

fn amount(of: &ClassMilli) -> String {
    format!("{} {}", gpus(of.milli), of.class)
}

fn cost(d: &DeploymentDifference) -> Option<String> {
    let after = d.after.as_ref()?;
    let of = |micros: u64| format!("{} {} per hour", price(micros), d.currency);
    let was = d.before.as_ref().map_or(Some(0), |s| s.price_per_hour_micros)?;
    let is = after.prediction.price_per_hour_micros?;
    let renews = d.created.iter().any(|c| c.reason == CreateReason::Rollout);
    let meanwhile = if renews { ", while pods are renewed" } else { "" };
    match was.cmp(&is) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Less => Some(format!("+{}, {} in all{meanwhile}", of(is - was), price(is))),
        std::cmp::Ordering::Greater => Some(format!("−{}, {} in all{meanwhile}", of(was - is), price(is))),
    }
}

fn other_line(other: &OtherDifference) -> String {
    let replicas = count(other.replicas.into(), "replica");
    let (label, what) = match other.effect {
        Effect::Drained => ("drains", format!("{replicas} more")),
        Effect::Blocked => ("blocks", format!("{replicas} that would be placed")),
        Effect::Unblocked => ("unblocks", replicas),
        Effect::Moved => ("moves", format!("{replicas} to be created elsewhere")),
    };
    format!("{label:<10} {}: {what}", other.deployment)
}

fn quota_lines(tenant: &TenantDifference) -> Vec<String> {
    let was = |class: &str| tenant.before.iter().find(|u| u.class == class).cloned().unwrap_or_default();
    let line = |u: &ClassUsage| {
        let before = was(&u.class);
        let held = |u: &ClassUsage| format!("{} of {}", gpus(u.held_milli), gpus(u.nominal_milli));
        let mut line = format!("{} {} {}", tenant.tenant, held(u), u.class);
        if u.borrowed_milli > 0 {
            let _ = write!(line, " ({} borrowed)", gpus(u.borrowed_milli));
        }
        if u.pending_milli > 0 {
            let _ = write!(line, ", {} not granted", gpus(u.pending_milli));
        }
        if held(&before) != held(u) {
            let _ = write!(line, "; {} without the change", held(&before));
        }
        line
    };
    tenant.after.iter().map(line).collect()
}

fn detail(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "    {label:<10} {text}");
}
