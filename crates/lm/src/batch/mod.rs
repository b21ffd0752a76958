//! Which rows of a step belong to which sequence, and what each sequence remembers.
//!
//! The tokens of all sequences of a step lie in one row dimension. Products and norms see all rows at once; only what
//! looks at other tokens of its own sequence (attention, recurrences) goes through [`Batch::each`].

mod keys;
mod pieces;
mod sequence;

pub use keys::{Keys, KvOptions};
pub(crate) use pieces::Piece;
pub use sequence::{Mark, Memory, Sequence};

use lapis::ops::fast::{
    AttentionMask, AttentionOptions, Cache, CachedHeads, attention_of_blocks, attention_with_cache,
    scaled_dot_product_attention,
};
use lapis::transforms::checkpoint;
use lapis::{Array, Error, Result, ops};
use lapis_nn::Owners;
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A whole axis.
const ALL: (Option<i64>, Option<i64>, i64) = (None, None, 1);

/// The part of a step that is one sequence's, inside one layer.
pub struct Slot<'a> {
    /// The position of its first row.
    pub at: usize,
    /// What the layer remembers.
    pub memory: &'a mut Memory,
    /// And how.
    pub kv: KvOptions,
    /// Its number.
    layer: usize,
    /// The rows are all that there will be: nothing is remembered.
    whole: bool,
    /// What the rows see, kept for layers that look at this one's keys.
    views: Option<&'a mut Vec<View>>,
}

/// Keys and values as some rows of a step see them.
#[derive(Clone)]
pub struct View {
    rows: Range<usize>,
    mask: Option<Array>,
    keys: Vec<Array>,
    values: Vec<Array>,
    /// These are all that there will be, and not blocks.
    whole: bool,
}

/// Queries (1, heads, rows, width) on what the rows of another layer see.
///
/// # Errors
/// Shapes that do not fit.
pub fn attend_views(q: &Array, views: &[View], options: &AttentionOptions<'_>) -> Result<Array> {
    let see = |view: &View| {
        if view.whole {
            return scaled_dot_product_attention(q, &view.keys[0], &view.values[0], options);
        }
        let mut options = *options;
        options.mask = view.mask.as_ref().map_or(options.mask, AttentionMask::Array);
        attention_of_blocks(&keys::part(q, view.rows.clone())?, &view.keys, &view.values, &options)
    };
    let mut all = views.iter().map(see).collect::<Result<Vec<_>>>()?;
    if all.len() == 1 { Ok(all.swap_remove(0)) } else { ops::concatenate(&all, 2) }
}

impl Slot<'_> {
    /// Adds keys and values (1, heads, rows, width) to those remembered and attends to all that the queries (1, heads,
    /// rows, width) may see: those of all these rows, or of the last ones. `options.window` is how many of the latest keys the layer
    /// ever looks at.
    ///
    /// # Errors
    /// Shapes that do not fit, or differ from those remembered.
    pub fn attend(&mut self, q: &Array, k: &Array, v: &Array, options: &AttentionOptions<'_>) -> Result<Array> {
        self.attend_to(q, &[k, v], None, options)
    }

    /// As [`Slot::attend`]; the values are the first `width` columns of the keys.
    ///
    /// # Errors
    /// As there.
    pub fn attend_latent(
        &mut self,
        q: &Array,
        k: &Array,
        width: usize,
        options: &AttentionOptions<'_>,
    ) -> Result<Array> {
        self.attend_to(q, &[k], Some(width), options)
    }

    /// As [`Slot::attend`]; positions lie in runs of `chunk`, and queries see keys of their own run.
    ///
    /// # Errors
    /// As there.
    pub fn attend_in_chunks(
        &mut self,
        [q, k, v]: [&Array; 3],
        chunk: usize,
        options: &AttentionOptions<'_>,
    ) -> Result<Array> {
        if let Memory::Keys(keys) = self.memory {
            keys.settle();
        }
        let (rows, mut done, mut all) = (q.dim(2), 0, Vec::new());
        while done < rows {
            let at = self.at + done;
            let next = done..done + (chunk - at % chunk).min(rows - done);
            if at.is_multiple_of(chunk) && !self.whole {
                let before = match std::mem::take(self.memory) {
                    Memory::Keys(keys) => Some(keys),
                    _ => None,
                };
                *self.memory = Memory::Keys(Keys::run(chunk, at, before));
            }
            let [q, k, v] = [q, k, v].map(|a| keys::part(a, next.clone()));
            all.push(self.attend_to(&q?, &[&k?, &v?], None, options)?);
            done = next.end;
        }
        if all.len() == 1 { Ok(all.swap_remove(0)) } else { ops::concatenate(&all, 2) }
    }

    fn attend_to(
        &mut self,
        q: &Array,
        new: &[&Array],
        latent: Option<usize>,
        options: &AttentionOptions<'_>,
    ) -> Result<Array> {
        if self.whole {
            let values = match (new, latent) {
                ([_, v], _) => (*v).clone(),
                (_, Some(width)) => ops::slice(new[0], &[ALL, ALL, ALL, (None, Some(width as i64), 1)])?,
                _ => new[0].clone(),
            };
            let (rows, keys, values) = (0..q.dim(2), vec![new[0].clone()], vec![values]);
            return self.see(q, vec![View { rows, mask: None, keys, values, whole: true }], options);
        }
        let mut kept = match std::mem::take(self.memory) {
            Memory::Keys(kept) => kept,
            _ => Keys::new(options.window, latent, self.kv),
        };
        let (rows, mut done, mut all) = (new[0].dim(2), 0, Vec::<View>::new());
        // Nobody asks for the queries of the first ones.
        let unasked = rows - q.dim(2);
        while done < rows {
            let next = done..done + kept.alike().min(rows - done);
            kept.prepare()?;
            let skipped = unasked.saturating_sub(next.start);
            let mask =
                kept.mask(next.len())?.map(|mask| ops::slice(&mask, &[(Some(skipped as i64), None, 1)])).transpose()?;
            let cut: Vec<Array> = new.iter().map(|a| keys::part(a, next.clone())).collect::<Result<_>>()?;
            kept.add(self.layer, &cut.iter().collect::<Vec<_>>())?;
            let [keys, values] = kept.seen()?;
            done = next.end;
            if skipped < next.len() {
                let rows = next.start + skipped - unasked..next.end - unasked;
                all.push(View { rows, mask, keys, values, whole: false });
            }
        }
        *self.memory = Memory::Keys(kept);
        self.see(q, all, options)
    }

    /// Attends, and keeps the views if another layer wants them.
    fn see(&mut self, q: &Array, all: Vec<View>, options: &AttentionOptions<'_>) -> Result<Array> {
        let y = attend_views(q, &all, options);
        if let Some(views) = &mut self.views {
            **views = all;
        }
        y
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

/// The rows of a step.
pub struct Batch<'a> {
    spans: Vec<(Range<usize>, &'a mut Sequence)>,
    /// What is inside a layer is computed again for gradients.
    again: bool,
    /// What rows saw in layers whose keys others look at: by layer, then by sequence.
    shared: HashMap<usize, Vec<Vec<View>>>,
    /// The only layer that is run.
    only: Option<Only>,
    /// Layers were told where rows are, or which: what they gave may be right for this step alone.
    told: Cell<bool>,
    /// Where layers look for whose rows they have, and whose those of each sequence are.
    owners: Option<(Arc<Owners>, Vec<usize>)>,
    /// How many of the last rows of each sequence are looked at, where not all are.
    tails: Option<Vec<usize>>,
    /// Layers give those rows alone.
    narrow: bool,
}

/// Layers have the rows of one sequence.
fn one_owner(owners: &Option<(Arc<Owners>, Vec<usize>)>, sequence: usize, rows: &Range<usize>) {
    if let Some((owners, each)) = owners {
        owners.set([(rows.len(), each[sequence])]);
    }
}

/// One layer of a model, run alone.
struct Only {
    layer: usize,
    /// What it gets in place of what the layers before would give.
    rows: Option<Array>,
    /// Layers that were met.
    met: usize,
    /// What went in, and what came out.
    through: Option<[Array; 2]>,
}

impl<'a> Batch<'a> {
    /// Rows in order: for each sequence, how many of them are its own.
    pub fn new(sequences: impl IntoIterator<Item = (usize, &'a mut Sequence)>) -> Batch<'a> {
        let mut spans: Vec<(Range<usize>, &'a mut Sequence)> = Vec::new();
        for (rows, sequence) in sequences {
            let start = spans.last().map_or(0, |s| s.0.end);
            spans.push((start..start + rows, sequence));
        }
        let (shared, told) = (HashMap::new(), Cell::new(false));
        Batch { spans, again: false, shared, only: None, told, owners: None, tails: None, narrow: false }
    }

    /// The same; `owners` is told whose rows layers have, by the owner of each sequence.
    pub(crate) fn owned(mut self, owners: Arc<Owners>, each: Vec<usize>) -> Batch<'a> {
        self.owners = Some((owners, each));
        self.told.set(true);
        self.all_rows();
        self
    }

    /// Whether layers asked for nothing but [`Batch::attend_next`] so far: then a step of as many rows differs in tokens, in positions and in
    /// what is remembered alone.
    pub(crate) fn is_steady(&self) -> bool {
        !self.told.get()
    }

    /// Layers have the rows of all sequences.
    fn all_rows(&self) {
        if let Some((owners, each)) = &self.owners {
            owners.set(self.spans.iter().map(|s| s.0.len()).zip(each.iter().copied()));
        }
    }

    /// Keeps what rows see in `layer` from now on, for [`Batch::each_of`].
    pub fn share(&mut self, layer: usize) {
        self.told.set(true);
        self.shared.insert(layer, vec![Vec::new(); self.spans.len()]);
    }

    /// As [`Batch::each`] for a layer that looks at the keys of `layer`, which was [shared](Batch::share) and is done: `f`
    /// gets rows, the position of the first, and what they see.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn each_of(
        &self,
        layer: usize,
        input: &Array,
        f: impl Fn(&Array, usize, &[View]) -> Result<Array>,
    ) -> Result<Array> {
        self.told.set(true);
        let none = || Error::value(format!("[batch] what rows see in layer {layer} was not kept"));
        let views = self.shared.get(&layer).ok_or_else(none)?;
        let mut results = Vec::with_capacity(self.spans.len());
        for (i, ((rows, sequence), views)) in self.spans.iter().zip(views).enumerate() {
            one_owner(&self.owners, i, rows);
            let own = ops::slice(input, &[(Some(rows.start as i64), Some(rows.end as i64), 1)])?;
            results.push(f(&own, sequence.seen, views)?);
        }
        self.all_rows();
        if results.len() == 1 { Ok(results.swap_remove(0)) } else { ops::concatenate(&results, 0) }
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
        self.told.set(true);
        let all: Vec<i32> = self.spans.iter().flat_map(|(r, s)| (s.seen..s.seen + r.len()).map(|p| p as i32)).collect();
        let n = all.len();
        Array::from_vec(all, &[n])
    }

    /// Of each sequence so many of its last rows, at least one, are looked at when all layers are done.
    pub fn look_at(&mut self, tails: Vec<usize>) {
        self.tails = self.spans.iter().zip(&tails).any(|((rows, _), &tail)| tail < rows.len()).then_some(tails);
    }

    /// The layer that comes is the last one, and knows of [`Batch::looked_at`]: what nobody looks at is not computed from here on.
    pub fn narrow(&mut self) {
        let all = self.again || self.only.is_some() || self.owners.is_some() || !self.shared.is_empty();
        self.narrow = self.tails.is_some() && !all;
    }

    /// Whether the rows that came out of the last layer are those that are looked at alone.
    pub fn is_narrow(&self) -> bool {
        self.narrow
    }

    /// The rows that are looked at, of all rows or of those, once the batch is [narrow](Batch::narrow); before, all.
    ///
    /// # Errors
    /// Fewer rows than that.
    pub fn looked_at(&self, x: &Array) -> Result<Array> {
        let Some(tails) = self.tails.as_ref().filter(|_| self.narrow) else { return Ok(x.clone()) };
        if x.dim(0) == tails.iter().sum::<usize>() {
            return Ok(x.clone());
        }
        let last = |((rows, _), &tail): (&(Range<usize>, &mut Sequence), &usize)| rows.end - tail..rows.end;
        let rows: Vec<Range<usize>> = self.spans.iter().zip(tails).map(last).collect();
        if let [one] = &rows[..] {
            return ops::slice(x, &[(Some(one.start as i64), Some(one.end as i64), 1)]);
        }
        let rows: Vec<i32> = rows.into_iter().flatten().map(|row| row as i32).collect();
        let n = rows.len();
        ops::take(x, &Array::from_vec(rows, &[n]), 0)
    }

    /// Of the rows that are looked at, those of each sequence, once the batch is narrow.
    fn near(&self) -> Option<Vec<Range<usize>>> {
        let mut end = 0;
        let next = |&tail: &usize| {
            end += tail;
            end - tail..end
        };
        self.tails.as_ref().filter(|_| self.narrow).map(|tails| tails.iter().map(next).collect())
    }

    /// Calls `f` for each sequence with its rows of the inputs and what `layer` remembers of it; the results, rows of
    /// the sequence first, are put together again. Inputs may have the rows that are [looked at](Batch::looked_at) alone.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn each(
        &mut self,
        layer: usize,
        inputs: &[&Array],
        mut f: impl FnMut(&[Array], &mut Slot<'_>) -> Result<Array>,
    ) -> Result<Array> {
        self.told.set(true);
        let (alone, all, near) = (self.spans.len() == 1, self.rows(), self.near());
        let mut results = Vec::with_capacity(self.spans.len());
        let mut kept = self.shared.get_mut(&layer).map(|all| all.iter_mut());
        for (i, (rows, sequence)) in self.spans.iter_mut().enumerate() {
            one_owner(&self.owners, i, rows);
            let views = kept.as_mut().and_then(Iterator::next);
            if sequence.layers.len() <= layer {
                sequence.layers.resize_with(layer + 1, Memory::default);
            }
            let own = |a: &Array| near.as_ref().filter(|_| a.dim(0) < all).map_or(rows.clone(), |near| near[i].clone());
            let part =
                |a: &Array, rows: Range<usize>| ops::slice(a, &[(Some(rows.start as i64), Some(rows.end as i64), 1)]);
            let cut = |a: &&Array| if alone { Ok((*a).clone()) } else { part(a, own(a)) };
            let inputs: Vec<Array> = inputs.iter().map(cut).collect::<Result<_>>()?;
            let (at, kv, whole) = (sequence.seen, sequence.kv, sequence.whole);
            let mut slot = Slot { at, memory: &mut sequence.layers[layer], kv, layer, whole, views };
            results.push(f(&inputs, &mut slot)?);
        }
        self.all_rows();
        if alone { Ok(results.swap_remove(0)) } else { ops::concatenate(&results, 0) }
    }

    /// Rows (rows, heads * width) of queries, keys and values where each sequence has one, and what `layer` remembers are
    /// keys and values as they come: all sequences at once. Nothing where that is not so.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn attend_next(&mut self, layer: usize, qkv: [&Array; 3], heads: &CachedHeads<'_>) -> Result<Option<Array>> {
        let [q, k, v] = qkv;
        let window = heads.attention.window;
        let plain = |(rows, sequence): &(Range<usize>, &mut Sequence)| {
            let empty = || Keys::new(window, None, sequence.kv).is_plain();
            let kept = match sequence.layers.get(layer) {
                None | Some(Memory::Empty) => empty(),
                Some(Memory::Keys(keys)) => keys.is_plain() && keys.window() == window,
                Some(Memory::State(_)) => false,
            };
            kept && rows.len() == 1 && !sequence.whole
        };
        let alike = [k, v].iter().all(|a| a.dtype() == q.dtype());
        if !alike || self.shared.contains_key(&layer) || !self.spans.iter().all(plain) {
            return Ok(None);
        }
        let count = heads.heads[1];
        let sizes = [k, v].map(|a| [count, a.dim(-1) / count.max(1)]);
        let (mut caches, mut kept) = (Vec::with_capacity(self.spans.len()), Vec::with_capacity(self.spans.len()));
        for (_, sequence) in &mut self.spans {
            if sequence.layers.len() <= layer {
                sequence.layers.resize_with(layer + 1, Memory::default);
            }
            let mut keys = match std::mem::take(&mut sequence.layers[layer]) {
                Memory::Keys(keys) => keys,
                _ => Keys::new(window, None, sequence.kv),
            };
            let [k, v] = keys.lend(layer, sizes, q.dtype())?;
            caches.push(Cache { position: sequence.seen as i64, seen: keys.used(), keys: k, values: v });
            kept.push(keys);
        }
        let (y, blocks) = attention_with_cache(qkv, heads, caches)?;
        for (((_, sequence), mut keys), blocks) in self.spans.iter_mut().zip(kept).zip(blocks) {
            keys.lent(blocks);
            sequence.layers[layer] = Memory::Keys(keys);
        }
        Ok(Some(y))
    }

    /// From now on values inside layers are computed again for gradients, in place of being kept: less memory for one
    /// more forward pass. For texts that are [`Sequence::whole`].
    pub fn recompute(&mut self) {
        self.again = true;
        self.told.set(true);
    }

    /// From now on only the layer of this number is run, on `rows` if they are given; others give back what they get.
    pub fn only(&mut self, layer: usize, rows: Option<Array>) {
        self.only = Some(Only { layer, rows, met: 0, through: None });
        self.told.set(true);
    }

    /// What went into the [only](Batch::only) layer and what came out; nothing for models that do not run their layers through
    /// [`Batch::layer`].
    pub fn through(&mut self) -> Option<[Array; 2]> {
        self.only.as_mut()?.through.take()
    }

    /// Rows through a layer, `f`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn layer(&mut self, x: &Array, f: impl Fn(&Array, &mut Batch) -> Result<Array>) -> Result<Array> {
        if let Some(mut only) = self.only.take() {
            let here = only.met == only.layer;
            only.met += 1;
            let mut y = x.clone();
            if here {
                let rows = only.rows.take().unwrap_or(y);
                y = f(&rows, self)?;
                only.through = Some([rows, y.clone()]);
            }
            self.only = Some(only);
            return Ok(y);
        }
        if !self.again {
            return f(x, self);
        }
        let rows: Vec<usize> = self.spans.iter().map(|(rows, _)| rows.len()).collect();
        checkpoint(|x: &Array| {
            let mut texts = vec![Sequence::whole(); rows.len()];
            f(x, &mut Batch::new(rows.iter().copied().zip(&mut texts)))
        })(x)
    }

    /// The step is over: its rows count as seen.
    pub fn finish(self) {
        for (rows, sequence) in self.spans {
            sequence.seen += rows.len();
        }
    }
}
