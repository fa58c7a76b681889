//! Stage three, second half: the best of the places that fit.
//!
//! Order: healthy before degraded, bucketed fragmentation gradient, weights already on the node,
//! tightness of the fit, name. Inside a node the GPU with the largest unbucketed gradient; a group
//! takes the island that it leaves least of.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::place::expected::Expected;
use crate::place::filter::{Islands, Seeker, Usable};
use crate::place::frag::{FreeGpu, Request, Weights, fragmentation};
use crate::place::verdict::{Because, Candidate, MAX_CANDIDATES, NodeRefusal, PlacementVerdict, Score, Winner};
use crate::snapshot::world::{World, charge};
use crate::snapshot::{Node, Placement, Policy};

pub(crate) fn place(seeker: &Seeker<'_>, world: &World, expected: &Expected, policy: &Policy) -> PlacementVerdict {
    let mut candidates = Vec::new();
    let mut refusals = Vec::new();
    for node in &world.nodes {
        match seeker.fit(world, node) {
            Ok(islands) => candidates.push(best_on(seeker, node, islands, expected, policy)),
            Err(reason) => refusals.push(NodeRefusal { node: node.name.clone(), reason }),
        }
    }
    candidates.sort_by(|a, b| order(&a.score, &b.score).then_with(|| a.node.cmp(&b.node)));
    let winner = candidates.first().map(|best| Winner {
        placement: Placement { node: best.node.clone(), variant: seeker.ask.variant.clone(), gpus: best.gpus.clone() },
        because: because(best, candidates.get(1)),
    });
    let fitting = candidates.len() as u32;
    candidates.truncate(MAX_CANDIDATES);
    let ask = seeker.ask.clone();
    PlacementVerdict { index: seeker.index, ask, winner, candidates, fitting, refusals }
}

/// Better first.
fn order(a: &Score, b: &Score) -> Ordering {
    a.degraded
        .cmp(&b.degraded)
        .then(b.bucket.cmp(&a.bucket))
        .then(b.model_cached.cmp(&a.model_cached))
        .then(a.tightness.cmp(&b.tightness))
}

fn because(best: &Candidate, second: Option<&Candidate>) -> Because {
    let Some(second) = second else { return Because::OnlyFit };
    let (a, b) = (&best.score, &second.score);
    if a.degraded != b.degraded {
        Because::Healthier
    } else if a.bucket != b.bucket {
        Because::FragmentsLeast {
            winner_milli: a.frag_after_milli - a.frag_before_milli,
            next_node: second.node.clone(),
            next_milli: b.frag_after_milli - b.frag_before_milli,
        }
    } else if a.model_cached != b.model_cached {
        Because::ModelCached
    } else if a.tightness != b.tightness {
        Because::TightFit { next_node: second.node.clone() }
    } else {
        Because::StableOrder
    }
}

fn best_on(seeker: &Seeker<'_>, node: &Node, islands: Islands, expected: &Expected, policy: &Policy) -> Candidate {
    let free = expected.free_gpus(node);
    let cpu = signed(node.allocatable.cpu_milli) - signed(node.used.cpu_milli);
    let shapes = &expected.demand.shapes;
    let before = fragmentation(cpu, &free, shapes);
    let cpu_left = cpu - signed(seeker.ask.cpu_milli);

    let mut best: Option<(bool, f64, Vec<Usable>, Vec<FreeGpu>)> = None;
    for group in groups(islands, seeker.ask.gpus as usize, &free, node) {
        let mut left = free.clone();
        for u in &group {
            left[u.at].milli = (left[u.at].milli - milli(node, u)).max(0);
        }
        let after = fragmentation(cpu_left, &left, shapes);
        let degraded = group.iter().any(|u| u.degraded);
        // Strictly better only: the first of equals stays, and groups come in index order.
        if best.as_ref().is_none_or(|(d, a, ..)| (degraded, after) < (*d, *a)) {
            best = Some((degraded, after, group, left));
        }
    }
    let (degraded, after, group, left) =
        best.unwrap_or_else(|| (false, fragmentation(cpu_left, &free, shapes), Vec::new(), free));

    let scarcity = seeker.ask.class.as_deref().map_or(0.0, |c| expected.scarcity_of(c));
    let request = Request {
        gpu_milli: group.first().map_or(0, |u| milli(node, u)),
        gpus: group.len() as i64,
        // A variant always names its class; only CPU replicas take any node, and they ask no GPU.
        any_type: seeker.ask.class.is_none(),
    };
    let weights = Weights {
        bucket_milli: f64::from(policy.frag_bucket_milli.max(1)),
        reserve_milli: f64::from(policy.frag_reserve_milli),
        ..Weights::DESIGN
    };
    let gpu_left = left.iter().map(|g| g.milli).sum();
    let score = Score {
        degraded,
        bucket: weights.bucket(before - after, &request, scarcity),
        model_cached: !seeker.deployment.model_key.is_empty()
            && node.cached_models.contains(&seeker.deployment.model_key),
        tightness: (weights.looseness(cpu_left, gpu_left, &request, scarcity) * 1000.0).round() as i64,
        frag_before_milli: before.round() as i64,
        frag_after_milli: after.round() as i64,
    };
    let gpus = group.into_iter().map(|u| u.share).collect();
    Candidate { node: node.name.clone(), gpus, score }
}

/// The choices of `count` GPUs worth comparing: every single GPU that differs from those before it,
/// or for a group the fullest GPUs that fit of each island, smallest island first.
fn groups(mut islands: Islands, count: usize, free: &[FreeGpu], node: &Node) -> Vec<Vec<Usable>> {
    if count <= 1 {
        let mut single: Vec<_> = islands.into_iter().flatten().collect();
        single.sort_by_key(|u| u.at);
        // Equal GPUs score equally, and the first of equals wins: no need to look at the others.
        let mut seen = BTreeSet::new();
        single.retain(|u| seen.insert((u.degraded, free[u.at].milli, free[u.at].kind, milli(node, u))));
        return single.into_iter().map(|u| vec![u]).collect();
    }
    islands.sort_by_key(|i| (i.len(), i.first().map(|u| u.at)));
    islands
        .into_iter()
        .map(|mut island| {
            island.sort_by_key(|u| (u.degraded, free[u.at].milli, u.at));
            island.truncate(count);
            island.sort_by_key(|u| u.at);
            island
        })
        .collect()
}

fn milli(node: &Node, u: &Usable) -> i64 {
    signed(charge(&node.gpus[u.at], u.share.memory_bytes, u.share.sm_percent))
}

fn signed(x: u64) -> i64 {
    x.min(1 << 50) as i64
}
