//! Keys and values of one layer, in blocks that sequences share.

use lapis::ops::fast::KEY_BLOCK;
use lapis::{Array, Result, ops};
use std::ops::Range;

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
    /// The first position whose keys are there; those before it in the first block are zeros that nobody looks at.
    first: usize,
    /// How many of the latest positions are ever looked at.
    window: Option<usize>,
    /// The values are this many columns of the keys.
    latent: Option<usize>,
}

/// Keys, and values where they are not part of them: (1, heads, room, width) each.
#[derive(Clone, Debug)]
struct Block(Vec<Array>);

impl Block {
    /// Room of a new block; it doubles.
    const ROOM: usize = 64;

    /// This one, or an empty one, with rows from position `at` of it on.
    fn with(block: Option<Block>, at: usize, new: &[Array]) -> Result<Block> {
        let put = |old: Option<Array>, new: &Array| -> Result<Array> {
            let (end, rows) = (at + new.dim(2), new.dim(2));
            if rows == KEY_BLOCK {
                return ops::contiguous(new, false);
            }
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
        let mut old = block.into_iter().flat_map(|b| b.0);
        new.iter().map(|new| put(old.next(), new)).collect::<Result<_>>().map(Block)
    }
}

impl Keys {
    /// None yet, of a layer that looks at `window` positions, and whose values are `latent` columns of its keys.
    pub(super) fn new(window: Option<usize>, latent: Option<usize>) -> Keys {
        Keys { window, latent, ..Keys::default() }
    }

    /// Adds rows (1, heads, rows, width): keys, and values where they are not part of them.
    pub(super) fn add(&mut self, new: &[&Array]) -> Result<()> {
        let (rows, mut done) = (new.first().map_or(0, |k| k.dim(2)), 0);
        while done < rows {
            let at = self.used % KEY_BLOCK;
            let count = (KEY_BLOCK - at).min(rows - done);
            let cut: Vec<Array> = new.iter().map(|a| part(a, done..done + count)).collect::<Result<_>>()?;
            let last = if at > 0 { self.blocks.pop() } else { None };
            self.blocks.push(Block::with(last, at, &cut)?);
            self.used += count;
            done += count;
        }
        Ok(())
    }

    /// Lets blocks go that the next row does not see: it still sees `window - 1` keys before itself. Which keys are
    /// there never changes a bit of the result, as long as they leave in the chunks that attention works in.
    pub(super) fn leave_window(&mut self) {
        let Some(window) = self.window else { return };
        let n = (self.used + 1).saturating_sub(window) / KEY_BLOCK;
        self.blocks.drain(..n);
        (self.used, self.dropped) = (self.used - n * KEY_BLOCK, self.dropped + n * KEY_BLOCK);
        self.first = self.first.max(self.dropped);
    }

    /// Whether it can be as if only the first `len` tokens had been seen.
    pub(super) fn can_truncate(&self, len: usize) -> bool {
        self.first == 0 || self.window.is_some_and(|window| len + 1 >= self.first + window)
    }

    /// Whether it can be so for any number of tokens, and always will.
    pub(super) fn is_free(&self) -> bool {
        self.window.is_none()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.used = self.used.min(len.saturating_sub(self.dropped));
        self.blocks.truncate(self.used.div_ceil(KEY_BLOCK));
    }

    /// Every array.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.blocks.iter().flat_map(|b| &b.0)
    }

    /// All keys, and all values, as attention takes them.
    pub(super) fn seen(&self) -> Result<[Vec<Array>; 2]> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (i, block) in self.blocks.iter().enumerate() {
            let there = 0..(self.used - i * KEY_BLOCK).min(KEY_BLOCK);
            let k = part(&block.0[0], there.clone())?;
            values.push(match self.latent {
                Some(width) => ops::slice(&k, &[ALL, ALL, ALL, (None, Some(width as i64), 1)])?,
                None => part(&block.0[1], there)?,
            });
            keys.push(k);
        }
        Ok([keys, values])
    }

    /// Tokens seen.
    pub(crate) fn end(&self) -> usize {
        self.dropped + self.used
    }

    /// How many of the latest positions are ever looked at.
    pub(crate) fn window(&self) -> Option<usize> {
        self.window
    }

    /// The values are this many columns of the keys.
    pub(crate) fn latent(&self) -> Option<usize> {
        self.latent
    }

    /// The rows of all positions that are there: keys, and values where they are not part of them.
    pub(crate) fn rows(&self) -> Result<Vec<Array>> {
        let parts = self.blocks.first().map_or(0, |b| b.0.len());
        let whole = |i: usize| {
            let all: Vec<Array> = self.blocks.iter().map(|b| b.0[i].clone()).collect();
            part(&ops::concatenate(&all, 2)?, self.first - self.dropped..self.used)
        };
        (0..parts).map(whole).collect()
    }

    /// An empty memory of the same layer with rows of positions from `first` on, as of [`Keys::rows`].
    pub(crate) fn with_rows(&self, first: usize, rows: &[Array]) -> Result<Keys> {
        let mut keys = Keys::new(self.window, self.latent);
        keys.dropped = first / KEY_BLOCK * KEY_BLOCK;
        keys.first = first;
        let gap = |row: &Array| {
            let shape = [1, row.dim(1), first - keys.dropped, row.dim(3)];
            ops::concatenate(&[ops::full(&shape, 0.0, Some(row.dtype()))?, row.clone()], 2)
        };
        let rows: Vec<Array> = rows.iter().map(gap).collect::<Result<_>>()?;
        keys.add(&rows.iter().collect::<Vec<_>>())?;
        Ok(keys)
    }
}

const ALL: (Option<i64>, Option<i64>, i64) = (None, None, 1);

/// Rows of (1, heads, rows, width).
fn part(a: &Array, positions: Range<usize>) -> Result<Array> {
    if positions == (0..a.dim(2)) {
        return Ok(a.clone());
    }
    ops::slice(a, &[ALL, ALL, (Some(positions.start as i64), Some(positions.end as i64), 1)])
}
