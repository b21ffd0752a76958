//! Which rows of a step belong to which sequence, and what each sequence remembers.
//!
//! The tokens of all sequences of a step lie in one row dimension. Products and norms see all rows at once; only what
//! looks at other tokens of its own sequence (attention, recurrences) goes through [`Batch::each`].

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

/// Keys and values of the tokens seen: (1, heads, room, width) each, of which `used` positions count.
#[derive(Clone, Debug)]
pub struct Keys {
    keys: Array,
    values: Array,
    used: usize,
    /// Positions before the first one kept: a multiple of [`Keys::DROP`].
    dropped: usize,
}

impl Keys {
    /// Room grows by this many positions.
    const STEP: usize = 256;
    /// Positions beyond a window leave in runs of this many, the chunk that attention works in: which keys are there
    /// never changes a bit of the result.
    const DROP: usize = 512;
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
            Memory::Keys(k) => vec![&k.keys, &k.values],
            Memory::State(all) => all.iter().collect(),
        })
    }

    /// Forgets all but the first `len` tokens. False, and nothing is done, where a layer cannot: a recurrence, or keys
    /// that have left a window.
    pub fn truncate(&mut self, len: usize) -> bool {
        let can = |m: &Memory| match m {
            Memory::Empty => true,
            Memory::Keys(k) => k.dropped == 0,
            Memory::State(_) => false,
        };
        if len >= self.seen {
            return true;
        }
        if !self.layers.iter().all(can) {
            return false;
        }
        for m in &mut self.layers {
            if let Memory::Keys(k) = m {
                k.used = k.used.min(len);
            }
        }
        self.seen = len;
        true
    }

    /// Bytes of everything remembered.
    pub fn bytes(&self) -> usize {
        self.arrays().map(|a| a.size() * a.itemsize()).sum()
    }
}

/// The part of a step that is one sequence's, inside one layer.
pub struct Slot<'a> {
    /// The position of its first row.
    pub at: usize,
    /// What the layer remembers.
    pub memory: &'a mut Memory,
}

impl Slot<'_> {
    /// Adds keys and values (1, heads, rows, width) to those remembered and gives all that a query may see. `window` is
    /// how many of the latest keys the layer ever looks at.
    ///
    /// # Errors
    /// Shapes that differ from those remembered.
    pub fn remember(&mut self, k: &Array, v: &Array, window: Option<usize>) -> Result<(Array, Array)> {
        let rows = k.dim(2);
        let mut kept = match std::mem::take(self.memory) {
            Memory::Keys(kept) => kept,
            _ => Keys { keys: empty(k)?, values: empty(v)?, used: 0, dropped: 0 },
        };
        if let Some(window) = window {
            // The first row still sees `window - 1` keys before itself.
            let gone = (kept.used + 1).saturating_sub(window) / Keys::DROP * Keys::DROP;
            if gone > 0 {
                let cut = |a: &Array| ops::contiguous(&part(a, gone..kept.used)?, false);
                (kept.keys, kept.values) = (cut(&kept.keys)?, cut(&kept.values)?);
                (kept.used, kept.dropped) = (kept.used - gone, kept.dropped + gone);
            }
        }
        let (from, to) = (kept.used, kept.used + rows);
        let write = |old: Array, new: &Array| -> Result<Array> {
            if from == 0 && old.dim(2) < to && rows >= Keys::STEP {
                return Ok(new.clone());
            }
            let old = match to.saturating_sub(old.dim(2)) {
                0 => old,
                more => {
                    let shape = [1, new.dim(1), more.next_multiple_of(Keys::STEP), new.dim(3)];
                    ops::concatenate(&[part(&old, 0..from)?, ops::full(&shape, 0.0, Some(new.dtype()))?], 2)?
                }
            };
            let range = (Some(from as i64), Some(to as i64), 1);
            ops::slice_update(&old, new, &[(None, None, 1), (None, None, 1), range])
        };
        let Keys { keys, values, dropped, .. } = kept;
        let (keys, values) = (write(keys, k)?, write(values, v)?);
        let seen = (part(&keys, 0..to)?, part(&values, 0..to)?);
        *self.memory = Memory::Keys(Keys { keys, values, used: to, dropped });
        Ok(seen)
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

/// No positions of arrays like `a`.
fn empty(a: &Array) -> Result<Array> {
    ops::full(&[1, a.dim(1), 0, a.dim(3)], 0.0, Some(a.dtype()))
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
