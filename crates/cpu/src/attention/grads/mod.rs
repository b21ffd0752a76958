//! The gradients of attention by its queries, keys and values, without a matrix of scores.
//!
//! Work: five products of `2 * D` operations per visible (query, key) pair and query head: scores again, gradients of
//! the weights, and the gradients of queries, keys and values. With causal masks that goes at half of the machine's
//! f32 multiply-add rate for 256 positions of 32 elements, at three quarters of it for 2048 of 128. Each operand is read
//! and each result written once. (`cargo run --release -p lapis-bench -- --only sdpa_grad`.)
//!
//! A task takes one key head of one batch row, with all query heads that share it. Its keys and values are brought into
//! the forms the kernels read once; then blocks of `SIDE` rows of queries follow each other. A block's scores over all
//! keys it sees lie in squares of `SIDE` keys, so that the softmax is done once and exactly, and memory grows with the
//! number of keys alone. Work that `causal` and `window` hide is left out, by sets of rows that go through a kernel
//! together.
//!
//! A gradient's bits do not depend on threads nor on the batch: a query's sums run over keys in ascending order, a key's
//! over rows of queries in ascending order, both by the task that has them.
//!
//! Knows nothing of graphs: it takes pointers and strides.

pub(super) mod kernels;
mod plain;

#[cfg(test)]
mod tests;

use super::Operand;
use super::dispatch::GradKernels;
use super::kernels::Ahead;
use super::lanes::{self, Elem};
use super::mask::seen;
use super::tile::{with_elem, with_memory};
use crate::isa::Isa;
use crate::pool;
use half::{bf16, f16};
use kernels::{COLUMNS, Product, Row, SQUARE, TILE};
use lapis_core::dtype::Dtype;
use smallvec::SmallVec;
use std::ops::Range;

/// Rows of queries of a block, and keys of a square: a multiple of the rows and of the columns of every kernel.
pub(super) const SIDE: usize = 96;

/// A gradient (B, H, T, D) that is written: first element, and elements from one batch, head, position to the next.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The first element.
    pub ptr: *mut u8,
    /// Elements from one batch, head, position to the next; the last axis is contiguous.
    pub strides: [isize; 3],
}

/// One call: shapes, operands of one dtype, and results of the same.
#[derive(Clone, Copy, Debug)]
pub struct Grads {
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
    /// Dv, of values and the cotangent.
    pub v_dim: usize,
    /// (B, Hq, Tq, D).
    pub q: Operand,
    /// (B, Hkv, Tk, D).
    pub k: Operand,
    /// (B, Hkv, Tk, Dv).
    pub v: Operand,
    /// The cotangent of the result, (B, Hq, Tq, Dv).
    pub g: Operand,
    /// By q.
    pub dq: Target,
    /// By k.
    pub dk: Target,
    /// By v.
    pub dv: Target,
    /// Factor of the scores.
    pub scale: f64,
    /// Query i sees keys up to `i + Tk - Tq` (the last one sees all).
    pub causal: bool,
    /// Query i sees keys above `i + Tk - Tq - window`.
    pub window: Option<usize>,
}

// SAFETY: the pointers are promised to be valid for the call, whichever threads read them; what is written belongs to
// one task each.
unsafe impl Sync for Grads {}

/// Computes `dq`, `dk` and `dv`: in f64 for float64, in f32 for everything else.
///
/// # Safety
/// `isa` is available; every element named by shapes and strides is readable, those of the results are writable,
/// distinct and not among the inputs; elements are aligned; all operands have one real floating dtype; `q_heads` is a
/// multiple of `kv_heads`; every query sees a key.
pub unsafe fn attention_grads(isa: Isa, a: &Grads) {
    // SAFETY: the caller's promises.
    unsafe {
        match isa {
            _ if a.q.dtype == Dtype::Float64 => plain::grads(a),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => with_elem!(a.q.dtype, T => run::<lanes::avx512::Avx512, T>(a)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => with_elem!(a.q.dtype, T => run::<lanes::avx2::Avx2, T>(a)),
            _ => with_elem!(a.q.dtype, T => run::<lanes::portable::Portable, T>(a)),
        }
    }
}

/// # Safety
/// As [`attention_grads`], with the instruction set of `K` and elements `T`.
unsafe fn run<K: GradKernels, T: Elem>(a: &Grads) {
    pool::run(a.batch * a.kv_heads, &|i| {
        Head::with(a, i / a.kv_heads, i % a.kv_heads, |head| {
            // SAFETY: the caller's promises; a head's results are its task's.
            unsafe {
                head.pack_keys::<K, T>();
                let rows = a.q_len * head.group;
                for first in (0..rows).step_by(SIDE) {
                    let block = head.pack_queries::<K, T>(first..rows.min(first + SIDE));
                    head.weigh::<K>(&block);
                    head.add_to_keys::<K>(&block);
                    head.write_queries::<K, T>(&block);
                }
                head.write_keys::<K, T>();
            }
        })
    });
}

/// Some rows of queries: row r is position `r / group`, head `r % group` of the group, so that neighbouring rows see
/// nearly the same keys.
struct Block {
    rows: Range<usize>,
    /// The keys that sets of rows that go through a kernel together see: starts and ends grow.
    sets: SmallVec<[(usize, usize); 24]>,
}

impl Block {
    /// The squares with keys that some row sees.
    fn squares(&self) -> Range<usize> {
        self.sets[0].0 / SIDE..self.sets[self.sets.len() - 1].1.div_ceil(SIDE)
    }

    /// The sets of which some row sees one of `keys`.
    fn sets(&self, keys: Range<usize>) -> Range<usize> {
        self.sets.partition_point(|s| s.1 <= keys.start)..self.sets.partition_point(|s| s.0 < keys.end)
    }
}

/// The work of one task, with its buffers. Rows of D or Dv columns are padded to whole tiles, keys to whole squares.
struct Head<'a> {
    a: &'a Grads,
    batch: usize,
    kv_head: usize,
    group: usize,
    /// D and Dv padded.
    width: usize,
    v_width: usize,
    /// For each square of keys, panels `[D][2 N]` of them, and the same of values with Dv.
    keys_across: *mut f32,
    values_across: *mut f32,
    /// Tiles of keys.
    keys: *mut f32,
    /// Tiles of the block's scaled queries and cotangents.
    queries: *mut f32,
    cotangents: *mut f32,
    /// Squares of weights, and of gradients of the scores.
    weights: *mut f32,
    scores: *mut f32,
    /// Sums: rows of `width`, `width` and `v_width`.
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
}

impl<'a> Head<'a> {
    fn with(a: &'a Grads, batch: usize, kv_head: usize, f: impl FnOnce(&Head)) {
        let (width, v_width) = (a.dim.next_multiple_of(COLUMNS), a.v_dim.next_multiple_of(COLUMNS));
        let keys = a.kv_len.next_multiple_of(SIDE);
        let sizes = [
            keys * a.dim,
            keys * a.v_dim,
            keys * width,
            SIDE * width,
            SIDE * v_width,
            SIDE * keys,
            SIDE * keys,
            SIDE * width,
            keys * width,
            keys * v_width,
        ];
        with_memory(sizes.iter().sum(), |base| {
            let mut at = base;
            let parts = sizes.map(|n| {
                let part = at;
                at = at.wrapping_add(n);
                part
            });
            let [keys_across, values_across, keys, queries, cotangents, weights, scores, dq, dk, dv] = parts;
            f(&Head {
                a,
                batch,
                kv_head,
                group: a.q_heads / a.kv_heads,
                width,
                v_width,
                keys_across,
                values_across,
                keys,
                queries,
                cotangents,
                weights,
                scores,
                dq,
                dk,
                dv,
            });
        });
    }

    /// Query head and position of a row.
    fn place(&self, r: usize) -> (usize, usize) {
        (self.kv_head * self.group + r % self.group, r / self.group)
    }

    fn seen(&self, r: usize) -> (usize, usize) {
        let a = self.a;
        let keys = seen(r / self.group, (a.q_len, a.kv_len), a.causal, a.window);
        (keys.start, keys.end)
    }

    /// Row `r` of some tiles: `dim` elements times `factor`.
    unsafe fn pack_row<K: GradKernels, T: Elem>(from: *const T, dim: usize, factor: f32, tiles: *mut f32, r: usize) {
        for c in (0..dim).step_by(COLUMNS) {
            // SAFETY: the caller promises the elements, the tiles, and the instruction set.
            unsafe {
                let to = tiles.add(c / COLUMNS * TILE + r * COLUMNS);
                K::scale_row(from.add(c), COLUMNS.min(dim - c), factor, to);
            }
        }
    }

    /// Tiles of `SIDE` rows to panels `[dim][2 N]`.
    unsafe fn turn<K: GradKernels>(tiles: *const f32, dim: usize, panels: *mut f32) {
        let keys = 2 * K::N;
        for first in (0..SIDE).step_by(keys) {
            // Columns of one tile are few enough to come out in their order.
            for c in (0..dim).step_by(COLUMNS) {
                // SAFETY: the caller promises tiles, panels, and the instruction set.
                unsafe {
                    let from = tiles.add(c / COLUMNS * TILE + first * COLUMNS);
                    let (stride, columns) = (COLUMNS as isize, COLUMNS.min(dim - c));
                    let to = panels.add(first * dim + c * keys);
                    K::pack_keys(from, stride, keys, columns, to, &mut { Ahead::NONE });
                }
            }
        }
    }

    /// Brings keys and values into their forms, with zeros behind the last ones: what is multiplied by a weight of zero
    /// must be a number.
    unsafe fn pack_keys<K: GradKernels, T: Elem>(&self) {
        let a = self.a;
        // SAFETY: the promises of the call; the tiles of cotangents are not in use yet.
        unsafe {
            for first in (0..a.kv_len).step_by(SIDE) {
                let (keys, values) = (self.keys.add(first * self.width), self.cotangents);
                let count = SIDE.min(a.kv_len - first);
                if count < SIDE {
                    keys.write_bytes(0, SIDE * self.width);
                    values.write_bytes(0, SIDE * self.v_width);
                }
                for r in 0..count {
                    let (k, v) =
                        (a.k.at(self.batch, self.kv_head, first + r), a.v.at(self.batch, self.kv_head, first + r));
                    Self::pack_row::<K, T>(k, a.dim, 1.0, keys, r);
                    Self::pack_row::<K, T>(v, a.v_dim, 1.0, values, r);
                }
                Self::turn::<K>(keys, a.dim, self.keys_across.add(first * a.dim));
                Self::turn::<K>(values, a.v_dim, self.values_across.add(first * a.v_dim));
            }
            self.dk.write_bytes(0, a.kv_len.next_multiple_of(SIDE) * self.width);
            self.dv.write_bytes(0, a.kv_len.next_multiple_of(SIDE) * self.v_width);
        }
    }

    unsafe fn pack_queries<K: GradKernels, T: Elem>(&self, rows: Range<usize>) -> Block {
        let a = self.a;
        for r in rows.clone() {
            let (h, t) = self.place(r);
            // SAFETY: the promises of the call.
            unsafe {
                Self::pack_row::<K, T>(a.q.at(self.batch, h, t), a.dim, a.scale as f32, self.queries, r - rows.start);
                Self::pack_row::<K, T>(a.g.at(self.batch, h, t), a.v_dim, 1.0, self.cotangents, r - rows.start);
            }
        }
        let sets = rows.clone().step_by(K::ROWS);
        let sets = sets.map(|r| (self.seen(r).0, self.seen(rows.end.min(r + K::ROWS) - 1).1)).collect();
        Block { rows, sets }
    }

    /// Weights and gradients of scores of a block.
    unsafe fn weigh<K: GradKernels>(&self, block: &Block) {
        let (a, squares) = (self.a, block.squares());
        let keys = 2 * K::N;
        let end = block.sets[block.sets.len() - 1].1;
        // SAFETY: the promises of the call; the block is packed.
        unsafe {
            for (left, right, dim, to) in [
                (self.queries, self.keys_across, a.dim, self.weights),
                (self.cotangents, self.values_across, a.v_dim, self.scores),
            ] {
                for key in (block.sets[0].0 / keys * keys..end).step_by(keys) {
                    for set in block.sets(key..key + keys) {
                        K::multiply_tiles(&Product {
                            left: left.add(set * K::ROWS * COLUMNS),
                            jump: TILE,
                            steps: dim,
                            right: right.add(key * dim),
                            right_step: keys,
                            to: to.add(key / SIDE * SQUARE + set * K::ROWS * SIDE + key % SIDE),
                            to_row: SIDE,
                            fresh: true,
                        });
                    }
                }
            }
            for r in 0..block.rows.len() {
                K::soften(&Row {
                    weights: self.weights.add(squares.start * SQUARE + r * SIDE),
                    grads: self.scores.add(squares.start * SQUARE + r * SIDE),
                    first: squares.start * SIDE,
                    squares: squares.len(),
                    seen: self.seen(block.rows.start + r),
                });
            }
        }
    }

    /// What a block adds to the gradients of keys and values.
    unsafe fn add_to_keys<K: GradKernels>(&self, block: &Block) {
        for square in block.squares() {
            let keys = square * SIDE..self.a.kv_len.min((square + 1) * SIDE);
            for (left, right, to, width) in [
                (self.weights, self.cotangents, self.dv, self.v_width),
                (self.scores, self.queries, self.dk, self.width),
            ] {
                for c in (0..width).step_by(2 * K::N) {
                    for key in keys.clone().step_by(K::ROWS) {
                        let sets = block.sets(key..key + K::ROWS);
                        let rows = sets.start * K::ROWS..block.rows.len().min(sets.end * K::ROWS);
                        if rows.is_empty() {
                            continue;
                        }
                        // SAFETY: the promises of the call; weights and gradients of scores are there.
                        unsafe {
                            K::multiply_across(&Product {
                                left: left.add(square * SQUARE + rows.start * SIDE + key % SIDE),
                                jump: COLUMNS * SIDE,
                                steps: rows.len(),
                                right: right.add(c / COLUMNS * TILE + rows.start * COLUMNS + c % COLUMNS),
                                right_step: COLUMNS,
                                to: to.add(key * width + c),
                                to_row: width,
                                fresh: false,
                            });
                        }
                    }
                }
            }
        }
    }

    /// The gradients of a block's queries.
    unsafe fn write_queries<K: GradKernels, T: Elem>(&self, block: &Block) {
        let a = self.a;
        // SAFETY: the promises of the call; the gradients of scores are there.
        unsafe {
            self.dq.write_bytes(0, SIDE * self.width);
            for square in block.squares() {
                let keys = square * SIDE..(square + 1) * SIDE;
                for c in (0..self.width).step_by(2 * K::N) {
                    for set in block.sets(keys.clone()) {
                        let (lo, hi) = block.sets[set];
                        let (lo, hi) = (lo.max(keys.start), hi.min(keys.end));
                        let tile = self.keys.add(keys.start * self.width + c / COLUMNS * TILE);
                        K::multiply_squares(&Product {
                            left: self.scores.add(square * SQUARE + set * K::ROWS * SIDE + lo % SIDE),
                            jump: COLUMNS,
                            steps: hi - lo,
                            right: tile.add(lo % SIDE * COLUMNS + c % COLUMNS),
                            right_step: COLUMNS,
                            to: self.dq.add(set * K::ROWS * self.width + c),
                            to_row: self.width,
                            fresh: false,
                        });
                    }
                }
            }
            for r in block.rows.clone() {
                let (h, t) = self.place(r);
                let from = self.dq.add((r - block.rows.start) * self.width);
                K::write_row::<T>(from, a.dim, a.scale as f32, a.dq.at(self.batch, h, t));
            }
        }
    }

    unsafe fn write_keys<K: GradKernels, T: Elem>(&self) {
        let a = self.a;
        for t in 0..a.kv_len {
            // SAFETY: the promises of the call.
            unsafe {
                K::write_row::<T>(self.dk.add(t * self.width), a.dim, 1.0, a.dk.at(self.batch, self.kv_head, t));
                K::write_row::<T>(self.dv.add(t * self.v_width), a.v_dim, 1.0, a.dv.at(self.batch, self.kv_head, t));
            }
        }
    }
}

impl Target {
    /// # Safety
    /// The element exists.
    unsafe fn at<T>(&self, b: usize, h: usize, t: usize) -> *mut T {
        let [sb, sh, st] = self.strides;
        // SAFETY: the caller's promise.
        unsafe { self.ptr.cast::<T>().offset(b as isize * sb + h as isize * sh + t as isize * st) }
    }
}
