//! Scaled dot-product attention.

use super::attention_grads::AttentionGrads;
use super::{check_floating, check_shape, wide};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{self, Rule, astype, broadcast_to, expect, matmul, multiply, reshape_to};
use crate::scalar::Real;
use crate::shape::show;
use crate::transforms::decompose::{fold, pull, unfold};
use crate::transforms::{Decompose, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use std::ops::Range;

/// Keys of a block, where keys and values come in several.
pub const KEY_BLOCK: usize = 512;

/// Queries that gradients by the formula take at a time.
const QUERY_ROWS: usize = 128;

/// softmax(scale * q * k^T + mask) * v in one pass. Inputs: q, the blocks of k, those of v, then mask and sinks where
/// present.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Factor of the scores.
    pub scale: Real,
    /// Scores become `cap * tanh(score / cap)` before masks.
    pub softcap: Option<Real>,
    /// The last query sees the last key, and each sees nothing after itself.
    pub causal: bool,
    /// How many of the latest keys a query sees.
    pub window: Option<usize>,
    /// Whether the fourth input is a mask, broadcast to (B, Hq, Tq, Tk).
    pub mask: bool,
    /// Whether the last input holds sinks (Hq,).
    pub sinks: bool,
    /// How many arrays hold k, and v, one after the other: all but the last of [`KEY_BLOCK`] keys.
    pub blocks: usize,
    /// Element type of the result.
    pub dtype: Dtype,
}

impl Rule for Attention {
    fn name(&self) -> &'static str {
        "scaled_dot_product_attention"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let op = self.name();
        expect::fit(op, (1..=inputs.len()).contains(&self.blocks), inputs)?;
        expect::count(op, inputs, 1 + 2 * self.blocks + usize::from(self.mask) + usize::from(self.sinks))?;
        let (q, keys, values) = self.parts(inputs);
        let (k, v) = (&keys[0], &values[0]);
        for (what, a) in [("q", q), ("k", k), ("v", v)] {
            check_floating(op, what, a)?;
        }
        let (&[b, hq, tq, d], &[kb, hk, _, kd], &[vb, hv, _, dv]) = (q.shape(), k.shape(), v.shape()) else {
            return Err(misfit(self.name(), q, k, v));
        };
        let heads = hk > 0 && hq.is_multiple_of(hk) || hq == 0;
        if !(b == kb && b == vb && hk == hv && d == kd && heads) {
            return Err(misfit(self.name(), q, k, v));
        }
        let mut tk = 0;
        for (i, (k, v)) in keys.iter().zip(values).enumerate() {
            let fits = |a: &Array, first: &Array| {
                matches!(a.shape(), &[ab, ah, _, ad] if [ab, ah, ad] == [b, hk, first.dim(3)])
                    && a.dtype() == first.dtype()
            };
            let whole = i + 1 == self.blocks || k.ndim() == 4 && k.dim(2) == KEY_BLOCK;
            if !(fits(k, &keys[0]) && fits(v, &values[0]) && k.dim(2) == v.dim(2) && whole) {
                return Err(misfit(self.name(), q, k, v));
            }
            tk += k.dim(2);
        }
        expect::dtype(op, q, self.dtype == q.dtype().promote(k.dtype()).promote(v.dtype()))?;
        if self.mask {
            let mask = &inputs[1 + 2 * self.blocks];
            expect::dtype(op, mask, [Dtype::Bool, self.dtype].contains(&mask.dtype()))?;
            check_shape(op, "mask", mask, &[b, hq, tq, tk])?;
        }
        if self.sinks {
            let sinks = &inputs[inputs.len() - 1];
            check_floating(op, "sinks", sinks)?;
            check_shape(op, "sinks", sinks, &[hq])?;
        }
        Ok(smallvec![Aval::new([b, hq, tq, dv].as_slice(), self.dtype)])
    }
}

pub(super) fn misfit(op: &str, q: &Array, k: &Array, v: &Array) -> Error {
    let (q, k, v) = (show(q.shape()), show(k.shape()), show(v.shape()));
    let want = "(B,Hq,Tq,D), (B,Hkv,Tk,D), (B,Hkv,Tk,Dv) with Hq a multiple of Hkv";
    Error::shape(format!("[{op}] q {q}, k {k}, v {v} are not {want}"))
}

impl Attention {
    /// Queries, blocks of keys, blocks of values.
    fn parts<'a>(&self, inputs: &'a [Array]) -> (&'a Array, &'a [Array], &'a [Array]) {
        let (keys, rest) = inputs[1..].split_at(self.blocks);
        (&inputs[0], keys, &rest[..self.blocks])
    }

    /// The same with keys and values in one array each.
    fn joined(&self, inputs: &[Array]) -> Result<(Attention, Vec<Array>)> {
        let (q, keys, values) = self.parts(inputs);
        let whole = |all: &[Array]| if all.len() == 1 { Ok(all[0].clone()) } else { ops::concatenate(all, 2) };
        let mut joined = vec![q.clone(), whole(keys)?, whole(values)?];
        joined.extend_from_slice(&inputs[1 + 2 * self.blocks..]);
        Ok((Attention { blocks: 1, ..self.clone() }, joined))
    }

    /// Which of `keys` the queries `rows`, of so many, see by their places: (rows, Tk), or `None` where they see all.
    fn seen(&self, rows: &Range<usize>, queries: usize, keys: usize) -> Result<Option<Array>> {
        let places = |start: i64, n: usize| ops::arange(start, start + n as i64, 1, Some(Dtype::Int64));
        let at = ops::expand_dims(&places(keys as i64 - queries as i64 + rows.start as i64, rows.len())?, 1)?;
        let key = places(0, keys)?;
        let before = self.causal.then(|| ops::less_equal(&key, &at)).transpose()?;
        // A window longer than any distance sees all.
        let window = self.window.map(|w| w.min(queries + keys + 1) as i64);
        let near = window.map(|w| ops::greater(&ops::add(&key, w)?, &at)).transpose()?;
        Ok(match (before, near) {
            (Some(a), Some(b)) => Some(ops::logical_and(&a, &b)?),
            (a, b) => a.or(b),
        })
    }

    /// Scores of the queries `rows`, of so many, after cap and masks, (B, Hq, rows, Tk), in f32 or f64.
    fn scores(&self, q: &Array, k: &Array, mask: Option<&Array>, rows: &Range<usize>, queries: usize) -> Result<Array> {
        let wide = wide(self.dtype);
        let (&[b, hq, tq, d], &[_, hk, tk, _]) = (q.shape(), k.shape()) else {
            return Err(Error::shape("[scaled_dot_product_attention] q and k have four axes"));
        };
        // Query heads that share keys are rows of one product.
        let joined = smallvec![b, hk, hq / hk.max(1) * tq, d];
        let q = reshape_to(&multiply(&astype(q, wide)?, self.scale.0)?, joined)?;
        let mut scores = matmul(&q, &ops::matrix_transpose(&astype(k, wide)?)?)?;
        if let Some(cap) = self.softcap {
            scores = multiply(&ops::tanh(&ops::divide(&scores, cap.0)?)?, cap.0)?;
        }
        scores = reshape_to(&scores, smallvec![b, hq, tq, tk])?;
        let mut keep = self.seen(rows, queries, tk)?;
        match mask {
            Some(m) if m.dtype() == Dtype::Bool => {
                keep = Some(match keep {
                    Some(seen) => ops::logical_and(&seen, m)?,
                    None => m.clone(),
                });
            }
            Some(m) => scores = ops::add(&scores, &astype(m, wide)?)?,
            None => {}
        }
        let lowest = if wide == Dtype::Float64 { f64::MIN } else { f32::MIN.into() };
        keep.map_or(Ok(scores.clone()), |keep| ops::select(&keep, &scores, lowest))
    }
}

impl Attention {
    /// What the queries `rows` of so many give: q, k, v, mask and sinks, of which q and mask hold these rows alone.
    fn formula(&self, inputs: &[Array], rows: Range<usize>, queries: usize) -> Result<Array> {
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        let scores = self.scores(q, k, self.mask.then(|| &inputs[3]), &rows, queries)?;
        let weights = match inputs.last() {
            Some(sinks) if self.sinks => {
                let sinks = reshape_to(&astype(sinks, scores.dtype())?, smallvec![1, sinks.size(), 1, 1])?;
                let top = ops::stop_gradient(&ops::maximum(&ops::max(&scores, -1, true)?, &sinks)?)?;
                let (own, sunk) = (ops::exp(&ops::subtract(&scores, &top)?)?, ops::exp(&ops::subtract(&sinks, &top)?)?);
                ops::divide(&own, &ops::add(&ops::sum(&own, -1, true)?, &sunk)?)?
            }
            _ => ops::softmax(&scores, -1)?,
        };
        let (&[b, hq, tq, tk], &[_, hk, _, dv]) = (weights.shape(), v.shape()) else {
            return Err(Error::shape("[scaled_dot_product_attention] v has four axes"));
        };
        let weights = reshape_to(&weights, smallvec![b, hk, hq / hk.max(1) * tq, tk])?;
        let out = matmul(&weights, &astype(v, weights.dtype())?)?;
        astype(&reshape_to(&out, smallvec![b, hq, tq, dv])?, self.dtype)
    }

    /// The gradients by the formula, some rows of queries after the others: memory grows with the number of keys, not
    /// with its product with that of queries.
    fn pull_rows(&self, at: &Site<'_>) -> Result<Grads> {
        let (op, joined) = self.joined(at.inputs)?;
        let op = Attention { dtype: wide(self.dtype), ..op };
        let queries = joined[0].shape()[2];
        let exact = |a: &Array| if a.dtype().is_floating() { astype(a, op.dtype) } else { Ok(a.clone()) };
        let inputs: Vec<Array> = joined.iter().map(exact).collect::<Result<_>>()?;
        let cotangent = astype(&at.cotangent(0)?, op.dtype)?;
        // q and the mask lie along the queries; what the others get is added up.
        let along = |i: usize| i == 0 || self.mask && i == 3;
        let mut parts: Vec<Vec<Array>> = vec![Vec::new(); inputs.len()];
        for first in (0..queries).step_by(QUERY_ROWS) {
            let rows = first..queries.min(first + QUERY_ROWS);
            let whole = (None, None, 1);
            let cut = (Some(rows.start as i64), Some(rows.end as i64), 1);
            let cut = |a: &Array| ops::slice(a, &[whole, whole, cut]);
            let own = inputs.iter().enumerate().map(|(i, a)| if along(i) { cut(a) } else { Ok(a.clone()) });
            let own: Vec<Array> = own.collect::<Result<_>>()?;
            let wanted = vec![true; own.len()];
            let site = Site {
                inputs: &own,
                outputs: &[],
                cotangents: &[Some(cut(&cotangent)?)],
                wanted: &wanted,
                forward: false,
            };
            let grads = pull(&site, |inputs| Ok(vec![op.formula(inputs, rows.clone(), queries)?]))?;
            for (i, grad) in grads.into_iter().enumerate().filter(|(i, _)| inputs[*i].dtype().is_floating()) {
                let grad = grad.map_or_else(|| ops::zeros_like(&own[i], None), Ok)?;
                match parts[i].first_mut() {
                    Some(sum) if !along(i) => *sum = ops::add(&*sum, &grad)?,
                    _ => parts[i].push(grad),
                }
            }
        }
        let whole = |parts: Vec<Array>| match parts.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            all => ops::concatenate(all, 2).map(Some),
        };
        let mut whole = parts.into_iter().map(whole).collect::<Result<Vec<_>>>()?.into_iter();
        // Keys and values in blocks get their parts of the gradients.
        let blocks = |grad: Option<Array>| -> Result<Vec<Option<Array>>> {
            match grad {
                Some(grad) if self.blocks > 1 => {
                    let bounds: Vec<i64> = (1..self.blocks).map(|i| (i * KEY_BLOCK) as i64).collect();
                    Ok(ops::split(&grad, bounds, 2)?.into_iter().map(Some).collect())
                }
                grad => Ok(vec![grad; self.blocks]),
            }
        };
        let mut grads = vec![whole.next().flatten()];
        grads.extend(blocks(whole.next().flatten())?);
        grads.extend(blocks(whole.next().flatten())?);
        grads.extend(whole);
        let cast = |(g, a): (Option<Array>, &Array)| g.map(|g| astype(&g, a.dtype())).transpose();
        grads.into_iter().zip(at.inputs).map(cast).collect()
    }
}

impl Decompose for Attention {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let (op, inputs) = self.joined(inputs)?;
        let queries = inputs[0].shape()[2];
        Ok(vec![op.formula(&inputs, 0..queries, queries)?])
    }
}

impl Transform for Attention {
    /// By [`AttentionGrads`], or by the formula for what that op does not know: array masks, sinks, a soft cap, and
    /// queries that see no key.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let plain = self.blocks == 1 && !self.mask && !self.sinks && self.softcap.is_none();
        let op = AttentionGrads { scale: self.scale, causal: self.causal, window: self.window };
        if !plain || !op.takes(&at.inputs[0], &at.inputs[1]) {
            return self.pull_rows(at);
        }
        let inputs =
            at.inputs.iter().chain([&at.cotangent(0)?]).map(|a| astype(a, self.dtype)).collect::<Result<_>>()?;
        Ok(Array::apply(op, inputs)?.into_iter().map(Some).collect())
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let (last, heads) = (lanes.len() - 1, self.sinks && lanes[lanes.len() - 1].mapped);
        // Lanes are batch rows; with sinks of their own they are heads. Key heads follow: (l Hq + h) / G = l Hkv + h / G.
        let axis = usize::from(heads);
        let join = |(i, lane): (usize, &Lane)| match self.sinks && i == last {
            true if heads => fold(lane, size, 0),
            true => Ok(lane.array.clone()),
            false => fold(lane, size, axis),
        };
        let inputs = lanes.iter().enumerate().map(join).collect::<Result<_>>()?;
        Ok(vec![unfold(&Array::apply1(self.clone(), inputs)?, size, axis)?])
    }
}

/// Which keys a query may look at, beside [`AttentionOptions::window`].
#[derive(Clone, Copy, Debug, Default)]
pub enum AttentionMask<'a> {
    /// All.
    #[default]
    None,
    /// Keys up to the query's own place; the last query is at the last key.
    Causal,
    /// Broadcast to (B, Hq, Tq, Tk): bool (True = keep) or numbers that are added to the scores.
    Array(&'a Array),
}

/// What attention does beside its three inputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'a> {
    /// Factor of the scores; usually `1/sqrt(D)`.
    pub scale: f64,
    /// Mask.
    pub mask: AttentionMask<'a>,
    /// How many of the latest keys a query sees, its own included: a sliding window.
    pub window: Option<usize>,
    /// Soft cap of the scores.
    pub softcap: Option<f64>,
    /// One extra logit a query head that takes part in the normalisation only: shape (Hq,).
    pub sinks: Option<&'a Array>,
}

/// Attention of q (B, Hq, Tq, D) over k (B, Hkv, Tk, D) and v (B, Hkv, Tk, Dv) (`mx.fast.scaled_dot_product_attention`).
/// Hq is a multiple of Hkv; query head h uses key head `h * Hkv / Hq`. The result has the dtypes promoted; no matrix of
/// scores is made. Under a bool mask a row without any key averages all values.
///
/// # Errors
/// Shapes that do not fit; dtypes that are not real floating; an additive mask that does not promote to the result.
pub fn scaled_dot_product_attention(q: &Array, k: &Array, v: &Array, options: &AttentionOptions<'_>) -> Result<Array> {
    attention_of_blocks(q, std::slice::from_ref(k), std::slice::from_ref(v), options)
}

/// [`scaled_dot_product_attention`] of keys and values that lie in several arrays one after the other, as in a cache: all
/// but the last of [`KEY_BLOCK`] keys.
///
/// # Errors
/// As there; blocks of another length; none.
pub fn attention_of_blocks(
    q: &Array,
    keys: &[Array],
    values: &[Array],
    options: &AttentionOptions<'_>,
) -> Result<Array> {
    let op = "scaled_dot_product_attention";
    let ([k, ..], [v, ..]) = (keys, values) else { return Err(Error::shape(format!("[{op}] no keys"))) };
    let dtype = q.dtype().promote(k.dtype()).promote(v.dtype());
    let mut inputs: Inputs = smallvec![q.clone()];
    inputs.extend(keys.iter().chain(values).cloned());
    let mut causal = false;
    let mut mask = false;
    match options.mask {
        AttentionMask::None => {}
        AttentionMask::Causal => causal = true,
        AttentionMask::Array(m) => {
            if m.dtype() != Dtype::Bool && m.dtype().promote(dtype) != dtype {
                let d = m.dtype();
                return Err(Error::dtype(format!("[{op}] a mask of {d} does not promote to the result's {dtype}")));
            }
            let &[b, hq, tq, _] = q.shape() else { return Err(misfit(op, q, k, v)) };
            let tk = keys.iter().map(|k| k.shape().get(2).copied().unwrap_or(0)).sum();
            let m = if m.dtype() == Dtype::Bool { m.clone() } else { astype(m, dtype)? };
            inputs.push(broadcast_to(&m, &[b, hq, tq, tk])?);
            mask = true;
        }
    }
    if let Some(sinks) = options.sinks {
        inputs.push(sinks.clone());
    }
    let op = Attention {
        scale: Real(options.scale),
        softcap: options.softcap.map(Real),
        causal,
        window: options.window,
        mask,
        sinks: options.sinks.is_some(),
        blocks: keys.len(),
        dtype,
    };
    Array::apply1(op, inputs)
}
