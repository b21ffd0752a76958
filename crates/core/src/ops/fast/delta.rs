//! The gated delta rule: a linear recurrence with a matrix state a head.

use super::{check_floating, check_shape};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{Rule, astype};
use crate::shape::{Shape, show};
use smallvec::smallvec;

/// The recurrence over T. Inputs: q, k, v, gamma, beta, then the initial state and the mask where present.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatedDelta {
    /// Whether an initial state (float32) is given.
    pub state: bool,
    /// Whether a mask (bool) is given.
    pub mask: bool,
}

impl Rule for GatedDelta {
    fn name(&self) -> &'static str {
        "gated_delta_update"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let (q, v) = (&inputs[0], &inputs[2]);
        let (b, hv, dv, dk) = (v.shape()[0], v.shape()[2], v.shape()[3], q.shape()[3]);
        let state: Shape = smallvec![b, hv, dv, dk];
        Ok(smallvec![Aval::new(v.shape(), v.dtype()), Aval::new(state, Dtype::Float32)])
    }
}

/// For each t: `S = gamma S; d = beta (v - S k); S = S + d k^T; y = S q` (`mx.fast.gated_delta_update`). q, k
/// (B, T, Hk, Dk); v (B, T, Hv, Dv); gamma (B, T, Hv) or (B, T, Hv, Dk); beta (B, T, Hv); state (B, Hv, Dv, Dk) in
/// float32, zero when absent; heads of q and k serve Hv / Hk heads of v each. Where `mask` (B, T) is False, y is 0 and
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
    if gamma.ndim() == 4 {
        check_shape(op, "gamma", gamma, &[b, t, hv, dk])?;
    } else {
        check_shape(op, "gamma", gamma, &[b, t, hv])?;
    }
    let dtype = q.dtype().promote(k.dtype()).promote(v.dtype());
    let mut inputs: Inputs = Inputs::new();
    for a in [q, k, v] {
        inputs.push(astype(a, dtype)?);
    }
    for a in [gamma, beta] {
        inputs.push(astype(a, Dtype::Float32)?);
    }
    if let Some(s) = initial_state {
        check_shape(op, "initial_state", s, &[b, hv, dv, dk])?;
        inputs.push(astype(s, Dtype::Float32)?);
    }
    if let Some(m) = mask {
        check_shape(op, "mask", m, &[b, t])?;
        inputs.push(astype(m, Dtype::Bool)?);
    }
    let op = GatedDelta { state: initial_state.is_some(), mask: mask.is_some() };
    let outs = Array::apply(op, inputs)?;
    Ok([outs[0].clone(), outs[1].clone()])
}
