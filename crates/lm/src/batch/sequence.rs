//! What a sequence remembers, layer by layer, and how it forgets.

use super::{Keys, KvOptions};
use lapis::{Array, Result};

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

/// What a sequence remembers, a [`Memory`] for each layer, and how many tokens it has seen.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    pub(super) layers: Vec<Memory>,
    pub(super) seen: usize,
    pub(super) kv: KvOptions,
    /// It is read in one step and not written on.
    pub(super) whole: bool,
}

impl Sequence {
    /// Nothing seen.
    pub fn new() -> Sequence {
        Sequence::default()
    }

    /// A text that is read in one step and not written on, as in training: layers of attention remember nothing of it.
    pub fn whole() -> Sequence {
        Sequence { whole: true, ..Sequence::default() }
    }

    /// Nothing seen; layers that look at all positions remember as `kv` says.
    pub fn with(kv: KvOptions) -> Sequence {
        Sequence { kv, ..Sequence::default() }
    }

    /// How layers that look at all positions remember.
    pub fn options(&self) -> KvOptions {
        self.kv
    }

    /// From now on layers that look at all positions remember as `kv` says.
    pub fn set_options(&mut self, kv: KvOptions) {
        self.kv = kv;
        for m in &mut self.layers {
            if let Memory::Keys(k) = m {
                k.set_options(kv);
            }
        }
    }

    /// What layers remember of `seen` tokens.
    pub(crate) fn from_layers(layers: Vec<Memory>, seen: usize) -> Sequence {
        Sequence { layers, seen, ..Sequence::default() }
    }

    /// What each layer remembers.
    pub(crate) fn layers(&self) -> &[Memory] {
        &self.layers
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
            Memory::Keys(k) => k.arrays().collect(),
            Memory::State(all) => all.iter().collect(),
        })
    }

    /// Of each layer how many blocks of keys and values it has, where the next row joins the last one and nothing else changes
    /// in any layer.
    pub(crate) fn joins(&self) -> Option<Vec<usize>> {
        let of = |m: &Memory| match m {
            Memory::Keys(keys) => keys.joins(),
            _ => None,
        };
        if self.whole { None } else { self.layers.iter().map(of).collect() }
    }

    /// The last keys and values of each layer, where [`Sequence::joins`] says something.
    pub(crate) fn lasts(&self) -> impl Iterator<Item = &Array> {
        fn last(m: &Memory) -> Option<[&Array; 2]> {
            if let Memory::Keys(keys) = m { keys.last() } else { None }
        }
        self.layers.iter().filter_map(last).flatten()
    }

    /// Makes room for the next row in [`Sequence::lasts`], where there is none left or it is a layer's turn to have more.
    ///
    /// # Errors
    /// More room than an array can have.
    pub(crate) fn make_room(&mut self) -> Result<()> {
        for (i, m) in self.layers.iter_mut().enumerate() {
            if let Memory::Keys(keys) = m {
                keys.make_room(i)?;
            }
        }
        Ok(())
    }

    /// Gives [`Sequence::lasts`] away, with room for one more row, for [`Sequence::join`].
    ///
    /// # Errors
    /// More room than an array can have.
    pub(crate) fn lend(&mut self, to: &mut Vec<Array>) -> Result<()> {
        for (i, m) in self.layers.iter_mut().enumerate() {
            if let Memory::Keys(keys) = m {
                to.extend(keys.lend_last(i)?);
            }
        }
        Ok(())
    }

    /// One more token was seen: the last keys and values of each layer with those of its row.
    pub(crate) fn join(&mut self, lasts: &mut impl Iterator<Item = Array>) {
        for m in &mut self.layers {
            if let (Memory::Keys(keys), Some(k), Some(v)) = (m, lasts.next(), lasts.next()) {
                keys.lent([k, v]);
            }
        }
        self.seen += 1;
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
            Memory::Keys(k) => k.is_free(),
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
        let cut = |m: &mut Memory| if let Memory::Keys(k) = m { k.truncate(len).is_ok() } else { true };
        let done = self.layers.iter_mut().all(cut);
        self.seen = len;
        done
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
                (Memory::Keys(k), _) => drop(k.truncate(mark.seen)),
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
