//! What one plan leaves for the next: the index, the rankings and what was worked out about each deployment.
//!
//! A snapshot shares its nodes and deployments with the one before ([`Shared`]); those that are the same
//! are not read again. A warm plan is the plan that a cold one would be, to the byte: what is kept is
//! either checked against the snapshot or dropped.

use std::sync::Arc;

use crate::lifecycle::{Assessment, assess};
use crate::place::expected::Contribution;
use crate::place::placer::{Alternative, Placer};
use crate::plan::BasedOn;
use crate::snapshot::index::{Index, NodeAt};
use crate::snapshot::{Deployment, DeploymentId, Policy, Shared, Snapshot, TimeMs};

/// Needs that are kept beyond eight for each deployment.
const SPARE_NEEDS: usize = 1024;

/// Kept from one plan to the next by a caller that plans again and again. A new one plans cold.
#[derive(Default)]
pub struct Prepared {
    left: Option<Working>,
    pub(crate) based_on: BasedOn,
    order: Order,
}

/// Positions of the deployments in the snapshot, in the order in which a plan has them. Most often it holds for the
/// next snapshot, and to see that takes one comparison of names each.
#[derive(Default)]
struct Order(Vec<usize>);

/// What a plan works with.
pub(crate) struct Working {
    pub placer: Placer,
    /// By deployment and UID.
    pub known: Vec<Known>,
    pub kept: Kept,
}

/// What the rest was made for.
pub(crate) struct Kept {
    policy: Policy,
    /// The index's version of classes.
    class_version: u64,
}

/// What follows from a deployment, and from classes, alone.
pub(crate) struct Known {
    source: Shared<Deployment>,
    /// Of the deployment and of its tenant, in the index.
    pub number: usize,
    pub tenant: Option<usize>,
    pub alternatives: Arc<[Alternative]>,
    contribution: Contribution,
    rest: Option<Rest>,
}

/// A deployment with nothing to do. It is looked at again once it or a node of it is another.
struct Rest {
    /// The round of the index in which it was found.
    round: u64,
    wanted: u32,
    nodes: Vec<NodeAt>,
    current: u32,
    ready: u32,
    updated_ready: u32,
}

impl Prepared {
    /// The deployments by name; those with the same name by UID.
    pub(crate) fn in_order<'a>(&mut self, snapshot: &'a Snapshot) -> Vec<&'a Shared<Deployment>> {
        self.order.of(&snapshot.deployments)
    }

    /// Follows the snapshot with these deployments, in order, or begins anew where too much is different.
    pub(crate) fn take(
        &mut self,
        snapshot: &Snapshot,
        deployments: &[&Shared<Deployment>],
        policy: &Policy,
    ) -> Working {
        let followed = self.left.take().filter(|w| &w.kept.policy == policy).and_then(|mut old| {
            let known = old.placer.needs() <= 8 * deployments.len() + SPARE_NEEDS
                && deployments.iter().all(|d| old.knows_classes(d));
            (known && old.placer.follow(snapshot)).then_some(old)
        });
        let mut working = followed.unwrap_or_else(|| Working {
            placer: Placer::new(snapshot, policy),
            known: Vec::new(),
            kept: Kept { policy: policy.clone(), class_version: 0 },
        });
        working.follow(deployments);
        working
    }

    /// For the next plan. The index must be as the snapshot has it.
    pub(crate) fn keep(&mut self, working: Working) {
        self.left = Some(working);
    }
}

impl Working {
    fn follow(&mut self, deployments: &[&Shared<Deployment>]) {
        let Working { placer, known, kept } = self;
        // Where slices are dedicated to deployments, what one needs follows from what others hold.
        let valid = kept.class_version == placer.index.class_version() && !placer.index.owners_matter();
        kept.class_version = placer.index.class_version();
        let mut old = std::mem::take(known).into_iter().peekable();
        for d in deployments {
            while old.next_if(|k| !k.source.is(d) && key(&k.source) < key(d)).is_some() {}
            let same = old.next_if(|k| k.source.is(d) || key(&k.source) == key(d)).filter(|k| k.source == **d);
            known.push(match same {
                Some(same) if valid => same,
                same => Known::new(d, placer, same.and_then(|k| k.rest)),
            });
        }
        let observed = known.iter().map(|k| (&k.contribution, k.source.wanted));
        placer.expected.observe(&placer.index, observed);
    }

    fn knows_classes(&self, d: &Shared<Deployment>) -> bool {
        let mut classes = d.variants.iter().filter_map(|v| v.accelerator.class());
        classes.all(|class| self.placer.index.class(class).is_some())
    }
}

impl Known {
    fn new(d: &Shared<Deployment>, placer: &mut Placer, rest: Option<Rest>) -> Self {
        let number = placer.index.deployment(&d.id);
        let tenant = d.tenant.as_ref().map(|t| placer.index.tenant(t));
        let (alternatives, contribution) = placer.alternatives(d);
        Known { source: d.clone(), number, tenant, alternatives, contribution, rest }
    }

    /// What becomes of its replicas.
    pub fn assess(&mut self, wanted: u32, end: &[String], index: &Index, policy: &Policy, now: TimeMs) -> Assessment {
        let same = |r: &&Rest| r.wanted == wanted && end.is_empty() && r.holds(index);
        if let Some(rest) = self.rest.as_ref().filter(same) {
            let Rest { current, ready, updated_ready, .. } = *rest;
            return Assessment { current, ready, updated_ready, ..Assessment::default() };
        }
        let found = assess(&self.source, wanted, end, index, policy, now);
        self.rest = (end.is_empty() && found.has_nothing_to_do()).then(|| {
            let placed = self.source.replicas.iter().filter_map(|r| r.placement.as_ref());
            let mut nodes: Vec<NodeAt> = placed.filter_map(|p| index.at(&p.node)).collect();
            nodes.sort_unstable();
            nodes.dedup();
            let Assessment { current, ready, updated_ready, .. } = found;
            Rest { round: index.round(), wanted, nodes, current, ready, updated_ready }
        });
        found
    }
}

impl Rest {
    fn holds(&self, index: &Index) -> bool {
        self.nodes.iter().all(|at| index.rows()[*at].changed <= self.round)
    }
}

impl Order {
    /// The deployments by name; those with the same name by UID.
    fn of<'a>(&mut self, all: &'a [Shared<Deployment>]) -> Vec<&'a Shared<Deployment>> {
        if self.0.len() == all.len() {
            let known: Vec<_> = self.0.iter().map(|at| &all[*at]).collect();
            if known.is_sorted_by(|a, b| key(a) < key(b)) {
                return known;
            }
        }
        self.0 = (0..all.len()).collect();
        self.0.sort_by(|a, b| key(&all[*a]).cmp(&key(&all[*b])));
        self.0.iter().map(|at| &all[*at]).collect()
    }
}

fn key(d: &Deployment) -> (&DeploymentId, &str) {
    (&d.id, &d.uid)
}
