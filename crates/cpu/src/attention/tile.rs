//! One tile: some positions of all query heads that share a key head, against one chunk of keys.
//!
//! The order of work, and where each buffer lives between uses, is decided here; the arithmetic is in `kernels`.

use super::dispatch::Kernels;
use super::kernels::{Ahead, BLOCK, Bias, Softmax, State};
use super::lanes::Elem;
use super::mask::read;
use super::packed::Packed;
use super::{Attention, CHUNK, Operand};
use half::{bf16, f16};
use lapis_core::dtype::Dtype;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::ops::Range;

/// Positions `first .. first + count` of the query heads of one key head. Row r is position `first + r / group`, head
/// `r % group` of the group: neighbouring rows see nearly the same keys.
pub(super) struct Tile {
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    pub(super) first: usize,
    pub(super) count: usize,
}

impl Tile {
    fn group(&self, a: &Attention) -> usize {
        a.q_heads / a.kv_heads
    }

    pub(super) fn rows(&self, a: &Attention) -> usize {
        self.count * self.group(a)
    }

    /// The number of its head of keys, of all batches.
    fn head(&self, a: &Attention) -> usize {
        self.batch * a.kv_heads + self.kv_head
    }

    /// Query head and position of a row.
    fn row(&self, a: &Attention, r: usize) -> (usize, usize) {
        (self.kv_head * self.group(a) + r % self.group(a), self.first + r / self.group(a))
    }

    /// The keys that some row sees.
    fn seen(&self, a: &Attention) -> Range<usize> {
        a.seen(self.first).start..a.seen(self.first + self.count - 1).end
    }

    /// The chunks with such keys.
    pub(super) fn chunks(&self, a: &Attention) -> Range<usize> {
        let seen = self.seen(a);
        if seen.is_empty() { 0..0 } else { seen.start / CHUNK..seen.end.div_ceil(CHUNK) }
    }
}

/// Bytes on a cache line's border.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    static PARTS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on `floats` floats that keep their memory from call to call.
fn with_floats<R>(cell: &RefCell<Vec<Line>>, floats: usize, f: impl FnOnce(*mut f32) -> R) -> R {
    let mut buffer = cell.borrow_mut();
    let lines = floats.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    f(buffer.as_mut_ptr().cast())
}

/// Runs `f` on `floats` floats of this thread's scratch memory, whatever they hold. A few megabytes are kept.
pub(super) fn with_memory<R>(floats: usize, f: impl FnOnce(*mut f32) -> R) -> R {
    const KEPT: usize = (8 << 20) / size_of::<Line>();
    SCRATCH.with(|cell| {
        let result = with_floats(cell, floats, f);
        let mut buffer = cell.borrow_mut();
        if buffer.len() > KEPT {
            *buffer = Vec::new();
        }
        result
    })
}

/// The buffers of one task.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    /// Queries: for each set of rows that go through a kernel together `[dim][rows]`; or spread rows.
    queries: *mut f32,
    /// Per row the first key it sees and the first it does not.
    seen: *mut (usize, usize),
    scores: *mut f32,
    shrink: *mut f32,
    /// Rows `BLOCK` apart, for one set of rows.
    bias: *mut f32,
    panel: *mut f32,
    values: *mut f32,
    pub(super) states: [State; 2],
}

/// States that several tasks write, one each.
pub(super) struct Parts<'a> {
    base: *mut f32,
    layout: &'a Layout,
}

// SAFETY: tasks take different states.
unsafe impl Sync for Parts<'_> {}

impl Parts<'_> {
    /// # Safety
    /// `i` is below the number asked for, and used by one task at a time.
    pub(super) unsafe fn state(&self, i: usize) -> State {
        // SAFETY: the caller's promise.
        unsafe { self.layout.state(self.base.add(i * self.layout.state_floats())) }
    }
}

/// Rows that go through a kernel together, with the keys of a block that some of them see (relative to the block).
struct Set {
    start: usize,
    rows: usize,
    keys: (usize, usize),
}

/// Most rows of a [`Set`].
const LARGEST_SET: usize = 32;

/// Sizes of the buffers for tiles of at most `rows` rows.
pub(super) struct Layout {
    lanes: usize,
    /// Rows rounded up to whole cache lines of anything, and to what kernels write beside rows that are wanted.
    rows: usize,
    dim: usize,
    queries: usize,
    /// Columns of the weighted sums: Dv rounded up to panels.
    pub(super) width: usize,
}

/// Calls `$body` with `$T` as the element type of a dtype other than float64.
macro_rules! with_elem {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            Dtype::Float16 => {
                type $T = f16;
                $body
            }
            Dtype::Bfloat16 => {
                type $T = bf16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

pub(super) use with_elem;

impl Operand {
    /// # Safety
    /// The element exists.
    pub(super) unsafe fn at<T>(&self, b: usize, h: usize, t: usize) -> *const T {
        let [sb, sh, st] = self.strides;
        // SAFETY: the caller's promise.
        unsafe { self.ptr.cast::<T>().offset(b as isize * sb + h as isize * sh + t as isize * st) }
    }
}

/// What fetches rows of keys (`which` 0) or values (1) for a tile.
unsafe fn ahead<T: Elem>(a: &Attention, which: usize, tile: &Tile, keys: &Range<usize>, width: usize) -> Ahead {
    if keys.is_empty() {
        return Ahead::NONE;
    }
    let (from, at) = a.place(which, keys.start);
    // SAFETY: the caller promises that the keys exist.
    let first = unsafe { from.at::<T>(tile.batch, tile.kv_head, at) };
    Ahead::new(first, from.strides[2], width)
}

impl Layout {
    pub(super) fn new<K: Kernels>(a: &Attention, rows: usize) -> Layout {
        const { assert!(K::ROWS <= LARGEST_SET) };
        Layout {
            lanes: K::N,
            rows: rows.next_multiple_of(if rows > 16 { LARGEST_SET } else { 16 }),
            dim: a.dim,
            queries: K::queries_len(rows, a.dim).max(rows.min(K::SPREAD) * K::spread_len::<f16>(a.dim)),
            width: a.v_dim.next_multiple_of(2 * K::N),
        }
    }

    fn state_floats(&self) -> usize {
        self.rows * (1 + self.lanes + self.width)
    }

    unsafe fn state(&self, base: *mut f32) -> State {
        // SAFETY: the caller has `state_floats` at `base`.
        unsafe {
            let sums = base.add(self.rows);
            State { max: base, sums, acc: sums.add(self.rows * self.lanes) }
        }
    }

    /// Runs `f` with this thread's buffers.
    pub(super) fn with_scratch<R>(&self, f: impl FnOnce(Scratch) -> R) -> R {
        let panel = 2 * self.lanes;
        let sizes = [
            self.queries,
            self.rows * size_of::<(usize, usize)>() / size_of::<f32>(),
            self.rows * BLOCK,
            self.rows + 16,
            LARGEST_SET * BLOCK,
            panel * self.dim,
            BLOCK * self.width,
            self.state_floats(),
            self.state_floats(),
        ]
        .map(|n: usize| n.next_multiple_of(16));
        SCRATCH.with(|cell| {
            with_floats(cell, sizes.iter().sum(), |base| {
                let mut at = base;
                let [queries, seen, scores, shrink, bias, panel, values, total, part] = sizes.map(|n| {
                    let this = at;
                    // SAFETY: the buffer holds the sum of the sizes.
                    at = unsafe { at.add(n) };
                    this
                });
                // SAFETY: each has `state_floats`.
                let states = unsafe { [self.state(total), self.state(part)] };
                let seen = seen.cast();
                f(Scratch { queries, seen, scores, shrink, bias, panel, values, states })
            })
        })
    }

    /// Runs `f` with room for `floats` floats of panels.
    pub(super) fn with_panels<R>(&self, floats: usize, f: impl FnOnce(*mut f32) -> R) -> R {
        PARTS.with(|cell| with_floats(cell, floats, f))
    }

    /// Runs `f` with `n` states that the tasks of a region share out.
    pub(super) fn with_parts<R>(&self, n: usize, f: impl FnOnce(&Parts) -> R) -> R {
        PARTS.with(|cell| with_floats(cell, n * self.state_floats(), |base| f(&Parts { base, layout: self })))
    }

    /// Nothing seen yet by `rows` rows.
    ///
    /// # Safety
    /// The state has this layout.
    pub(super) unsafe fn clear(&self, rows: usize, s: State) {
        // SAFETY: the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(s.max, rows).fill(f32::NEG_INFINITY);
            s.sums.write_bytes(0, rows * self.lanes);
            s.acc.write_bytes(0, rows * self.width);
        }
    }

    /// # Safety
    /// The promises of the call; `K`'s instruction set; the scratch has this layout.
    pub(super) unsafe fn pack_queries<K: Kernels>(&self, a: &Attention, tile: &Tile, s: Scratch) {
        const { assert!(K::ROWS <= 2 * K::N) };
        let rows = tile.rows(a);
        let spread = self.spread_len::<K>(a, tile);
        // SAFETY: the caller's promises. The panel is not in use yet and holds a set of rows.
        unsafe {
            for first in (0..rows).step_by(K::ROWS) {
                let set = K::ROWS.min(rows - first);
                for r in first..first + set {
                    let (h, t) = tile.row(a, r);
                    let seen = a.seen(t);
                    *s.seen.add(r) = (seen.start, seen.end);
                    let row = s.panel.add((r - first) * self.dim);
                    with_elem!(a.q.dtype, T => K::scale_row::<T>(a.q.at(tile.batch, h, t), self.dim, 1.0, row));
                    if spread > 0 {
                        K::spread(row, self.dim, s.queries.add(r * spread));
                    }
                }
                if spread == 0 {
                    K::place_rows(s.panel, self.dim, s.queries.add(K::queries_len(first, self.dim)), set);
                }
            }
        }
    }

    /// Floats of a row of queries that meet the keys in place; 0 when these rows meet packed keys.
    fn spread_len<K: Kernels>(&self, a: &Attention, tile: &Tile) -> usize {
        if tile.rows(a) > K::SPREAD {
            return 0;
        }
        with_elem!(a.k.dtype, T => K::spread_len::<T>(self.dim))
    }

    /// The result of the tile's rows over all keys, [packed](Packed) or not. After the last ones the first of `then` are fetched.
    ///
    /// # Safety
    /// The promises of the call; `K`'s instruction set; tiles of the layout have as many rows.
    pub(super) unsafe fn attend_all<K: Kernels>(
        &self,
        a: &Attention,
        tile: &Tile,
        then: Option<&Tile>,
        packed: Option<&Packed>,
    ) {
        // SAFETY: the caller's promises; the scratch has the layout's size.
        self.with_scratch(|scratch| unsafe {
            let [total, part] = scratch.states;
            self.pack_queries::<K>(a, tile, scratch);
            let mut chunks = tile.chunks(a);
            match chunks.next() {
                // What is merged with nothing stays what it is.
                Some(first) => self.attend::<K>(a, tile, then, packed, first, scratch, total),
                None => self.clear(tile.rows(a), total),
            }
            for chunk in chunks {
                self.attend::<K>(a, tile, then, packed, chunk, scratch, part);
                K::merge(total, part, tile.rows(a), self.width);
            }
            self.finish::<K>(a, tile, total);
        });
    }

    /// The result of the tile's rows over one chunk of keys, into `part`. After the tile's last keys the first ones of
    /// `then` are fetched.
    ///
    /// # Safety
    /// The promises of the call; `K`'s instruction set; scratch and part have this layout, queries are packed.
    pub(super) unsafe fn attend<K: Kernels>(
        &self,
        a: &Attention,
        tile: &Tile,
        then: Option<&Tile>,
        packed: Option<&Packed>,
        chunk: usize,
        s: Scratch,
        part: State,
    ) {
        let seen = tile.seen(a);
        let (from, to) = (seen.start.max(chunk * CHUNK), seen.end.min((chunk + 1) * CHUNK));
        // SAFETY: the caller's promises.
        unsafe {
            let rows = tile.rows(a);
            self.clear(rows, part);
            for block in from / BLOCK..to.div_ceil(BLOCK) {
                let first = block * BLOCK;
                let keys = from.max(first)..to.min(first + BLOCK);
                let sets = Self::sets::<K>(rows, first, s);
                // While keys are in use their values are fetched, and then the next keys: a task behind this one may
                // belong to the same thread.
                let (of, next) = if keys.end < seen.end {
                    (tile, keys.end..seen.end)
                } else {
                    then.map_or((tile, 0..0), |t| (t, t.seen(a)))
                };
                let next = next.start..next.end.min(next.start + BLOCK);
                let values = if packed.is_some() { 0..0 } else { keys.clone() };
                let values = with_elem!(a.v.dtype, T => ahead::<T>(a, 1, tile, &values, a.v_dim));
                with_elem!(a.k.dtype, T => self.score::<K, T>(a, tile, packed, first, &keys, &sets, s, values));
                let mut next = match packed {
                    Some(packed) => packed.ahead(tile.head(a), block),
                    None => with_elem!(a.k.dtype, T => ahead::<T>(a, 0, of, &next, a.dim)),
                };
                self.soften::<K>(a, tile, first, &sets, s, part, &mut next);
                with_elem!(a.v.dtype, T => self.weigh::<K, T>(a, tile, packed, first, &keys, &sets, s, part, next));
            }
        }
    }

    /// The sets of rows that see something of block `first`.
    unsafe fn sets<K: Kernels>(rows: usize, first: usize, s: Scratch) -> SmallVec<[Set; 16]> {
        let mut sets = SmallVec::new();
        for start in (0..rows).step_by(K::ROWS) {
            let n = K::ROWS.min(rows - start);
            // SAFETY: `pack_queries` filled all rows.
            let (lo, hi) = unsafe { ((*s.seen.add(start)).0.max(first), (*s.seen.add(start + n - 1)).1) };
            let hi = hi.min(first + BLOCK);
            if lo < hi {
                sets.push(Set { start, rows: n, keys: (lo - first, hi - first) });
            }
        }
        sets
    }

    /// Scores of the block: one panel of keys after the other, each against all rows.
    unsafe fn score<K: Kernels, T: Elem>(
        &self,
        a: &Attention,
        tile: &Tile,
        packed: Option<&Packed>,
        first: usize,
        keys: &Range<usize>,
        sets: &[Set],
        s: Scratch,
        mut ahead: Ahead,
    ) {
        let (stride, scale) = (a.k.strides[2], a.scale as f32);
        let spread = self.spread_len::<K>(a, tile);
        if spread > 0 {
            for set in sets {
                let (lo, hi) = (set.keys.0 / K::N * K::N, set.keys.1);
                // SAFETY: the caller's promises; the keys exist up to `hi`.
                unsafe {
                    let (q, from) =
                        (s.queries.add(set.start * spread), a.key::<T>(tile.batch, tile.kv_head, first + lo));
                    let scores = s.scores.add(set.start * BLOCK + lo);
                    K::dot_in_place(set.rows, q, from, stride, hi - lo, self.dim, scale, scores, &ahead);
                }
            }
            return;
        }
        let width = 2 * K::N;
        for panel in (keys.start - first) / width..(keys.end - first).div_ceil(width) {
            let at = panel * width;
            // SAFETY: the caller's promises; the panel's keys exist up to `keys.end`.
            unsafe {
                let keys_of_panel = match packed {
                    Some(packed) => packed.keys::<K>(tile.head(a), first / BLOCK, at),
                    None => {
                        let from = a.key::<T>(tile.batch, tile.kv_head, first + at);
                        K::pack_keys(from, stride, width.min(keys.end - first - at), self.dim, s.panel, &mut ahead);
                        s.panel.cast_const()
                    }
                };
                for set in sets {
                    if set.keys.0 < at + width && set.keys.1 > at {
                        let q = s.queries.add(K::queries_len(set.start, self.dim));
                        K::dot(set.rows, q, keys_of_panel, self.dim, scale, s.scores.add(set.start * BLOCK + at));
                    }
                }
            }
        }
    }

    /// Scores to weights.
    unsafe fn soften<K: Kernels>(
        &self,
        a: &Attention,
        tile: &Tile,
        first: usize,
        sets: &[Set],
        s: Scratch,
        part: State,
        ahead: &mut Ahead,
    ) {
        let bias_kind = a.bias_kind();
        let together = const { if K::TOGETHER > K::N { K::TOGETHER } else { K::N } };
        let mut seen = [(0, 0); LARGEST_SET];
        for set in sets {
            let (from, to) = set.keys;
            for r in 0..set.rows {
                // SAFETY: the row exists.
                let (lo, hi) = unsafe { *s.seen.add(set.start + r) };
                seen[r] = (lo as isize - first as isize, hi as isize - first as isize);
                if bias_kind != Bias::None {
                    let (h, t) = tile.row(a, set.start + r);
                    // SAFETY: the set's keys exist; the bias buffer has as many.
                    unsafe {
                        a.bias_row(tile.batch, h, t, first + from, to - from, s.bias.add(r * BLOCK + from));
                    }
                }
            }
            // SAFETY: the buffers have this layout.
            unsafe {
                let softmax = Softmax {
                    scores: s.scores.add(set.start * BLOCK),
                    seen: &seen[..set.rows],
                    from: from / together * together,
                    to: to.next_multiple_of(together),
                    cap: a.softcap.unwrap_or(0.0) as f32,
                    bias_kind,
                    bias: s.bias,
                    max: part.max.add(set.start),
                    sums: part.sums.add(set.start * K::N),
                    shrink: s.shrink.add(set.start),
                };
                K::softmax(&softmax, ahead);
            }
        }
    }

    /// Weighted values added to the sums.
    unsafe fn weigh<K: Kernels, T: Elem>(
        &self,
        a: &Attention,
        tile: &Tile,
        packed: Option<&Packed>,
        first: usize,
        keys: &Range<usize>,
        sets: &[Set],
        s: Scratch,
        part: State,
        mut ahead: Ahead,
    ) {
        let stride = a.v.strides[2];
        let width = 2 * K::N;
        // Keys that go together begin at multiples of their number; the weight of one that is not seen is zero.
        let start_of = |key: usize| key / K::TOGETHER * K::TOGETHER;
        // SAFETY: the caller's promises.
        unsafe {
            let weights = |set: &Set| s.scores.add(set.start * BLOCK + start_of(set.keys.0) / K::PACKED);
            if tile.rows(a) <= K::IN_PLACE {
                for set in sets {
                    let from = start_of(set.keys.0);
                    K::weigh_in_place(
                        set.rows,
                        weights(set),
                        set.keys.1 - from,
                        a.value::<T>(tile.batch, tile.kv_head, first + from),
                        stride,
                        a.v_dim,
                        part.acc.add(set.start * self.width),
                        self.width,
                        s.shrink.add(set.start),
                        &ahead,
                    );
                }
                return;
            }
            let (start, count, all) = match packed {
                Some(packed) => {
                    let (all, count) = packed.values(a, tile.head(a), first / BLOCK);
                    (first, count, all)
                }
                None => {
                    let start = start_of(keys.start);
                    let from = a.value::<T>(tile.batch, tile.kv_head, start);
                    K::pack_values(from, stride, keys.end - start, a.v_dim, s.values, &mut ahead);
                    (start, keys.end - start, s.values.cast_const())
                }
            };
            for panel in 0..self.width / width {
                let values = all.add(panel * count.next_multiple_of(K::TOGETHER) / K::PACKED * width);
                for set in sets {
                    let from = start_of(set.keys.0);
                    K::weigh(
                        set.rows,
                        weights(set),
                        set.keys.1 - from,
                        values.add((first + from - start) / K::PACKED * width),
                        part.acc.add(set.start * self.width + panel * width),
                        self.width,
                        s.shrink.add(set.start),
                    );
                }
            }
        }
    }

    /// Writes the tile's rows.
    ///
    /// # Safety
    /// The promises of the call; `K`'s instruction set; the state has this layout and holds all chunks.
    pub(super) unsafe fn finish<K: Kernels>(&self, a: &Attention, tile: &Tile, total: State) {
        let [sb, sh, st] = a.out_strides;
        for r in 0..tile.rows(a) {
            let (h, t) = tile.row(a, r);
            let at = tile.batch as isize * sb + h as isize * sh + t as isize * st;
            // SAFETY: the caller's promises.
            unsafe {
                let sink = a.sinks.map(|(ptr, dtype)| read(ptr, dtype, h as isize) as f32);
                with_elem!(a.out_dtype, T => {
                    let to = a.out.cast::<T>().offset(at);
                    if K::finish(total, r, self.width, sink, to, a.v_dim) == 0.0 {
                        for c in 0..a.v_dim {
                            *to.add(c) = <T as Elem>::from_f64(a.unseen(tile.batch, h, t, c));
                        }
                    }
                });
            }
        }
    }
}
