//! Where keys and values live: blocks of sixteen tokens, laid out the way attention reads them.
//!
//! A block holds all layers, a layer all KV heads, a head one K panel and one V panel of
//! `16 · head_dim` values. Sixteen tokens are the lanes of a K panel, sixteen dimensions those of
//! a V panel:
//! - `f32`: K `[head_dim][16 tokens]`, V `[16 tokens][head_dim]`;
//! - `bf16`: the same in pairs, K `[head_dim/2][16 tokens][2]`, V `[8][head_dim][2 tokens]`.
//!
//! Memory becomes resident with the first token written to a block, or to another in the same huge page.

use std::io;
use std::str::FromStr;

use super::lanes::LANES;
use crate::half::f32_to_bf16;
use crate::mem::{Buffer, Shared};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F32,
    Bf16,
}

impl KvType {
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::Bf16 => "bf16",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::Bf16 => 2,
        }
    }
}

impl FromStr for KvType {
    type Err = String;
    fn from_str(s: &str) -> Result<KvType, String> {
        [KvType::F32, KvType::Bf16]
            .into_iter()
            .find(|t| t.name() == s)
            .ok_or_else(|| format!("unknown KV type {s:?}: it is one of auto, f32, bf16"))
    }
}

/// Sizes that place a panel.
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    pub ty: KvType,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvLayout {
    pub fn panel_bytes(self) -> usize {
        LANES * self.head_dim * self.ty.bytes()
    }

    pub fn block_bytes(self) -> usize {
        self.layers * self.kv_heads * 2 * self.panel_bytes()
    }

    /// Where in a block the K panel of a head starts; its V panel follows it.
    pub fn head_offset(self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * 2 * self.panel_bytes()
    }
}

#[derive(Debug)]
pub struct KvCache {
    pub layout: KvLayout,
    blocks: usize,
    data: Buffer<u8>,
}

impl KvCache {
    pub fn new(layout: KvLayout, blocks: usize) -> io::Result<KvCache> {
        let bytes = blocks.checked_mul(layout.block_bytes());
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(KvCache { layout, blocks, data: Buffer::huge(bytes)? })
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub fn base(&self) -> *const u8 {
        self.data.as_ptr()
    }

    pub fn writer(&mut self) -> KvWriter {
        KvWriter { layout: self.layout, blocks: self.blocks, data: Shared::new(&mut self.data) }
    }
}

/// Lets workers write tokens to disjoint slots at once.
#[derive(Clone, Copy)]
pub struct KvWriter {
    layout: KvLayout,
    blocks: usize,
    data: Shared<u8>,
}

impl KvWriter {
    /// Stores one token's K and V of one layer and head.
    ///
    /// The first token of a block clears the block's other slots of V, as whatever a previous owner
    /// left there is multiplied by zero, which only keeps it out while it is finite.
    ///
    /// # Safety
    /// Between two barriers no other call names the same (layer, head, block): the pairs of a
    /// panel share words.
    pub unsafe fn put(self, (layer, head): (usize, usize), block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let (layout, dim) = (self.layout, self.layout.head_dim);
        assert!((block as usize) < self.blocks && layer < layout.layers && head < layout.kv_heads);
        assert!(slot < LANES && k.len() == dim && v.len() == dim);
        let panel = layout.panel_bytes();
        let at = block as usize * layout.block_bytes() + layout.head_offset(layer, head);
        // SAFETY: the assertions place both panels inside the cache; the caller promises that no
        // one else uses them now.
        let (keys, values) = unsafe { self.data.slice(at, 2 * panel) }.split_at_mut(panel);
        if slot == 0 {
            values.fill(0);
        }
        match layout.ty {
            KvType::F32 => {
                for (d, x) in k.iter().enumerate() {
                    keys[(d * LANES + slot) * 4..][..4].copy_from_slice(&x.to_le_bytes());
                }
                for (to, x) in values[slot * dim * 4..].chunks_exact_mut(4).zip(v) {
                    to.copy_from_slice(&x.to_le_bytes());
                }
            }
            KvType::Bf16 => {
                for (d, x) in k.iter().enumerate() {
                    let at = (d / 2 * LANES + slot) * 4 + d % 2 * 2;
                    keys[at..][..2].copy_from_slice(&f32_to_bf16(*x).to_le_bytes());
                }
                for (d, x) in v.iter().enumerate() {
                    let at = (slot / 2 * dim + d) * 4 + slot % 2 * 2;
                    values[at..][..2].copy_from_slice(&f32_to_bf16(*x).to_le_bytes());
                }
            }
        }
    }
}
