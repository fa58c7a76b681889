//! KV blocks: who holds which, which are free, and which can be reused for an equal prefix.
//!
//! A block that is full and computed is *published* under a [`BlockHash`], the end of a chain over
//! everything its contents depend on: the text so far, the model, the KV format, the adapter, the
//! tenant's salt. Equal hash, equal contents, so a later request with the same prefix takes the
//! block instead of computing it. A chain and not a radix tree: one lookup per block, at most 15
//! tokens lost, and the same keys can name blocks on the wire.
//!
//! A block without holders stays cached until its space is needed; the least recently used goes
//! first. Deliberately absent: the contents. A block here is a number.

use std::collections::HashMap;

use crate::executor::BLOCK_TOKENS;

/// A block's number, `0..num_blocks`.
pub type BlockId = u32;

/// The identity of a block's contents: 128 bits of BLAKE3 over the chain. Wide enough that tokens
/// need not be compared again (64 bits would not be).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BlockHash(u128);

impl BlockHash {
    /// The start of a chain: everything but the tokens that decides what K and V hold. Requests
    /// that differ in any of these never share a block. Each part is length-prefixed, so that no
    /// two different lists of parts are the same bytes.
    pub fn root(model_digest: &[u8; 32], kv_type: &str, adapter: &str, salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [model_digest.as_slice(), kv_type.as_bytes(), adapter.as_bytes(), salt] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self::truncate(&hasher)
    }

    /// The hash of the block that follows this one and holds `tokens`.
    pub fn child(self, tokens: &[u32]) -> Self {
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS, "only full blocks are hashed");
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0.to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self::truncate(&hasher)
    }

    fn truncate(hasher: &blake3::Hasher) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(u128::from_le_bytes(half))
    }
}

/// No adjacent entry in the free list.
const NONE: BlockId = BlockId::MAX;

#[derive(Debug, Clone)]
struct Block {
    /// Sequences that hold it. 0 means it is in the free list.
    refs: u32,
    /// Set from publication until the space is used for something else.
    hash: Option<BlockHash>,
    /// Adjacent entries in the free list, meaningful while `refs` is 0.
    prev: BlockId,
    next: BlockId,
    /// Allocated at least once, so its memory is really in use.
    touched: bool,
}

/// All blocks of one executor.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    by_hash: HashMap<BlockHash, BlockId>,
    /// Used first: blocks without contents, then the least recently used.
    free_head: BlockId,
    free_tail: BlockId,
    free_len: usize,
    touched: usize,
    evictions: u64,
}

impl BlockPool {
    /// A pool of so many blocks, all free.
    pub fn new(num_blocks: usize) -> Self {
        let blank = Block { refs: 0, hash: None, prev: NONE, next: NONE, touched: false };
        let mut pool = Self {
            blocks: vec![blank; num_blocks],
            by_hash: HashMap::new(),
            free_head: NONE,
            free_tail: NONE,
            free_len: 0,
            touched: 0,
            evictions: 0,
        };
        for id in 0..num_blocks as BlockId {
            pool.push_back(id);
        }
        pool
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that no request holds, cached ones included.
    pub fn free(&self) -> usize {
        self.free_len
    }

    /// Blocks that requests hold.
    pub fn used(&self) -> usize {
        self.total() - self.free_len
    }

    /// Blocks that were written at least once: what the cache really occupies in memory.
    pub fn touched(&self) -> usize {
        self.touched
    }

    /// Published blocks whose contents were given up for others, since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// The block with these contents, held or not.
    pub fn lookup(&self, hash: BlockHash) -> Option<BlockId> {
        self.by_hash.get(&hash).copied()
    }

    /// No request holds it; its contents may still be of use.
    pub fn is_free(&self, id: BlockId) -> bool {
        self.block(id).refs == 0
    }

    /// Takes one more hold of a published block.
    pub fn acquire(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.unlink(id);
        }
        self.block_mut(id).refs += 1;
    }

    /// A block to write into, held once. Its old contents are forgotten.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free_head;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let block = self.block_mut(id);
        block.refs = 1;
        let (old, first_use) = (block.hash.take(), !std::mem::replace(&mut block.touched, true));
        if let Some(hash) = old {
            self.by_hash.remove(&hash);
            self.evictions += 1;
        }
        self.touched += usize::from(first_use);
        Some(id)
    }

    /// Offers the contents to others. Call it only when K and V of all its tokens were computed.
    /// When another block has the same contents already, that one keeps the name.
    pub fn publish(&mut self, id: BlockId, hash: BlockHash) {
        debug_assert!(!self.is_free(id), "only a holder publishes");
        if self.by_hash.contains_key(&hash) || self.block(id).hash.is_some() {
            return;
        }
        self.by_hash.insert(hash, id);
        self.block_mut(id).hash = Some(hash);
    }

    /// Gives up one hold. Release a sequence's blocks last to first, so that the end of a prefix is
    /// evicted before its beginning, without which it is useless.
    pub fn release(&mut self, id: BlockId) {
        let block = self.block_mut(id);
        assert!(block.refs > 0, "block {id} released by someone who does not hold it");
        block.refs -= 1;
        if block.refs > 0 {
            return;
        }
        if block.hash.is_some() {
            self.push_back(id);
        } else {
            // Worth nothing to anybody, and its memory is already in use: the next to be taken.
            self.push_front(id);
        }
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    fn push_back(&mut self, id: BlockId) {
        let tail = self.free_tail;
        let block = self.block_mut(id);
        (block.prev, block.next) = (tail, NONE);
        match tail {
            NONE => self.free_head = id,
            tail => self.block_mut(tail).next = id,
        }
        self.free_tail = id;
        self.free_len += 1;
    }

    fn push_front(&mut self, id: BlockId) {
        let head = self.free_head;
        let block = self.block_mut(id);
        (block.prev, block.next) = (NONE, head);
        match head {
            NONE => self.free_tail = id,
            head => self.block_mut(head).prev = id,
        }
        self.free_head = id;
        self.free_len += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Block { prev, next, .. } = *self.block(id);
        match prev {
            NONE => self.free_head = next,
            prev => self.block_mut(prev).next = next,
        }
        match next {
            NONE => self.free_tail = prev,
            next => self.block_mut(next).prev = prev,
        }
        self.free_len -= 1;
    }

    /// What must be true between any two calls; for tests. `holds` is every hold that exists.
    pub fn check(&self, holds: &[BlockId]) -> Result<(), String> {
        let mut expected = vec![0_u32; self.total()];
        for &id in holds {
            expected[id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            if block.refs != expected[id] {
                return Err(format!("block {id} counts {} holders, it has {}", block.refs, expected[id]));
            }
            if block.hash.is_some_and(|hash| self.by_hash.get(&hash) != Some(&(id as BlockId))) {
                return Err(format!("block {id} has a hash that does not lead to it"));
            }
        }
        let hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        if hashed != self.by_hash.len() {
            return Err(format!("{} hashes for {hashed} published blocks", self.by_hash.len()));
        }
        self.check_free_list()
    }

    fn check_free_list(&self) -> Result<(), String> {
        let (mut id, mut prev, mut seen) = (self.free_head, NONE, 0);
        while id != NONE {
            let block = self.block(id);
            if block.refs != 0 || block.prev != prev {
                return Err(format!("block {id} is wrongly in the free list"));
            }
            (prev, id, seen) = (id, block.next, seen + 1);
            if seen > self.total() {
                return Err("the free list is a ring".to_owned());
            }
        }
        let without_holder = self.blocks.iter().filter(|block| block.refs == 0).count();
        if seen != self.free_len || seen != without_holder || self.free_tail != prev {
            return Err(format!("{seen} in the free list, {} counted, {without_holder} without holder", self.free_len));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(salt: &str) -> BlockHash {
        BlockHash::root(&[7; 32], "bf16", "", salt.as_bytes())
    }

    #[test]
    fn the_key_depends_on_every_part() {
        let base = BlockHash::root(&[7; 32], "bf16", "lora", b"salt");
        for other in [
            BlockHash::root(&[8; 32], "bf16", "lora", b"salt"),
            BlockHash::root(&[7; 32], "f32", "lora", b"salt"),
            BlockHash::root(&[7; 32], "bf16", "", b"salt"),
            BlockHash::root(&[7; 32], "bf16", "lora", b"salt2"),
            BlockHash::root(&[7; 32], "bf16", "lor", b"asalt"),
        ] {
            assert_ne!(base, other);
            assert_ne!(base.child(&[1; 16]), other.child(&[1; 16]));
        }
        assert_ne!(base.child(&[1; 16]), base.child(&[2; 16]));
        assert_eq!(base.child(&[1; 16]), base.child(&[1; 16]));
    }

    #[test]
    fn a_released_block_is_found_until_its_space_is_needed() {
        let mut pool = BlockPool::new(2);
        let hash = root("").child(&[1; 16]);
        let id = pool.allocate().unwrap();
        pool.publish(id, hash);
        pool.release(id);
        assert_eq!(pool.lookup(hash), Some(id));
        let blank = pool.allocate().unwrap();
        assert_ne!(blank, id, "blank blocks go first");
        assert_eq!(pool.allocate(), Some(id));
        assert_eq!((pool.lookup(hash), pool.evictions()), (None, 1));
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut pool = BlockPool::new(3);
        let hashes: Vec<_> = (0..3).map(|i| root("").child(&[i; 16])).collect();
        let ids: Vec<_> = hashes
            .iter()
            .map(|hash| {
                let id = pool.allocate().unwrap();
                pool.publish(id, *hash);
                id
            })
            .collect();
        ids.iter().for_each(|id| pool.release(*id));
        pool.acquire(ids[0]);
        pool.release(ids[0]);
        assert_eq!(pool.allocate(), Some(ids[1]));
        assert_eq!(pool.allocate(), Some(ids[2]));
        assert_eq!(pool.lookup(hashes[0]), Some(ids[0]));
    }

    #[test]
    fn the_second_block_with_equal_contents_stays_private() {
        let mut pool = BlockPool::new(2);
        let hash = root("").child(&[1; 16]);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.publish(a, hash);
        pool.publish(b, hash);
        assert_eq!(pool.lookup(hash), Some(a));
        pool.release(b);
        pool.check(&[a]).unwrap();
        assert_eq!(pool.allocate(), Some(b), "without a name it is the next to be used");
    }

    #[test]
    fn touched_counts_memory_in_use_and_not_allocations() {
        let mut pool = BlockPool::new(4);
        for _ in 0..10 {
            let id = pool.allocate().unwrap();
            pool.release(id);
        }
        assert_eq!(pool.touched(), 1);
    }

    #[test]
    #[should_panic(expected = "does not hold")]
    fn releasing_twice_is_a_bug_that_shows() {
        let mut pool = BlockPool::new(1);
        let id = pool.allocate().unwrap();
        pool.release(id);
        pool.release(id);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Allocate,
        Publish(usize, u32),
        Acquire(u32),
        Release(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Allocate),
            2 => (any::<usize>(), 0_u32..12).prop_map(|(i, c)| Op::Publish(i, c)),
            2 => (0_u32..12).prop_map(Op::Acquire),
            3 => any::<usize>().prop_map(Op::Release),
        ]
    }

    proptest! {
        /// No leak, no double owner, and what is found under a hash was published under it.
        #[test]
        fn references_lists_and_names_agree_after_any_history(ops in prop::collection::vec(op(), 0..200)) {
            let mut pool = BlockPool::new(7);
            let mut holds: Vec<BlockId> = Vec::new();
            let mut contents: HashMap<BlockId, u32> = HashMap::new();
            let name = |content: u32| root("").child(&[content; 16]);
            for op in ops {
                match op {
                    Op::Allocate => if let Some(id) = pool.allocate() {
                        prop_assert!(!holds.contains(&id), "block {id} has two owners");
                        contents.remove(&id);
                        holds.push(id);
                    },
                    Op::Publish(i, content) if !holds.is_empty() => {
                        let id = holds[i % holds.len()];
                        if let std::collections::hash_map::Entry::Vacant(slot) = contents.entry(id) {
                            slot.insert(content);
                            pool.publish(id, name(content));
                        }
                    }
                    Op::Acquire(content) => if let Some(id) = pool.lookup(name(content)) {
                        prop_assert_eq!(contents.get(&id), Some(&content));
                        pool.acquire(id);
                        holds.push(id);
                    },
                    Op::Release(i) if !holds.is_empty() => {
                        let index = i % holds.len();
                        pool.release(holds.swap_remove(index));
                    }
                    _ => {}
                }
                pool.check(&holds).map_err(TestCaseError::fail)?;
            }
        }
    }
}
