//! The reasons of the nodes that do not fit, grouped by kind, with the nearest of each kind spelt out.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::place::filter::{Need, Refused};
use crate::place::placer::Held;
use crate::place::ranking;
use crate::place::verdict::{MAX_EXAMPLES, NodeRefusal, Refusal, RefusalGroup};
use crate::snapshot::Exclusion;
use crate::snapshot::index::{Index, NodeAt};

/// One kind of reason while it is collected.
#[derive(Default)]
struct Kind<'a> {
    nodes: u32,
    /// How near the node comes (more is nearer), and the node.
    nearest: Vec<(Reverse<u64>, NodeAt, Why<'a>)>,
}

/// Why one node is out.
enum Why<'a> {
    DoesNotFit(Refused),
    Excluded(&'a Exclusion),
    Held(&'a Held),
}

/// Groups of all nodes that do not fit, are excluded or held; the largest first, equal ones by kind.
pub(crate) fn refusals<'a>(
    need: &Need,
    index: &Index,
    excluded: impl Iterator<Item = &'a Exclusion>,
    held: impl Iterator<Item = &'a Held>,
) -> Vec<RefusalGroup> {
    let mut excluded: BTreeMap<NodeAt, &Exclusion> = excluded.filter_map(|e| Some((index.at(&e.node)?, e))).collect();
    let mut held: BTreeMap<NodeAt, &Held> = held.map(|h| (h.node, h)).collect();
    let mut kinds: BTreeMap<u8, Kind<'a>> = BTreeMap::new();
    for (refused, members) in ranking::refusals(need, index) {
        let (number, comes_first) = kind(&refused);
        held.retain(|at, _| !members.contains(at));
        let left_out = members.iter().filter(|at| excluded.contains_key(at)).count();
        if comes_first {
            excluded.retain(|at, _| !members.contains(at));
        }
        let of = kinds.entry(number).or_default();
        let skip = |at: &&NodeAt| !excluded.contains_key(at);
        of.nodes += members.len() as u32 - if comes_first { 0 } else { left_out as u32 };
        let first = members.iter().filter(skip).take(MAX_EXAMPLES);
        of.nearest.extend(first.map(|at| (Reverse(nearness(&refused, index, *at)), *at, Why::DoesNotFit(refused))));
    }
    held.retain(|at, _| !excluded.contains_key(at));
    let excluded = excluded.into_iter().map(|(at, e)| (EXCLUDED, at, Why::Excluded(e)));
    for (number, at, why) in excluded.chain(held.into_iter().map(|(at, h)| (HELD, at, Why::Held(h)))) {
        let of = kinds.entry(number).or_default();
        of.nodes += 1;
        of.nearest.push((Reverse(0), at, why));
    }
    let mut groups: Vec<(u8, RefusalGroup)> = kinds
        .into_iter()
        .filter(|(_, of)| of.nodes > 0)
        .map(|(number, mut of)| {
            of.nearest.sort_by_key(|(near, at, _)| (*near, *at));
            of.nearest.truncate(MAX_EXAMPLES);
            let example = |(_, at, why): (Reverse<u64>, NodeAt, Why<'_>)| {
                let row = &index.rows()[at];
                let reason = match why {
                    Why::DoesNotFit(refused) => refused.spell(need, row, index),
                    Why::Excluded(e) => Refusal::Excluded { until_ms: e.until_ms, message: e.reason.clone() },
                    Why::Held(h) => Refusal::Held { claimant: h.claimant.clone() },
                };
                NodeRefusal { node: row.node.name.clone(), reason }
            };
            let examples = of.nearest.into_iter().map(example).collect();
            (number, RefusalGroup { nodes: of.nodes, examples })
        })
        .collect();
    groups.sort_by_key(|(number, group)| (Reverse(group.nodes), *number));
    groups.into_iter().map(|(_, group)| group).collect()
}

const EXCLUDED: u8 = 7;
const HELD: u8 = 20;

/// A number per kind, and whether it counts before an exclusion does.
fn kind(refused: &Refused) -> (u8, bool) {
    match refused {
        Refused::NotReady => (0, true),
        Refused::Cordoned => (1, true),
        Refused::Stale => (2, true),
        Refused::NoData => (3, true),
        Refused::Selector(_) => (4, true),
        Refused::Taint(_) => (5, true),
        Refused::NoSuchClass => (6, true),
        Refused::Unhealthy { .. } => (8, false),
        Refused::OtherTenant { .. } => (9, false),
        Refused::Memory { .. } => (10, false),
        Refused::Compute { .. } => (11, false),
        Refused::Island { .. } => (12, false),
        Refused::NodeCpu => (13, false),
        Refused::NodeMemory => (14, false),
        Refused::NodePods => (15, false),
        Refused::HostPort(_) => (16, false),
        Refused::InMigMode { .. } => (17, false),
        Refused::NoMigProfile { .. } => (18, false),
        Refused::MigSlices { .. } => (19, false),
    }
}

/// How much of what is short the node has.
fn nearness(refused: &Refused, index: &Index, at: NodeAt) -> u64 {
    let row = &index.rows()[at];
    match refused {
        Refused::Memory { free, .. } => *free,
        Refused::Compute { free, .. } => (*free).into(),
        Refused::Island { largest, .. } => (*largest).into(),
        Refused::NodeCpu => row.cpu_free(),
        Refused::NodeMemory => row.memory_free(),
        Refused::MigSlices { gpu } => row.taken.gpus[*gpu].mig.as_ref().map_or(0, |m| m.free_slices().into()),
        _ => 0,
    }
}
