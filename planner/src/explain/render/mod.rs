//! Text for a decision: condition messages, event notes and `explain`.
//!
//! Pure strings from report data, so that operator, CLI and tests show the same. A message has the form
//! what, why and the next step, with units and ages. Not here: colour and terminal width.

pub mod bottleneck;
mod difference;
mod refusals;
mod scale;

use std::fmt::Write as _;

use crate::demand::Prediction;
use crate::explain::report::{
    Because, CapacityAsk, Change, Counterfactual, DecisionRecord, DeploymentReport, MAX_EXAMPLES, MoveVerdict,
    NoCounterfactual, Outcome, PlacementVerdict, QuotaBinding, QuotaLimit, QuotaVerdict, RecordAction, TenantReport,
    Trouble, TroubleKind, Wait,
};
pub use difference::dry_run;
pub use scale::why as why_wanted;

pub use crate::explain::units::{age, bytes, clock, gpus, latency};
use crate::plan::{CreateReason, EndReason};
use crate::snapshot::{Placement, Promise, TenantId, TimeMs};
pub use refusals::{RefusalLine, ask, refusal_label, refusal_lines};

/// One or two sentences for the condition: what, why, next step.
pub fn condition_message(r: &DeploymentReport) -> String {
    let c = &r.counts;
    let mut out = match r.outcome {
        Outcome::OnTarget => format!("{} of {} replicas Ready.", c.ready, c.wanted),
        Outcome::Starting => format!("{} of {} replicas Ready, the rest are starting.", c.ready, c.wanted),
        Outcome::Progressing => {
            format!("{} of {} replicas Ready; {} after this change.", c.ready, c.wanted, c.desired)
        }
        Outcome::Draining => {
            "Replicas finish their requests, then go; the annotation stowage.dev/force-delete: \"true\" ends them at once."
                .to_owned()
        }
        Outcome::NoTenant => format!(
            "Namespace {} belongs to no TenantQuota, so it may hold no GPU.",
            r.deployment.namespace
        ),
        Outcome::WaitingForQuota => quota_message(r),
        Outcome::WaitingForGPU | Outcome::StaleInput => {
            let moves: Vec<Wait> = r.waits.iter().filter(|w| matches!(w, Wait::Cordoned { .. })).cloned().collect();
            let stays = if moves.is_empty() { String::new() } else { format!("{} ", waits_message(&moves)) };
            format!("{stays}{}", placement_message(r))
        }
        Outcome::BackOff | Outcome::Refused => waits_message(&r.waits),
    };
    for t in &r.troubles {
        let _ = write!(out, " {}.", trouble(t));
    }
    if let Some(MoveVerdict::NotYet { at_ms, .. }) = &r.moves {
        // Without names: the pods may be another tenant's.
        let _ = write!(
            out,
            " From {} on, replicas that are in the way move elsewhere; until then that costs more than waiting.",
            clock(*at_ms)
        );
    }
    if let Some(text) = capacity(&r.capacity) {
        let _ = write!(out, " {}.", capital(&text));
    }
    if let Some(first) = r.counterfactuals.first() {
        let _ = write!(out, " {}", would_fit(first));
    }
    if let Some(none) = &r.no_counterfactual {
        let _ = write!(out, " {}.", capital(&why_no_change(none)));
    }
    out
}

/// Why no single change is named, as a clause.
pub fn why_no_change(none: &NoCounterfactual) -> String {
    match none {
        NoCounterfactual::NoSuchClass { class } => format!("no node has a GPU of class {class}"),
        NoCounterfactual::NoSuchProfile { class, profile, offered } if offered.is_empty() => {
            format!("no GPU of class {class} is in MIG mode, so none offers {profile}")
        }
        NoCounterfactual::NoSuchProfile { class, profile, offered } => {
            format!("no GPU of class {class} offers the MIG profile {profile}; they offer {}", offered.join(", "))
        }
        NoCounterfactual::LargerThanAnyGpu { class, asked_bytes, largest_bytes } => format!(
            "a replica asks {} of memory on one GPU; the largest GPU of class {class} has {}",
            bytes(*asked_bytes),
            bytes(*largest_bytes)
        ),
        NoCounterfactual::NoSingleChange { tried: 0 } => "no single change is known that would help".to_owned(),
        NoCounterfactual::NoSingleChange { tried: 1 } => "no single change helps; one was tried".to_owned(),
        NoCounterfactual::NoSingleChange { tried } => format!("no single change helps; {tried} were tried"),
        NoCounterfactual::TooManyWait => "too many deployments wait to try changes for each of them".to_owned(),
    }
}

/// Which running replicas move for one that waits, or why none does, as a clause. `None`: that goes without saying.
pub fn moves(m: &MoveVerdict) -> Option<String> {
    match m {
        MoveVerdict::Moves { pods, waited_ms, cost_milli_gpu_s, gain_milli_gpu_s } => Some(format!(
            "{} moves elsewhere for it, which has waited {} (costs {} GPU·s, against {} GPU·s of waiting)",
            pods.join(" and "),
            age(*waited_ms),
            cost_milli_gpu_s / 1000,
            gain_milli_gpu_s / 1000
        )),
        MoveVerdict::NotYet { pods, at_ms } => Some(format!(
            "from {} on, {} moves elsewhere for it; until then moving costs more than waiting",
            clock(*at_ms),
            pods.join(" and ")
        )),
        MoveVerdict::TooManyMove { moving } => {
            Some(format!("not now: {} in progress", count((*moving).into(), "move")))
        }
        MoveVerdict::WouldBorrow => {
            Some("not for it: it would borrow, and others move only for what is its tenant's own quota".to_owned())
        }
        MoveVerdict::BudgetSpent { at_ms } => {
            Some(format!("not before {}: as many have moved for its tenant of late as may", clock(*at_ms)))
        }
        MoveVerdict::NoMoveHelps { .. } | MoveVerdict::JustArrived { .. } => None,
    }
}

/// For how many replicas the cluster is asked for a node, as a clause; `None`: for none.
fn capacity(asks: &[CapacityAsk]) -> Option<String> {
    let first = asks.first()?;
    let pods = count(asks.len() as u64, "capacity pod");
    Some(format!("{pods} for the node autoscaler to add a node like {}", first.like.node))
}

/// "Would fit …", as one sentence.
pub fn would_fit(c: &Counterfactual) -> String {
    format!("Fits {}.", change(&c.change))
}

fn quota_message(r: &DeploymentReport) -> String {
    match &r.quota {
        QuotaVerdict::Partial { granted, asked, limit } => {
            format!("Quota grants {granted} of {asked} replicas: {}.", quota_limit(r, limit))
        }
        QuotaVerdict::NoTenant { namespace } => {
            format!("Namespace {namespace} belongs to no TenantQuota, so it may hold no GPU.")
        }
        QuotaVerdict::Granted { .. } | QuotaVerdict::NotNeeded => "Quota allows it.".to_owned(),
    }
}

fn quota_limit(r: &DeploymentReport, l: &QuotaLimit) -> String {
    let tenant = r.tenant.as_ref().map_or("the tenant", |t| t.0.as_str());
    let held = gpus(l.held_milli);
    let needs = format!("one more replica needs {}", gpus(l.replica_milli));
    let (class, nominal) = (&l.class, gpus(l.nominal_milli));
    match l.binding {
        QuotaBinding::ClassNotInQuota => format!("{tenant} has no quota of {class}; {needs}"),
        QuotaBinding::NominalQuota => {
            format!("{tenant} holds {held} of {nominal} {class} and has no cohort to borrow from; {needs}")
        }
        QuotaBinding::BorrowingLimit => format!(
            "{tenant} holds {held} {class}, its quota is {nominal} + {} borrowable; {needs}",
            gpus(l.borrowing_limit_milli.unwrap_or(0))
        ),
        QuotaBinding::CohortExhausted => format!(
            "{tenant} holds {held} of {nominal} {class} and its cohort has {} left to lend; {needs}",
            gpus(l.cohort_free_milli)
        ),
        QuotaBinding::SpendLimit => {
            let (limit, spent, more) =
                l.spend.map_or((0, 0, None), |s| (s.limit_micros, s.spent_micros, s.replica_micros));
            format!(
                "{tenant} spends {} of {} per hour; one more replica costs {}",
                price(spent),
                price(limit),
                price(more.unwrap_or(0))
            )
        }
        QuotaBinding::ClassNotPriced => {
            format!(
                "{tenant} has a spend limit and GpuClass {class} has no price, so its cost is unknown; set pricePerHour"
            )
        }
    }
}

fn placement_message(r: &DeploymentReport) -> String {
    let Some(failed) = r.placements.iter().find(|v| v.winner.is_none()) else {
        return "No node fits.".to_owned();
    };
    let nodes = failed.nodes;
    let groups: Vec<String> =
        refusal_lines(failed).into_iter().map(|g| format!("{} {} ({})", g.count, g.title, g.detail)).collect();
    let asked = ask(&failed.ask);
    if nodes == 0 {
        return format!("No node fits {asked}: there are none.");
    }
    format!("No node fits {asked}; of {}: {}.", count(nodes.into(), "node"), groups.join("; "))
}

fn waits_message(waits: &[Wait]) -> String {
    let all: Vec<String> = waits.iter().map(wait).collect();
    format!("{}.", capital(&all.join("; ")))
}

/// Why this place, against the second best.
pub fn because(b: &Because) -> String {
    match b {
        Because::OnlyFit => "the only node that fits".to_owned(),
        Because::Cheapest { winner_micros, next_variant, next_micros } => {
            let other = next_micros.map_or("no price".to_owned(), |m| format!("{} per hour", price(m)));
            format!("costs least ({} per hour against {other} for variant {next_variant})", price(*winner_micros))
        }
        Because::Fastest { winner_us, next_variant, next_us } => {
            let other = next_us.map_or("unknown".to_owned(), latency);
            format!("fastest (predicted {} per token against {other} for variant {next_variant})", latency(*winner_us))
        }
        Because::HasGpu { next_variant } => format!("a GPU fits, so the CPU variant {next_variant} is not taken"),
        Because::Healthier => "the others have only degraded GPUs left".to_owned(),
        Because::Spreads { topology_key, next_node, next_replicas } => {
            let there = count((*next_replicas).into(), "replica");
            format!("spreads the replicas over {topology_key} ({there} beside {next_node})")
        }
        Because::FragmentsLeast { winner_milli, next_node, next_milli } => format!(
            "fragments least (expected loss {} GPU against {} on {next_node})",
            signed_gpus(*winner_milli),
            signed_gpus(*next_milli)
        ),
        Because::ModelCached => "fragments as little as the next and already holds the model".to_owned(),
        Because::TightFit { next_node } => format!("fills up more evenly than {next_node}"),
        Because::StableOrder => "equal to the next in all that counts, first by name".to_owned(),
    }
}

/// `node2 GPU-3f2a (2 GiB, 10 % SM)`.
pub fn placement(p: &Placement) -> String {
    if p.gpus.is_empty() {
        return format!("{} (CPU)", p.node);
    }
    let gpus: Vec<String> = p.gpus.iter().map(|g| short_uuid(&g.uuid)).collect();
    let Promise { memory_bytes, sm_percent, mig } = &p.gpus[0].promise;
    let each = if p.gpus.len() > 1 { " each" } else { "" };
    let device = mig.as_ref().map_or(String::new(), |d| format!("MIG {} at memory slice {}, ", d.profile, d.start));
    format!("{} {} ({device}{}, {sm_percent} % SM{each})", p.node, gpus.join(" "), bytes(*memory_bytes))
}

/// UUIDs as NVML writes them, cut after their first group.
pub fn short_uuid(uuid: &str) -> String {
    let mut parts = uuid.splitn(3, '-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(kind), Some(first), Some(_)) if first.len() >= 4 => format!("{kind}-{first}"),
        _ => uuid.to_owned(),
    }
}

/// Note of a Create record.
pub(crate) fn placed(index: u32, reason: CreateReason, v: &PlacementVerdict, moved_for: Option<&TenantId>) -> String {
    let Some(winner) = &v.winner else { return String::new() };
    let what = match reason {
        CreateReason::ScaleOut => "new",
        CreateReason::Replace => "replaced",
        CreateReason::Rollout => "renewed",
        CreateReason::Move => "moves",
    };
    let why = moved_for.map_or(String::new(), |tenant| {
        format!(" Its pod goes on until this one is Ready; then its room goes to a replica of tenant {tenant}.")
    });
    format!(
        "Replica {index} ({what}) on {}: {}; {}.{why}",
        placement(&winner.placement),
        because(&winner.because),
        fitting(v)
    )
}

/// Note of a Resume record.
pub(crate) fn resumed(pod: &str) -> String {
    format!("{pod} goes on: it is wanted again before its drain has ended.")
}

/// Note of a Drain or Remove record.
pub(crate) fn ended(pod: &str, action: RecordAction, reason: EndReason, cause: Option<&Trouble>) -> String {
    let does = if action == RecordAction::Drain { "drains" } else { "is removed" };
    let why = match (reason, cause) {
        (EndReason::Drained | EndReason::DrainTimeout, _) | (_, None) => end_reason(reason).to_owned(),
        (_, Some(t)) => trouble(t).replacen(&format!("{pod} "), "it ", 1),
    };
    format!("{pod} {does}: {why}.")
}

/// Note of the record of a replica whose room is reclaimed.
pub(crate) fn reclaimed(pod: &str, action: RecordAction, claimant: &TenantId) -> String {
    let does = if action == RecordAction::Drain { "drains" } else { "is removed" };
    format!(
        "{pod} {does}: it borrows quota that tenant {claimant} is entitled to; it is placed again where quota and room allow."
    )
}

/// It was on its way out before.
pub(crate) fn reclaimed_sooner(pod: &str, left_ms: u64, claimant: &TenantId) -> String {
    let left = age(left_ms);
    format!("{pod} ends already and may take {left} more: it borrows quota that tenant {claimant} is entitled to.")
}

fn end_reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::ScaleIn => "fewer replicas are wanted",
        EndReason::Deleted => "the deployment is deleted",
        EndReason::Rollout => "its specification changed",
        EndReason::Failed => "it failed",
        EndReason::UnhealthyGpu => "its GPU is unhealthy",
        EndReason::NodeLost => "its node is lost",
        EndReason::NodeCordoned => "its node is cordoned and its replacement is Ready",
        EndReason::Overshoot => "it uses more than it was promised",
        EndReason::Unschedulable => "the scheduler did not bind it",
        EndReason::Unprepared => "its node could not prepare its slice",
        EndReason::Duplicate => "another pod has its slot",
        EndReason::Reclaimed => "it borrows quota that its owner needs",
        EndReason::Moved => "another replica needs its room and its replacement is Ready",
        EndReason::MoveTimeout => "it was not Ready in time, and the pod that it was to replace goes on",
        EndReason::Drained => "its requests are finished",
        EndReason::DrainTimeout => "its drain reached the deadline",
    }
}

/// A clause without full stop.
pub fn trouble(t: &Trouble) -> String {
    let pod = &t.pod;
    match &t.what {
        TroubleKind::Unscheduled { message, since_ms } if message.is_empty() => {
            format!("{pod} has waited for the scheduler since {}: it is busy or away", clock(*since_ms))
        }
        TroubleKind::Unscheduled { message, since_ms } => {
            format!("{pod} has not been scheduled since {}: {}", clock(*since_ms), trim(message))
        }
        TroubleKind::Unprepared { message, since_ms } => {
            format!("{pod} could not be given its slice since {}: {}", clock(*since_ms), trim(message))
        }
        TroubleKind::Failed { message } => format!("{pod} failed: {}", trim(message)),
        TroubleKind::Unready => format!("{pod} is not Ready any more"),
        TroubleKind::UnhealthyGpu { gpu, message } => {
            format!("{pod} is on {}, which is unhealthy: {}", short_uuid(gpu), trim(message))
        }
        TroubleKind::NodeLost { node } => format!("{pod} was on {node}, which is lost"),
        TroubleKind::Overshoot { evidence: e } => format!(
            "{pod} uses {} of {} promised on {} ({}, {} in a row), {}",
            bytes(e.used_bytes),
            bytes(e.promised_bytes),
            short_uuid(&e.gpu),
            e.source,
            count(e.samples.into(), "sample"),
            if e.headroom { "and the GPU has headroom" } else { "and its neighbours would run out of memory" }
        ),
    }
}

fn wait(w: &Wait) -> String {
    match w {
        Wait::BackOff { index, until_ms, failures } => {
            format!("replica {index} failed {failures} times in a row, next attempt at {}", clock(*until_ms))
        }
        Wait::Refused { until_ms: _, message } => message.trim_end_matches('.').to_owned(),
        Wait::Availability { index, pod } => {
            format!("replica {index}: {pod} is renewed when enough others are Ready")
        }
        Wait::Ending { index, pod } if pod.is_empty() => {
            format!("replica {index} is placed when a pod that ends has freed its GPU; nothing is needed")
        }
        Wait::Ending { index, pod } => {
            format!("replica {index} is placed when {pod} has ended; nothing is needed")
        }
        Wait::Cordoned { index, pod, node } => {
            format!("replica {index} ({pod}) stays on {node}, which is cordoned, until its replacement has a place")
        }
        Wait::Reclaiming { index, pods } => {
            format!(
                "replica {index} is placed when {} has given back what it borrows; nothing is needed",
                pods.join(" and ")
            )
        }
        Wait::Moving { index, pods } => {
            format!("replica {index} is placed when {} has moved elsewhere; nothing is needed", pods.join(" and "))
        }
        Wait::FreshInput { index, node } => {
            format!("replica {index} stays as it is until {node} reports again")
        }
    }
}

/// A clause that follows "fits". It names no command: who reads it may not be who may run one.
pub fn change(c: &Change) -> String {
    match c {
        Change::AddTenantQuota { namespace, class, nominal_milli } if class.is_empty() => {
            let _ = nominal_milli;
            format!("if a TenantQuota lists namespace {namespace}")
        }
        Change::AddTenantQuota { namespace, class, nominal_milli } => format!(
            "if a TenantQuota lists namespace {namespace} with nominalQuota \"{}\" of {class}",
            gpus(*nominal_milli)
        ),
        Change::RaiseNominal { tenant, class, to_milli } => {
            format!("if TenantQuota {tenant} has nominalQuota ≥ {} of {class}", gpus(*to_milli))
        }
        Change::RaiseBorrowingLimit { tenant, class, to_milli } => {
            format!("if TenantQuota {tenant} has borrowingLimit ≥ {} of {class}", gpus(*to_milli))
        }
        Change::RaiseSpendLimit { tenant, to_micros } => {
            format!("if TenantQuota {tenant} has spend.perHour ≥ {}", price(*to_micros))
        }
        Change::ScaleIn { owner: Some(tenant), by, .. } | Change::LowerMaxReplicas { owner: Some(tenant), by, .. } => {
            format!("once tenant {tenant} ends {}", count((*by).into(), "replica"))
        }
        Change::ScaleIn { deployment, to: 0, .. } => {
            format!("once {deployment} is deleted or scaled to 0")
        }
        Change::ScaleIn { deployment, by, to, .. } => {
            format!("once {deployment} is scaled in by {by}, to {to}")
        }
        Change::LowerMaxReplicas { deployment, by, to, .. } => {
            format!("once scaling.maxReplicas of {deployment} is lowered to {to}, {by} fewer than it has")
        }
        Change::RemoveClaim { claim } => {
            let namespace = claim.split('/').next().unwrap_or_default();
            format!("once a ResourceClaim of namespace {namespace} is gone")
        }
        Change::NodeFresh { node } => format!("as soon as {node} reports again"),
        Change::NodeReady { node } => format!("as soon as {node} is Ready"),
        Change::Uncordon { node } => format!("if {node} is uncordoned"),
        Change::Tolerate { node, key } => format!("on {node} if podTemplate.tolerations has {key}"),
        Change::GpuHealthy { node, gpu } => {
            format!("as soon as {} on {node} is healthy", short_uuid(gpu))
        }
        Change::AllowSoftSharing { class } => format!("if GpuClass {class} sets allowSoftSharing"),
        Change::LowerMemory { to_bytes } => format!("with memory ≤ {} per GPU", bytes(*to_bytes)),
        Change::LowerCompute { to_percent } => format!("with compute ≤ {to_percent} % per GPU"),
        Change::SmallerProfile { profile } => format!("with MIG profile {profile}"),
        Change::AddNode { like, count: 1 } => format!("with another node like {like}"),
        Change::AddNode { like, count } => format!("with {count} more nodes like {like}"),
        Change::WaitUntil { at } => format!("at {}, by itself", clock(*at)),
    }
}

/// `explain`: everything known about one deployment, aligned, without colours.
pub fn explain(
    r: &DeploymentReport,
    tenant: Option<&TenantReport>,
    decided: TimeMs,
    history: &[DecisionRecord],
) -> String {
    let mut out = headline(r, decided);
    line(&mut out, &format!("why {}", r.counts.wanted), &scale::why(&r.scale));
    for (label, text) in scale::details(&r.scale) {
        line(&mut out, label, &text);
    }
    if let Some(expected) = expected(&r.prediction) {
        line(&mut out, "expected", &expected);
    }
    line(&mut out, "quota", &quota_line(r, tenant));
    for v in r.placements.iter().filter(|v| v.winner.is_some()) {
        line(&mut out, "placed", &placed_line(v));
    }
    for v in r.placements.iter().filter(|v| v.winner.is_none()) {
        refused_lines(&mut out, v);
    }
    if !r.stale_nodes.is_empty() {
        let more = if r.stale_nodes.len() == MAX_EXAMPLES { ", …" } else { "" };
        line(&mut out, "stale", &format!("no decision uses {}{more}", r.stale_nodes.join(", ")));
    }
    for t in &r.troubles {
        line(&mut out, "trouble", &trouble(t));
    }
    for w in &r.waits {
        line(&mut out, "waits", &wait(w));
    }
    if let Some(text) = r.moves.as_ref().and_then(moves) {
        line(&mut out, "moves", &text);
    }
    if let Some(text) = capacity(&r.capacity) {
        line(&mut out, "asks for", &text);
    }
    for (n, c) in r.counterfactuals.iter().enumerate() {
        let label = if n == 0 { "would fit" } else { "or" };
        line(&mut out, label, &format!("{} → {}", change(&c.change), placement(&c.placement)));
    }
    if let Some(none) = &r.no_counterfactual {
        line(&mut out, "no change", &why_no_change(none));
    }
    for (n, h) in history.iter().enumerate() {
        let label = if n == 0 { "history" } else { "" };
        line(&mut out, label, &history_line(h));
    }
    out
}

fn headline(r: &DeploymentReport, decided: TimeMs) -> String {
    let of = r.placements.first().map_or(String::new(), |v| format!(" of {}", ask(&v.ask)));
    let inputs =
        if r.oldest_input_ms > 0 { format!(", inputs ≤ {} old", age(r.oldest_input_ms)) } else { String::new() };
    format!(
        "{} wants {}{of} and has {}, {} Ready.  {:?}; decided {}{inputs}\n",
        r.deployment,
        count(r.counts.wanted.into(), "replica"),
        r.counts.current,
        r.counts.ready,
        r.outcome,
        clock(decided)
    )
}

/// `None`: nothing is known but perhaps the price.
fn expected(p: &Prediction) -> Option<String> {
    let ready = p.ready_in_ms.map(|ms| format!("in {}", age(ms)));
    let latencies = p.ttft_us.zip(p.itl_us);
    let latencies = latencies.map(|(ttft, itl)| format!("TTFT {}, {} per token", latency(ttft), latency(itl)));
    let known = ready.is_some() || latencies.is_some();
    let cost = p.price_per_hour_micros.filter(|_| known).map(|micros| format!("{} per hour", price(micros)));
    let parts: Vec<String> = [ready, latencies, cost].into_iter().flatten().collect();
    known.then(|| parts.join(", "))
}

fn quota_line(r: &DeploymentReport, tenant: Option<&TenantReport>) -> String {
    let verdict = match &r.quota {
        QuotaVerdict::Granted { borrowed_milli: 0 } => "allows it".to_owned(),
        QuotaVerdict::Granted { borrowed_milli } => {
            format!("allows it, {} borrowed from the cohort", gpus(*borrowed_milli))
        }
        QuotaVerdict::Partial { granted, asked, limit } => {
            format!("grants {granted} of {asked}: {}", quota_limit(r, limit))
        }
        QuotaVerdict::NoTenant { namespace } => {
            format!("namespace {namespace} belongs to no TenantQuota")
        }
        QuotaVerdict::NotNeeded => "not needed, no GPU asked".to_owned(),
    };
    let usage: Vec<String> = tenant
        .iter()
        .flat_map(|t| &t.usage)
        .map(|u| format!("{} of {} {}", gpus(u.held_milli), gpus(u.nominal_milli), u.class))
        .collect();
    match tenant {
        Some(t) if !usage.is_empty() => format!("{verdict} ({} holds {})", t.tenant, usage.join(", ")),
        _ => verdict,
    }
}

fn placed_line(v: &PlacementVerdict) -> String {
    let Some(winner) = &v.winner else { return String::new() };
    format!("replica {} on {}: {} ({})", v.index, placement(&winner.placement), because(&winner.because), fitting(v))
}

fn fitting(v: &PlacementVerdict) -> String {
    format!("{} of {} fit", v.fitting, count(v.nodes.into(), "node"))
}

fn refused_lines(out: &mut String, v: &PlacementVerdict) {
    let nodes = count(v.nodes.into(), "node");
    line(out, "why not", &format!("{} placed on none of {nodes}:", ask(&v.ask)));
    for g in refusal_lines(v) {
        let head = format!("{} × {}", g.count, g.title);
        let _ = writeln!(out, "             {} {}", pad(&head, 28), g.detail);
    }
}

fn history_line(h: &DecisionRecord) -> String {
    format!("{}  {:<7} {}", clock(h.time), format!("{:?}", h.kind), h.message)
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "{} {text}", pad(label, 10));
}

fn pad(s: &str, width: usize) -> String {
    let missing = width.saturating_sub(s.chars().count());
    format!("{s}{}", " ".repeat(missing))
}

fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Millionths of the currency as `12.50`, rounded up: a limit of the shown sum is enough.
pub fn price(micros: u64) -> String {
    let cents = micros.div_ceil(10_000);
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn signed_gpus(milli: i64) -> String {
    let sign = if milli < 0 { "−" } else { "" };
    format!("{sign}{}", gpus(milli.unsigned_abs()))
}

fn capital(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

fn trim(s: &str) -> &str {
    s.trim().trim_end_matches('.')
}
