//! Which rows of a step belong to which sequence, and what each sequence remembers.
//!
//! The tokens of all sequences of a step lie in one row dimension. Products and norms see all rows at once; only what
//! looks at other tokens of its own sequence (attention, recurrences) goes through [`Batch::each`].

use lapis::ops::fast::{AttentionOptions, KEY_BLOCK, attention_of_blocks};
use lapis::{Array, Result, ops};
use std::ops::Range;

/// What one layer remembers of one sequence.
#[derive(Clone, Debug, Default)]
pub enum Memory {
    /// Nothing yet.
    #[default]
    Empty,
    /// Keys and values.
    Keys(Keys),
    /// The state of a recurrence: whatever its layer put there.
    State(Vec<Array>),
}

/// Keys and values of the tokens seen, in blocks of [`KEY_BLOCK`] positions. Full blocks are never written again: what
/// was copied from this sequence, or this from, holds the same ones. The last one is written in place while nobody else
/// holds it.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    blocks: Vec<Block>,
    /// Positions that count, from the first of the first block on.
    used: usize,
    /// Positions before those: a multiple of [`KEY_BLOCK`].
    dropped: usize,
    /// How many of the latest positions are ever looked at.
    window: Option<usize>,
}

/// Keys and values: (1, heads, room, width) each.
#[derive(Clone, Debug)]
struct Block {
    keys: Array,
    values: Array,
}

impl Block {
    /// Room of a new block; it doubles.
    const ROOM: usize = 64;

    /// This one, or an empty one, with keys and values from position `at` of it on.
    fn with(block: Option<Block>, at: usize, [k, v]: [&Array; 2]) -> Result<Block> {
        let (end, rows) = (at + k.dim(2), k.dim(2));
        if rows == KEY_BLOCK {
            return Ok(Block { keys: ops::contiguous(k, false)?, values: ops::contiguous(v, false)? });
        }
        let put = |old: Option<Array>, new: &Array| -> Result<Array> {
            let room = old.as_ref().map_or(0, |old| old.dim(2));
            let old = match old {
                Some(old) if room >= end => old,
                _ => {
                    let fresh = end.next_power_of_two().clamp(Block::ROOM, KEY_BLOCK);
                    let shape = [1, new.dim(1), fresh - at, new.dim(3)];
                    let spare = ops::full(&shape, 0.0, Some(new.dtype()))?;
                    match old {
                        Some(old) if at > 0 => ops::concatenate(&[part(&old, 0..at)?, spare], 2)?,
                        _ => spare,
                    }
                }
            };
            let range = (Some(at as i64), Some(end as i64), 1);
            ops::slice_update(&old, new, &[(None, None, 1), (None, None, 1), range])
        };
        let (keys, values) = block.map_or((None, None), |b| (Some(b.keys), Some(b.values)));
        Ok(Block { keys: put(keys, k)?, values: put(values, v)? })
    }
}

impl Keys {
    /// Adds keys and values (1, heads, rows, width).
    fn add(&mut self, k: &Array, v: &Array) -> Result<()> {
        let (rows, mut done) = (k.dim(2), 0);
        while done < rows {
            let at = self.used % KEY_BLOCK;
            let count = (KEY_BLOCK - at).min(rows - done);
            let cut = |a: &Array| part(a, done..done + count);
            let last = if at > 0 { self.blocks.pop() } else { None };
            self.blocks.push(Block::with(last, at, [&cut(k)?, &cut(v)?])?);
            self.used += count;
            done += count;
        }
        Ok(())
    }

    /// Lets go of the first `n` blocks.
    fn drop_blocks(&mut self, n: usize) {
        self.blocks.drain(..n);
        (self.used, self.dropped) = (self.used - n * KEY_BLOCK, self.dropped + n * KEY_BLOCK);
    }

    /// Whether it can be as if only the first `len` tokens had been seen.
    fn can_truncate(&self, len: usize) -> bool {
        self.dropped == 0 || self.window.is_some_and(|window| len + 1 >= self.dropped + window)
    }

    fn truncate(&mut self, len: usize) {
        self.used = self.used.min(len - self.dropped);
        self.blocks.truncate(self.used.div_ceil(KEY_BLOCK));
    }

    /// All keys, and all values, as attention takes them.
    fn seen(&self) -> Result<[Vec<Array>; 2]> {
        let whole = |of: fn(&Block) -> &Array| {
            let block = |(i, b): (usize, &Block)| part(of(b), 0..(self.used - i * KEY_BLOCK).min(KEY_BLOCK));
            self.blocks.iter().enumerate().map(block).collect::<Result<Vec<Array>>>()
        };
        Ok([whole(|b| &b.keys)?, whole(|b| &b.values)?])
    }
}

/// What a sequence remembers, a [`Memory`] for each layer, and how many tokens it has seen.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    layers: Vec<Memory>,
    seen: usize,
}

impl Sequence {
    /// Nothing seen.
    pub fn new() -> Sequence {
        Sequence::default()
    }

    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.seen
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.seen == 0
    }

    /// All arrays, to evaluate after a step: what is lazy keeps its inputs.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|m| match m {
            Memory::Empty => vec![],
            Memory::Keys(k) => k.blocks.iter().flat_map(|b| [&b.keys, &b.values]).collect(),
            Memory::State(all) => all.iter().collect(),
        })
    }

    /// Whether all but the first `len` tokens can be forgotten: not by a recurrence, nor where keys have left a window.
    pub fn can_truncate(&self, len: usize) -> bool {
        let can = |m: &Memory| match m {
            Memory::Empty => true,
            Memory::Keys(k) => k.can_truncate(len),
            Memory::State(_) => false,
        };
        len >= self.seen || self.layers.iter().all(can)
    }

    /// Whether tokens can be forgotten one and all, however many come.
    pub fn is_free(&self) -> bool {
        self.layers.iter().all(|m| match m {
            Memory::Empty => true,
            Memory::Keys(k) => k.window.is_none(),
            Memory::State(_) => false,
        })
    }

    /// Forgets all but the first `len` tokens. False, and nothing is done, where that cannot be.
    pub fn truncate(&mut self, len: usize) -> bool {
        if len >= self.seen {
            return true;
        }
        if !self.can_truncate(len) {
            return false;
        }
        for m in &mut self.layers {
            if let Memory::Keys(k) = m {
                k.truncate(len);
            }
        }
        self.seen = len;
        true
    }

    /// What [`Sequence::rewind`] needs to come back to here: the states of recurrences.
    pub fn mark(&self) -> Mark {
        let state = |m: &Memory| match m {
            Memory::State(all) => Some(all.clone()),
            _ => None,
        };
        Mark { seen: self.seen, states: self.layers.iter().map(state).collect() }
    }

    /// Forgets tokens seen since `mark`, so that at most `len` are left: exactly those where every layer can forget one
    /// at a time, else as many as at the mark.
    pub fn rewind(&mut self, mark: Mark, len: usize) {
        if self.truncate(len) {
            return;
        }
        self.layers.resize_with(mark.states.len(), Memory::default);
        for (m, state) in self.layers.iter_mut().zip(mark.states) {
            match (m, state) {
                (m @ (Memory::Empty | Memory::State(_)), state) => *m = state.map_or(Memory::Empty, Memory::State),
                (Memory::Keys(k), _) => k.truncate(mark.seen),
            }
        }
        self.seen = mark.seen;
    }

    /// Bytes of everything remembered.
    pub fn bytes(&self) -> usize {
        self.arrays().map(|a| a.size() * a.itemsize()).sum()
    }
}

/// A place that a sequence can come back to.
#[derive(Clone, Debug)]
pub struct Mark {
    seen: usize,
    states: Vec<Option<Vec<Array>>>,
}

/// The part of a step that is one sequence's, inside one layer.
pub struct Slot<'a> {
    /// The position of its first row.
    pub at: usize,
    /// What the layer remembers.
    pub memory: &'a mut Memory,
}

impl Slot<'_> {
    /// Adds keys and values (1, heads, rows, width) to those remembered and attends to all that the queries (1, heads,
    /// rows, width) may see. `options.window` is how many of the latest keys the layer ever looks at.
    ///
    /// # Errors
    /// Shapes that do not fit, or differ from those remembered.
    pub fn attend(&mut self, q: &Array, k: &Array, v: &Array, options: &AttentionOptions<'_>) -> Result<Array> {
        let mut kept = match std::mem::take(self.memory) {
            Memory::Keys(kept) => kept,
            _ => Keys::default(),
        };
        kept.window = options.window;
        if let Some(window) = options.window {
            // The first row still sees `window - 1` keys before itself. Which keys are there never changes a bit of the
            // result, as long as they leave in the chunks that attention works in.
            kept.drop_blocks((kept.used + 1).saturating_sub(window) / KEY_BLOCK);
        }
        kept.add(k, v)?;
        let [keys, values] = kept.seen()?;
        *self.memory = Memory::Keys(kept);
        attention_of_blocks(q, &keys, &values, options)
    }

    /// The state that the layer put here, if any.
    pub fn state(&self) -> Option<&[Array]> {
        match &*self.memory {
            Memory::State(all) => Some(all),
            _ => None,
        }
    }

    /// Puts a state here.
    pub fn set_state(&mut self, state: Vec<Array>) {
        *self.memory = Memory::State(state);
    }
}

fn part(a: &Array, positions: Range<usize>) -> Result<Array> {
    if positions == (0..a.dim(2)) {
        return Ok(a.clone());
    }
    let range = (Some(positions.start as i64), Some(positions.end as i64), 1);
    ops::slice(a, &[(None, None, 1), (None, None, 1), range])
}

/// The rows of a step.
pub struct Batch<'a> {
    spans: Vec<(Range<usize>, &'a mut Sequence)>,
}

impl<'a> Batch<'a> {
    /// Rows in order: for each sequence, how many of them are its own.
    pub fn new(sequences: impl IntoIterator<Item = (usize, &'a mut Sequence)>) -> Batch<'a> {
        let mut spans: Vec<(Range<usize>, &'a mut Sequence)> = Vec::new();
        for (rows, sequence) in sequences {
            let start = spans.last().map_or(0, |s| s.0.end);
            spans.push((start..start + rows, sequence));
        }
        Batch { spans }
    }

    /// All of one sequence.
    pub fn one(rows: usize, sequence: &'a mut Sequence) -> Batch<'a> {
        Batch::new([(rows, sequence)])
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.spans.last().map_or(0, |s| s.0.end)
    }

    /// Positions of all rows: int32 `(rows,)`.
    pub fn positions(&self) -> Array {
        let all: Vec<i32> = self.spans.iter().flat_map(|(r, s)| (s.seen..s.seen + r.len()).map(|p| p as i32)).collect();
        let n = all.len();
        Array::from_vec(all, &[n])
    }

    /// Calls `f` for each sequence with its rows of the inputs and what `layer` remembers of it; the results, rows of
    /// the sequence first, are put together again.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn each(
        &mut self,
        layer: usize,
        inputs: &[&Array],
        mut f: impl FnMut(&[Array], &mut Slot<'_>) -> Result<Array>,
    ) -> Result<Array> {
        let alone = self.spans.len() == 1;
        let mut results = Vec::with_capacity(self.spans.len());
        for (rows, sequence) in &mut self.spans {
            if sequence.layers.len() <= layer {
                sequence.layers.resize_with(layer + 1, Memory::default);
            }
            let cut = |a: &&Array| match alone {
                true => Ok((*a).clone()),
                false => ops::slice(a, &[(Some(rows.start as i64), Some(rows.end as i64), 1)]),
            };
            let inputs: Vec<Array> = inputs.iter().map(cut).collect::<Result<_>>()?;
            let mut slot = Slot { at: sequence.seen, memory: &mut sequence.layers[layer] };
            results.push(f(&inputs, &mut slot)?);
        }
        if alone { Ok(results.swap_remove(0)) } else { ops::concatenate(&results, 0) }
    }

    /// The step is over: its rows count as seen.
    pub fn finish(self) {
        for (rows, sequence) in self.spans {
            sequence.seen += rows.len();
        }
    }
}
