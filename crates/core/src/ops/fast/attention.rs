//! Scaled dot-product attention.

use super::{check_floating, check_shape};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{Rule, astype, broadcast_to};
use crate::scalar::Real;
use crate::shape::{Shape, show};
use smallvec::smallvec;

/// softmax(scale * q * k^T + mask) * v in one pass. Inputs: q, k, v, then mask and sinks where present.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Element type of the result.
    pub dtype: Dtype,
}

impl Rule for Attention {
    fn name(&self) -> &'static str {
        "scaled_dot_product_attention"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let mut shape: Shape = inputs[0].shape().into();
        shape[3] = inputs[2].shape()[3];
        Ok(smallvec![Aval::new(shape, self.dtype)])
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
    let op = "scaled_dot_product_attention";
    for (what, a) in [("q", q), ("k", k), ("v", v)] {
        check_floating(op, what, a)?;
    }
    let fits = match (q.shape(), k.shape(), v.shape()) {
        (&[b, hq, _, d], &[kb, hk, tk, kd], &[vb, hv, tv, _]) => {
            b == kb && b == vb && hk == hv && tk == tv && d == kd && (hk > 0 && hq.is_multiple_of(hk) || hq == 0)
        }
        _ => false,
    };
    if !fits {
        let (q, k, v) = (show(q.shape()), show(k.shape()), show(v.shape()));
        return Err(Error::shape(format!(
            "[{op}] q {q}, k {k}, v {v} are not (B,Hq,Tq,D), (B,Hkv,Tk,D), (B,Hkv,Tk,Dv) with Hq a multiple of Hkv"
        )));
    }
    let dtype = q.dtype().promote(k.dtype()).promote(v.dtype());
    let mut inputs: Inputs = smallvec![q.clone(), k.clone(), v.clone()];
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
            let full = [q.shape()[0], q.shape()[1], q.shape()[2], k.shape()[2]];
            let m = if m.dtype() == Dtype::Bool { m.clone() } else { astype(m, dtype)? };
            inputs.push(broadcast_to(&m, &full)?);
            mask = true;
        }
    }
    if let Some(sinks) = options.sinks {
        check_floating(op, "sinks", sinks)?;
        check_shape(op, "sinks", sinks, &[q.shape()[1]])?;
        inputs.push(sinks.clone());
    }
    let op = Attention {
        scale: Real(options.scale),
        softcap: options.softcap.map(Real),
        causal,
        window: options.window,
        mask,
        sinks: options.sinks.is_some(),
        dtype,
    };
    Array::apply1(op, inputs)
}
