//! The inner loops of the gradients, generic over the vector type and compiled once for each instruction set.
//!
//! Every product here has one shape: a block of `M` rows by two vectors of columns, summed in registers over a run of
//! steps, the left side broadcast and the right side read as vectors. What differs is how the left side lies. Each sum
//! is one chain of multiply-adds in ascending order, wherever it is cut into calls.

use super::SIDE;
use crate::attention::lanes::{Elem, Lanes, exp};

/// Columns of a tile: queries, keys and cotangents lie as tiles `[SIDE][COLUMNS]`, one behind the other.
pub(in crate::attention) const COLUMNS: usize = 32;
/// Floats of a tile, and of a square of scores.
pub(super) const TILE: usize = SIDE * COLUMNS;
pub(super) const SQUARE: usize = SIDE * SIDE;

/// `to += left * right` for as many rows as a kernel has.
pub(in crate::attention) struct Product {
    /// The first row at the first step.
    pub(super) left: *const f32,
    /// From one run of `COLUMNS` steps to the next.
    pub(super) jump: usize,
    /// Length of the sums.
    pub(super) steps: usize,
    /// `2 N` columns at the first step.
    pub(super) right: *const f32,
    /// From one step to the next.
    pub(super) right_step: usize,
    /// `2 N` columns of the first row.
    pub(super) to: *mut f32,
    /// From one row to the next.
    pub(super) to_row: usize,
    /// Whether the sums start from zero: what is at `to` is not read.
    pub(super) fresh: bool,
}

/// A [`Product`] of `M` rows whose left elements are `ROW` apart from row to row and `STEP` from step to step.
#[inline(always)]
pub(in crate::attention) unsafe fn multiply<L: Lanes, const M: usize, const ROW: usize, const STEP: usize>(
    p: &Product,
) {
    // SAFETY: the caller promises `M` rows, `p.steps` steps, two vectors of columns, and the instruction set of L.
    unsafe {
        let mut sum = [[L::splat(0.0); 2]; M];
        if !p.fresh {
            for r in 0..M {
                for j in 0..2 {
                    sum[r][j] = L::load(p.to.add(r * p.to_row + j * L::N));
                }
            }
        }
        let (mut run, mut right) = (p.left, p.right);
        for first in (0..p.steps).step_by(COLUMNS) {
            let mut left = run;
            for _ in 0..COLUMNS.min(p.steps - first) {
                let y = [L::load(right), L::load(right.add(L::N))];
                for r in 0..M {
                    let x = L::splat(*left.add(r * ROW));
                    sum[r][0] = L::fma(x, y[0], sum[r][0]);
                    sum[r][1] = L::fma(x, y[1], sum[r][1]);
                }
                left = left.wrapping_add(STEP);
                right = right.wrapping_add(p.right_step);
            }
            run = run.wrapping_add(p.jump);
        }
        for r in 0..M {
            for j in 0..2 {
                L::store(p.to.add(r * p.to_row + j * L::N), sum[r][j]);
            }
        }
    }
}

/// A query's row in the squares of scores.
pub(in crate::attention) struct Row {
    /// Its scores in the first square: they become weights.
    pub(super) weights: *mut f32,
    /// Products of its cotangent with the values there: they become the gradients of the scores.
    pub(super) grads: *mut f32,
    /// The first key of the first square.
    pub(super) first: usize,
    /// How many squares.
    pub(super) squares: usize,
    /// The keys the query sees, of which there is one at least.
    pub(super) seen: (usize, usize),
}

impl Row {
    /// The vectors of square `i` with keys that are seen.
    #[inline(always)]
    fn part(&self, i: usize, lanes: usize) -> (usize, usize) {
        let first = self.first + i * SIDE;
        let (lo, hi) = (self.seen.0.saturating_sub(first).min(SIDE), self.seen.1.saturating_sub(first).min(SIDE));
        (lo / lanes * lanes, hi.next_multiple_of(lanes))
    }
}

/// Scores to weights, and the gradients of the weights to those of the scores: `w (g - sum(w g))`. Both are zero for
/// keys the query does not see.
#[inline(always)]
pub(in crate::attention) unsafe fn soften<L: Lanes>(row: &Row) {
    // SAFETY: the caller promises `row.squares` squares and the instruction set of L.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for i in 0..row.squares {
            let (from, to) = row.part(i, L::N);
            for c in (from..to).step_by(L::N) {
                let key = (row.first + i * SIDE + c) as isize;
                let (lo, hi) = (row.seen.0 as isize - key, row.seen.1 as isize - key);
                let at = row.weights.add(i * SQUARE + c);
                let mut score = L::load(at);
                if lo > 0 || hi < L::N as isize {
                    score = L::only(score, lo, hi);
                    L::store(at, score);
                }
                top = L::max(score, top);
            }
        }
        let top = L::largest(top);
        let top = L::splat(if top == f32::NEG_INFINITY { 0.0 } else { top });
        let (mut sum, mut along) = (L::splat(0.0), L::splat(0.0));
        for i in 0..row.squares {
            let (from, to) = row.part(i, L::N);
            for c in (from..to).step_by(L::N) {
                let at = row.weights.add(i * SQUARE + c);
                let weight = exp::<L>(L::sub(L::load(at), top));
                L::store(at, weight);
                sum = L::add(sum, weight);
                along = L::fma(weight, L::load(row.grads.add(i * SQUARE + c)), along);
            }
        }
        let factor = 1.0 / L::sum(sum);
        let along = L::splat(L::sum(along) * factor);
        let factor = L::splat(factor);
        for i in 0..row.squares {
            let (from, to) = row.part(i, L::N);
            for c in (0..SIDE).step_by(L::N) {
                let at = i * SQUARE + c;
                let (mut weight, mut grad) = (L::splat(0.0), L::splat(0.0));
                if from <= c && c < to {
                    weight = L::mul(L::load(row.weights.add(at)), factor);
                    grad = L::mul(weight, L::sub(L::load(row.grads.add(at)), along));
                }
                L::store(row.weights.add(at), weight);
                L::store(row.grads.add(at), grad);
            }
        }
    }
}

/// `width` elements times `factor`, rounded to their type. `from` may be read in whole vectors.
#[inline(always)]
pub(in crate::attention) unsafe fn write_row<L: Lanes, T: Elem>(
    from: *const f32,
    width: usize,
    factor: f32,
    to: *mut T,
) {
    // SAFETY: the caller promises `width` elements at `to` and the instruction set of L.
    unsafe {
        for c in (0..width).step_by(L::N) {
            let x = L::mul(L::load(from.add(c)), L::splat(factor));
            if c + L::N <= width {
                T::store::<L>(to.add(c), x);
            } else {
                let mut tail = [std::mem::MaybeUninit::<T>::uninit(); 16];
                T::store::<L>(tail.as_mut_ptr().cast(), x);
                std::ptr::copy_nonoverlapping(tail.as_ptr().cast(), to.add(c), width - c);
            }
        }
    }
}
