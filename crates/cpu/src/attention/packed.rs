//! Keys and values of some heads in panels, where several tiles use the same ones: packed once, not by each tile.
//!
//! Bytes: for each block of keys what a tile's own panels would hold, 8 MiB at most in all; longer texts take their heads in turns.

use super::dispatch::Kernels;
use super::kernels::{Ahead, BLOCK};
use super::tile::{Layout, with_elem};
use super::{Attention, CHUNK, Cut};
use crate::pool;
use half::{bf16, f16};
use lapis_core::dtype::Dtype;
use std::ops::Range;

/// Floats of the panels of all heads at once; in tests, a few heads'.
const MOST: usize = if cfg!(test) { 150_000 } else { 2 << 20 };
/// Tiles of a head from which on packing for all of them pays.
const TILES: usize = 4;

/// The panels of the blocks `blocks` of the heads `heads` (of all batches, one after the other).
pub(super) struct Packed {
    base: *mut f32,
    heads: Range<usize>,
    blocks: Range<usize>,
    /// Floats of a block: of keys, and of values.
    sizes: [usize; 2],
}

// SAFETY: tasks fill different blocks, and read them in a later region.
unsafe impl Sync for Packed {}

impl Packed {
    /// The blocks that queries see, and floats of a block of keys and of values.
    fn sizes<K: Kernels>(a: &Attention, layout: &Layout) -> (Range<usize>, [usize; 2]) {
        let blocks = a.seen(0).start / BLOCK..a.kv_len.div_ceil(BLOCK);
        (blocks, [a.dim.next_multiple_of(32), layout.width].map(|width| BLOCK * width / K::PACKED))
    }

    /// How many heads are packed at once, where tiles share panels at all.
    pub(super) fn heads_at_once<K: Kernels>(a: &Attention, cut: &Cut, layout: &Layout) -> Option<usize> {
        let (blocks, sizes) = Packed::sizes::<K>(a, layout);
        let most = MOST / (blocks.len() * sizes.iter().sum::<usize>()).max(1);
        let heads = most.min(a.batch * a.kv_heads);
        let fills = cut.per_head >= TILES && heads * cut.per_head >= 4 * pool::threads();
        (fills && cut.rows > K::SPREAD.max(K::IN_PLACE)).then_some(heads)
    }

    /// Runs `f` with the panels of some heads.
    ///
    /// # Safety
    /// The promises of the call, and `K`'s instruction set.
    pub(super) unsafe fn with<K: Kernels>(
        a: &Attention,
        layout: &Layout,
        heads: Range<usize>,
        f: impl FnOnce(&Packed),
    ) {
        let (blocks, sizes) = Packed::sizes::<K>(a, layout);
        let each = CHUNK / BLOCK;
        let lots = blocks.len().div_ceil(each);
        layout.with_panels(heads.len() * blocks.len() * sizes.iter().sum::<usize>(), |base| {
            let packed = Packed { base, heads: heads.clone(), blocks: blocks.clone(), sizes };
            pool::run(heads.len() * lots, &|task| {
                let first = blocks.start + task % lots * each;
                for block in first..blocks.end.min(first + each) {
                    // SAFETY: the caller's promises; each block is filled once.
                    K::prepared(|| unsafe { packed.fill::<K>(a, heads.start + task / lots, block) });
                }
            });
            f(&packed);
        });
    }

    /// Where the panels of a block begin: keys', then values'.
    fn place(&self, head: usize, block: usize) -> *mut f32 {
        let nth = (head - self.heads.start) * self.blocks.len() + block - self.blocks.start;
        self.base.wrapping_add(nth * self.sizes.iter().sum::<usize>())
    }

    /// The panel of `K::N * 2` keys from key `at` of a block on.
    pub(super) fn keys<K: Kernels>(&self, head: usize, block: usize, at: usize) -> *const f32 {
        self.place(head, block).wrapping_add(at * self.sizes[0] / BLOCK)
    }

    /// The panels of a block's values, and how many keys' they are.
    pub(super) fn values(&self, a: &Attention, head: usize, block: usize) -> (*const f32, usize) {
        (self.place(head, block).wrapping_add(self.sizes[0]), BLOCK.min(a.kv_len - block * BLOCK))
    }

    /// What fetches a block's values, and the keys of the next block, which lie behind them.
    pub(super) fn ahead(&self, head: usize, block: usize) -> Ahead {
        let row = self.sizes.iter().sum::<usize>() / BLOCK;
        Ahead::new(self.place(head, block).wrapping_add(self.sizes[0]), row as isize, row)
    }

    unsafe fn fill<K: Kernels>(&self, a: &Attention, head: usize, block: usize) {
        let (batch, kv_head, first) = (head / a.kv_heads, head % a.kv_heads, block * BLOCK);
        let (count, width) = (BLOCK.min(a.kv_len - first), 2 * K::N);
        let mut none = Ahead::NONE;
        // SAFETY: the caller's promises; a block has room for its keys filled up to whole panels.
        unsafe {
            for at in (0..count).step_by(width) {
                let to = self.keys::<K>(head, block, at).cast_mut();
                with_elem!(a.k.dtype, T => {
                    let from = a.key::<T>(batch, kv_head, first + at);
                    K::pack_keys(from, a.k.strides[2], width.min(count - at), a.dim, to, &mut none);
                });
            }
            let to = self.values(a, head, block).0.cast_mut();
            with_elem!(a.v.dtype, T => {
                let from = a.value::<T>(batch, kv_head, first);
                K::pack_values(from, a.v.strides[2], count, a.v_dim, to, &mut none);
            });
        }
    }
}
