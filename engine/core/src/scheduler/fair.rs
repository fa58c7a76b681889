//! How tenants share the blocks of the KV cache: which requests give up theirs when another tenant needs some.
//!
//! Nothing is reserved: a tenant that is alone may hold all blocks. A tenant that waits gets blocks from the one
//! that holds most, newest request first, while that one still holds at least as much afterwards. So two
//! tenants never take the same blocks from each other in turns, and the oldest request of each goes on. A single
//! request keeps its blocks until it ends, however many they are: taking them would repeat all of its work.

use std::collections::HashMap;

use crate::blocks::BlockId;
use crate::request::{Priority, RequestId};

/// A running request and the blocks that it holds.
#[derive(Clone, Debug)]
pub(super) struct Held<'a> {
    pub(super) id: RequestId,
    pub(super) priority: Priority,
    pub(super) tenant: &'a [u8],
    pub(super) blocks: &'a [BlockId],
}

/// A waiting request that finds too few blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanting<'a> {
    pub(super) priority: Priority,
    pub(super) tenant: &'a [u8],
    /// Blocks that it would hold.
    pub(super) blocks: usize,
    /// Blocks that must become free first.
    pub(super) missing: usize,
}

/// The blocks of all running requests.
#[derive(Debug)]
pub(super) struct Holdings<'a> {
    /// In order of urgency and age, each with the blocks that no other request holds: what it can give up.
    requests: Vec<(Held<'a>, usize)>,
    /// Blocks per tenant. One that several requests share counts once; tenants never share one.
    tenants: HashMap<&'a [u8], usize>,
}

impl<'a> Holdings<'a> {
    /// `requests` in order of urgency and age.
    pub(super) fn new(requests: impl Iterator<Item = Held<'a>>) -> Self {
        let requests: Vec<Held<'a>> = requests.collect();
        let (mut holders, mut tenants) = (HashMap::<BlockId, usize>::new(), HashMap::new());
        for request in &requests {
            let held: &mut usize = tenants.entry(request.tenant).or_default();
            for block in request.blocks {
                let holders = holders.entry(*block).or_default();
                *holders += 1;
                *held += usize::from(*holders == 1);
            }
        }
        let alone = |request: &Held<'a>| request.blocks.iter().filter(|block| holders[block] == 1).count();
        Self { requests: requests.into_iter().map(|request| (request.clone(), alone(&request))).collect(), tenants }
    }

    /// Blocks of a tenant's running requests.
    pub(super) fn of(&self, tenant: &[u8]) -> usize {
        self.tenants.get(tenant).copied().unwrap_or(0)
    }

    /// Who gives up blocks so that `wanting` can run, in this order; nobody, when it would not be enough.
    pub(super) fn give_way(&self, wanting: Wanting<'_>) -> Vec<RequestId> {
        let would_hold = self.of(wanting.tenant) + wanting.blocks;
        let (mut tenants, mut missing, mut victims) = (self.tenants.clone(), wanting.missing, Vec::new());
        while missing > 0 {
            let may = |(request, own): &&(Held<'a>, usize)| {
                request.priority >= wanting.priority
                    && request.tenant != wanting.tenant
                    && !victims.contains(&request.id)
                    && tenants[request.tenant] >= would_hold + own
            };
            let largest = self.requests.iter().rev().filter(may).reduce(|best, other| {
                // The newest comes first, and stays unless another tenant holds more.
                if tenants[other.0.tenant] > tenants[best.0.tenant] { other } else { best }
            });
            let Some((victim, own)) = largest else { return Vec::new() };
            if let Some(held) = tenants.get_mut(victim.tenant) {
                *held -= own;
            }
            victims.push(victim.id);
            missing = missing.saturating_sub(*own);
        }
        victims
    }

    /// Who gives up its blocks when a running request can get no more: among the least urgent, the newest
    /// of the tenant that holds most. The only request of a tenant is not taken for another's; where every
    /// tenant has one, it is the newest of all.
    pub(super) fn first_to_yield(&self) -> Option<RequestId> {
        let last = &self.requests.last()?.0;
        let several = |tenant: &[u8]| self.requests.iter().filter(|(other, _)| other.tenant == tenant).count() > 1;
        let may = |(request, _): &&(Held<'a>, usize)| request.priority == last.priority && several(request.tenant);
        let largest = self
            .requests
            .iter()
            .rev()
            .filter(may)
            .reduce(|best, other| if self.of(other.0.tenant) > self.of(best.0.tenant) { other } else { best });
        Some(largest.map_or(last.id, |(request, _)| request.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests as (tenant, blocks), the oldest first; numbered from 0.
    fn holdings<'a>(requests: &'a [(&'a str, Vec<BlockId>)]) -> Holdings<'a> {
        Holdings::new(requests.iter().enumerate().map(|(id, (tenant, blocks))| Held {
            id: RequestId(id as u64),
            priority: Priority::Interactive,
            tenant: tenant.as_bytes(),
            blocks,
        }))
    }

    fn numbers(ids: Vec<RequestId>) -> Vec<u64> {
        ids.into_iter().map(|id| id.0).collect()
    }

    #[track_caller]
    fn gives_way(requests: &[(&str, Vec<BlockId>)], tenant: &str, (blocks, missing): (usize, usize), want: &[u64]) {
        let wanting = Wanting { priority: Priority::Interactive, tenant: tenant.as_bytes(), blocks, missing };
        assert_eq!(numbers(holdings(requests).give_way(wanting)), want);
    }

    #[test]
    fn tenant_that_holds_most_gives_way_with_its_newest_requests() {
        let all = [("a", vec![0, 1, 2]), ("a", vec![3, 4, 5]), ("a", vec![6, 7]), ("b", vec![8])];
        gives_way(&all, "c", (2, 2), &[2]);
        gives_way(&all, "c", (3, 3), &[2, 1]);
        gives_way(&all, "b", (1, 1), &[2]);
    }

    #[test]
    fn tenant_does_not_give_way_below_what_the_other_would_hold() {
        let all = [("a", vec![0, 1, 2]), ("a", vec![3, 4, 5])];
        gives_way(&all, "b", (3, 3), &[1]);
        gives_way(&all, "b", (4, 3), &[]);
        gives_way(&[("a", vec![0, 1, 2, 3, 4, 5])], "b", (1, 1), &[]);
        gives_way(&all, "a", (1, 1), &[]);
    }

    #[test]
    fn no_request_gives_way_when_all_that_may_are_not_enough() {
        gives_way(&[("a", vec![0, 1]), ("a", vec![2]), ("b", vec![3])], "c", (2, 2), &[]);
    }

    #[test]
    fn blocks_shared_within_a_tenant_count_once_and_are_not_freed_by_one_of_their_holders() {
        let all = [("a", vec![0, 1, 2]), ("a", vec![0, 1, 3]), ("a", vec![0, 1, 4])];
        assert_eq!(holdings(&all).of(b"a"), 5);
        gives_way(&all, "b", (2, 2), &[2, 1]);
        gives_way(&all, "b", (3, 2), &[2, 1]);
        gives_way(&all, "b", (4, 2), &[]);
    }

    #[test]
    fn more_urgent_requests_do_not_give_way() {
        let all = [("a", vec![0, 1, 2]), ("a", vec![3, 4, 5])];
        let wanting = Wanting { priority: Priority::Batch, tenant: b"b", blocks: 1, missing: 1 };
        assert_eq!(numbers(holdings(&all).give_way(wanting)), [] as [u64; 0]);
    }

    #[track_caller]
    fn yields(requests: &[(&str, Vec<BlockId>)], want: u64) {
        assert_eq!(holdings(requests).first_to_yield(), Some(RequestId(want)));
    }

    #[test]
    fn newest_request_of_the_largest_tenant_yields_first() {
        yields(&[("a", vec![0, 1]), ("a", vec![2]), ("b", vec![3])], 1);
        yields(&[("a", vec![0]), ("b", vec![1, 2]), ("b", vec![3]), ("a", vec![4])], 2);
        yields(&[("a", vec![0]), ("a", vec![1]), ("a", vec![2])], 2);
    }

    #[test]
    fn only_request_of_a_tenant_yields_when_every_tenant_has_one_and_it_is_the_newest() {
        yields(&[("a", vec![0, 1, 2]), ("b", vec![3])], 1);
        yields(&[("a", vec![0, 1, 2, 3]), ("b", vec![4]), ("b", vec![5])], 2);
    }
}
