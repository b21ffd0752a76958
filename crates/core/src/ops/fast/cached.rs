//! Attention of one more position of each of several sequences, whose keys and values join those of a cache.

use super::attention::{AttentionMask, AttentionOptions, KEY_BLOCK, attention_of_blocks};
use super::rope::{Frequencies, Rope, rope};
use super::{check_floating, check_shape, rms_norm};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{self, Rule, expect, reshape_to};
use crate::scalar::Real;
use crate::shape::show;
use crate::transforms::decompose::{map_each, pull};
use crate::transforms::{Decompose, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

const OP: &str = "attention_with_cache";

/// Norms of heads, positions, the row written into the cache, attention. Inputs: q, k, v (rows, heads * width); the weights
/// of the norms of q and k, frequencies, and sinks where present; then for each row the blocks of its keys and those of
/// its values. Outputs: rows of heads, then for each row the last blocks of keys and of values with the new ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachedAttention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// What is added to the mean squares of heads of q and k, where they are normalised.
    pub norms: Option<[Real; 2]>,
    /// How positions turn q and k.
    pub rope: Option<Rope>,
    /// Factor of the scores.
    pub scale: Real,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<Real>,
    /// How many of the latest keys a query sees.
    pub window: Option<usize>,
    /// Whether there are sinks (heads,).
    pub sinks: bool,
    /// The sequences, one a row.
    pub rows: Vec<CachedRow>,
}

/// The row of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachedRow {
    /// Its position, as rope counts.
    pub position: i64,
    /// Keys that are there.
    pub seen: usize,
    /// Blocks that hold them, with room for one more.
    pub blocks: usize,
}

/// The inputs by their names; arrays, or what arrays hold.
pub struct Parts<'a, T> {
    /// q, k, v.
    pub rows: [&'a T; 3],
    /// Weights of the norms of q and k.
    pub norms: Option<[&'a T; 2]>,
    /// Frequencies of rope.
    pub frequencies: Option<&'a T>,
    /// Sinks.
    pub sinks: Option<&'a T>,
    /// For each row, its blocks of keys and of values.
    pub caches: Vec<[&'a [T]; 2]>,
}

impl CachedAttention {
    /// Inputs before the caches.
    fn plain(&self) -> usize {
        let frequencies = self.rope.as_ref().is_some_and(|rope| rope.base.is_none());
        3 + 2 * usize::from(self.norms.is_some()) + usize::from(frequencies) + usize::from(self.sinks)
    }

    /// Inputs by their names; there are as many as [`Rule::infer`] asks for.
    pub fn parts<'a, T>(&self, inputs: &'a [T]) -> Parts<'a, T> {
        let [q, k, v, rest @ ..] = inputs else { unreachable!("inputs were counted") };
        let mut rest = rest.iter();
        let norms = self.norms.and_then(|_| Some([rest.next()?, rest.next()?]));
        let frequencies = self.rope.as_ref().filter(|rope| rope.base.is_none()).and_then(|_| rest.next());
        let sinks = if self.sinks { rest.next() } else { None };
        let mut rest = rest.as_slice();
        let caches = self.rows.iter().map(|row| {
            let (keys, after) = rest.split_at(row.blocks);
            let (values, after) = after.split_at(row.blocks);
            rest = after;
            [keys, values]
        });
        Parts { rows: [q, k, v], norms, frequencies, sinks, caches: caches.collect() }
    }

    /// The same for rows that are one position further, with one key more.
    pub fn advance(&mut self) {
        for row in &mut self.rows {
            row.position += 1;
            row.seen += 1;
        }
    }

    /// The input that an output starts from: the last block of a cache.
    pub fn updated(&self, output: usize) -> Option<usize> {
        let (row, values) = (output.checked_sub(1)? / 2, output.is_multiple_of(2));
        let before = self.rows[..row].iter().map(|r| 2 * r.blocks).sum::<usize>();
        Some(self.plain() + before + self.rows[row].blocks * (1 + usize::from(values)) - 1)
    }
}

/// Heads and width of rows of `heads` heads.
fn width(what: &str, a: &Array, heads: usize, rows: usize) -> Result<usize> {
    match a.shape() {
        &[n, all] if n == rows && heads > 0 && all.is_multiple_of(heads) => Ok(all / heads),
        shape => {
            Err(Error::shape(format!("[{OP}] {what} of shape {} is not {rows} rows of {heads} heads", show(shape))))
        }
    }
}

impl Rule for CachedAttention {
    fn name(&self) -> &'static str {
        OP
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let blocks = self.rows.iter().try_fold(0usize, |sum, row| sum.checked_add(row.blocks.checked_mul(2)?));
        let count = blocks.and_then(|n| n.checked_add(self.plain()));
        expect::fit(OP, !self.rows.is_empty() && count == Some(inputs.len()), inputs)?;
        let parts = self.parts(inputs);
        let ([q, k, v], n) = (parts.rows, self.rows.len());
        check_floating(OP, "q", q)?;
        let dims = width("q", q, self.heads, n)?;
        let (key, value) = (width("k", k, self.kv_heads, n)?, width("v", v, self.kv_heads, n)?);
        if key != dims || !self.heads.is_multiple_of(self.kv_heads) {
            let (q, k) = (show(q.shape()), show(k.shape()));
            return Err(Error::shape(format!("[{OP}] q {q} and k {k}: {} and {} heads", self.heads, self.kv_heads)));
        }
        expect::alike(OP, &inputs[..3])?;
        for weight in parts.norms.into_iter().flatten() {
            expect::dtype(OP, weight, weight.dtype() == q.dtype())?;
            check_shape(OP, "a norm's weight", weight, &[dims])?;
        }
        if let Some(rope) = &self.rope
            && (rope.dims == 0 || !rope.dims.is_multiple_of(2) || rope.dims > dims)
        {
            return Err(Error::value(format!("[{OP}] {} of {dims} features cannot be turned", rope.dims)));
        }
        if let (Some(frequencies), Some(rope)) = (parts.frequencies, &self.rope) {
            expect::dtype(OP, frequencies, frequencies.dtype() == Dtype::Float32)?;
            check_shape(OP, "freqs", frequencies, &[rope.dims / 2])?;
        }
        if let Some(sinks) = parts.sinks {
            check_floating(OP, "sinks", sinks)?;
            check_shape(OP, "sinks", sinks, &[self.heads])?;
        }
        let mut outs: Avals = smallvec![Aval::new([n, self.heads * value].as_slice(), q.dtype())];
        for (row, cache) in self.rows.iter().zip(parts.caches) {
            for (all, width) in cache.into_iter().zip([dims, value]) {
                let Some(last) = all.last() else {
                    return Err(Error::shape(format!("[{OP}] a cache without blocks")));
                };
                let room = last.shape().get(2).copied().unwrap_or(0);
                let before = (all.len() - 1) * KEY_BLOCK;
                if row.seen < before || row.seen - before >= room.min(KEY_BLOCK) {
                    let seen = row.seen;
                    return Err(Error::shape(format!(
                        "[{OP}] {seen} keys leave no room in blocks up to {before}+{room}"
                    )));
                }
                for (i, block) in all.iter().enumerate() {
                    let rows = if i + 1 == all.len() { room } else { KEY_BLOCK };
                    expect::dtype(OP, block, block.dtype() == q.dtype())?;
                    check_shape(OP, "a block", block, &[1, self.kv_heads, rows, width])?;
                }
                outs.push(Aval::new(last.shape(), last.dtype()));
            }
        }
        Ok(outs)
    }
}

impl Decompose for CachedAttention {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let Parts { rows, norms, frequencies, sinks, caches } = self.parts(inputs);
        let (mut out, mut blocks) = (Vec::new(), Vec::new());
        for (i, (row, [keys, values])) in self.rows.iter().zip(caches).enumerate() {
            let own = |which: usize, heads: usize| {
                let x = ops::slice(rows[which], &[(Some(i as i64), Some(i as i64 + 1), 1)])?;
                let width = x.size() / heads.max(1);
                reshape_to(&x, smallvec![1, heads, 1, width])
            };
            let turned = |which: usize, heads: usize| {
                let mut x = own(which, heads)?;
                if let (Some(eps), Some(weights)) = (self.norms, norms) {
                    x = rms_norm(&x, Some(weights[which]), eps[which].0)?;
                }
                let Some(by) = &self.rope else { return Ok(x) };
                let frequencies = match (by.base, frequencies) {
                    (None, Some(given)) => Frequencies::Given(given),
                    (base, _) => Frequencies::Base(base.map_or(10000.0, |b| b.0)),
                };
                rope(&x, by.dims, by.traditional, frequencies, by.scale.0, row.position)
            };
            let at = (row.seen % KEY_BLOCK) as i64;
            let all = (None, None, 1);
            let joined = |old: &[Array], new: &Array| -> Result<(Vec<Array>, Array)> {
                let (last, full) = old.split_last().ok_or_else(|| Error::shape(format!("[{OP}] no blocks")))?;
                let last = ops::slice_update(last, new, &[all, all, (Some(at), Some(at + 1), 1)])?;
                let seen = ops::slice(&last, &[all, all, (None, Some(at + 1), 1)])?;
                Ok((full.iter().cloned().chain([seen]).collect(), last))
            };
            let (keys, last_keys) = joined(keys, &turned(1, self.kv_heads)?)?;
            let (values, last_values) = joined(values, &own(2, self.kv_heads)?)?;
            let options = AttentionOptions {
                scale: self.scale.0,
                mask: AttentionMask::Causal,
                window: self.window,
                softcap: self.softcap.map(|cap| cap.0),
                sinks,
            };
            let y = attention_of_blocks(&turned(0, self.heads)?, &keys, &values, &options)?;
            let width = y.size();
            out.push(reshape_to(&y, smallvec![1, width])?);
            blocks.extend([last_keys, last_values]);
        }
        blocks.insert(0, ops::concatenate(&out, 0)?);
        Ok(blocks)
    }
}

impl Transform for CachedAttention {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        pull(at, |inputs| self.decompose(inputs))
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        map_each(&self.clone().into(), lanes, size)
    }
}

/// What a layer does to heads on their way into [`attention_with_cache`].
#[derive(Clone, Copy, Debug)]
pub struct CachedHeads<'a> {
    /// Heads of queries, and of keys and values.
    pub heads: [usize; 2],
    /// Weights and eps of root-mean-square norms of each head of q and of k.
    pub norms: Option<[(&'a Array, f64); 2]>,
    /// Features that turn, whether pairs are neighbours, by which frequencies, and the factor of positions: see [`rope`].
    pub rope: Option<(usize, bool, Frequencies<'a>, f64)>,
    /// The rest; the mask is not looked at.
    pub attention: AttentionOptions<'a>,
}

/// What is remembered of one sequence.
#[derive(Debug)]
pub struct Cache {
    /// The position of its new row.
    pub position: i64,
    /// Keys that are there.
    pub seen: usize,
    /// Blocks (1, heads, [`KEY_BLOCK`], width) of keys; the last may be shorter, and has room for one more.
    pub keys: Vec<Array>,
    /// As many of values.
    pub values: Vec<Array>,
}

/// One row of q (rows, heads * width), k and v for each of `caches`: heads are normalised and turned, k and v written into
/// the last block of their sequence (in place where nobody else holds it), and q attends to all keys of its sequence. Returns
/// the rows (rows, heads * width of v), and the last blocks of keys and values of each sequence.
///
/// The same bits as [`rms_norm`], [`rope`], an update of the blocks and [`attention_of_blocks`] one after the other.
///
/// # Errors
/// Shapes that do not fit; dtypes that differ; a last block without room.
pub fn attention_with_cache(
    [q, k, v]: [&Array; 3],
    heads: &CachedHeads<'_>,
    caches: Vec<Cache>,
) -> Result<(Array, Vec<[Array; 2]>)> {
    let mut inputs: Inputs = smallvec![q.clone(), k.clone(), v.clone()];
    inputs.extend(heads.norms.iter().flatten().map(|(weight, _)| (*weight).clone()));
    let rope = heads.rope.map(|(dims, traditional, frequencies, scale)| {
        let base = match frequencies {
            Frequencies::Base(base) => Some(Real(base)),
            Frequencies::Given(all) => {
                inputs.push(all.clone());
                None
            }
        };
        Rope { dims, traditional, base, scale: Real(scale) }
    });
    inputs.extend(heads.attention.sinks.cloned());
    let mut rows = Vec::with_capacity(caches.len());
    for Cache { position, seen, keys, values } in caches {
        if keys.len() != values.len() {
            let (k, v) = (keys.len(), values.len());
            return Err(Error::shape(format!("[{OP}] {k} blocks of keys and {v} of values")));
        }
        rows.push(CachedRow { position, seen, blocks: keys.len() });
        inputs.extend(keys.into_iter().chain(values));
    }
    let op = CachedAttention {
        heads: heads.heads[0],
        kv_heads: heads.heads[1],
        norms: heads.norms.map(|all| all.map(|(_, eps)| Real(eps))),
        rope,
        scale: Real(heads.attention.scale),
        softcap: heads.attention.softcap.map(Real),
        window: heads.attention.window,
        sinks: heads.attention.sinks.is_some(),
        rows,
    };
    let mut outs = Array::apply(op, inputs)?.into_iter();
    let y = outs.next().ok_or_else(|| Error::shape(format!("[{OP}] no rows")))?;
    let several = outs.len() > 2;
    // What holds one output of a node holds them all: blocks of several sequences become arrays of their own.
    let own = |a: Array| if several { ops::contiguous(&a, false) } else { Ok(a) };
    let mut blocks = Vec::with_capacity(outs.len() / 2);
    while let (Some(k), Some(v)) = (outs.next(), outs.next()) {
        blocks.push([own(k)?, own(v)?]);
    }
    Ok((y, blocks))
}
