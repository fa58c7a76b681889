//! Published placement policies, from their papers' definitions, on the same pods in the same order: FGD
//! (Weng et al., ATC'23), best fit and random. They decide pod by pod and know nothing of `plan()`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};

use super::openb::{Pod, Random, Trace};

/// Which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Fgd,
    BestFit,
    Random,
}

/// CPU, milli-GPU of each GPU, GPUs, allowed types as bits (0: any).
type Key = (i64, i64, i64, u64);

struct Node {
    cpu: i64,
    memory: i64,
    kind: u64,
    free: Vec<i64>,
    /// Grows with each placement here.
    version: u64,
}

/// A score that holds while the node's version is the same.
#[derive(Clone, Copy)]
struct Score {
    version: u64,
    fits: bool,
    score: f64,
    gpu: Option<usize>,
}

/// Whether each pod was placed, and the fragmentation in thousandths of a GPU once 100 % were asked for.
pub fn run(trace: &Trace, seed: u64, pods: &[Pod], policy: Policy) -> (Vec<bool>, f64) {
    let shapes = shapes(trace);
    let mut nodes = nodes(trace, seed);
    let mut random = Random::new(seed ^ 0xba5e);
    let mut known: HashMap<(Key, i64), Vec<Score>> = HashMap::new();
    let (mut asked, mut fragmented) = (0, None);
    let placed = pods.iter().map(|pod| {
        asked += pod.milli * pod.gpus;
        if asked > trace.total_milli() && fragmented.is_none() {
            fragmented = Some(nodes.iter().map(|n| fragmentation(n.cpu, &n.free, n.kind, &shapes)).sum::<f64>());
        }
        let unknown = Score { version: u64::MAX, fits: false, score: 0.0, gpu: None };
        let scores = known.entry((key(trace, pod), pod.memory)).or_insert_with(|| vec![unknown; nodes.len()]);
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            if score.version != node.version {
                *score = judge(trace, pod, node, policy, &shapes);
            }
        }
        let fitting: Vec<usize> = (0..nodes.len()).filter(|n| scores[*n].fits).collect();
        let Some(first) = fitting.first() else { return false };
        let at = match policy {
            Policy::Random => fitting[random.below(fitting.len())],
            // Ties go to the first node of a random permutation, as in the published evaluation.
            _ => fitting.iter().fold(*first, |best, n| if scores[*n].score > scores[best].score { *n } else { best }),
        };
        let chosen = match policy {
            Policy::Random if pod.gpus == 1 => {
                let gpus: Vec<usize> = (0..nodes[at].free.len()).filter(|g| nodes[at].free[*g] >= pod.milli).collect();
                Some(gpus[random.below(gpus.len())])
            }
            _ => scores[at].gpu,
        };
        take(&mut nodes[at], pod, chosen);
        true
    });
    let placed = placed.collect();
    (placed, fragmented.unwrap_or(0.0))
}

fn judge(trace: &Trace, pod: &Pod, node: &Node, policy: Policy, shapes: &[(Key, f64)]) -> Score {
    let (.., types) = key(trace, pod);
    let usable = node.free.iter().filter(|free| **free >= pod.milli).count() as i64;
    let kind_ok = pod.gpus == 0 || types == 0 || types >> node.kind & 1 == 1;
    let fits = node.cpu >= pod.cpu && node.memory >= pod.memory && kind_ok && usable >= pod.gpus;
    let mut out = Score { version: node.version, fits, score: 0.0, gpu: None };
    if !fits {
        return out;
    }
    match policy {
        Policy::Random => {}
        Policy::BestFit => {
            let left = node.free.iter().sum::<i64>() - pod.milli * pod.gpus;
            let loose = (node.cpu - pod.cpu) as f64 / 128_000.0 + left as f64 / 8_000.0;
            out.score = (100.0 * (1.0 - 0.5 * loose)).floor();
            out.gpu = (0..node.free.len()).filter(|g| node.free[*g] >= pod.milli).min_by_key(|g| node.free[*g]);
        }
        Policy::Fgd => {
            let before = fragmentation(node.cpu, &node.free, node.kind, shapes);
            let singles: Vec<Option<usize>> = match pod.gpus {
                1 => (0..node.free.len()).filter(|g| node.free[*g] >= pod.milli).map(Some).collect(),
                _ => vec![None],
            };
            out.score = f64::NEG_INFINITY;
            for gpu in singles {
                let mut free = node.free.clone();
                take_gpus(&mut free, pod, gpu);
                let gain = before - fragmentation(node.cpu - pod.cpu, &free, node.kind, shapes);
                let score = (100.0 / (1.0 + (-gain / 1000.0).exp())).trunc();
                if score > out.score {
                    (out.score, out.gpu) = (score, gpu);
                }
            }
        }
    }
    out
}

fn take(node: &mut Node, pod: &Pod, gpu: Option<usize>) {
    node.cpu -= pod.cpu;
    node.memory -= pod.memory;
    node.version += 1;
    take_gpus(&mut node.free, pod, gpu);
}

/// Groups take the first GPUs that fit.
fn take_gpus(free: &mut [i64], pod: &Pod, gpu: Option<usize>) {
    match gpu.filter(|_| pod.gpus == 1) {
        Some(gpu) => free[gpu] -= pod.milli,
        None => free.iter_mut().filter(|f| **f >= pod.milli).take(pod.gpus as usize).for_each(|f| *f -= pod.milli),
    }
}

fn fragmentation(cpu: i64, free: &[i64], kind: u64, shapes: &[(Key, f64)]) -> f64 {
    let total: i64 = free.iter().sum();
    let unusable = |(want_cpu, milli, gpus, types): &Key| {
        if *milli == 0 || cpu < *want_cpu || (*types != 0 && types >> kind & 1 == 0) {
            return total;
        }
        let short: i64 = free.iter().filter(|f| *f < milli).sum();
        let fits = free.iter().filter(|f| *f >= milli).count() as i64;
        if fits >= *gpus { short } else { total }
    };
    shapes.iter().map(|(shape, probability)| probability * unusable(shape) as f64).sum()
}

/// The commonest shapes of the list that cover 95 % of it.
fn shapes(trace: &Trace) -> Vec<(Key, f64)> {
    let mut counted: BTreeMap<Key, f64> = BTreeMap::new();
    trace.pods.iter().for_each(|pod| *counted.entry(key(trace, pod)).or_default() += 1.0);
    let mut all: Vec<(Key, f64)> = counted.into_iter().collect();
    all.sort_by(|(ka, a), (kb, b)| b.total_cmp(a).then(kb.cmp(ka)));
    let (mut covered, enough) = (0.0, 0.95 * trace.pods.len() as f64);
    let mut kept: Vec<(Key, f64)> = Vec::new();
    for (shape, n) in all {
        if covered < enough {
            covered += n;
            kept.push((shape, n));
        }
    }
    kept.into_iter().map(|(shape, n)| (shape, n / covered)).collect()
}

fn key(trace: &Trace, pod: &Pod) -> Key {
    let bit = |model: &String| trace.models.binary_search(model).map_or(0, |at| 1u64 << at);
    (pod.cpu, pod.milli, pod.gpus, pod.types.iter().map(bit).sum())
}

fn nodes(trace: &Trace, seed: u64) -> Vec<Node> {
    let places = trace.permutation(seed);
    let mut nodes: Vec<(usize, Node)> = trace
        .nodes
        .iter()
        .zip(places)
        .map(|(n, place)| {
            let kind = trace.models.binary_search(&n.model).unwrap() as u64;
            (place, Node { cpu: n.cpu, memory: n.memory, kind, free: vec![1000; n.gpus as usize], version: 0 })
        })
        .collect();
    nodes.sort_by_key(|(place, _)| *place);
    nodes.into_iter().map(|(_, node)| node).collect()
}
