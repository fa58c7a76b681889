//! The nodes that fit one need, best first, kept up to date as nodes change.
//!
//! A ranking holds node *states*, not nodes: a thousand equal nodes are looked at once. It reads the
//! index's log of changes on from where it stopped, so that after one placement one state is scored
//! anew. States without members stay in the order until they are met, and are dropped then.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::place::choose::{Pick, pick};
use crate::place::expected::Expected;
use crate::place::filter::{Need, Refused, fit};
use crate::place::frag::Weights;
use crate::snapshot::index::{Index, NodeAt, StateAt};

/// Less is better: degraded, bucket, looseness in millionths.
pub(crate) type Rank = (bool, Reverse<i64>, i64);

/// A node that fits.
#[derive(Clone, Debug)]
pub(crate) struct Ranked {
    pub pick: Arc<Pick>,
    pub node: NodeAt,
    /// It holds the model's weights.
    pub cached: bool,
}

/// A state that fits.
struct Known {
    pick: Arc<Pick>,
    /// It is in the order.
    present: bool,
}

/// All rankings of one plan; equal needs share one.
#[derive(Default)]
pub(crate) struct Rankings {
    numbers: HashMap<Need, usize>,
    list: Vec<Ranking>,
}

/// What is asked of a ranking for one slot.
pub(crate) struct Wish<'a> {
    pub excluded: &'a [NodeAt],
    pub model_key: &'a str,
    /// Places to return, at most.
    pub count: usize,
}

struct Ranking {
    need: Need,
    order: BTreeSet<(Rank, StateAt)>,
    /// States that were looked at; `None`: does not fit.
    known: HashMap<StateAt, Option<Known>>,
    fits: Vec<bool>,
    fitting: u32,
    /// Length of the index's log that was read.
    read: usize,
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
            order: BTreeSet::new(),
            known: HashMap::new(),
            fits: Vec::new(),
            fitting: 0,
            read: 0,
        });
        n
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
        // Rows come and go only at the end, in trials; those that come are in the log.
        if self.fits.len() > nodes {
            self.fitting -= self.fits.drain(nodes..).filter(|fits| *fits).count() as u32;
        }
        self.fits.resize(nodes, false);
        if log.len() - self.read >= nodes {
            (0..nodes).for_each(|at| self.look_at(at, index, expected, weights));
        } else {
            let mut changed: Vec<NodeAt> = log[self.read..].iter().copied().filter(|at| *at < nodes).collect();
            changed.sort_unstable();
            changed.dedup();
            changed.into_iter().for_each(|at| self.look_at(at, index, expected, weights));
        }
        self.read = log.len();
        if self.known.len() > 2 * nodes + 64 {
            self.known.retain(|state, _| !index.members(*state).is_empty());
            let known = &self.known;
            self.order.retain(|(_, state)| known.contains_key(state));
        }
    }

    fn look_at(&mut self, at: NodeAt, index: &Index, expected: &mut Expected, weights: &Weights) {
        let state = index.state(at);
        let known = self.known.entry(state).or_insert_with(|| {
            let picked = pick(&self.need, at, index, expected, weights).ok()?;
            Some(Known { pick: Arc::new(picked), present: false })
        });
        if let Some(known) = known
            && !known.present
        {
            known.present = true;
            self.order.insert((known.pick.rank(), state));
        }
        let fits = known.is_some();
        self.fitting = self.fitting + u32::from(fits) - u32::from(self.fits[at]);
        self.fits[at] = fits;
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
            let Some(Some(Known { pick, .. })) = self.known.get(state) else { continue };
            let usable = members.iter().filter(|at| !excluded.contains(at)).take(count);
            found.extend(usable.map(|at| Ranked { pick: pick.clone(), node: *at, cached: false }));
        }
        for gone in dead {
            self.order.remove(&gone);
            if let Some(Some(known)) = self.known.get_mut(&gone.1) {
                known.present = false;
            }
        }
        found.sort_by_key(order);
        found.truncate(count);
        found
    }

    fn add_holders(&self, index: &Index, holders: &[NodeAt], excluded: &[NodeAt], found: &mut Vec<Ranked>) {
        found.retain(|r| holders.binary_search(&r.node).is_err());
        for at in holders.iter().filter(|at| !excluded.contains(at)) {
            if let Some(Some(Known { pick, .. })) = self.known.get(&index.state(*at)) {
                found.push(Ranked { pick: pick.clone(), node: *at, cached: true });
            }
        }
        found.sort_by_key(order);
    }
}

/// Every node that does not fit, by state: the reason, and the nodes that share it.
pub(crate) fn refusals<'a>(need: &Need, index: &'a Index) -> Vec<(Refused, &'a BTreeSet<NodeAt>)> {
    let mut all = Vec::new();
    for state in 0..index.states() {
        let members = index.members(state);
        if let Some(at) = members.first()
            && let Err(refused) = fit(need, &index.rows()[*at], index)
        {
            all.push((refused, members));
        }
    }
    all
}
