//! Attention over the paged cache for a ragged batch: who computes which rows, and the merging.
//!
//! Query heads that share a KV head are rows of one tile, so K and V are read once for all of
//! them; so are neighbouring tokens of a prompt. With few tiles (decoding one sequence) the
//! partitions of a sequence go to different workers, with many each worker takes whole tiles. The
//! arithmetic is the same in both, hence the result.

use super::Kernels;
use super::attend::{AttendArgs, MAX_HEAD_DIM, PARTITION};
use super::gemm::{Act, MAX_HEIGHT, TilePlan};
use super::kv::KvCache;
use super::lanes::LANES;
use crate::half::f32_to_bf16;
use crate::mem::Shared;
use crate::pool::Pool;

/// One sequence of the batch.
#[derive(Clone, Copy, Debug)]
pub struct AttnSeq<'a> {
    /// Its first row in the batch's activations, and how many it has.
    pub first_row: usize,
    pub rows: usize,
    /// Position of the first row in the sequence.
    pub position: usize,
    pub blocks: &'a [u32],
}

impl AttnSeq<'_> {
    fn shape(&self) -> (usize, usize, usize) {
        (self.first_row, self.rows, self.position)
    }
}

/// Shapes of the heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// What scores are multiplied with, `1/√head_dim`.
    pub scale: f32,
}

/// One tile: rows `first..first + rows` of the (token, head of the group) pairs of a sequence.
#[derive(Clone, Copy, Debug)]
struct Unit {
    seq: u32,
    kv_head: u32,
    first: u32,
    rows: u32,
    partitions: u32,
    /// Where its partial results are, in partitions, when partitions are spread over workers.
    partial: u32,
}

/// A partition's or a tile's running result.
struct Partial {
    out: [f32; MAX_HEIGHT * MAX_HEAD_DIM],
    largest: [f32; MAX_HEIGHT],
    sums: [f32; MAX_HEIGHT],
}

// === impl Partial ===

impl Partial {
    const EMPTY: Partial = Partial {
        out: [0.0; MAX_HEIGHT * MAX_HEAD_DIM],
        largest: [f32::NEG_INFINITY; MAX_HEIGHT],
        sums: [0.0; MAX_HEIGHT],
    };

    /// Forgets what it holds of `rows` rows.
    fn clear(&mut self, rows: usize, dim: usize) {
        self.largest[..rows].fill(f32::NEG_INFINITY);
        self.sums[..rows].fill(0.0);
        self.out[..rows * dim].fill(0.0);
    }

    /// Takes in the next partition. Its first is never empty, so no row stays without a score.
    fn merge(&mut self, next: &Partial, rows: usize, dim: usize) {
        for r in 0..rows {
            let largest = self.largest[r].max(next.largest[r]);
            let (a, b) = ((self.largest[r] - largest).exp(), (next.largest[r] - largest).exp());
            self.largest[r] = largest;
            self.sums[r] = self.sums[r] * a + next.sums[r] * b;
            let range = r * dim..(r + 1) * dim;
            for (o, n) in self.out[range.clone()].iter_mut().zip(&next.out[range]) {
                *o = *o * a + n * b;
            }
        }
    }
}

/// Work lists and partial results, kept between steps.
#[derive(Default)]
pub struct Attention {
    /// What the units were made for: heads, and (first row, rows, position) of each sequence.
    planned: (Option<Heads>, Vec<(usize, usize, usize)>),
    units: Vec<Unit>,
    /// (unit, partition) when partitions are spread.
    spread: Vec<(u32, u32)>,
    partials: Vec<Partial>,
}

/// Everything one call needs to see.
struct Call<'a> {
    kernels: &'a Kernels,
    cache: &'a KvCache,
    layer: usize,
    heads: Heads,
    seqs: &'a [AttnSeq<'a>],
    q: &'a [f32],
    q_ld: usize,
}

impl Attention {
    /// Cuts the batch into tiles. Once per step: layers do not differ. [`Attention::run`] takes
    /// the same heads and sequences and no others.
    pub fn plan(&mut self, heads: Heads, seqs: &[AttnSeq<'_>], threads: usize) {
        let group = heads.heads / heads.kv_heads;
        self.planned = (Some(heads), seqs.iter().map(AttnSeq::shape).collect());
        self.units.clear();
        self.spread.clear();
        for (s, seq) in seqs.iter().enumerate() {
            let plan = TilePlan::new(seq.rows * group, MAX_HEIGHT);
            for kv_head in 0..heads.kv_heads {
                for tile in 0..plan.tiles() {
                    let (first, rows, _) = plan.tile(tile);
                    let end = seq.position + (first + rows - 1) / group + 1;
                    self.units.push(Unit {
                        seq: s as u32,
                        kv_head: kv_head as u32,
                        first: first as u32,
                        rows: rows as u32,
                        partitions: end.div_ceil(PARTITION) as u32,
                        partial: 0,
                    });
                }
            }
        }
        if threads > 1 && self.units.len() < 8 * threads {
            for (u, unit) in self.units.iter_mut().enumerate() {
                unit.partial = self.spread.len() as u32;
                self.spread.extend((0..unit.partitions).map(|p| (u as u32, p)));
            }
            self.partials.resize_with(self.partials.len().max(self.spread.len()), || Partial::EMPTY);
        }
    }

    /// `out[row][head · head_dim ..]` for every row of the planned batch. Queries are rows of `q`,
    /// `q_ld` apart, head after head; keys and values of all rows are in the cache already.
    pub fn run(
        &mut self,
        (pool, kernels): (&mut Pool, &Kernels),
        (cache, layer, heads): (&KvCache, usize, Heads),
        seqs: &[AttnSeq<'_>],
        (q, q_ld): (&[f32], usize),
        out: &mut [f32],
    ) {
        let call = Call { kernels, cache, layer, heads, seqs, q, q_ld };
        call.check(out);
        let shapes = seqs.iter().map(AttnSeq::shape);
        let as_planned = self.planned.0 == Some(heads) && shapes.eq(self.planned.1.iter().copied());
        assert!(as_planned, "attention was planned for another batch");
        let (units, dim) = (&self.units, heads.head_dim);
        let out = Shared::new(out);
        if self.spread.is_empty() {
            pool.run(units.len(), 1, &|from, to| {
                let (mut total, mut next, mut query) = (Partial::EMPTY, Partial::EMPTY, Query::EMPTY);
                for unit in &units[from..to] {
                    call.query(unit, &mut query);
                    total.clear(unit.rows as usize, dim);
                    for p in 0..unit.partitions {
                        call.attend(unit, &query, p as usize, &mut next);
                        total.merge(&next, unit.rows as usize, dim);
                    }
                    call.finish(unit, &total, out);
                }
            });
            return;
        }
        let (spread, partials) = (&self.spread, Shared::new(&mut self.partials));
        pool.run(spread.len(), 1, &|from, to| {
            let mut query = Query::EMPTY;
            for (i, (unit, p)) in spread.iter().enumerate().take(to).skip(from) {
                let unit = &units[*unit as usize];
                // SAFETY: there is a partial per entry of `spread`, each claimed once.
                let partial = unsafe { &mut partials.slice(i, 1)[0] };
                call.query(unit, &mut query);
                call.attend(unit, &query, *p as usize, partial);
            }
        });
        pool.run(units.len(), units.len(), &|from, to| {
            let mut total = Partial::EMPTY;
            for unit in &units[from..to] {
                total.clear(unit.rows as usize, dim);
                for p in 0..unit.partitions {
                    // SAFETY: all partials are written and no worker writes one now.
                    let next = unsafe { &partials.slice((unit.partial + p) as usize, 1)[0] };
                    total.merge(next, unit.rows as usize, dim);
                }
                call.finish(unit, &total, out);
            }
        });
    }
}

/// Queries of a tile as its kernel reads them, and how far each row sees.
struct Query {
    data: [u32; MAX_HEIGHT * MAX_HEAD_DIM],
    limits: [usize; MAX_HEIGHT],
    height: usize,
}

impl Query {
    const EMPTY: Query = Query { data: [0; MAX_HEIGHT * MAX_HEAD_DIM], limits: [0; MAX_HEIGHT], height: 0 };
}

impl Call<'_> {
    /// Everything the unchecked code below relies on.
    fn check(&self, out: &[f32]) {
        let (h, layout) = (self.heads, self.cache.layout);
        assert!(h.head_dim.is_multiple_of(LANES) && h.head_dim <= MAX_HEAD_DIM);
        assert!(h.heads.is_multiple_of(h.kv_heads) && self.layer < layout.layers);
        assert!(layout.head_dim == h.head_dim && layout.kv_heads == h.kv_heads);
        let width = h.heads * h.head_dim;
        for s in self.seqs {
            let end = s.position + s.rows;
            assert!(s.rows > 0);
            let blocks = &s.blocks[..end.div_ceil(LANES)];
            assert!(blocks.iter().all(|b| (*b as usize) < self.cache.blocks()));
            assert!((s.first_row + s.rows) * width <= out.len());
            assert!((s.first_row + s.rows - 1) * self.q_ld + width <= self.q.len());
        }
    }

    /// (row in the batch, head) of row `r` of a unit.
    fn place(&self, unit: &Unit, r: usize) -> (usize, usize) {
        let group = self.heads.heads / self.heads.kv_heads;
        let row = unit.first as usize + r;
        let seq = &self.seqs[unit.seq as usize];
        (seq.first_row + row / group, unit.kv_head as usize * group + row % group)
    }

    /// Rows of padding see nothing; what they ask stays as it was.
    fn query(&self, unit: &Unit, query: &mut Query) {
        let dim = self.heads.head_dim;
        let rows = unit.rows as usize;
        let (_, _, height) = TilePlan::new(rows, MAX_HEIGHT).tile(0);
        (query.limits, query.height) = ([0; MAX_HEIGHT], height);
        let seq = &self.seqs[unit.seq as usize];
        for r in 0..rows {
            let (row, head) = self.place(unit, r);
            query.limits[r] = seq.position + (row - seq.first_row) + 1;
            let q = &self.q[row * self.q_ld + head * dim..][..dim];
            match self.kernels.query_act(self.cache.layout.ty) {
                Act::F32 => {
                    for (d, x) in q.iter().enumerate() {
                        query.data[d * height + r] = (x * self.heads.scale).to_bits();
                    }
                }
                Act::Bf16 => {
                    for (p, pair) in q.chunks_exact(2).enumerate() {
                        let [a, b] = [pair[0], pair[1]].map(|x| f32_to_bf16(x * self.heads.scale));
                        query.data[p * height + r] = u32::from(a) | u32::from(b) << 16;
                    }
                }
            }
        }
    }

    fn attend(&self, unit: &Unit, query: &Query, partition: usize, to: &mut Partial) {
        let layout = self.cache.layout;
        let args = AttendArgs {
            q: query.data.as_ptr(),
            limits: query.limits.as_ptr(),
            table: self.seqs[unit.seq as usize].blocks.as_ptr(),
            keys: self.cache.base().wrapping_add(layout.head_offset(self.layer, unit.kv_head as usize)),
            block_bytes: layout.block_bytes(),
            panel_bytes: layout.panel_bytes(),
            head_dim: self.heads.head_dim,
            partition,
            out: to.out.as_mut_ptr(),
            largest: to.largest.as_mut_ptr(),
            sums: to.sums.as_mut_ptr(),
        };
        // SAFETY: `check` saw that the table covers every limit with blocks of this cache and that
        // the head fits; the query has the form this kernel reads, `height` is one it has, and
        // the results have room for the tallest tile.
        unsafe { self.kernels.attend(layout.ty)(query.height, &args) };
    }

    fn finish(&self, unit: &Unit, total: &Partial, out: Shared<f32>) {
        let dim = self.heads.head_dim;
        for r in 0..unit.rows as usize {
            let (row, head) = self.place(unit, r);
            // SAFETY: within `out` by `check`; each (row, head) belongs to one unit.
            let out = unsafe { out.slice((row * self.heads.heads + head) * dim, dim) };
            for (o, x) in out.iter_mut().zip(&total.out[r * dim..]) {
                *o = x / total.sums[r];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kv::{KvLayout, KvType};
    use crate::half::bf16_to_f32;
    use crate::isa::Isa;
    use crate::reference;

    /// Five sixteens: neither a whole number of fours nor of twos.
    const DIM: usize = 80;

    fn value(a: usize, b: usize) -> f32 {
        (((a * 131 + b * 17 + a * b) % 211) as f32 - 105.0) / 60.0
    }

    fn round(ty: KvType, x: &[f32]) -> Vec<f32> {
        match ty {
            KvType::F32 => x.to_vec(),
            KvType::Bf16 => x.iter().map(|x| bf16_to_f32(f32_to_bf16(*x))).collect(),
        }
    }

    fn row(of: usize, token: usize, head: usize) -> Vec<f32> {
        (0..DIM).map(|d| value(token * 3 + of, d * 7 + head)).collect()
    }

    fn cache(ty: KvType, kv_heads: usize, tokens: usize, table: &[u32]) -> KvCache {
        let layout = KvLayout { ty, layers: 2, kv_heads, head_dim: DIM };
        let mut cache = KvCache::new(layout, table.len() + 3).unwrap();
        // What an earlier owner may have left must not matter.
        let writer = cache.writer();
        for block in 0..table.len() as u32 + 3 {
            for head in 0..kv_heads {
                // SAFETY: one thread.
                unsafe { writer.put((1, head), block, 9, &[f32::NAN; DIM], &[f32::NAN; DIM]) };
            }
        }
        for t in 0..tokens {
            for head in 0..kv_heads {
                let (k, v) = (row(1, t, head), row(2, t, head));
                // SAFETY: one thread.
                unsafe { writer.put((1, head), table[t / 16], t % 16, &k, &v) };
            }
        }
        cache
    }

    /// Rows `position..position + rows` of a sequence, computed in one call.
    fn run(
        isa: Isa,
        cache: &KvCache,
        heads: Heads,
        table: &[u32],
        position: usize,
        rows: usize,
        threads: usize,
    ) -> Vec<f32> {
        let kernels = Kernels::new(isa).unwrap();
        let mut pool = Pool::new(threads).unwrap();
        let width = heads.heads * DIM;
        let q: Vec<f32> =
            (position..position + rows).flat_map(|t| (0..heads.heads).flat_map(move |h| row(0, t, h))).collect();
        let seqs = [AttnSeq { first_row: 0, rows, position, blocks: table }];
        let mut out = vec![0.0; rows * width];
        let mut attention = Attention::default();
        attention.plan(heads, &seqs, threads);
        attention.run((&mut pool, &kernels), (cache, 1, heads), &seqs, (&q, width), &mut out);
        out
    }

    fn heads(heads: usize, kv_heads: usize) -> Heads {
        Heads { heads, kv_heads, head_dim: DIM, scale: 1.0 / (DIM as f32).sqrt() }
    }

    fn agrees(isa: Isa, ty: KvType, h: Heads, tokens: usize, tolerance: f32) {
        let table: Vec<u32> = (0..tokens.div_ceil(16) as u32).rev().collect();
        let cache = cache(ty, h.kv_heads, tokens, &table);
        let got = run(isa, &cache, h, &table, 0, tokens, 2);
        for t in [0, 1, 15, 16, tokens / 2, tokens - 1] {
            for head in 0..h.heads {
                let kv = head / (h.heads / h.kv_heads);
                let keys: Vec<_> = (0..=t).map(|t| round(ty, &row(1, t, kv))).collect();
                let values: Vec<_> = (0..=t).map(|t| round(ty, &row(2, t, kv))).collect();
                let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
                let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
                let want = reference::attention(&row(0, t, head), &keys, &values);
                let got = &got[(t * h.heads + head) * DIM..][..DIM];
                for (g, w) in got.iter().zip(&want) {
                    assert!((g - w).abs() <= tolerance, "{isa} {ty:?} token {t} head {head}: {g} {w}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_the_oracle() {
        for isa in Isa::ALL.into_iter().filter(|i| i.supported()) {
            for (h, kv) in [(9, 3), (4, 4), (16, 1)] {
                agrees(isa, KvType::F32, heads(h, kv), 300, 2e-5);
                let bf16 = if isa == Isa::Avx512Bf16 { 3e-2 } else { 2e-5 };
                agrees(isa, KvType::Bf16, heads(h, kv), 300, bf16);
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_a_prompt_in_a_chunk_and_alone() {
        let table: Vec<u32> = (0..40).collect();
        let h = heads(9, 3);
        for isa in Isa::ALL.into_iter().filter(|i| i.supported()) {
            for ty in [KvType::F32, KvType::Bf16] {
                let cache = cache(ty, 3, 600, &table);
                let all = run(isa, &cache, h, &table, 0, 600, 2);
                for (position, rows, threads) in [(599, 1, 2), (599, 1, 1), (512, 3, 2), (255, 2, 1)] {
                    let got = run(isa, &cache, h, &table, position, rows, threads);
                    let width = 9 * DIM;
                    assert_eq!(got, all[position * width..][..rows * width], "{isa} {ty:?} {position}");
                }
            }
        }
    }
}
