//! Scaled dot-product attention in one pass: softmax(scale * q * k^T + mask) * v without a matrix of scores.
//!
//! Work: `4 * D` operations per visible (query, key) pair and query head, at about two thirds of the machine's f32
//! multiply-add rate, or of that of bfloat16 where it is higher (`pairs`, `tiles`); a decode step reads keys and values once for all
//! query heads that share them, at three quarters of the speed of a plain read. (`cargo run --release -p lapis-bench -- --only sdpa`.)
//!
//! The bits of a query row depend on its own inputs alone: not on the other rows of the call, the batch, the number
//! of threads, nor on whether it came in a long prefill or a single step. Keys are taken in blocks of `BLOCK` and
//! chunks of `CHUNK` that are aligned to key 0; within a row everything happens in ascending order of keys; a chunk
//! starts afresh and is merged into the chunks before it. Threads share out tiles of rows, or chunks of tiles.
//!
//! One kind of row is told apart by the length of the call: where masks leave no key at all, the formula averages the
//! values of all dropped keys, of later positions too, and a single step has no later ones.
//!
//! Knows nothing of graphs and of how caches are managed: it takes pointers and strides.

mod dispatch;
mod grads;
mod kernels;
mod lanes;
mod mask;
mod packed;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod plain;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;

#[cfg(test)]
mod tests;

pub use grads::{Grads, Target, attention_grads};

use crate::isa::{Isa, features};
use crate::quant::{Arithmetic, arithmetic};
use crate::{pool, stretch};
use dispatch::Kernels;
use kernels::BLOCK;
use lapis_core::dtype::Dtype;
use lapis_core::ops::fast::attention::KEY_BLOCK;
use packed::Packed;
use smallvec::SmallVec;
use std::ops::Range;

/// Keys that one task takes when the tiles alone do not fill the threads. Part of the meaning of a result: changing
/// it changes roundings.
const CHUNK: usize = 4 * BLOCK;
const _: () = assert!(CHUNK == KEY_BLOCK);
/// Rows (positions times query heads that share a key head) that a tile aims at: enough to make packing the keys
/// cheap, few enough for the tile to stay in a second-level cache.
const TILE_ROWS: usize = 384;

/// A tensor (B, H, T, D) that is read.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// The first element.
    pub ptr: *const u8,
    /// A real floating type.
    pub dtype: Dtype,
    /// Elements from one batch, head, position to the next; the last axis is contiguous.
    pub strides: [isize; 3],
}

/// An array mask (B, Hq, Tq, Tk), broadcast by strides of zero.
#[derive(Clone, Copy, Debug)]
pub enum Mask {
    /// Every score counts.
    None,
    /// Bytes, nonzero = keep. A dropped score is the lowest finite value: a row without any key averages all values.
    Keep {
        /// The first byte.
        ptr: *const u8,
        /// Elements along B, Hq, Tq, Tk.
        strides: [isize; 4],
    },
    /// Added to the scores.
    Add {
        /// The first element.
        ptr: *const u8,
        /// A real floating type.
        dtype: Dtype,
        /// Elements along B, Hq, Tq, Tk.
        strides: [isize; 4],
    },
}

/// One call: shapes, operands, masks.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// B.
    pub batch: usize,
    /// Hq, a multiple of `kv_heads`; query head h uses key head `h * Hkv / Hq`.
    pub q_heads: usize,
    /// Hkv.
    pub kv_heads: usize,
    /// Tq.
    pub q_len: usize,
    /// Tk.
    pub kv_len: usize,
    /// D, of queries and keys.
    pub dim: usize,
    /// Dv, of values and the result.
    pub v_dim: usize,
    /// (B, Hq, Tq, D).
    pub q: Operand,
    /// (B, Hkv, Tk, D).
    pub k: Operand,
    /// (B, Hkv, Tk, Dv).
    pub v: Operand,
    /// Empty; or `k` and `v` hold the first [`KEY_BLOCK`] keys, and these the next each, with the same distance from key
    /// to key.
    pub later: &'a [[Operand; 2]],
    /// (B, Hq, Tq, Dv): first element, dtype, strides as in [`Operand`].
    pub out: *mut u8,
    /// Float64 computes in f64, everything else in f32.
    pub out_dtype: Dtype,
    /// Elements from one batch, head, position of the result to the next.
    pub out_strides: [isize; 3],
    /// Factor of the scores.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)` before masks.
    pub softcap: Option<f64>,
    /// Query i sees keys up to `i + Tk - Tq` (the last one sees all).
    pub causal: bool,
    /// Query i sees keys above `i + Tk - Tq - window`.
    pub window: Option<usize>,
    /// On top of `causal` and `window`.
    pub mask: Mask,
    /// One score per query head that has no value: contiguous elements.
    pub sinks: Option<(*const u8, Dtype)>,
}

// SAFETY: the pointers are promised to be valid for the call, whichever threads read them; rows of `out` are
// written by one thread each.
unsafe impl Sync for Attention<'_> {}

impl Attention<'_> {
    /// The operand (0: keys, 1: values) that holds key `t`, and its place there.
    fn place(&self, which: usize, t: usize) -> (&Operand, usize) {
        let first = [&self.k, &self.v][which];
        match self.later {
            [] => (first, t),
            later => ((t / CHUNK).checked_sub(1).map_or(first, |i| &later[i][which]), t % CHUNK),
        }
    }

    /// Whether [`pairs`] and [`tiles`] can do this.
    #[cfg(target_arch = "x86_64")]
    fn fits_pairs(&self) -> bool {
        self.dim >= 16
            && self.dim.is_multiple_of(8)
            && [self.q.dtype, self.k.dtype, self.v.dtype, self.out_dtype] == [Dtype::Bfloat16; 4]
    }

    /// Key `t`.
    ///
    /// # Safety
    /// It exists.
    unsafe fn key<T>(&self, b: usize, h: usize, t: usize) -> *const T {
        let (operand, t) = self.place(0, t);
        // SAFETY: the caller's promise.
        unsafe { operand.at(b, h, t) }
    }

    /// Value `t`.
    ///
    /// # Safety
    /// It exists.
    unsafe fn value<T>(&self, b: usize, h: usize, t: usize) -> *const T {
        let (operand, t) = self.place(1, t);
        // SAFETY: the caller's promise.
        unsafe { operand.at(b, h, t) }
    }
}

/// Computes `out`. Operands may have different dtypes.
///
/// # Safety
/// `isa` is available; every element named by shapes and strides is readable, those of `out` are writable, distinct
/// and not among the inputs; elements are aligned; `q_heads` is a multiple of `kv_heads`; dtypes are real floating.
pub unsafe fn attention(isa: Isa, a: &Attention) {
    // SAFETY: the caller's promises.
    unsafe { attention_by(isa, halves(), a, Split::Auto) }
}

/// How operands of bfloat16 are multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Halves {
    /// As f32.
    Floats,
    /// In pairs, by `vdpbf16ps`.
    Pairs,
    /// By AMX.
    Tiles,
}

/// What is fast here, and asked for.
fn halves() -> Halves {
    match features() {
        _ if arithmetic() == Arithmetic::Exact => Halves::Floats,
        f if f.amx => Halves::Tiles,
        f if f.fast_bf16_dot => Halves::Pairs,
        _ => Halves::Floats,
    }
}

/// Calls `$f` with the kernels for a call.
macro_rules! with_kernels {
    ($isa:expr, $halves:expr, $a:expr, $f:ident $args:tt) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if $halves == Halves::Tiles && $a.fits_pairs() => $f::<tiles::Tiles> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if $halves == Halves::Pairs && $a.fits_pairs() => $f::<pairs::Pairs> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => $f::<lanes::avx512::Avx512> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => $f::<lanes::avx2::Avx2> $args,
            _ => $f::<lanes::portable::Portable> $args,
        }
    };
}

/// [`attention`] with the choice of how bfloat16 is multiplied, and of how the work is cut.
unsafe fn attention_by(isa: Isa, halves: Halves, a: &Attention, split: Split) {
    if a.batch * a.q_heads * a.q_len * a.v_dim == 0 {
        return;
    }
    // SAFETY: the caller's promises.
    unsafe {
        match a.out_dtype {
            Dtype::Float64 => plain::attention(a),
            _ => with_kernels!(isa, halves, a, run(a, split)),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = halves;
}

/// As [`attention`], several calls of the same heads, widths and dtypes with one query each. `before(i, h)` is called once for
/// each call and head of keys before any of what belongs to it is read: it makes the query heads that share the head, and its newest key
/// and value.
///
/// # Safety
/// As [`attention`], for each, when `before` has been called.
pub unsafe fn attention_of_each(isa: Isa, calls: &[Attention], before: &(dyn Fn(usize, usize) + Sync)) {
    let Some(first) = calls.first() else { return };
    let heads = first.batch * first.kv_heads;
    let fills = calls.len() * heads >= 8 * pool::threads() || calls.iter().all(|a| a.kv_len <= CHUNK);
    if first.out_dtype == Dtype::Float64 || !fills {
        pool::run(calls.len() * heads, &|i| before(i / heads, i % heads));
        // SAFETY: the caller's promises.
        return calls.iter().for_each(|a| unsafe { attention(isa, a) });
    }
    // SAFETY: the caller's promises.
    unsafe { with_kernels!(isa, halves(), first, side_by_side(calls, heads, before)) }
}

/// The tiles of all calls, one a head of keys, those with the most keys first.
///
/// # Safety
/// As [`attention_of_each`], with the instruction set of `K`.
unsafe fn side_by_side<K: Kernels>(calls: &[Attention], heads: usize, before: &(dyn Fn(usize, usize) + Sync)) {
    let mut order: SmallVec<[usize; 16]> = (0..calls.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(calls[i].kv_len));
    stretch::run(calls.len() * heads, &|task| {
        let (i, head) = (order[task / heads], task % heads);
        before(i, head);
        let a = &calls[i];
        let cut = Cut::new::<K>(a);
        let layout = tile::Layout::new::<K>(a, cut.rows);
        let then = (head + 1 < heads).then(|| cut.tile(a, head + 1));
        // SAFETY: the caller's promises.
        K::prepared(|| unsafe { layout.attend_all::<K>(a, &cut.tile(a, head), then.as_ref(), None) });
    });
}

/// Whether chunks of one tile may go to different threads. Never changes a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Split {
    Auto,
    #[cfg(test)]
    Never,
    #[cfg(test)]
    Always,
}

/// How the work is cut: `tiles` tiles of at most `rows` rows, numbered so that those with the most keys come first.
struct Cut {
    tiles: usize,
    per_head: usize,
    positions: usize,
    rows: usize,
}

impl Cut {
    fn new<K: Kernels>(a: &Attention) -> Cut {
        let group = a.q_heads / a.kv_heads;
        let heads = a.batch * a.kv_heads;
        let mut positions = (TILE_ROWS / group).clamp(1, a.q_len);
        // With few heads, smaller tiles so that every thread has some.
        while positions > 1
            && positions * group >= 4 * K::ROWS
            && heads * a.q_len.div_ceil(positions) < 2 * pool::threads()
        {
            positions = positions.div_ceil(2);
        }
        let per_head = a.q_len.div_ceil(positions);
        Cut { tiles: heads * per_head, per_head, positions, rows: positions * group }
    }

    fn tile(&self, a: &Attention, i: usize) -> tile::Tile {
        self.tile_of(a, 0..a.batch * a.kv_heads, i)
    }

    /// Tile `i` of those of some heads.
    fn tile_of(&self, a: &Attention, heads: Range<usize>, i: usize) -> tile::Tile {
        let (head, nth) = (heads.start + i % heads.len(), self.per_head - 1 - i / heads.len());
        let first = nth * self.positions;
        tile::Tile {
            batch: head / a.kv_heads,
            kv_head: head % a.kv_heads,
            first,
            count: self.positions.min(a.q_len - first),
        }
    }
}

/// # Safety
/// As [`attention`], with the instruction set of `K`.
unsafe fn run<K: Kernels>(a: &Attention, split: Split) {
    let cut = Cut::new::<K>(a);
    let chunks = a.kv_len.div_ceil(CHUNK);
    let split = match split {
        Split::Auto => chunks > 1 && cut.tiles < 8 * pool::threads(),
        #[cfg(test)]
        Split::Never => false,
        #[cfg(test)]
        Split::Always => true,
    };
    let layout = tile::Layout::new::<K>(a, cut.rows);
    let attend_all = |tile: tile::Tile, packed: Option<&Packed>| {
        // SAFETY: the caller's promises.
        K::prepared(|| unsafe { layout.attend_all::<K>(a, &tile, None, packed) })
    };
    if split {
        // SAFETY: the caller's promises.
        unsafe { run_chunks::<K>(a, &cut, &layout, chunks) }
    } else if let Some(most) = Packed::heads_at_once::<K>(a, &cut, &layout) {
        let all = a.batch * a.kv_heads;
        for first in (0..all).step_by(most) {
            let heads = first..all.min(first + most);
            let work = |packed: &Packed| {
                let tile = |i| cut.tile_of(a, heads.clone(), i);
                pool::run(heads.len() * cut.per_head, &|i| attend_all(tile(i), Some(packed)));
            };
            // SAFETY: the caller's promises.
            unsafe { Packed::with::<K>(a, &layout, heads.clone(), work) }
        }
    } else {
        pool::run(cut.tiles, &|i| attend_all(cut.tile(a, i), None));
    }
}

/// [`run`] with chunks of a tile shared out.
///
/// # Safety
/// As there.
unsafe fn run_chunks<K: Kernels>(a: &Attention, cut: &Cut, layout: &tile::Layout, chunks: usize) {
    // A task takes neighbouring chunks: what one fetches ahead is the next one's.
    let span = (cut.tiles * chunks / (32 * pool::threads())).clamp(1, chunks);
    let spans = chunks.div_ceil(span);
    layout.with_parts(cut.tiles * chunks, |parts| {
        stretch::run(cut.tiles * spans, &|task| {
            let (t, first) = (task / spans, task % spans * span);
            let tile = cut.tile(a, t);
            let then = (t + 1 < cut.tiles).then(|| cut.tile(a, t + 1));
            let seen = tile.chunks(a);
            let mine = first.max(seen.start)..(first + span).min(seen.end);
            if mine.is_empty() {
                return;
            }
            let attend = |scratch| {
                // SAFETY: as above; each chunk has its own part.
                unsafe {
                    layout.pack_queries::<K>(a, &tile, scratch);
                    for chunk in mine {
                        layout.attend::<K>(
                            a,
                            &tile,
                            then.as_ref(),
                            None,
                            chunk,
                            scratch,
                            parts.state(t * chunks + chunk),
                        );
                    }
                }
            };
            K::prepared(|| layout.with_scratch(attend));
        });
        pool::run(cut.tiles, &|t| {
            let tile = cut.tile(a, t);
            layout.with_scratch(|scratch| {
                // SAFETY: as above; the parts of this tile are complete and no other task touches them.
                unsafe {
                    let [total, _] = scratch.states;
                    layout.clear(tile.rows(a), total);
                    for chunk in tile.chunks(a) {
                        K::merge(total, parts.state(t * chunks + chunk), tile.rows(a), layout.width);
                    }
                    layout.finish::<K>(a, &tile, total);
                }
            })
        });
    });
}
