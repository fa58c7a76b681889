//! Text for an ask and for the nodes that do not fit it.

use std::fmt::Write as _;

use crate::explain::render::short_uuid;
use crate::explain::report::{Ask, IsolationRule, NodeRefusal, PlacementVerdict, Refusal, RefusalGroup};
use crate::explain::units::{age, bytes, clock, gpus};
use crate::snapshot::Partition;

/// `4 × h100-80g 20 GiB 40 % SM`.
pub fn ask(a: &Ask) -> String {
    let Some(class) = &a.class else {
        return format!("{} CPU and {}", gpus(a.cpu_milli), bytes(a.node_memory_bytes));
    };
    let mut out = format!("{} × {class}", a.gpus);
    match &a.partition {
        Partition::Mig { profile } => {
            let _ = write!(out, " MIG {profile}");
        }
        Partition::Slice { memory_bytes: None, sm_percent: None } => {}
        Partition::Slice { memory_bytes: memory, sm_percent: sm } => {
            let memory = memory.map_or("all memory".to_owned(), bytes);
            let sm = sm.map_or("all SMs".to_owned(), |s| format!("{s} % SM"));
            let _ = write!(out, " {memory} {sm}");
        }
    }
    out
}

/// Refusals of one kind, for one line.
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct RefusalLine {
    pub count: usize,
    pub title: &'static str,
    pub detail: String,
}

/// Largest group first.
pub fn refusal_lines(v: &PlacementVerdict) -> Vec<RefusalLine> {
    let of = |g: &RefusalGroup| {
        let first = &g.examples.first()?.reason;
        let detail = group_detail(g, first);
        Some(RefusalLine { count: g.nodes as usize, title: refusal_title(first), detail })
    };
    v.refusals.iter().filter_map(of).collect()
}

/// What the nearest of a group lacks, and which nodes they are.
fn group_detail(group: &RefusalGroup, nearest: &Refusal) -> String {
    let on = &group.examples[0].node;
    match nearest {
        Refusal::Memory { need_bytes, free_bytes, .. } => {
            format!("need {} on one GPU, most free {} on {on}", bytes(*need_bytes), bytes(*free_bytes))
        }
        Refusal::Compute { need_percent, free_percent, .. } => {
            format!("need {need_percent} % SM on one GPU, most free {free_percent} % on {on}")
        }
        Refusal::Island { need, .. } => {
            let largest = |r: &NodeRefusal| match &r.reason {
                Refusal::Island { largest, .. } => Some(largest.to_string()),
                _ => None,
            };
            let largest: Vec<String> = group.examples.iter().filter_map(largest).collect();
            format!("largest free NVLink island {} GPUs (need {need})", largest.join(", "))
        }
        Refusal::MigSlices { profile, need_slices, free_slices, .. } => format!(
            "{profile} needs {need_slices} memory slices in a row where it may begin; {on} has {free_slices} free, none of them so"
        ),
        Refusal::NodeCpu { need_milli, free_milli } => {
            format!("need {} CPU, most free {} on {on}", gpus(*need_milli), gpus(*free_milli))
        }
        Refusal::NodeMemory { need_bytes, free_bytes } => {
            format!("need {}, most free {} on {on}", bytes(*need_bytes), bytes(*free_bytes))
        }
        _ => {
            let named = group.examples.iter().take(3);
            let mut each: Vec<String> = named.map(|r| one_detail(&r.node, &r.reason)).collect();
            let more = (group.nodes as usize).saturating_sub(each.len());
            if more > 0 {
                each.push(format!("and {more} more"));
            }
            each.join(", ")
        }
    }
}

fn one_detail(node: &str, r: &Refusal) -> String {
    match r {
        Refusal::Stale { age_ms } => format!("{node}: {} old", age(*age_ms)),
        Refusal::Selector { key, want, have } => match have {
            Some(have) => format!("{node}: {key} is {have}, not {want}"),
            None => format!("{node}: no {key}={want}"),
        },
        Refusal::Taint { key, value } if value.is_empty() => format!("{node}: {key}"),
        Refusal::Taint { key, value } => format!("{node}: {key}={value}"),
        Refusal::Excluded { until_ms, message } => {
            format!("{node} until {}: {message}", clock(*until_ms))
        }
        Refusal::Held { claimant } => format!("{node} for tenant {claimant}"),
        Refusal::NoSuchClass { have } if have.is_empty() => format!("{node}: no GPU"),
        Refusal::NoSuchClass { have } => format!("{node}: {}", have.join(" ")),
        Refusal::Unhealthy { gpu, message } => format!("{node}: {} {message}", short_uuid(gpu)),
        Refusal::OtherTenant { gpu, tenant, rule } => {
            let who = tenant.as_ref().map_or("a claim of no tenant", |t| t.0.as_str());
            let place = gpu.as_ref().map_or(node.to_owned(), |g| format!("{node} {}", short_uuid(g)));
            match rule {
                IsolationRule::SoftSharingNotAllowed => {
                    format!("{place}: {who} is there and the class forbids soft sharing")
                }
                IsolationRule::OwnIsolation => format!("{place}: {who} is there"),
                IsolationRule::TheirIsolation => format!("{place}: dedicated to {who}"),
            }
        }
        Refusal::InMigMode { gpu, offered } => {
            format!("{node} {}: offers {}", short_uuid(gpu), offered.join(" "))
        }
        Refusal::NoMigProfile { gpu, offered, .. } if offered.is_empty() => {
            format!("{node} {}: not in MIG mode", short_uuid(gpu))
        }
        Refusal::NoMigProfile { profile, gpu, offered } => {
            format!("{node} {}: offers {}, not {profile}", short_uuid(gpu), offered.join(" "))
        }
        Refusal::NodePods { limit } => format!("{node}: {limit} pods"),
        Refusal::HostPort { port } => format!("{node}: port {port}"),
        _ => node.to_owned(),
    }
}

fn refusal_title(r: &Refusal) -> &'static str {
    match r {
        Refusal::NotReady => "not Ready",
        Refusal::Cordoned => "cordoned",
        Refusal::Stale { .. } => "stale telemetry",
        Refusal::NoData => "never reported",
        Refusal::Selector { .. } => "not selected",
        Refusal::Taint { .. } => "tainted",
        Refusal::Excluded { .. } => "refused by the scheduler",
        Refusal::Held { .. } => "kept for a tenant that takes back its own",
        Refusal::NoSuchClass { .. } => "other class",
        Refusal::Unhealthy { .. } => "unhealthy",
        Refusal::OtherTenant { .. } => "isolation",
        Refusal::Memory { .. } => "short of GPU memory",
        Refusal::Compute { .. } => "short of SMs",
        Refusal::Island { .. } => "island too small",
        Refusal::InMigMode { .. } => "in MIG mode",
        Refusal::NoMigProfile { .. } => "no such MIG device",
        Refusal::MigSlices { .. } => "short of MIG slices",
        Refusal::NodeCpu { .. } => "short of CPU",
        Refusal::NodeMemory { .. } => "short of node memory",
        Refusal::NodePods { .. } => "pod limit",
        Refusal::HostPort { .. } => "host port taken",
    }
}

/// The variant's name, for metric labels.
pub fn refusal_label(r: &Refusal) -> &'static str {
    match r {
        Refusal::NotReady => "NotReady",
        Refusal::Cordoned => "Cordoned",
        Refusal::Stale { .. } => "Stale",
        Refusal::NoData => "NoData",
        Refusal::Selector { .. } => "Selector",
        Refusal::Taint { .. } => "Taint",
        Refusal::Excluded { .. } => "Excluded",
        Refusal::Held { .. } => "Held",
        Refusal::NoSuchClass { .. } => "NoSuchClass",
        Refusal::Unhealthy { .. } => "Unhealthy",
        Refusal::OtherTenant { .. } => "OtherTenant",
        Refusal::Memory { .. } => "Memory",
        Refusal::Compute { .. } => "Compute",
        Refusal::Island { .. } => "Island",
        Refusal::InMigMode { .. } => "InMigMode",
        Refusal::NoMigProfile { .. } => "NoMigProfile",
        Refusal::MigSlices { .. } => "MigSlices",
        Refusal::NodeCpu { .. } => "NodeCpu",
        Refusal::NodeMemory { .. } => "NodeMemory",
        Refusal::NodePods { .. } => "NodePods",
        Refusal::HostPort { .. } => "HostPort",
    }
}
