//! The gated delta rule: a linear recurrence with a matrix state a head.

use super::{check_floating, check_shape, wide};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{self, Rule, add, astype, expect, multiply, reshape_to, subtract};
use crate::shape::show;
use crate::transforms::decompose::{fold, unfold};
use crate::transforms::trace::tracers;
use crate::transforms::vjp::backward;
use crate::transforms::{Decompose, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// The recurrence over T. Inputs: q, k, v, gamma, beta, then the initial state and the mask where present.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatedDelta {
    /// Whether an initial state is given.
    pub state: bool,
    /// Whether a mask (bool) is given.
    pub mask: bool,
}

impl Rule for GatedDelta {
    fn name(&self) -> &'static str {
        "gated_delta_update"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let op = self.name();
        expect::count(op, inputs, 5 + usize::from(self.state) + usize::from(self.mask))?;
        let [q, k, v, gamma, beta, rest @ ..] = inputs else { return Err(Error::value("[gated_delta_update] inputs")) };
        check_floating(op, "q", q)?;
        let (&[b, t, hk, dk], &[_, _, hv, dv]) = (q.shape(), v.shape()) else {
            let (q, v) = (show(q.shape()), show(v.shape()));
            return Err(Error::shape(format!("[{op}] q {q} and v {v} are not (B,T,Hk,Dk) and (B,T,Hv,Dv)")));
        };
        if hk == 0 || !hv.is_multiple_of(hk) {
            return Err(Error::shape(format!("[{op}] {hv} heads of v are not a multiple of {hk} heads of q")));
        }
        check_shape(op, "k", k, &[b, t, hk, dk])?;
        check_shape(op, "v", v, &[b, t, hv, dv])?;
        check_shape(op, "beta", beta, &[b, t, hv])?;
        let gates: &[usize] = if gamma.ndim() == 4 { &[b, t, hv, dk] } else { &[b, t, hv] };
        check_shape(op, "gamma", gamma, gates)?;
        expect::alike(op, &inputs[..3])?;
        let state = wide(q.dtype());
        for a in [gamma, beta] {
            expect::dtype(op, a, a.dtype() == state)?;
        }
        if self.state {
            check_shape(op, "initial_state", &rest[0], &[b, hv, dv, dk])?;
            expect::dtype(op, &rest[0], rest[0].dtype() == state)?;
        }
        if let (true, Some(mask)) = (self.mask, rest.last()) {
            check_shape(op, "mask", mask, &[b, t])?;
            expect::dtype(op, mask, mask.dtype() == Dtype::Bool)?;
        }
        Ok(smallvec![Aval::new(v.shape(), v.dtype()), Aval::new([b, hv, dv, dk].as_slice(), state)])
    }
}

/// Sizes of a call.
struct Sizes {
    b: usize,
    steps: usize,
    hk: usize,
    /// Heads of v a head of k.
    each: usize,
    dv: usize,
    dk: usize,
}

impl Sizes {
    fn new(inputs: &[Array]) -> Result<Sizes> {
        match (inputs[0].shape(), inputs[2].shape()) {
            (&[b, steps, hk, dk], &[_, _, hv, dv]) => Ok(Sizes { b, steps, hk, each: hv / hk, dv, dk }),
            _ => Err(Error::shape("[gated_delta_update] q and v have four axes")),
        }
    }
}

impl GatedDelta {
    /// q, k, v, gamma, beta as one array a step each, one input after the other, then the first state. States are
    /// (B, Hk, heads of v a head of k, Dv, Dk); the parts broadcast to that.
    fn parts(&self, inputs: &[Array], n: &Sizes) -> Result<Vec<Array>> {
        let wide = wide(inputs[2].dtype());
        let gates = if inputs[3].ndim() == 4 { n.dk } else { 1 };
        let tails = [
            [n.hk, 1, 1, n.dk],
            [n.hk, 1, 1, n.dk],
            [n.hk, n.each, n.dv, 1],
            [n.hk, n.each, 1, gates],
            [n.hk, n.each, 1, 1],
        ];
        let mut parts = Vec::with_capacity(5 * n.steps + 1);
        for (a, tail) in inputs.iter().zip(tails) {
            let shape = [n.b, n.steps].into_iter().chain(tail).collect();
            let a = reshape_to(&astype(a, wide)?, shape)?;
            for t in 0..n.steps {
                parts.push(step(&a, t)?);
            }
        }
        let state = smallvec![n.b, n.hk, n.each, n.dv, n.dk];
        parts.push(match inputs.get(5) {
            Some(first) if self.state => reshape_to(first, state)?,
            _ => ops::full(&state, 0, Some(wide))?,
        });
        Ok(parts)
    }

    fn recur(&self, inputs: &[Array], n: &Sizes, parts: &[Array]) -> Result<Vec<Array>> {
        let (steps, dtype) = (n.steps, inputs[2].dtype());
        let mask = match inputs.last() {
            Some(mask) if self.mask => Some(reshape_to(mask, smallvec![n.b, steps, 1, 1, 1, 1])?),
            _ => None,
        };
        let mut state = parts[5 * steps].clone();
        let mut rows = Vec::with_capacity(steps);
        for t in 0..steps {
            let [q, k, v, gamma, beta] = std::array::from_fn(|i| &parts[i * steps + t]);
            let decayed = multiply(&state, gamma)?;
            let known = ops::sum(&multiply(&decayed, k)?, -1, true)?;
            let change = multiply(&subtract(v, &known)?, beta)?;
            let next = add(&decayed, &multiply(&change, k)?)?;
            let mut y = ops::sum(&multiply(&next, q)?, -1, true)?;
            match &mask {
                Some(mask) => {
                    let keep = step(mask, t)?;
                    y = ops::select(&keep, &y, 0)?;
                    state = ops::select(&keep, &next, &state)?;
                }
                None => state = next,
            }
            rows.push(reshape_to(&y, smallvec![n.b, n.hk * n.each, n.dv])?);
        }
        let y = match rows.is_empty() {
            true => ops::full(inputs[2].shape(), 0, Some(dtype))?,
            false => astype(&ops::stack(&rows, 1)?, dtype)?,
        };
        Ok(vec![y, reshape_to(&state, smallvec![n.b, n.hk * n.each, n.dv, n.dk])?])
    }
}

/// Step `t` of an array (B, T, ...).
fn step(a: &Array, t: usize) -> Result<Array> {
    let t = t as i64;
    ops::squeeze(&ops::slice(a, &[(None, None, 1), (Some(t), Some(t + 1), 1)])?, 1)
}

impl Decompose for GatedDelta {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let n = Sizes::new(inputs)?;
        self.recur(inputs, &n, &self.parts(inputs, &n)?)
    }
}

/// Steps whose states the backward pass holds at once: it begins at the last of them, computed again from the state
/// before them.
const STEPS: usize = 64;

impl GatedDelta {
    /// The gradients of q, k, v, gamma and beta, then of the first state.
    fn pull(&self, inputs: &[Array], cotangents: &[Option<Array>]) -> Result<(Vec<Array>, Option<Array>)> {
        // The inputs are cut into steps before the recurrence is traced: the gradients of the steps are put side by
        // side, where the gradient of each cut would be as long as the whole.
        let n = Sizes::new(inputs)?;
        let parts = tracers(&self.parts(inputs, &n)?)?;
        let mut pulled = backward(&self.recur(inputs, &n, &parts)?, cotangents.to_vec(), &parts)?;
        let hv = n.hk * n.each;
        let first = pulled.pop().flatten().map(|g| reshape_to(&g, smallvec![n.b, hv, n.dv, n.dk])).transpose()?;
        let whole = |(i, a): (usize, &Array)| {
            let range = i * n.steps..(i + 1) * n.steps;
            let each = pulled[range.clone()].iter().zip(&parts[range]);
            let each = each.map(|(g, part)| g.clone().map_or_else(|| ops::zeros_like(part, None), Ok));
            let whole = ops::stack(&each.collect::<Result<Vec<_>>>()?, 1)?;
            reshape_to(&whole, a.shape().into())
        };
        Ok((inputs[..5].iter().enumerate().map(whole).collect::<Result<_>>()?, first))
    }
}

impl Transform for GatedDelta {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let n = Sizes::new(at.inputs)?;
        let mut grads = at.none();
        if n.steps == 0 {
            if self.state {
                grads[5] = at.cotangents[1].clone();
            }
            return Ok(grads);
        }
        let op = GatedDelta { state: true, mask: self.mask };
        let rest = &at.inputs[5..];
        let mut state = match rest.first() {
            Some(first) if self.state => first.clone(),
            _ => ops::full(&[n.b, n.hk * n.each, n.dv, n.dk], 0, Some(wide(at.inputs[2].dtype())))?,
        };
        let cut = |a: &Array, t: usize| {
            let end = n.steps.min(t + STEPS);
            ops::slice(a, &[(None, None, 1), (Some(t as i64), Some(end as i64), 1)])
        };
        // Forward to the state before each run of steps, then backward run by run.
        let mut runs = Vec::new();
        for t in (0..n.steps).step_by(STEPS) {
            let mut run: Vec<Array> = at.inputs[..5].iter().map(|a| cut(a, t)).collect::<Result<_>>()?;
            run.push(state.clone());
            if let (true, Some(mask)) = (self.mask, rest.last()) {
                run.push(cut(mask, t)?);
            }
            if t + STEPS < n.steps {
                state = Array::apply(op.clone(), run.iter().cloned().collect())?[1].clone();
            }
            runs.push((t, run));
        }
        let mut after = at.cotangents[1].clone();
        let mut parts: Vec<Vec<Array>> = vec![Vec::new(); 5];
        for (t, run) in runs.iter().rev() {
            let y = at.cotangents[0].as_ref().map(|g| cut(g, *t)).transpose()?;
            let (pulled, before) = op.pull(run, &[y, after])?;
            parts.iter_mut().zip(pulled).for_each(|(all, g)| all.insert(0, g));
            after = before;
        }
        for (i, parts) in parts.into_iter().enumerate() {
            grads[i] = Some(if let [one] = parts.as_slice() { one.clone() } else { ops::concatenate(&parts, 1)? });
        }
        if self.state {
            grads[5] = after;
        }
        Ok(grads)
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let inputs = lanes.iter().map(|l| fold(l, size, 0)).collect::<Result<_>>()?;
        Array::apply(self.clone(), inputs)?.iter().map(|a| unfold(a, size, 0)).collect()
    }
}

/// For each t: `S = gamma S; d = beta (v - S k); S = S + d k^T; y = S q` (`mx.fast.gated_delta_update`). q, k
/// (B, T, Hk, Dk); v (B, T, Hv, Dv); gamma (B, T, Hv) or (B, T, Hv, Dk); beta (B, T, Hv); state (B, Hv, Dv, Dk) in
/// float32 (float64 where the others are), zero when absent; heads of q and k serve Hv / Hk heads of v each. Where `mask` (B, T) is False, y is 0 and
/// the state stays. Returns y and the state.
///
/// # Errors
/// Shapes that do not fit; dtypes that are not real floating.
pub fn gated_delta_update(
    q: &Array,
    k: &Array,
    v: &Array,
    gamma: &Array,
    beta: &Array,
    initial_state: Option<&Array>,
    mask: Option<&Array>,
) -> Result<[Array; 2]> {
    let op = "gated_delta_update";
    for (what, a) in [("q", q), ("k", k), ("v", v), ("gamma", gamma), ("beta", beta)] {
        check_floating(op, what, a)?;
    }
    let dtype = q.dtype().promote(k.dtype()).promote(v.dtype());
    let mut inputs: Inputs = Inputs::new();
    for a in [q, k, v] {
        inputs.push(astype(a, dtype)?);
    }
    for a in [gamma, beta] {
        inputs.push(astype(a, wide(dtype))?);
    }
    if let Some(s) = initial_state {
        inputs.push(astype(s, wide(dtype))?);
    }
    if let Some(m) = mask {
        inputs.push(astype(m, Dtype::Bool)?);
    }
    let op = GatedDelta { state: initial_state.is_some(), mask: mask.is_some() };
    let outs = Array::apply(op, inputs)?;
    Ok([outs[0].clone(), outs[1].clone()])
}
