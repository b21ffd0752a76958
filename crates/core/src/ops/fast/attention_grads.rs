//! The gradients of scaled dot-product attention.

use super::attention::{Attention, misfit};
use super::{check_floating, check_shape};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::{self, Rule, expect};
use crate::scalar::Real;
use crate::transforms::decompose::{fold, pull, unfold};
use crate::transforms::{Decompose, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};

/// The gradients of [`Attention`] without array masks, sinks and soft cap, by q, k and v, in one pass. Inputs: q, k, v
/// and the cotangent of the result, of one dtype; outputs like q, k and v. Every query sees a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionGrads {
    /// Factor of the scores.
    pub scale: Real,
    /// The last query sees the last key, and each sees nothing after itself.
    pub causal: bool,
    /// How many of the latest keys a query sees.
    pub window: Option<usize>,
}

impl AttentionGrads {
    /// Whether every query (B, Hq, Tq, D) sees one of the keys (B, Hkv, Tk, D).
    pub(super) fn takes(&self, q: &Array, k: &Array) -> bool {
        let (queries, keys) = (q.shape()[2], k.shape()[2]);
        k.shape()[1] > 0 && keys > 0 && (!self.causal || queries <= keys) && self.window != Some(0)
    }
}

impl Rule for AttentionGrads {
    fn name(&self) -> &'static str {
        "scaled_dot_product_attention_vjp"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let op = self.name();
        expect::count(op, inputs, 4)?;
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        check_floating(op, "q", q)?;
        expect::alike(op, inputs)?;
        let (&[b, hq, tq, d], &[kb, hk, tk, kd], &[vb, hv, tv, dv]) = (q.shape(), k.shape(), v.shape()) else {
            return Err(misfit(op, q, k, v));
        };
        if !(b == kb && b == vb && hk == hv && tk == tv && d == kd && hk > 0 && hq.is_multiple_of(hk)) {
            return Err(misfit(op, q, k, v));
        }
        check_shape(op, "the cotangent", &inputs[3], &[b, hq, tq, dv])?;
        if !self.takes(q, k) {
            return Err(Error::value(format!("[{op}] {tq} queries over {tk} keys: some see none")));
        }
        Ok(inputs[..3].iter().map(|a| Aval::new(a.shape(), a.dtype())).collect())
    }
}

impl Decompose for AttentionGrads {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let forward = Attention {
            scale: self.scale,
            softcap: None,
            causal: self.causal,
            window: self.window,
            mask: false,
            sinks: false,
            blocks: 1,
            dtype: inputs[0].dtype(),
        };
        let site = Site {
            inputs: &inputs[..3],
            outputs: &[],
            cotangents: &[Some(inputs[3].clone())],
            wanted: &[true; 3],
            forward: false,
        };
        let grads = pull(&site, |inputs| forward.decompose(inputs))?;
        grads.into_iter().zip(inputs).map(|(g, a)| g.map_or_else(|| ops::zeros_like(a, None), Ok)).collect()
    }
}

impl Transform for AttentionGrads {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        pull(at, |inputs| self.decompose(inputs))
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        // Lanes are batch rows.
        let inputs = lanes.iter().map(|l| fold(l, size, 0)).collect::<Result<_>>()?;
        Array::apply(self.clone(), inputs)?.iter().map(|a| unfold(a, size, 0)).collect()
    }
}
