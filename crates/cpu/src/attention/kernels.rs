//! The inner loops of attention, generic over the vector type and compiled once for each instruction set.
//!
//! What makes a row's result independent of how the work is cut: every score is the sum (0 + 1) + (2 + 3) of four chains of
//! multiply-adds, the elements d of the head dimension with d / 8 % 4 = 0, 1, 2, 3, each in ascending order (four,
//! because 128 bits of bf16 hold 8 elements: see `lanes::avx512`); every weighted sum is one chain over the keys of a
//! block in ascending order; and a key that a row may not see has a weight of exactly zero, so that adding it or
//! leaving it out changes nothing.
//! Row counts, tile shapes and the choice between packed and unpacked values only decide which chains run side by side.

use super::lanes::{Elem, Lanes, exp, tanh};
use crate::isa::features;
use std::ops::Range;

/// Keys of one block: scores of a block are computed, turned into weights and used before the next block.
/// Blocks start at multiples of this, counted from key 0, whatever part of them is needed.
pub(super) const BLOCK: usize = 128;

/// What an array mask does to the scores of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    /// There is none.
    None,
    /// Scores become the smaller of score and bias: plus infinity keeps, minus infinity drops.
    Keep,
    /// The bias is added.
    Add,
}

/// The softmax step of some rows over one block.
pub(super) struct Softmax<'a> {
    /// Scores, replaced by weights; rows are `BLOCK` apart.
    pub(super) scores: *mut f32,
    /// Per row: the keys of the block it may see (before any array mask).
    pub(super) seen: &'a [(isize, isize)],
    /// The vectors to do: from `from` to `to`, multiples of `N`; the weights outside are zero for all rows.
    pub(super) from: usize,
    pub(super) to: usize,
    /// `cap * tanh(score / cap)`; 0 for no cap.
    pub(super) cap: f32,
    pub(super) bias_kind: Bias,
    /// Rows `BLOCK` apart, as the scores.
    pub(super) bias: *const f32,
    /// Per row: the running maximum, `N` partial sums of weights, and room for the factor by which older sums shrink
    /// (a multiple of `N`).
    pub(super) max: *mut f32,
    pub(super) sums: *mut f32,
    pub(super) shrink: *mut f32,
}

/// Keys or values of the block that comes next, fetched while this one is worked on: as much as was used, each time.
///
/// The quarters of a block take turns: they lie in pages of their own, and memory answers questions about four pages at
/// once half as fast again as those about one. Lines come in pairs, as processors fetch them. Where memory is better asked
/// in order (see `Features`), a block is one quarter, and goes to the second-level cache.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    first: *const u8,
    /// Whether a block is cut: quarters are numbered by these bits of a pair's number.
    turns: usize,
    /// Bytes from one quarter of the rows to the next, and between the end of a row and the next row.
    quarter: isize,
    gap: isize,
    /// 2^32 over the bytes of a row, rounded up.
    rows: u64,
    /// Pairs of lines, the next one, and bytes used since the last.
    pairs: usize,
    next: usize,
    used: usize,
}

const PAIR: usize = 128;
/// What is fetched when nothing comes next.
static NOTHING: [u8; PAIR] = [0; PAIR];

impl Ahead {
    /// Nothing comes next.
    pub(super) const NONE: Ahead =
        Ahead { first: NOTHING.as_ptr(), turns: 0, quarter: 0, gap: 0, rows: 0, pairs: 1, next: 0, used: 0 };

    /// A block of rows of `width` elements, `stride` elements apart.
    pub(super) fn new<T>(first: *const T, stride: isize, width: usize) -> Ahead {
        let (stride, width) = (stride * size_of::<T>() as isize, width * size_of::<T>());
        Ahead {
            first: first.cast(),
            turns: if features().in_order { 0 } else { 3 },
            quarter: (BLOCK / 4) as isize * stride,
            gap: stride - width as isize,
            rows: (1u64 << 32).div_ceil(width as u64),
            pairs: BLOCK * width / PAIR,
            ..Ahead::NONE
        }
    }

    /// Fetches the next `N` pairs of lines; after the last one, that one again.
    #[inline(always)]
    pub(super) unsafe fn fetch<L: Lanes, const N: usize>(&mut self) {
        for i in 0..N {
            let next = (self.next + i).min(self.pairs - 1);
            let (quarter, at) = (next & self.turns, (next >> self.turns.count_ones()) * PAIR);
            let row = (at as u64 * self.rows) >> 32;
            let offset = quarter as isize * self.quarter + at as isize + row as isize * self.gap;
            let pair = self.first.wrapping_offset(offset);
            // SAFETY: the caller runs on L's instruction set.
            unsafe {
                if self.turns == 0 {
                    L::prefetch_far(pair);
                    L::prefetch_far(pair.wrapping_add(64));
                } else {
                    L::prefetch(pair);
                    L::prefetch(pair.wrapping_add(64));
                }
            }
        }
        self.next += N;
    }

    /// Fetches as many bytes as were used.
    #[inline(always)]
    pub(super) unsafe fn used<L: Lanes>(&mut self, bytes: usize) {
        self.used += bytes;
        while self.used >= PAIR {
            self.used -= PAIR;
            // SAFETY: the caller runs on L's instruction set.
            unsafe { self.fetch::<L, 1>() };
        }
    }
}

/// The running result of some rows: maxima, `N` partial sums of weights each, weighted sums of values.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) max: *mut f32,
    pub(super) sums: *mut f32,
    pub(super) acc: *mut f32,
}

/// `x - max` with a maximum of minus infinity (nothing seen yet) taken as 0, so that it never gives NaN by itself.
#[inline(always)]
fn origin(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// Where the four chains of a dot product begin when their elements are put together, and where the last one ends.
pub(super) fn chains(dim: usize) -> [usize; 5] {
    let mut starts = [0; 5];
    for c in 0..4 {
        starts[c + 1] = starts[c] + dim / 32 * 8 + (dim % 32).saturating_sub(8 * c).min(8);
    }
    starts
}

/// The place of element `d` when those of a chain are put together.
#[inline(always)]
pub(super) fn place(starts: &[usize; 5], d: usize) -> usize {
    starts[d / 8 % 4] + d / 32 * 8 + d % 8
}

/// Sums of `M` rows and `2 N` keys over the elements of a chain.
#[inline(always)]
unsafe fn chain<L: Lanes, const M: usize>(q: *const f32, panel: *const f32, elements: Range<usize>) -> [[L::V; 2]; M] {
    // SAFETY: as `dot`.
    unsafe {
        let mut acc = [[L::splat(0.0); 2]; M];
        for d in elements {
            let k0 = L::load(panel.add(d * 2 * L::N));
            let k1 = L::load(panel.add(d * 2 * L::N + L::N));
            for r in 0..M {
                let x = L::splat(*q.add(d * M + r));
                acc[r][0] = L::fma(x, k0, acc[r][0]);
                acc[r][1] = L::fma(x, k1, acc[r][1]);
            }
        }
        acc
    }
}

/// Scores of `M` rows against a panel of `2 N` keys, times `scale`. `q` is `[dim][M]`, `panel` is `[dim][2 N]`, both chain by chain.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes, const M: usize>(
    q: *const f32,
    panel: *const f32,
    dim: usize,
    scale: f32,
    scores: *mut f32,
) {
    // SAFETY: the caller promises the sizes named above and the instruction set of L.
    unsafe {
        let starts = chains(dim);
        let [a, b, c, d] = [0, 1, 2, 3].map(|c| starts[c]..starts[c + 1]);
        let [a, b] = [chain::<L, M>(q, panel, a), chain::<L, M>(q, panel, b)];
        let mut first = a;
        for r in 0..M {
            for j in 0..2 {
                first[r][j] = L::add(a[r][j], b[r][j]);
            }
        }
        let [c, d] = [chain::<L, M>(q, panel, c), chain::<L, M>(q, panel, d)];
        for r in 0..M {
            for j in 0..2 {
                let sum = L::mul(L::add(first[r][j], L::add(c[r][j], d[r][j])), L::splat(scale));
                L::store(scores.add(r * BLOCK + j * L::N), sum);
            }
        }
    }
}

/// `acc = acc * shrink + weights * values` for `M` rows, `keys` keys and `2 N` columns; `values` is `[keys][2 N]`.
#[inline(always)]
pub(super) unsafe fn weigh<L: Lanes, const M: usize>(
    weights: *const f32,
    keys: usize,
    values: *const f32,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
) {
    // SAFETY: the caller promises the sizes named above and the instruction set of L.
    unsafe {
        let mut sum = [[L::splat(0.0); 2]; M];
        for r in 0..M {
            let f = L::splat(*shrink.add(r));
            for j in 0..2 {
                sum[r][j] = L::mul(L::load(acc.add(r * ld + j * L::N)), f);
            }
        }
        for k in 0..keys {
            let v0 = L::load(values.add(k * 2 * L::N));
            let v1 = L::load(values.add(k * 2 * L::N + L::N));
            for r in 0..M {
                let w = L::splat(*weights.add(r * BLOCK + k));
                sum[r][0] = L::fma(w, v0, sum[r][0]);
                sum[r][1] = L::fma(w, v1, sum[r][1]);
            }
        }
        for r in 0..M {
            for j in 0..2 {
                L::store(acc.add(r * ld + j * L::N), sum[r][j]);
            }
        }
    }
}

/// [`weigh`] for `P` pairs of vectors on values as they lie in memory: for few rows, where packing would cost more
/// than it saves. Without `shrink`, `acc` is continued as it is.
#[inline(always)]
pub(super) unsafe fn weigh_in_place<L: Lanes, T: Elem, const M: usize, const P: usize>(
    weights: *const f32,
    keys: usize,
    values: *const T,
    stride: isize,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller promises `keys` rows of `2 N P` values, `M` rows of as many sums, and the instruction set.
    unsafe {
        let mut sum = [[[L::splat(0.0); 2]; P]; M];
        for r in 0..M {
            for p in 0..P {
                let at = acc.add(r * ld + p * 2 * L::N);
                let mut pair = [L::load(at), L::load(at.add(L::N))];
                if !shrink.is_null() {
                    let f = L::splat(*shrink.add(r));
                    pair = [L::mul(pair[0], f), L::mul(pair[1], f)];
                }
                sum[r][p] = if T::PAIRED { L::to_even_odd(pair) } else { pair };
            }
        }
        for k in 0..keys {
            let row = values.offset(k as isize * stride);
            ahead.used::<L>(2 * L::N * P * size_of::<T>());
            for p in 0..P {
                let v = T::load2::<L>(row.add(p * 2 * L::N));
                for r in 0..M {
                    let w = L::splat(*weights.add(r * BLOCK + k));
                    sum[r][p][0] = L::fma(w, v[0], sum[r][p][0]);
                    sum[r][p][1] = L::fma(w, v[1], sum[r][p][1]);
                }
            }
        }
        for r in 0..M {
            for p in 0..P {
                let pair = if T::PAIRED { L::from_even_odd(sum[r][p]) } else { sum[r][p] };
                let at = acc.add(r * ld + p * 2 * L::N);
                L::store(at, pair[0]);
                L::store(at.add(L::N), pair[1]);
            }
        }
    }
}

/// [`weigh_in_place`] for all columns, `P` pairs of vectors at a time.
#[inline(always)]
pub(super) unsafe fn weigh_columns<L: Lanes, T: Elem, const M: usize, const P: usize>(
    weights: *const f32,
    keys: usize,
    values: *const T,
    stride: isize,
    width: usize,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
    ahead: &Ahead,
) {
    let pair = 2 * L::N;
    // Of its own, to live in registers.
    let ahead = &mut { *ahead };
    // SAFETY: the caller promises `keys` rows of `width` values, `M` rows of as many sums rounded up to pairs, and the
    // instruction set.
    unsafe {
        // A few keys at a time for all columns: memory is read from front to back.
        for k in (0..keys).step_by(16) {
            let keys = (keys - k).min(16);
            let (weights, values) = (weights.add(k), values.offset(k as isize * stride));
            let shrink = if k == 0 { shrink } else { std::ptr::null() };
            let mut c = 0;
            while c + P * pair <= width {
                let (values, acc) = (values.add(c), acc.add(c));
                weigh_in_place::<L, T, M, P>(weights, keys, values, stride, acc, ld, shrink, ahead);
                c += P * pair;
            }
            while c + pair <= width {
                let (values, acc) = (values.add(c), acc.add(c));
                weigh_in_place::<L, T, M, 1>(weights, keys, values, stride, acc, ld, shrink, ahead);
                c += pair;
            }
        }
        let c = width / pair * pair;
        if c < width {
            let mut tail = [0.0f32; BLOCK * 32];
            pack_values::<L, T>(values.add(c), stride, keys, width - c, tail.as_mut_ptr());
            weigh::<L, M>(weights, keys, tail.as_ptr(), acc.add(c), ld, shrink);
        }
    }
}

/// How weights take the place of their scores.
pub(super) trait Weights<L: Lanes> {
    /// Writes `e^x` for the keys `i ..`, and answers what was written.
    ///
    /// # Safety
    /// `row` has the keys, those before them are written, and the instruction set is there.
    unsafe fn put(row: *mut f32, i: usize, x: L::V) -> L::V;
}

/// Floats.
pub(super) struct Plain;

impl<L: Lanes> Weights<L> for Plain {
    #[inline(always)]
    unsafe fn put(row: *mut f32, i: usize, x: L::V) -> L::V {
        // SAFETY: the caller's promises.
        unsafe {
            let w = exp::<L>(x);
            L::store(row.add(i), w);
            w
        }
    }
}

/// Turns the scores of a block into weights and moves the rows' maxima and sums along. What comes next is fetched
/// meanwhile.
#[inline(always)]
pub(super) unsafe fn softmax<L: Lanes, W: Weights<L>>(s: &Softmax, ahead: &mut Ahead) {
    // SAFETY: the caller promises buffers of the sizes that `Softmax` names and the instruction set of L.
    unsafe {
        let rows = s.seen.len();
        for (r, &(lo, hi)) in s.seen.iter().enumerate() {
            ahead.fetch::<L, 1>();
            let row = s.scores.add(r * BLOCK);
            let mut max = L::splat(f32::NEG_INFINITY);
            if s.cap == 0.0 && s.bias_kind == Bias::None && lo <= s.from as isize && hi >= s.to as isize {
                max = match (s.from, s.to) {
                    (0, BLOCK) => largest::<L>(row, 0..BLOCK),
                    (from, to) => largest::<L>(row, from..to),
                };
            } else {
                for i in (s.from..s.to).step_by(L::N) {
                    let mut x = L::load(row.add(i));
                    if s.cap != 0.0 {
                        let cap = L::splat(s.cap);
                        x = L::mul(cap, tanh::<L>(L::div(x, cap)));
                    }
                    match s.bias_kind {
                        Bias::None => {}
                        Bias::Keep => x = L::min(x, L::load(s.bias.add(r * BLOCK + i))),
                        Bias::Add => x = L::add(x, L::load(s.bias.add(r * BLOCK + i))),
                    }
                    x = L::only(x, lo - i as isize, hi - i as isize);
                    L::store(row.add(i), x);
                    max = L::max(x, max);
                }
            }
            let old = *s.max.add(r);
            let new = old.max(L::largest(max));
            *s.max.add(r) = new;
            *s.shrink.add(r) = old - origin(new);
        }
        for r in (0..rows).step_by(L::N) {
            L::store(s.shrink.add(r), exp::<L>(L::load(s.shrink.add(r))));
        }
        for r in 0..rows {
            ahead.fetch::<L, 2>();
            let row = s.scores.add(r * BLOCK);
            let shift = L::splat(origin(*s.max.add(r)));
            // A loop whose ends are known is unrolled.
            let sum = match (s.from, s.to) {
                (0, BLOCK) => weights::<L, W>(row, shift, 0..BLOCK),
                (from, to) => weights::<L, W>(row, shift, from..to),
            };
            let at = s.sums.add(r * L::N);
            L::store(at, L::fma(L::load(at), L::splat(*s.shrink.add(r)), sum));
        }
    }
}

/// The largest scores, by lanes.
#[inline(always)]
unsafe fn largest<L: Lanes>(row: *const f32, keys: Range<usize>) -> L::V {
    // SAFETY: the caller promises the keys and the instruction set of L.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for i in keys.step_by(L::N) {
            max = L::max(L::load(row.add(i)), max);
        }
        max
    }
}

/// Scores less `shift` to weights; their sums by lanes.
#[inline(always)]
unsafe fn weights<L: Lanes, W: Weights<L>>(row: *mut f32, shift: L::V, keys: Range<usize>) -> L::V {
    // SAFETY: the caller promises the keys and the instruction set of L.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in keys.step_by(L::N) {
            sum = L::add(sum, W::put(row, i, L::sub(L::load(row.add(i)), shift)));
        }
        sum
    }
}

/// `dim` elements times `scale` as f32.
#[inline(always)]
pub(super) unsafe fn scale_row<L: Lanes, T: Elem>(from: *const T, dim: usize, scale: f32, to: *mut f32) {
    // SAFETY: the caller promises `dim` elements at both pointers and the instruction set of L.
    unsafe {
        let whole = dim / L::N * L::N;
        for d in (0..whole).step_by(L::N) {
            L::store(to.add(d), L::mul(T::load::<L>(from.add(d)), L::splat(scale)));
        }
        for d in whole..dim {
            *to.add(d) = (*from.add(d)).get() * scale;
        }
    }
}

/// Keys `0 .. keys` (at most `2 N`) of `dim` elements to a panel `[dim][2 N]`.
#[inline(always)]
pub(super) unsafe fn pack_keys<L: Lanes, T: Elem>(
    from: *const T,
    stride: isize,
    keys: usize,
    dim: usize,
    to: *mut f32,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller promises the keys, room for the panel, and the instruction set of L.
    unsafe {
        T::transpose::<L>(from, stride, keys.min(L::N), dim, to, 2 * L::N);
        if keys > L::N {
            let (more, to) = (from.offset(L::N as isize * stride), to.add(L::N));
            T::transpose::<L>(more, stride, keys - L::N, dim, to, 2 * L::N);
        } else {
            for d in 0..dim {
                L::store(to.add(d * 2 * L::N + L::N), L::splat(0.0));
            }
        }
        ahead.used::<L>(keys * dim * size_of::<T>());
    }
}

/// Values `[keys][width]` to panels `[width / 2 N][keys][2 N]` of f32, the last one filled with zeros.
#[inline(always)]
pub(super) unsafe fn pack_values<L: Lanes, T: Elem>(
    from: *const T,
    stride: isize,
    keys: usize,
    width: usize,
    to: *mut f32,
) {
    // SAFETY: the caller promises `keys` rows of `width` values, room for the panels, and the instruction set of L.
    unsafe {
        let panel = 2 * L::N;
        for k in 0..keys {
            let row = from.offset(k as isize * stride);
            let mut c = 0;
            while c < width {
                let at = to.add(c * keys + k * panel);
                if c + panel <= width {
                    L::store(at, T::load::<L>(row.add(c)));
                    L::store(at.add(L::N), T::load::<L>(row.add(c + L::N)));
                } else {
                    for j in 0..panel {
                        *at.add(j) = if c + j < width { (*row.add(c + j)).get() } else { 0.0 };
                    }
                }
                c += panel;
            }
        }
    }
}

/// `to = to * a + from * b` for one vector.
#[inline(always)]
unsafe fn add_scaled<L: Lanes>(to: *mut f32, a: L::V, from: *const f32, b: L::V) {
    // SAFETY: the caller promises `N` elements at both pointers and the instruction set of L.
    unsafe { L::store(to, L::fma(L::load(from), b, L::mul(L::load(to), a))) }
}

/// Adds the result of a later part of the keys to that of the earlier parts. `width` is a multiple of `2 N`.
#[inline(always)]
pub(super) unsafe fn merge<L: Lanes>(total: State, part: State, rows: usize, width: usize) {
    // SAFETY: the caller promises states of `rows` rows of `width` and the instruction set of L.
    unsafe {
        for r in 0..rows {
            let (old, new) = (*total.max.add(r), *part.max.add(r));
            let max = old.max(new);
            *total.max.add(r) = max;
            let a = exp::<L>(L::splat(old - origin(max)));
            let b = exp::<L>(L::splat(new - origin(max)));
            add_scaled::<L>(total.sums.add(r * L::N), a, part.sums.add(r * L::N), b);
            for i in (0..width).step_by(L::N) {
                add_scaled::<L>(total.acc.add(r * width + i), a, part.acc.add(r * width + i), b);
            }
        }
    }
}

/// Writes the result of row `r`: weighted sum over sum of weights, `sink` being one more score without a value.
/// Returns the sum of weights; when it is 0 nothing was written.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes, T: Elem>(
    state: State,
    r: usize,
    ld: usize,
    sink: Option<f32>,
    to: *mut T,
    width: usize,
) -> f32 {
    // SAFETY: the caller promises a state with row `r`, `width` elements at `to`, and the instruction set of L.
    unsafe {
        let mut factor = L::splat(1.0);
        let mut weights = L::sum(L::load(state.sums.add(r * L::N)));
        if let Some(sink) = sink {
            let old = *state.max.add(r);
            let max = origin(old.max(sink));
            factor = exp::<L>(L::splat(old - max));
            let extra = exp::<L>(L::splat(sink - max));
            weights = weights * L::largest(factor) + L::largest(extra);
        }
        if weights == 0.0 {
            return weights;
        }
        let divisor = L::splat(weights);
        let acc = state.acc.add(r * ld);
        let mut i = 0;
        while i < width {
            // Adding +0 makes -0 plain 0: which of the two comes out of a sum of zeros depends on skipped keys.
            let x = L::div(L::mul(L::load(acc.add(i)), factor), divisor);
            let x = L::add(x, L::splat(0.0));
            if i + L::N <= width {
                T::store::<L>(to.add(i), x);
            } else {
                let mut tail = [std::mem::MaybeUninit::<T>::uninit(); 16];
                T::store::<L>(tail.as_mut_ptr().cast(), x);
                std::ptr::copy_nonoverlapping(tail.as_ptr().cast(), to.add(i), width - i);
            }
            i += L::N;
        }
        weights
    }
}
