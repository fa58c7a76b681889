//! The nodes that fit one need, best first, kept up to date as nodes change, over plans too.
//!
//! A ranking holds node *states*, not nodes: a thousand equal nodes are looked at once. It reads the
//! index's log of changes on from where it stopped, so that after one placement one state is scored
//! anew. States without members stay in the order until they are met, and are dropped then.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::place::choose::{Pick, Rank, pick};
use crate::place::expected::Expected;
use crate::place::filter::{Need, Refused, fit};
use crate::place::frag::Weights;
use crate::snapshot::ModelKey;
use crate::snapshot::index::{Index, NodeAt, StateAt};

/// A node that fits.
#[derive(Clone, Debug)]
pub(crate) struct Ranked {
    pub pick: Arc<Pick>,
    pub node: NodeAt,
    /// It holds the model's weights.
    pub cached: bool,
}

/// What is known of a state.
#[derive(Clone)]
enum Known {
    /// It was not looked at.
    Nothing,
    DoesNotFit,
    Fits {
        pick: Arc<Pick>,
        /// It is in the order.
        present: bool,
    },
}

/// What rankings are valid for: states of the index, scores of the demand.
type Epoch = (u64, u64);

/// All rankings of one index; equal needs share one.
#[derive(Default)]
pub(crate) struct Rankings {
    numbers: HashMap<Need, usize>,
    list: Vec<Ranking>,
}

/// What is asked of a ranking for one slot.
pub(crate) struct Wish<'a> {
    /// Sorted.
    pub excluded: &'a [NodeAt],
    pub model_key: &'a ModelKey,
    /// Places to return, at most.
    pub count: usize,
}

struct Ranking {
    need: Need,
    epoch: Epoch,
    order: BTreeSet<(Rank, StateAt)>,
    /// By state.
    known: Vec<Known>,
    /// By node.
    fits: Vec<bool>,
    fitting: u32,
    /// Length of the index's log that was read; `None`: no node was looked at.
    read: Option<usize>,
}

impl Rankings {
    /// The number of this need's ranking.
    pub fn number(&mut self, need: Need) -> usize {
        if let Some(n) = self.numbers.get(&need) {
            return *n;
        }
        let n = self.list.len();
        self.numbers.insert(need.clone(), n);
        self.list.push(Ranking {
            need,
            epoch: (0, 0),
            order: BTreeSet::new(),
            known: Vec::new(),
            fits: Vec::new(),
            fitting: 0,
            read: None,
        });
        n
    }

    /// Needs met so far.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn need(&self, number: usize) -> &Need {
        &self.list[number].need
    }

    /// Reads the index's log to its end.
    pub fn refresh(&mut self, number: usize, index: &Index, expected: &mut Expected, weights: &Weights) {
        self.list[number].refresh(index, expected, weights);
    }

    /// Nodes that fit and are not excluded, as of the last refresh.
    pub fn fitting(&self, number: usize, excluded: &[NodeAt]) -> u32 {
        let ranking = &self.list[number];
        ranking.fitting - excluded.iter().filter(|at| ranking.fits[**at]).count() as u32
    }

    /// As of the last refresh the best `count` nodes that fit and are not excluded. Between nodes of one bucket those that
    /// hold the model's weights come first.
    pub fn best(&mut self, number: usize, index: &Index, wish: &Wish<'_>) -> Vec<Ranked> {
        let Wish { excluded, model_key, count } = *wish;
        let ranking = &mut self.list[number];
        let mut found = ranking.top(index, excluded, count);
        let holders = index.holders(model_key);
        if !holders.is_empty() {
            ranking.add_holders(index, holders, excluded, &mut found);
            found.truncate(count);
        }
        found
    }
}

/// Order between two nodes that fit: the model's weights count within a bucket.
pub(crate) fn order(a: &Ranked) -> (bool, Reverse<i64>, bool, i64, NodeAt) {
    let (degraded, bucket, tightness) = a.pick.rank();
    (degraded, bucket, !a.cached, tightness, a.node)
}

impl Ranking {
    fn refresh(&mut self, index: &Index, expected: &mut Expected, weights: &Weights) {
        let nodes = index.rows().len();
        let log = index.changes();
        let epoch = (index.epoch(), expected.version());
        if self.epoch != epoch {
            self.epoch = epoch;
            self.order.clear();
            self.known.clear();
            self.fits.clear();
            (self.fitting, self.read) = (0, None);
        }
        // Rows come and go only at the end, in trials; those that come are in the log.
        if self.fits.len() > nodes {
            self.fitting -= self.fits.drain(nodes..).filter(|fits| *fits).count() as u32;
        }
        self.fits.resize(nodes, false);
        match self.read {
            Some(read) if log.len() - read < nodes => {
                let mut changed: Vec<NodeAt> = log[read..].iter().copied().filter(|at| *at < nodes).collect();
                changed.sort_unstable();
                changed.dedup();
                changed.into_iter().for_each(|at| self.look_at(at, index, expected, weights));
            }
            _ => (0..nodes).for_each(|at| self.look_at(at, index, expected, weights)),
        }
        self.read = Some(log.len());
    }

    fn look_at(&mut self, at: NodeAt, index: &Index, expected: &mut Expected, weights: &Weights) {
        let state = index.state(at);
        if self.known.len() <= state {
            self.known.resize(index.states(), Known::Nothing);
        }
        let known = &mut self.known[state];
        if matches!(known, Known::Nothing) {
            *known = match pick(&self.need, at, index, expected, weights) {
                Ok(pick) => Known::Fits { pick: Arc::new(pick), present: false },
                Err(_) => Known::DoesNotFit,
            };
        }
        if let Known::Fits { pick, present } = known
            && !*present
        {
            *present = true;
            self.order.insert((pick.rank(), state));
        }
        let fits = matches!(known, Known::Fits { .. });
        self.fitting = self.fitting + u32::from(fits) - u32::from(self.fits[at]);
        self.fits[at] = fits;
    }

    /// The choice on a state that fits.
    fn pick(&self, state: StateAt) -> Option<&Arc<Pick>> {
        match self.known.get(state) {
            Some(Known::Fits { pick, .. }) => Some(pick),
            _ => None,
        }
    }

    fn top(&mut self, index: &Index, excluded: &[NodeAt], count: usize) -> Vec<Ranked> {
        let mut found: Vec<Ranked> = Vec::with_capacity(count);
        let mut dead = Vec::new();
        for (rank, state) in &self.order {
            if found.len() >= count && found.last().is_some_and(|last| last.pick.rank() != *rank) {
                break;
            }
            let members = index.members(*state);
            if members.is_empty() {
                dead.push((*rank, *state));
                continue;
            }
            let Some(pick) = self.pick(*state) else { continue };
            let usable = members.iter().filter(|at| excluded.binary_search(at).is_err()).take(count);
            found.extend(usable.map(|at| Ranked { pick: pick.clone(), node: *at, cached: false }));
        }
        for gone in dead {
            self.order.remove(&gone);
            if let Some(Known::Fits { present, .. }) = self.known.get_mut(gone.1) {
                *present = false;
            }
        }
        found.sort_by_key(order);
        found.truncate(count);
        found
    }

    fn add_holders(&self, index: &Index, holders: &[NodeAt], excluded: &[NodeAt], found: &mut Vec<Ranked>) {
        found.retain(|r| holders.binary_search(&r.node).is_err());
        for at in holders.iter().filter(|at| excluded.binary_search(at).is_err()) {
            if let Some(pick) = self.pick(index.state(*at)) {
                found.push(Ranked { pick: pick.clone(), node: *at, cached: true });
            }
        }
        found.sort_by_key(order);
    }
}

/// Every node that does not fit, by state: the reason, and the nodes that share it.
pub(crate) fn refusals<'a>(need: &Need, index: &'a Index) -> Vec<(Refused, &'a BTreeSet<NodeAt>)> {
    let mut all = Vec::new();
    for state in index.live_states() {
        let members = index.members(state);
        if let Some(at) = members.first()
            && let Err(refused) = fit(need, &index.rows()[*at], index)
        {
            all.push((refused, members));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::filter::Need;
    use crate::place::placer::Placer;
    use crate::snapshot::index::{Mark, Owner, Take, share_on};
    use crate::snapshot::{
        Accelerator, Deployment, Freshness, Gpu, Health, Node, Partition, Policy, Resources, Shared, Snapshot, Variant,
    };

    fn snapshot() -> Snapshot {
        let gpu = |n: u32, index: u32| Gpu {
            uuid: format!("GPU-{n}-{index}"),
            index,
            product: "H".to_owned(),
            class: Some("h".to_owned()),
            memory_bytes: 1000,
            memory_step_bytes: 1,
            sm_percent: 1000,
            health: Health::Healthy,
            island: Some("nv".to_owned()),
            numa: None,
            mig: None,
            slices: Vec::new(),
        };
        let node = |n: u32| Node {
            name: format!("n{n}"),
            ready: true,
            cordoned: false,
            labels: Default::default(),
            taints: Vec::new(),
            allocatable: Resources { cpu_milli: 20_000, memory_bytes: 1 << 40, pods: 50 },
            used: Resources::default(),
            host_ports: Vec::new(),
            freshness: Freshness::Fresh { age_ms: 0 },
            gpus: (0..2 + n % 2).map(|index| gpu(n, index)).collect(),
            cached_models: Vec::new(),
        };
        Snapshot { nodes: (0..7).map(node).map(Shared::new).collect(), ..Snapshot::default() }
    }

    fn variant(memory: u64, count: u32) -> Variant {
        let accelerator = Accelerator::Gpu { class: "h".to_owned(), count, partition: Partition::slice(memory, 1) };
        Variant { name: format!("{memory}x{count}"), accelerator, itl_us: None }
    }

    fn needs(index: &mut Index) -> Vec<Need> {
        let asks = [variant(300, 1), variant(700, 1), variant(1000, 2)];
        let d = Deployment { variants: asks.to_vec(), ..deployment() };
        d.variants.iter().map(|v| Need { cpu_milli: 1000, ..Need::new(index, &d, v, false) }).collect()
    }

    fn deployment() -> Deployment {
        serde_json::from_str(
            r#"{"id":{"namespace":"a","name":"d"},"uid":"u","generation":1,"tenant":null,"createdMs":0,"wanted":3,
                "variants":[],"needs":{"cpuMilli":1000,"memoryBytes":1},"specHash":"v","drainTimeoutMs":0}"#,
        )
        .unwrap()
    }

    fn best(rankings: &mut Rankings, need: &Need, placer: &mut Placer) -> Vec<(Rank, NodeAt, Vec<usize>)> {
        let weights = Weights::DESIGN;
        let number = rankings.number(need.clone());
        rankings.refresh(number, &placer.index, &mut placer.expected, &weights);
        let wish = Wish { excluded: &[2], model_key: &ModelKey::default(), count: 5 };
        let found = rankings.best(number, &placer.index, &wish);
        found.iter().map(|r| (r.pick.rank(), r.node, r.pick.gpus.clone())).collect()
    }

    /// Takes, releases, marks and rollbacks in a seeded order; after each the kept rankings must equal
    /// new ones, and in the end the index must be as it was.
    #[test]
    fn ranking_kept_over_changes_and_rollbacks_equals_a_new_one() {
        let d = Deployment { variants: vec![variant(300, 1)], ..deployment() };
        let mut placer = Placer::new(&snapshot(), &Policy::default());
        let (_, contribution) = placer.alternatives(&d);
        placer.expected.observe(&placer.index, [(&contribution, d.wanted)].into_iter());
        let needs = needs(&mut placer.index);
        let original: Vec<_> = placer.index.rows().iter().map(|r| r.taken.clone()).collect();
        let mut kept = Rankings::default();
        let mut marks: Vec<Mark> = vec![placer.index.mark()];
        let mut random = 7u64;
        for step in 0..400u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = (random >> 33) as usize;
            let need = &needs[dice % needs.len()];
            match dice / 8 % 6 {
                0 => marks.push(placer.index.mark()),
                1 if marks.len() > 1 => {
                    let mark = marks.pop().unwrap();
                    placer.index.rollback(mark);
                }
                2 => {
                    let owner = Owner { deployment: 0, index: step / 3, incarnation: 0 };
                    placer.index.release(dice / 64 % 7, owner, 1000, 1, &[]);
                }
                3 => drop(placer.index.add_like(dice / 64 % 7)),
                _ => {
                    if let Some((_, at, gpus)) = best(&mut kept, need, &mut placer).first().cloned() {
                        let row = &placer.index.rows()[at];
                        let share = |g: &usize| (*g, share_on(&row.node.gpus[*g], &need.partition, 0).unwrap());
                        let take = Take {
                            owner: Owner { deployment: 0, index: step, incarnation: 0 },
                            tenant: None,
                            isolation: need.isolation,
                            cpu_milli: 1000,
                            memory_bytes: 1,
                            ports: Vec::new(),
                            gpus: gpus.iter().map(share).collect(),
                        };
                        placer.index.take(at, &take);
                    }
                }
            }
            for need in &needs {
                let new = best(&mut Rankings::default(), need, &mut placer);
                assert_eq!(best(&mut kept, need, &mut placer), new, "step {step}");
            }
        }
        for mark in marks.into_iter().rev() {
            placer.index.rollback(mark);
        }
        let after: Vec<_> = placer.index.rows().iter().map(|r| r.taken.clone()).collect();
        assert_eq!(after, original);
    }
}
