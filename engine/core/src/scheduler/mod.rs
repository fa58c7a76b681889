//! Which tokens of which requests the next step computes.
//!
//! There are no prefill and decode phases: a request has tokens known and tokens computed, and each
//! step closes some of the gap (the model of vLLM V1). Running requests come first, in order of
//! (priority, arrival), then waiting ones, among which the tenants take turns. A long prompt takes what is left of the
//! step's budget and goes on in the next, so those behind it still get a token per step. When blocks
//! run out, one of the least urgent gives up its own and is computed again later; [`fair`] says which.
//!
//! A waiting request whose next block is being computed by a running one waits for it: the burst of
//! equal prompts after a deployment costs one prefill and not sixteen.
//!
//! Deliberately absent: clocks, logits, the executor. `schedule` decides, [`Scheduler::commit`] takes
//! what was really computed, and only then are blocks offered to others.

mod fair;

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::blocks::{BlockHash, BlockId, BlockPool};
use crate::executor::BLOCK_TOKENS;
use crate::request::{Priority, Request, RequestId, Sequence};
use fair::{Held, Holdings, Wanting};

/// The bounds of a step. All at least 1.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Tokens computed per step, over all requests.
    pub max_step_tokens: usize,
    /// Requests running at the same time. At most `max_step_tokens`: each gets a token per step.
    pub max_running: usize,
    /// Rows of logits that one step may give for prompts to be scored: they take memory that nothing
    /// else needs.
    pub max_scored_rows: usize,
    /// KV blocks.
    pub num_blocks: usize,
}

/// A request's share of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The request.
    pub id: RequestId,
    /// Tokens to compute, from the first that is not computed.
    pub tokens: usize,
    /// The last known token is among them: its logits choose the next.
    pub sample: bool,
    /// Logits are wanted for each of the tokens, to score the prompt.
    pub score: bool,
}

/// What to compute, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Who computes how much.
    pub grants: Vec<Grant>,
    /// Gave up their blocks to make this plan possible.
    pub preempted: Vec<RequestId>,
    /// Run for the first time, with so many prompt tokens from the cache. Those who come back after
    /// a preemption are not among them.
    pub admitted: Vec<(RequestId, usize)>,
}

impl Plan {
    /// Tokens of all grants.
    pub fn tokens(&self) -> usize {
        self.grants.iter().map(|grant| grant.tokens).sum()
    }
}

/// The order among requests: urgency, then age. Arrivals are unique, so it is total.
type Turn = (Priority, u64, RequestId);

/// Requests, their blocks, and whose turn it is.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: HashMap<RequestId, Sequence>,
    /// Sorted.
    running: Vec<Turn>,
    waiting: BTreeSet<Turn>,
    /// Blocks that running requests are about to compute, and how many do.
    announced: HashMap<BlockHash, u32>,
    arrivals: u64,
    preemptions: u64,
}

/// Why a waiting request was not admitted.
enum NotYet {
    /// A running request computes its prefix right now.
    PrefixUnderWay,
    /// The step gives as many rows of logits as it may.
    NoRows,
    /// So many blocks must become free first.
    NoRoom { missing: usize },
}

/// What is left of a step while it is planned.
struct Left {
    tokens: usize,
    scored_rows: usize,
}

/// Tenants that hold more than their part of the blocks, found out when it is first asked.
#[derive(Default)]
struct Served {
    above: Option<HashSet<Vec<u8>>>,
    /// Those of them that found no room: their later requests do not overtake their earlier ones.
    passed: HashSet<Vec<u8>>,
}

impl Served {
    fn passed(&self, tenant: &[u8]) -> bool {
        self.passed.contains(tenant)
    }

    /// Whether the tenant of a request that found no room holds more than its part.
    fn has_its_part(&mut self, scheduler: &Scheduler, turn: &Turn) -> bool {
        let tenant = scheduler.tenant(turn);
        let above = self.above.get_or_insert_with(|| scheduler.above_their_part());
        let has = above.contains(tenant);
        if has {
            self.passed.insert(tenant.to_vec());
        }
        has
    }
}

impl Left {
    /// How many of `wanted` tokens a sequence gets, and takes them.
    fn take(&mut self, wanted: usize, scores: bool) -> usize {
        let tokens = wanted.min(self.tokens).min(if scores { self.scored_rows } else { usize::MAX });
        self.tokens -= tokens;
        if scores {
            self.scored_rows -= tokens;
        }
        tokens
    }

    /// Gives back what a grant took.
    fn give_back(&mut self, grant: Grant) {
        self.tokens += grant.tokens;
        if grant.score {
            self.scored_rows += grant.tokens;
        }
    }
}

impl Scheduler {
    /// A scheduler without requests; bounds below 1 count as 1.
    pub fn new(config: SchedulerConfig) -> Self {
        let max_step_tokens = config.max_step_tokens.max(1);
        let config = SchedulerConfig {
            max_step_tokens,
            max_running: config.max_running.clamp(1, max_step_tokens),
            max_scored_rows: config.max_scored_rows.max(1),
            num_blocks: config.num_blocks,
        };
        Self {
            config,
            pool: BlockPool::new(config.num_blocks),
            sequences: HashMap::new(),
            running: Vec::new(),
            waiting: BTreeSet::new(),
            announced: HashMap::new(),
            arrivals: 0,
            preemptions: 0,
        }
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Requests that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests that wait to run.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How often a request gave up its blocks.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Whether the request is waiting or running.
    pub fn contains(&self, id: RequestId) -> bool {
        self.sequences.contains_key(&id)
    }

    /// Prompt tokens that are not computed yet, a measure of the time before a newcomer's first
    /// token. What the cache will save is not known yet and not taken off.
    pub fn prefill_backlog(&self) -> usize {
        let of = |turn: &Turn| self.sequences[&turn.2].remaining();
        let running = self.running.iter().map(of).filter(|remaining| *remaining > 1);
        running.chain(self.waiting.iter().map(of)).sum()
    }

    pub(crate) fn sequence(&self, id: RequestId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Puts a request into the queue. `root` starts its chain of block hashes.
    pub fn submit(&mut self, request: Request, root: BlockHash) {
        let (id, arrival) = (request.id, self.arrivals);
        self.arrivals += 1;
        let sequence = Sequence::new(request, arrival, root);
        self.waiting.insert(turn(&sequence));
        self.sequences.insert(id, sequence);
    }

    /// Ends a request, wherever it stands, and gives its blocks back. The sequence is returned for
    /// its last figures.
    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        let turn = turn(self.sequences.get(&id)?);
        self.waiting.remove(&turn);
        self.running.retain(|other| *other != turn);
        self.take_blocks(id);
        self.sequences.remove(&id)
    }

    /// Decides the next step. Blocks are allocated, nothing counts as computed yet.
    pub fn schedule(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut left = Left { tokens: self.config.max_step_tokens, scored_rows: self.config.max_scored_rows };
        self.make_way();
        self.share_blocks();
        self.grant_running(&mut plan, &mut left);
        // A request just lost its blocks for want of room: there is none for newcomers.
        if plan.preempted.is_empty() {
            self.admit_waiting(&mut plan, &mut left);
        }
        plan
    }

    /// With all places taken, the tenant that runs most gives up its newest one to a waiting tenant
    /// that runs at least two fewer. One per step; when the tenants run equally many, no more.
    fn make_way(&mut self) {
        if self.running.len() < self.config.max_running || self.waiting.is_empty() {
            return;
        }
        let running = self.running_by_tenant();
        let count = |turn: &Turn| running.get(self.tenant(turn)).copied().unwrap_or(0);
        let Some(wanting) = self.waiting.iter().min_by_key(|turn| (turn.0, count(turn), turn.1)) else { return };
        let most = self.running.iter().map(count).max().unwrap_or(0);
        let newest = self.running.iter().rev().find(|turn| count(turn) == most && turn.0 >= wanting.0);
        if count(wanting) + 1 < most
            && let Some(&(_, _, victim)) = newest
        {
            self.preempt(victim);
        }
    }

    /// For the next waiting request that finds too few blocks, tenants that hold more give up some. Not while
    /// the step has no tokens left for a newcomer.
    fn share_blocks(&mut self) {
        let places = self.running.len() < self.config.max_running;
        let wanted: usize = self.running.iter().map(|turn| self.sequences[&turn.2].remaining()).sum();
        if self.waiting.is_empty() || self.running.is_empty() || !places || wanted >= self.config.max_step_tokens {
            return;
        }
        let mut served = Served::default();
        for turn in self.queue() {
            if served.passed(self.tenant(&turn)) {
                continue;
            }
            match self.cached_prefix(turn.2) {
                Err(NotYet::NoRoom { .. }) if served.has_its_part(self, &turn) => {}
                Err(NotYet::NoRoom { missing }) => return self.give_way(turn, missing),
                Ok(_) => return,
                Err(NotYet::PrefixUnderWay | NotYet::NoRows) => {}
            }
        }
    }

    fn give_way(&mut self, turn: Turn, missing: usize) {
        let tenant = self.tenant(&turn);
        let blocks = self.sequences[&turn.2].tokens.len().div_ceil(BLOCK_TOKENS);
        let victims = self.holdings().give_way(Wanting { priority: turn.0, tenant, blocks, missing });
        victims.into_iter().for_each(|victim| self.preempt(victim));
    }

    /// Tenants whose running requests hold more than an equal part of all blocks, among those who have requests.
    fn above_their_part(&self) -> HashSet<Vec<u8>> {
        let tenants: HashSet<&[u8]> = self.sequences.values().map(|sequence| &sequence.request.tenant[..]).collect();
        let (holdings, count) = (self.holdings(), tenants.len());
        let above = tenants.into_iter().filter(|tenant| holdings.of(tenant) * count > self.pool.total());
        above.map(<[u8]>::to_vec).collect()
    }

    fn holdings(&self) -> Holdings<'_> {
        Holdings::new(self.running.iter().map(|(priority, _, id)| {
            let sequence = &self.sequences[id];
            Held { id: *id, priority: *priority, tenant: &sequence.request.tenant, blocks: &sequence.blocks }
        }))
    }

    fn tenant(&self, turn: &Turn) -> &[u8] {
        &self.sequences[&turn.2].request.tenant
    }

    fn running_by_tenant(&self) -> HashMap<&[u8], usize> {
        let mut running = HashMap::new();
        for turn in &self.running {
            *running.entry(self.tenant(turn)).or_default() += 1;
        }
        running
    }

    fn grant_running(&mut self, plan: &mut Plan, left: &mut Left) {
        for turn in self.running.clone() {
            // It may have given up its blocks to one before it.
            let Ok(at) = self.running.binary_search(&turn) else { continue };
            if left.tokens == 0 {
                return;
            }
            let id = turn.2;
            // Those behind keep a token each, so that a long prompt does not stop their streams.
            let behind = self.running.len() - at - 1;
            let share = left.tokens.saturating_sub(behind).max(1);
            let (computed, remaining, scores) = self.gap(id);
            let possible = if scores { share.min(left.scored_rows) } else { share };
            let tokens = remaining.min(possible);
            if tokens == 0 || !self.make_room(id, computed + tokens, plan, left) {
                continue;
            }
            let tokens = left.take(tokens, scores);
            plan.grants.push(Grant { id, tokens, sample: tokens == remaining, score: scores });
        }
    }

    /// Tokens computed, tokens to compute, and whether those are to be scored.
    fn gap(&self, id: RequestId) -> (usize, usize, bool) {
        let sequence = &self.sequences[&id];
        (sequence.computed, sequence.remaining(), sequence.scores())
    }

    /// Extends the request's blocks to hold `upto` tokens, at the cost of others, who may have been granted
    /// tokens already. False when it gave up its own place.
    fn make_room(&mut self, id: RequestId, upto: usize, plan: &mut Plan, left: &mut Left) -> bool {
        while !self.extend(id, upto) {
            // `id` is running, so there is one.
            let Some(victim) = self.holdings().first_to_yield() else { return false };
            self.preempt(victim);
            plan.preempted.push(victim);
            if let Some(granted) = plan.grants.iter().position(|grant| grant.id == victim) {
                left.give_back(plan.grants.remove(granted));
            }
            if victim == id {
                return false;
            }
        }
        true
    }

    fn extend(&mut self, id: RequestId, upto: usize) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let missing = upto.div_ceil(BLOCK_TOKENS).saturating_sub(sequence.blocks.len());
        if self.pool.free() < missing {
            return false;
        }
        sequence.blocks.extend((0..missing).filter_map(|_| self.pool.allocate()));
        true
    }

    fn preempt(&mut self, id: RequestId) {
        self.take_blocks(id);
        let Some(sequence) = self.sequences.get(&id) else { return };
        let turn = turn(sequence);
        self.running.retain(|other| *other != turn);
        self.waiting.insert(turn);
        self.preemptions += 1;
    }

    /// Back to nothing computed. Published blocks stay in the cache while there is space.
    fn take_blocks(&mut self, id: RequestId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let (from, to) = std::mem::take(&mut sequence.announced);
        for index in from..to {
            withdraw(&mut self.announced, sequence.hash(index));
        }
        for block in std::mem::take(&mut sequence.blocks).into_iter().rev() {
            self.pool.release(block);
        }
        (sequence.computed, sequence.published) = (0, 0);
    }

    /// The waiting ones in the order in which they are admitted: within a priority the tenants take
    /// turns, the one that runs fewest first; within a tenant the oldest first.
    fn queue(&self) -> Vec<Turn> {
        let mut places = self.running_by_tenant();
        let mut queue: Vec<(Priority, usize, Turn)> = Vec::with_capacity(self.waiting.len());
        for turn in &self.waiting {
            let place = places.entry(self.tenant(turn)).or_default();
            queue.push((turn.0, *place, *turn));
            *place += 1;
        }
        queue.sort_unstable();
        queue.into_iter().map(|(_, _, turn)| turn).collect()
    }

    fn admit_waiting(&mut self, plan: &mut Plan, left: &mut Left) {
        if self.waiting.is_empty() || self.running.len() >= self.config.max_running {
            return;
        }
        let mut served = Served::default();
        for turn in self.queue() {
            if left.tokens == 0 || self.running.len() >= self.config.max_running {
                return;
            }
            if served.passed(self.tenant(&turn)) {
                continue;
            }
            match self.admit(turn, left, plan) {
                Ok(grant) => plan.grants.push(grant),
                Err(NotYet::PrefixUnderWay | NotYet::NoRows) => {}
                // Others are not held up by a tenant that has its part already.
                Err(NotYet::NoRoom { .. }) if served.has_its_part(self, &turn) => {}
                // Smaller ones behind it must not overtake for ever.
                Err(NotYet::NoRoom { .. }) => return,
            }
        }
    }

    fn admit(&mut self, turn: Turn, left: &mut Left, plan: &mut Plan) -> Result<Grant, NotYet> {
        let id = turn.2;
        let scores = self.sequences.get(&id).is_some_and(Sequence::scores);
        if scores && left.scored_rows == 0 {
            return Err(NotYet::NoRows);
        }
        let cached = self.cached_prefix(id)?;
        let Some(sequence) = self.sequences.get_mut(&id) else { return Err(NotYet::NoRows) };
        for block in &cached {
            self.pool.acquire(*block);
        }
        sequence.computed = cached.len() * BLOCK_TOKENS;
        sequence.published = cached.len();
        if sequence.cached_tokens.is_none() {
            sequence.cached_tokens = Some(sequence.computed);
            plan.admitted.push((id, sequence.computed));
        }
        sequence.blocks = cached;

        let remaining = sequence.remaining();
        let tokens = left.take(remaining, scores);
        let upto = sequence.computed + tokens;
        self.announce(id);
        let fits = self.extend(id, upto);
        debug_assert!(fits, "cached_prefix saw room for the whole text");
        self.waiting.remove(&turn);
        let at = self.running.partition_point(|other| *other < turn);
        self.running.insert(at, turn);
        Ok(Grant { id, tokens, sample: tokens == remaining, score: scores })
    }

    /// The blocks that hold the longest computed prefix, provided the rest has room as well: the
    /// whole text, and a block for each running request to grow into. Without that reserve a
    /// newcomer would be computed only to be preempted by the next token of the others.
    fn cached_prefix(&mut self, id: RequestId) -> Result<Vec<BlockId>, NotYet> {
        let Some(sequence) = self.sequences.get_mut(&id) else { return Err(NotYet::NoRows) };
        let mut cached = Vec::new();
        for index in 0..sequence.reusable_blocks() {
            let Some(hash) = sequence.hash(index) else { break };
            match self.pool.lookup(hash) {
                Some(block) => cached.push(block),
                None if self.announced.contains_key(&hash) => return Err(NotYet::PrefixUnderWay),
                None => break,
            }
        }
        let missing = sequence.tokens.len().div_ceil(BLOCK_TOKENS) - cached.len();
        // Cached blocks that no request holds are in the free list, and leave it when taken.
        let taken = cached.iter().filter(|block| self.pool.is_free(**block)).count();
        let wanted = missing + self.running.len();
        match wanted.saturating_sub(self.pool.free() - taken) {
            0 => Ok(cached),
            missing => Err(NotYet::NoRoom { missing }),
        }
    }

    /// Records which blocks this request will compute, so that others wait for them.
    fn announce(&mut self, id: RequestId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let (from, to) = (sequence.published, sequence.tokens.len() / BLOCK_TOKENS);
        sequence.announced = (from, to.max(from));
        for index in from..to {
            if let Some(hash) = sequence.hash(index) {
                *self.announced.entry(hash).or_default() += 1;
            }
        }
    }

    /// K and V of `tokens` more tokens of the request are in its blocks now. Full ones are offered.
    pub fn commit(&mut self, id: RequestId, tokens: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.computed += tokens;
        debug_assert!(sequence.computed <= sequence.tokens.len());
        for index in sequence.published..sequence.computed / BLOCK_TOKENS {
            let Some(hash) = sequence.hash(index) else { break };
            self.pool.publish(sequence.blocks[index], hash);
            if (sequence.announced.0..sequence.announced.1).contains(&index) {
                withdraw(&mut self.announced, Some(hash));
                sequence.announced.0 = index + 1;
            }
            sequence.published = index + 1;
        }
    }

    /// So many more tokens of the request's prompt were scored.
    pub(crate) fn scored(&mut self, id: RequestId, tokens: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.scored += tokens;
        }
    }

    /// The next token of the request is known.
    pub fn push(&mut self, id: RequestId, token: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.push(token);
        }
    }

    /// What must be true between any two calls; for tests.
    pub fn check(&self) -> Result<(), String> {
        let holds: Vec<BlockId> = self.sequences.values().flat_map(|s| s.blocks.iter().copied()).collect();
        self.pool.check(&holds)?;
        if !self.running.is_sorted() || self.running.len() > self.config.max_running {
            return Err(format!("the running list is wrong: {:?}", self.running));
        }
        if self.running.len() + self.waiting.len() != self.sequences.len() {
            return Err("a request is neither running nor waiting, or both".to_owned());
        }
        for turn in &self.waiting {
            if !self.sequences[&turn.2].blocks.is_empty() {
                return Err(format!("{:?} waits and holds blocks", turn.2));
            }
        }
        let announced: usize = self.sequences.values().map(|s| s.announced.1 - s.announced.0).sum();
        if announced != self.announced.values().map(|n| *n as usize).sum::<usize>() {
            return Err("announcements without a sequence that made them".to_owned());
        }
        Ok(())
    }
}

fn turn(sequence: &Sequence) -> Turn {
    (sequence.request.priority, sequence.arrival, sequence.request.id)
}

fn withdraw(announced: &mut HashMap<BlockHash, u32>, hash: Option<BlockHash>) {
    let Some(hash) = hash else { return };
    if let Some(count) = announced.get_mut(&hash) {
        *count -= 1;
        if *count == 0 {
            announced.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests;
