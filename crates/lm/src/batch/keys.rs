//! Keys and values of one layer, in blocks that sequences share.

use lapis::ops::fast::KEY_BLOCK;
use lapis::ops::quantize::{Format, Quantized, dequantize, quantize};
use lapis::{Array, Error, Result, ops};
use std::ops::Range;

/// What is remembered of layers that look at all positions; windows and recurrences stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KvOptions {
    /// How keys and values are packed, if they are: along their width, so that each position has groups of its own.
    pub format: Option<Format>,
    /// Rows from this position on see packed keys.
    pub start: usize,
    /// Rows see the first [`KvOptions::KEEP`] positions and the latest others, this many in all.
    pub max: Option<usize>,
}

impl KvOptions {
    /// The first positions, which a bounded memory keeps.
    pub const KEEP: usize = 4;

    /// Whether this can be done.
    ///
    /// # Errors
    /// A bound that leaves no room beside what is kept.
    pub fn check(&self) -> Result<()> {
        match self.max {
            Some(max) if max <= KvOptions::KEEP => Err(Error::value(format!(
                "[kv] max_kv_size is {max}; the first {} positions are kept, so give a larger one",
                KvOptions::KEEP
            ))),
            _ => Ok(()),
        }
    }
}

/// Keys and values of the tokens seen, in blocks of [`KEY_BLOCK`] positions. Full blocks are never written again: what
/// was copied from this sequence, or this from, holds the same ones. The last one is written in place while nobody else
/// holds it.
///
/// With a format, a row sees full blocks before its own packed and its own as it is: which is which depends on positions
/// alone, never on how many rows come at once.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    blocks: Vec<Block>,
    /// Positions that count, from the first of the first block on, without the gap.
    used: usize,
    /// Positions before those: a multiple of [`KEY_BLOCK`].
    dropped: usize,
    /// Positions that have left between the first block and the second: a multiple of [`KEY_BLOCK`].
    gap: usize,
    /// The first position from which on all are there, beside those that a bounded memory keeps; what is in blocks
    /// before it is never looked at.
    first: usize,
    /// How many of the latest positions are ever looked at.
    window: Option<usize>,
    /// The values are this many columns of the keys.
    latent: Option<usize>,
    /// Rows see positions of their own run of so many alone; these are those of one run.
    chunk: Option<usize>,
    /// Those of the run before, as long as the step that began this one may be taken back.
    before: Option<Box<Keys>>,
    kv: KvOptions,
}

/// Keys, and values where they are not part of them: (1, heads, room, width) each; packed, as they are, or, as long as
/// guesses may be taken back, both.
#[derive(Clone, Debug)]
struct Block {
    plain: Vec<Array>,
    packed: Vec<Quantized>,
}

impl Block {
    /// Room of a new block; it doubles.
    const ROOM: usize = 64;

    /// Whether `layer` makes more room for `rows` though some is left. Room that is all used up would be so in every layer in the same
    /// step, which would then wait for the system to clear pages for all of them: so each layer has a turn of its own in the last
    /// quarter.
    fn has_turn(room: usize, mut rows: Range<usize>, layer: usize) -> bool {
        let last = room / 4;
        // Multiples of the golden ratio, but for their whole parts, are spread evenly however many there are.
        let turn = (layer as f64 * 0.618_033_988_749_895).fract() * last as f64;
        room < KEY_BLOCK && rows.any(|at| at + last >= room && at % last == turn as usize)
    }

    /// This one of `layer`, or an empty one, with rows from position `at` of it on.
    fn with(block: Option<Block>, layer: usize, at: usize, new: &[Array]) -> Result<Block> {
        let put = |old: Option<Array>, new: &Array| -> Result<Array> {
            let (end, rows) = (at + new.dim(2), new.dim(2));
            if rows == KEY_BLOCK {
                return ops::contiguous(new, false);
            }
            let old = Block::room(old, layer, at..end, [new.dim(1), new.dim(3)], new.dtype())?;
            let range = (Some(at as i64), Some(end as i64), 1);
            ops::slice_update(&old, new, &[(None, None, 1), (None, None, 1), range])
        };
        let mut old = block.into_iter().flat_map(|b| b.plain);
        let plain = new.iter().map(|new| put(old.next(), new)).collect::<Result<_>>()?;
        Ok(Block { plain, packed: vec![] })
    }

    /// The positions of `old` before `rows`, or none, with room for these.
    fn room(
        old: Option<Array>,
        layer: usize,
        rows: Range<usize>,
        [heads, width]: [usize; 2],
        dtype: lapis::Dtype,
    ) -> Result<Array> {
        let (at, end, room) = (rows.start, rows.end, old.as_ref().map_or(0, |old| old.dim(2)));
        let turn = room > 0 && Block::has_turn(room, rows, layer);
        if let Some(old) = &old
            && room >= end
            && !turn
        {
            return Ok(old.clone());
        }
        // A text that goes on finds a quarter of the room left, for the turns of layers.
        let wanted = if end - at > 1 { end + end / 3 } else { end };
        let wanted = if turn { wanted.max(room + 1) } else { wanted };
        let fresh = wanted.next_power_of_two().clamp(Block::ROOM, KEY_BLOCK);
        let spare = ops::full(&[1, heads, fresh - at, width], 0.0, Some(dtype))?;
        match old {
            Some(old) if at > 0 => ops::concatenate(&[part(&old, 0..at)?, spare], 2),
            _ => Ok(spare),
        }
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let packed = self.packed.iter().flat_map(|q| [&q.packed, &q.scales].into_iter().chain(&q.biases));
        self.plain.iter().chain(packed)
    }

    /// Its parts as a row after it sees them.
    fn parts(&self) -> Result<Vec<Array>> {
        match self.packed.is_empty() {
            true => Ok(self.plain.clone()),
            false => self.packed.iter().map(|q| dequantize(q, None)).collect(),
        }
    }
}

impl Keys {
    /// None yet, of a layer that looks at `window` positions, and whose values are `latent` columns of its keys.
    pub(super) fn new(window: Option<usize>, latent: Option<usize>, kv: KvOptions) -> Keys {
        Keys { window, latent, kv: if window.is_none() { kv } else { KvOptions::default() }, ..Keys::default() }
    }

    /// None yet of the run of `chunk` positions that begins at `first`, after those of the run `before`.
    pub(super) fn run(chunk: usize, first: usize, before: Option<Keys>) -> Keys {
        let before = before.map(Box::new);
        Keys { chunk: Some(chunk), dropped: first, first, before, ..Keys::default() }
    }

    /// A step begins: the one before it is not taken back any more.
    pub(super) fn settle(&mut self) {
        self.before = None;
    }

    /// What tells its blocks from those of others.
    pub(crate) fn block_ids(&self) -> impl Iterator<Item = (u64, u32)> {
        self.blocks.iter().filter_map(|b| b.arrays().next().map(Array::id))
    }

    /// Adds rows (1, heads, rows, width) of `layer`: keys, and values where they are not part of them.
    pub(super) fn add(&mut self, layer: usize, new: &[&Array]) -> Result<()> {
        let (rows, mut done) = (new.first().map_or(0, |k| k.dim(2)), 0);
        if let Some(group) = self.kv.format.map(|f| f.group())
            && let Some(width) = new.iter().map(|a| a.dim(3)).find(|width| !width.is_multiple_of(group))
        {
            return Err(Error::value(format!(
                "[kv] keys or values of {width} columns are no multiple of the group size, {group}: take one that divides \
                 them (--kv-group-size)"
            )));
        }
        while done < rows {
            let at = self.used % KEY_BLOCK;
            let count = (KEY_BLOCK - at).min(rows - done);
            let cut: Vec<Array> = new.iter().map(|a| part(a, done..done + count)).collect::<Result<_>>()?;
            let last = if at > 0 { self.blocks.pop() } else { None };
            self.blocks.push(Block::with(last, layer, at, &cut)?);
            self.used += count;
            done += count;
        }
        Ok(())
    }

    /// Whether positions are kept as they come, keys and values both, and rows see all of them that are in reach.
    pub(super) fn is_plain(&self) -> bool {
        self.kv.format.is_none() && self.kv.max.is_none() && self.chunk.is_none() && self.latent.is_none()
    }

    /// Gives the blocks of `layer` away for a row to be added to the last one, of keys and values with these heads and widths: what
    /// [`Keys::lent`] takes back.
    pub(super) fn lend(
        &mut self,
        layer: usize,
        sizes: [[usize; 2]; 2],
        dtype: lapis::Dtype,
    ) -> Result<[Vec<Array>; 2]> {
        self.prepare()?;
        let at = self.used % KEY_BLOCK;
        let last = if at > 0 { self.blocks.pop() } else { None };
        let mut last = last.into_iter().flat_map(|b| b.plain);
        let all = |which: usize| self.blocks.iter().filter_map(|b| b.plain.get(which).cloned()).collect();
        let mut lent: [Vec<Array>; 2] = [all(0), all(1)];
        for (lent, size) in lent.iter_mut().zip(sizes) {
            lent.push(Block::room(last.next(), layer, at..at + 1, size, dtype)?);
        }
        Ok(lent)
    }

    /// The last block, with one more row.
    pub(super) fn lent(&mut self, plain: [Array; 2]) {
        self.blocks.push(Block { plain: plain.into(), packed: vec![] });
        self.used += 1;
    }

    /// How many blocks there are, where the next row joins those of the last one and none leaves.
    pub(super) fn joins(&self) -> Option<usize> {
        let plain = self.is_plain() && self.leaving() == 0 && !self.used.is_multiple_of(KEY_BLOCK);
        (plain && self.blocks.last()?.plain.len() == 2).then_some(self.blocks.len())
    }

    /// The keys and values of the last block.
    pub(super) fn last(&self) -> Option<[&Array; 2]> {
        match &*self.blocks.last()?.plain {
            [keys, values] => Some([keys, values]),
            _ => None,
        }
    }

    /// Makes room for the next row now, where it [joins](Keys::joins) the last block of `layer`.
    pub(super) fn make_room(&mut self, layer: usize) -> Result<()> {
        let plain = self.lend_last(layer)?;
        self.blocks.push(Block { plain, packed: vec![] });
        Ok(())
    }

    /// Gives the last block of `layer` away, where the next row [joins](Keys::joins) it, with room for that: what [`Keys::lent`] takes back.
    pub(super) fn lend_last(&mut self, layer: usize) -> Result<Vec<Array>> {
        let at = self.used % KEY_BLOCK;
        let roomy = |old: Array| {
            let (size, dtype) = ([old.dim(1), old.dim(3)], old.dtype());
            Block::room(Some(old), layer, at..at + 1, size, dtype)
        };
        self.blocks.pop().into_iter().flat_map(|b| b.plain).map(roomy).collect()
    }

    /// Positions that count, of those that are there.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// How many of the latest positions are looked at, beside those kept.
    fn reach(&self) -> Option<usize> {
        self.window.or(self.kv.max.map(|max| max - KvOptions::KEEP))
    }

    /// Rows from the next one on that see blocks alike, and of which none or all are behind the bound.
    pub(super) fn alike(&self) -> usize {
        let at = self.end();
        let border = |border: usize| if at < border { border - at } else { usize::MAX };
        let packed = match self.kv.format {
            Some(_) if at < self.kv.start => border(self.kv.start),
            Some(_) => KEY_BLOCK - at % KEY_BLOCK,
            None => usize::MAX,
        };
        packed.min(self.kv.max.map_or(usize::MAX, border))
    }

    /// Packs what the next row sees packed, and lets blocks go that it does not see: it still sees all that are in reach
    /// but for itself. Which keys are there never changes a bit of the result, as long as they leave in the chunks that
    /// attention works in.
    pub(super) fn prepare(&mut self) -> Result<()> {
        let end = self.end();
        if let Some(format) = self.kv.format
            && end >= self.kv.start
        {
            for (i, block) in self.blocks.iter_mut().enumerate() {
                let after = (i + 1) * KEY_BLOCK;
                if after <= self.used && block.packed.is_empty() {
                    block.packed = block.plain.iter().map(|a| quantize(a, format, None)).collect::<Result<_>>()?;
                }
                if after + KEPT <= self.used {
                    block.plain.clear();
                }
            }
        }
        let (n, held) = (self.leaving(), self.held());
        if n > 0 {
            let before = self.dropped + self.gap + held * KEY_BLOCK;
            self.blocks.drain(held..held + n);
            self.used -= n * KEY_BLOCK;
            *(if held > 0 { &mut self.gap } else { &mut self.dropped }) += n * KEY_BLOCK;
            self.first = self.first.max(before + n * KEY_BLOCK);
        }
        Ok(())
    }

    /// Blocks at the beginning that stay: the first of a bounded memory.
    fn held(&self) -> usize {
        usize::from(self.window.is_none())
    }

    /// Blocks that the next row does not see any more.
    fn leaving(&self) -> usize {
        let Some(reach) = self.reach() else { return 0 };
        let before = self.dropped + self.gap + self.held() * KEY_BLOCK;
        (self.end() + 1).saturating_sub(reach).saturating_sub(before) / KEY_BLOCK
    }

    /// Which keys each of the next `rows` rows sees, where that is not all before it: bool (rows, keys).
    pub(super) fn mask(&self, rows: usize) -> Result<Option<Array>> {
        let (Some(max), end) = (self.kv.max, self.end()) else { return Ok(None) };
        if end < max {
            return Ok(None);
        }
        let place = |i: usize| (if i < KEY_BLOCK { i } else { i + self.gap }) as i32;
        let keys = Array::from_vec((0..self.used + rows).map(place).collect(), &[1, self.used + rows]);
        let own = Array::from_vec((end..end + rows).map(|p| p as i32).collect(), &[rows, 1]);
        let far = ops::subtract(&own, (max - KvOptions::KEEP) as i32)?;
        let near = ops::logical_and(ops::less_equal(&keys, &own)?, ops::greater(&keys, &far)?)?;
        ops::logical_or(near, ops::less(&keys, KvOptions::KEEP as i32)?).map(Some)
    }

    /// Where a position is, among those that are there.
    fn place(&self, position: usize) -> usize {
        position.saturating_sub(self.dropped + self.gap)
    }

    /// Whether it can be as if only the first `len` tokens had been seen.
    pub(super) fn can_truncate(&self, len: usize) -> bool {
        if self.chunk.is_some() {
            return len >= self.first || self.before.as_ref().is_some_and(|keys| keys.can_truncate(len));
        }
        let there = self.first == 0 || self.reach().is_some_and(|reach| len + 1 >= self.first + reach);
        let packed = self.blocks.iter().take_while(|b| b.plain.is_empty()).count() * KEY_BLOCK;
        let border = len.is_multiple_of(KEY_BLOCK) && len >= self.kv.start;
        there && (border || self.place(len) >= packed)
    }

    /// Whether it can be so for any number of tokens, and always will.
    pub(super) fn is_free(&self) -> bool {
        self.reach().is_none() && self.chunk.is_none() && self.kv.format.is_none()
    }

    /// As if only the first `len` tokens had been seen. What is packed for good stays as it was packed.
    pub(super) fn truncate(&mut self, len: usize) -> Result<()> {
        if len < self.first
            && let Some(before) = self.before.take()
        {
            *self = *before;
            return self.truncate(len);
        }
        self.used = self.used.min(self.place(len));
        self.blocks.truncate(self.used.div_ceil(KEY_BLOCK));
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let full = (i + 1) * KEY_BLOCK <= self.used;
            if !full && block.plain.is_empty() {
                block.plain = block.parts()?;
            }
            if !full || len < self.kv.start && !block.plain.is_empty() {
                block.packed.clear();
            }
        }
        Ok(())
    }

    /// The arrays of some blocks, where it [is free](Keys::is_free).
    pub(super) fn blocks(&self, range: Range<usize>) -> Vec<Vec<Array>> {
        self.blocks.iter().take(range.end).skip(range.start).map(|b| b.plain.clone()).collect()
    }

    /// A free memory of `used` positions of blocks that another one gave, if they are.
    pub(super) fn of_blocks(
        latent: Option<usize>,
        kv: KvOptions,
        blocks: Vec<Vec<Array>>,
        used: usize,
    ) -> Option<Keys> {
        let blocks: Vec<Block> = blocks.into_iter().map(|plain| Block { plain, packed: vec![] }).collect();
        let keys = Keys { blocks, used, ..Keys::new(None, latent, kv) };
        (keys.is_free() && keys.is_whole()).then_some(keys)
    }

    /// Whether blocks have the rows that count.
    fn is_whole(&self) -> bool {
        let count = if self.latent.is_some() { 1 } else { 2 };
        let whole = |(i, b): (usize, &Block)| {
            let rows = (self.used - i * KEY_BLOCK).min(KEY_BLOCK);
            let has =
                |a: &Array| a.ndim() == 4 && a.dim(0) == 1 && (rows..=KEY_BLOCK).contains(&a.dim(2)) && a.dim(3) > 0;
            let plain = b.plain.len() == count && b.plain.iter().all(has);
            plain || b.plain.is_empty() && rows == KEY_BLOCK && b.packed.len() == count
        };
        self.blocks.len() == self.used.div_ceil(KEY_BLOCK) && self.blocks.iter().enumerate().all(whole)
    }

    /// All of it, as numbers and arrays.
    pub(super) fn take_apart(&self) -> (Vec<u64>, Vec<Array>) {
        let option = |n: Option<usize>| n.map_or(0, |n| n + 1);
        let [window, latent, chunk] = [self.window, self.latent, self.chunk].map(option);
        let mut numbers = vec![self.used, self.dropped, self.gap, self.first, window, latent, chunk];
        for block in &self.blocks {
            let parts = block.packed.first().map_or(0, |q| if q.biases.is_some() { 3 } else { 2 });
            numbers.extend([block.plain.len(), block.packed.len(), parts]);
        }
        let arrays = self.blocks.iter().flat_map(Block::arrays).cloned().collect();
        (numbers.into_iter().map(|n| n as u64).collect(), arrays)
    }

    /// What [`Keys::take_apart`] gave, if it did.
    pub(super) fn put_together(numbers: &[u64], arrays: &[Array], kv: KvOptions) -> Option<Keys> {
        let numbers: Vec<usize> = numbers.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>()?;
        let ([used, dropped, gap, first, window, latent, chunk], rest) = numbers.split_first_chunk::<7>()?;
        let mut keys = Keys::new(window.checked_sub(1), latent.checked_sub(1), kv);
        (keys.used, keys.dropped, keys.gap, keys.first) = (*used, *dropped, *gap, *first);
        keys.chunk = chunk.checked_sub(1);
        let mut arrays = arrays.iter().cloned();
        if !rest.len().is_multiple_of(3) {
            return None;
        }
        for counts in rest.chunks(3) {
            let plain = (0..counts[0].min(2)).map(|_| arrays.next()).collect::<Option<_>>()?;
            let mut packed = Vec::new();
            for _ in 0..counts[1].min(2) {
                let biases = counts[2] == 3;
                let (codes, scales) = (arrays.next()?, arrays.next()?);
                let biases = if biases { Some(arrays.next()?) } else { None };
                packed.push(Quantized::new(codes, scales, biases, None, keys.kv.format?).ok()?);
            }
            keys.blocks.push(Block { plain, packed });
        }
        (arrays.next().is_none() && keys.is_whole()).then_some(keys)
    }

    /// Every array.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let before = self.before.iter().flat_map(|keys| keys.blocks.iter().flat_map(Block::arrays));
        self.blocks.iter().flat_map(Block::arrays).chain(before)
    }

    /// All keys, and all values, as attention takes them.
    pub(super) fn seen(&self) -> Result<[Vec<Array>; 2]> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (i, block) in self.blocks.iter().enumerate() {
            let there = 0..(self.used - i * KEY_BLOCK).min(KEY_BLOCK);
            let parts = block.parts()?;
            let k = part(&parts[0], there.clone())?;
            values.push(match self.latent {
                Some(width) => ops::slice(&k, &[ALL, ALL, ALL, (None, Some(width as i64), 1)])?,
                None => part(&parts[1], there)?,
            });
            keys.push(k);
        }
        Ok([keys, values])
    }

    /// What is remembered, and how.
    pub(crate) fn options(&self) -> KvOptions {
        self.kv
    }

    pub(super) fn set_options(&mut self, kv: KvOptions) {
        self.kv = if self.window.is_none() && self.chunk.is_none() { kv } else { self.kv };
    }

    /// Tokens seen.
    pub(crate) fn end(&self) -> usize {
        self.dropped + self.gap + self.used
    }

    /// How many of the latest positions are ever looked at.
    pub(crate) fn window(&self) -> Option<usize> {
        self.window
    }

    /// Rows see positions of their own run of so many alone.
    pub(crate) fn chunk(&self) -> Option<usize> {
        self.chunk
    }

    /// The first position that is there.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// The values are this many columns of the keys.
    pub(crate) fn latent(&self) -> Option<usize> {
        self.latent
    }

    /// The rows of all positions that are there, those kept before the others: keys, and values where they are not part
    /// of them.
    pub(crate) fn rows(&self) -> Result<Vec<Array>> {
        let blocks: Vec<Vec<Array>> = self.blocks.iter().map(Block::parts).collect::<Result<_>>()?;
        let whole = |i: usize| {
            let all: Vec<Array> = blocks.iter().map(|b| b[i].clone()).collect();
            let all = ops::concatenate(&all, 2)?;
            let rest = part(&all, self.place(self.first)..self.used)?;
            match self.window {
                None if self.first > 0 && self.chunk.is_none() => {
                    ops::concatenate(&[part(&all, 0..KvOptions::KEEP)?, rest], 2)
                }
                _ => Ok(rest),
            }
        };
        (0..blocks.first().map_or(0, Vec::len)).map(whole).collect()
    }

    /// An empty memory of the same layer with rows of positions from `first` on, those kept before them, as of
    /// [`Keys::rows`].
    pub(crate) fn with_rows(&self, first: usize, rows: &[Array], kv: KvOptions) -> Result<Keys> {
        if let Some(chunk) = self.chunk {
            let mut keys = Keys::run(chunk, first, None);
            keys.add(0, &rows.iter().collect::<Vec<_>>())?;
            return Ok(keys);
        }
        let mut keys = Keys::new(self.window, self.latent, kv);
        keys.first = first;
        let before = first / KEY_BLOCK * KEY_BLOCK;
        let kept = if self.window.is_none() && first > 0 { KvOptions::KEEP } else { 0 };
        *(if kept > 0 { &mut keys.gap } else { &mut keys.dropped }) = match kept {
            0 => before,
            _ => before.saturating_sub(KEY_BLOCK),
        };
        let gap = |row: &Array| {
            let shape = [1, row.dim(1), first - keys.dropped - keys.gap - kept, row.dim(3)];
            let gap = ops::full(&shape, 0.0, Some(row.dtype()))?;
            ops::concatenate(&[part(row, 0..kept)?, gap, part(row, kept..row.dim(2))?], 2)
        };
        let rows: Vec<Array> = rows.iter().map(gap).collect::<Result<_>>()?;
        keys.add(0, &rows.iter().collect::<Vec<_>>())?;
        Ok(keys)
    }
}

/// Rows after a block before what it was packed from goes: guesses that turn out wrong are fewer.
const KEPT: usize = 64;

const ALL: (Option<i64>, Option<i64>, i64) = (None, None, 1);

/// Rows of (1, heads, rows, width).
pub(super) fn part(a: &Array, positions: Range<usize>) -> Result<Array> {
    if positions == (0..a.dim(2)) {
        return Ok(a.clone());
    }
    ops::slice(a, &[ALL, ALL, (Some(positions.start as i64), Some(positions.end as i64), 1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most layers that make room in one step of `count` rows, after a prompt.
    fn most_at_once(prompt: usize, count: usize) -> usize {
        let rows = |n: usize| ops::zeros::<f32>(&[1, 1, n, 8]).unwrap();
        let mut layers = vec![Keys::new(None, None, KvOptions::default()); 28];
        layers.iter_mut().enumerate().for_each(|(i, keys)| keys.add(i, &[&rows(prompt), &rows(prompt)]).unwrap());
        let step = |at: usize| {
            let mut grown = 0;
            for (i, keys) in layers.iter_mut().enumerate() {
                let before = keys.blocks[0].plain[0].dim(2);
                if count == 1 {
                    let [mut k, mut v] = keys.lend(i, [[1, 8]; 2], lapis::Dtype::Float32).unwrap();
                    keys.lent([k.pop().unwrap(), v.pop().unwrap()]);
                } else {
                    keys.add(i, &[&rows(count), &rows(count)]).unwrap();
                }
                assert!(keys.blocks[0].plain.iter().all(|a| a.dim(2) >= at + count));
                grown += usize::from(keys.blocks[0].plain[0].dim(2) > before);
            }
            grown
        };
        (prompt..=KEY_BLOCK - count).step_by(count).map(step).max().unwrap_or(0)
    }

    #[test]
    fn layers_make_room_one_after_the_other() {
        for prompt in [10, 100, 190, 200, 250, 300] {
            assert!(most_at_once(prompt, 1) <= 3, "after a prompt of {prompt}");
        }
        // Guesses come several at a time.
        assert!((1..=8).contains(&most_at_once(100, 4)));
    }
}
