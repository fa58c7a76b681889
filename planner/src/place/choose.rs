//! Stage three, second half: how good a place is, and which GPUs of a node are taken.
//!
//! Order: healthy before degraded, domains with fewer replicas where they are to be spread, bucketed fragmentation gradient, weights already on the node,
//! tightness of the fit, name. Inside a node the GPU with the largest unbucketed gradient; a group
//! takes the island that it leaves least of, and of equal choices there one NUMA node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::place::expected::Expected;
use crate::place::filter::{Islands, Need, Refused, Usable, fit};
use crate::place::frag::{FreeGpu, Request, Tally, Weights};
use crate::place::verdict::Score;
use crate::snapshot::index::{Index, NodeAt, Row, share_on};
use crate::snapshot::{GpuShare, Partition};

/// Millionths of tightness that each memory slice costs by which less can still be cut from a GPU.
const WAY_LOST: i64 = 1_000;

/// Less is better: degraded, bucket, looseness in millionths.
pub(crate) type Rank = (bool, Reverse<i64>, i64);

/// The best way to place a need on one node.
#[derive(Clone, Debug)]
pub(crate) struct Pick {
    pub degraded: bool,
    pub bucket: i64,
    /// How loosely and unevenly the node would be filled, in millionths; less is better.
    pub tightness: i64,
    pub frag_before: f64,
    pub frag_after: f64,
    /// Positions of the GPUs.
    pub gpus: Vec<usize>,
    /// First memory slice of a MIG device.
    pub start: u32,
}

impl Pick {
    pub fn rank(&self) -> Rank {
        (self.degraded, Reverse(self.bucket), self.tightness)
    }

    pub fn score(&self, model_cached: bool, crowding: u32) -> Score {
        Score {
            degraded: self.degraded,
            crowding,
            bucket: self.bucket,
            model_cached,
            tightness: self.tightness,
            frag_before_milli: self.frag_before.round() as i64,
            frag_after_milli: self.frag_after.round() as i64,
        }
    }

    pub fn shares(&self, need: &Need, row: &Row) -> Vec<GpuShare> {
        self.gpus.iter().filter_map(|at| share_on(&row.node.gpus[*at], &need.partition, self.start)).collect()
    }
}

pub(crate) fn pick(
    need: &Need,
    at: NodeAt,
    index: &Index,
    expected: &mut Expected,
    weights: &Weights,
) -> Result<Pick, Refused> {
    let row = &index.rows()[at];
    let islands = fit(need, row, index)?;
    let before = expected.loss(index, at);
    Ok(pick_gpus(need, row, islands, before, expected, weights))
}

/// The choice on a node that fits; `before` is what is lost of it as it is.
pub(crate) fn pick_gpus(
    need: &Need,
    row: &Row,
    islands: Islands,
    before: f64,
    expected: &Expected,
    weights: &Weights,
) -> Pick {
    let free = expected.free_gpus(row);
    let cpu_left = signed(row.cpu_free()) - signed(need.cpu_milli);
    let tally = Tally::new(&free, &expected.demand);

    let mut best: Option<(bool, f64, u32, Choice)> = None;
    let mut taken: Vec<(FreeGpu, FreeGpu)> = Vec::new();
    for choice in choices(need, islands, row, &free) {
        taken.clear();
        taken.extend(choice.gpus.iter().map(|u| {
            let mig = choice.cut.as_ref().map(|cut| cut.fits).or(free[u.at].mig);
            (free[u.at], FreeGpu { milli: free[u.at].milli - u.milli, mig, ..free[u.at] })
        }));
        let after = tally.loss(cpu_left, &taken);
        let degraded = choice.gpus.iter().any(|u| u.degraded);
        let ways_lost = choice.cut.as_ref().map_or(0, |cut| cut.ways_lost);
        // Strictly better only: the first of equals stays, and groups come in index order.
        if best.as_ref().is_none_or(|(d, a, w, _)| (degraded, after, ways_lost) < (*d, *a, *w)) {
            best = Some((degraded, after, ways_lost, choice));
        }
    }
    let (degraded, after, ways_lost, Choice { gpus: group, cut }) =
        best.unwrap_or_else(|| (false, tally.loss(cpu_left, &[]), 0, Choice::default()));

    let scarcity = need.class.map_or(0.0, |c| expected.scarcity_of(c));
    let taken: i64 = group.iter().map(|u| u.milli).sum();
    let request = Request { gpu_milli: taken, flexible: need.flexible };
    let gpu_left = free.iter().map(|g| g.milli).sum::<i64>() - taken;
    Pick {
        degraded,
        bucket: weights.bucket(before - after, &request, scarcity),
        tightness: ((weights.looseness(cpu_left, gpu_left, &request, scarcity) * 1e6).round() as i64)
            .saturating_add(i64::from(ways_lost) * WAY_LOST),
        frag_before: before,
        frag_after: after,
        gpus: group.into_iter().map(|u| u.at).collect(),
        start: cut.map_or(0, |cut| cut.start),
    }
}

/// GPUs that could be taken together.
#[derive(Default)]
struct Choice {
    gpus: Vec<Usable>,
    cut: Option<Cut>,
}

/// A place for a MIG device on its GPU.
struct Cut {
    start: u32,
    /// The profiles of which a device could be cut after it, a bit for each.
    fits: u64,
    /// By how many memory slices [`Layout::ways`](crate::snapshot::index::mig::Layout::ways) falls.
    ways_lost: u32,
}

/// The choices worth comparing: sets of GPUs, and for a MIG device every place on each.
fn choices(need: &Need, islands: Islands, row: &Row, free: &[FreeGpu]) -> Vec<Choice> {
    let Partition::Mig { profile } = &need.partition else {
        let groups = groups(islands, need.gpus as usize, row, free);
        return groups.into_iter().map(|gpus| Choice { gpus, cut: None }).collect();
    };
    let mut usable: Vec<Usable> = islands.into_iter().flatten().collect();
    usable.sort_by_key(|u| u.at);
    let mut seen = BTreeSet::new();
    let mut choices = Vec::new();
    for u in usable {
        let Some(mig) = &row.taken.gpus[u.at].mig else { continue };
        if !seen.insert((u.degraded, free[u.at], u.milli, mig.number, mig.taken)) {
            continue;
        }
        let ways = mig.layout.ways(mig.taken);
        choices.extend(mig.layout.places(profile, mig.taken).map(|(start, mask)| {
            let taken = mig.taken | mask;
            let cut = Cut { start, fits: mig.layout.fits(taken), ways_lost: ways - mig.layout.ways(taken) };
            Choice { gpus: vec![u], cut: Some(cut) }
        }));
    }
    choices
}

/// The choices of `count` GPUs worth comparing: every single GPU that differs from those before it,
/// or for a group the fullest GPUs that fit of each island, smallest island first, and before them those of one NUMA
/// node.
fn groups(mut islands: Islands, count: usize, row: &Row, free: &[FreeGpu]) -> Vec<Vec<Usable>> {
    if count <= 1 {
        let mut single: Vec<_> = islands.into_iter().flatten().collect();
        single.sort_by_key(|u| u.at);
        // Equal GPUs score equally, and the first of equals wins: no need to look at the others.
        let mut seen = BTreeSet::new();
        single.retain(|u| seen.insert((u.degraded, free[u.at].milli, free[u.at].kind, u.milli)));
        return single.into_iter().map(|u| vec![u]).collect();
    }
    islands.sort_by_key(|i| (i.len(), i.first().map(|u| u.at)));
    let from = islands.into_iter().flat_map(|island| {
        let mut local = of_one_numa_node(&island, row);
        local.retain(|gpus| gpus.len() >= count && gpus.len() < island.len());
        local.push(island);
        local
    });
    from.map(|mut island| {
        island.sort_by_key(|u| (u.degraded, free[u.at].milli, u.at));
        island.truncate(count);
        island.sort_by_key(|u| u.at);
        island
    })
    .collect()
}

/// The island's GPUs by NUMA node, the fewest first; those of unknown nodes are in none.
fn of_one_numa_node(island: &[Usable], row: &Row) -> Vec<Vec<Usable>> {
    let mut nodes: BTreeMap<u32, Vec<Usable>> = BTreeMap::new();
    for gpu in island {
        if let Some(numa) = row.node.gpus[gpu.at].numa {
            nodes.entry(numa).or_default().push(*gpu);
        }
    }
    let mut nodes: Vec<_> = nodes.into_values().collect();
    nodes.sort_by_key(Vec::len);
    nodes
}

fn signed(x: u64) -> i64 {
    x.min(1 << 50) as i64
}
