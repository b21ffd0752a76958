//! Gated delta nets: a convolution of queries, keys and values, then a linear recurrence with a matrix for each head.

use super::DepthwiseConv;
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{gated_delta_update, rms_norm};
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::{silu, softplus};
use lapis_nn::{Layer, Linear, Module, Param, RMSNorm};

/// Sizes of a gated delta net.
#[derive(Clone, Copy, Debug)]
pub struct DeltaSizes {
    /// Of rows.
    pub width: usize,
    /// Heads of queries and keys, and their width.
    pub keys: [usize; 2],
    /// Heads of values, and their width.
    pub values: [usize; 2],
    /// Rows that the convolution sees.
    pub kernel: usize,
    /// Added to what the norm divides by.
    pub eps: f64,
}

/// To everything that the recurrence takes.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub enum DeltaInputs {
    /// For each head of keys, queries, keys, values and gates of its own; and the two numbers of each head of values.
    Fused {
        /// Queries, keys, values and gates.
        in_proj_qkvz: Linear,
        /// How much of a row is written, and how fast the matrix fades.
        in_proj_ba: Linear,
    },
    /// Each of its own.
    Apart {
        /// Queries, keys and values.
        in_proj_qkv: Linear,
        /// Gates of the result.
        in_proj_z: Linear,
        /// How much of a row is written.
        in_proj_b: Linear,
        /// How fast the matrix fades.
        in_proj_a: Linear,
    },
}

/// A gated delta net.
#[derive(Module, Clone)]
pub struct DeltaNet {
    /// Of queries, keys and values.
    pub conv1d: DepthwiseConv,
    /// To everything that the recurrence takes.
    #[flatten]
    pub inputs: DeltaInputs,
    /// (heads of values).
    pub dt_bias: Param,
    /// Logarithm of how fast the matrix fades: (heads of values).
    #[name = "A_log"]
    pub a_log: Param,
    /// Of each head of the result, before its gate.
    pub norm: RMSNorm,
    /// Back.
    pub out_proj: Linear,
    #[plain]
    sizes: DeltaSizes,
}

impl DeltaNet {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`]; heads of values that are no multiple of those of keys.
    pub fn load(at: &At, s: DeltaSizes) -> Result<DeltaNet> {
        let ([hk, dk], [hv, dv]) = (s.keys, s.values);
        if hk == 0 || !hv.is_multiple_of(hk) || dk == 0 {
            let text = format!("linear_num_value_heads, {hv}, is no multiple of linear_num_key_heads, {hk}");
            return Err(Error::value(format!("[load] config.json: {text}")));
        }
        let (key, value) = (hk * dk, hv * dv);
        let inputs = if at.has("in_proj_qkv.weight") {
            DeltaInputs::Apart {
                in_proj_qkv: at.linear("in_proj_qkv", s.width, 2 * key + value, false)?,
                in_proj_z: at.linear("in_proj_z", s.width, value, false)?,
                in_proj_b: at.linear("in_proj_b", s.width, hv, false)?,
                in_proj_a: at.linear("in_proj_a", s.width, hv, false)?,
            }
        } else {
            DeltaInputs::Fused {
                in_proj_qkvz: at.linear("in_proj_qkvz", s.width, 2 * (key + value), false)?,
                in_proj_ba: at.linear("in_proj_ba", s.width, 2 * hv, false)?,
            }
        };
        Ok(DeltaNet {
            conv1d: DepthwiseConv::load(&at.at("conv1d"), 2 * key + value, s.kernel, false)?,
            inputs,
            dt_bias: at.param("dt_bias", &[hv])?,
            a_log: at.param("A_log", &[hv])?,
            norm: at.rms_norm("norm", dv, s.eps)?,
            out_proj: at.linear("out_proj", value, s.width, false)?,
            sizes: s,
        })
    }

    /// Rows of queries, keys and values together; gates; the two numbers of each head, b and a.
    fn project(&self, x: &Array) -> Result<[Array; 4]> {
        let ([hk, dk], [hv, dv]) = (self.sizes.keys, self.sizes.values);
        let rows = x.dim(0) as i64;
        match &self.inputs {
            DeltaInputs::Apart { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a } => {
                Ok([in_proj_qkv.forward(x)?, in_proj_z.forward(x)?, in_proj_b.forward(x)?, in_proj_a.forward(x)?])
            }
            DeltaInputs::Fused { in_proj_qkvz, in_proj_ba } => {
                let cut = |x: Array, borders: Vec<usize>| -> Result<Vec<Array>> {
                    let x = ops::reshape(&x, &[rows, hk as i64, -1])?;
                    let parts = ops::split(&x, borders.into_iter().map(|n| n as i64).collect::<Vec<_>>(), -1)?;
                    parts.iter().map(|p| ops::reshape(p, &[rows, -1])).collect()
                };
                let mut parts = cut(in_proj_qkvz.forward(x)?, vec![dk, 2 * dk, 2 * dk + hv / hk * dv])?;
                let gates = parts.pop();
                let mut numbers = cut(in_proj_ba.forward(x)?, vec![hv / hk])?;
                match (gates, numbers.pop(), numbers.pop()) {
                    (Some(z), Some(a), Some(b)) => Ok([ops::concatenate(&parts, -1)?, z, b, a]),
                    _ => Err(Error::shape("[delta_net] four parts")),
                }
            }
        }
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let ([hk, dk], [hv, dv]) = (self.sizes.keys, self.sizes.values);
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let [qkv, z, b, a] = self.project(x)?;
        let beta = ops::sigmoid(&b)?;
        let fade = softplus(&ops::add(&a, self.dt_bias.value())?)?;
        let gamma = ops::exp(&ops::negative(&ops::multiply(ops::exp(&wide(&self.a_log)?)?, wide(&fade)?)?)?)?;
        let y = batch.each(layer, &[&qkv, &gamma, &beta], |rows, slot| {
            let kept = slot.state();
            let (qkv, tail) = self.conv1d.forward(&rows[0], kept.and_then(|s| s.first()))?;
            let borders = vec![(hk * dk) as i64, (2 * hk * dk) as i64];
            let parts = ops::split(&silu(&qkv)?, borders, -1)?;
            let [q, k, v] = &parts[..] else { return Err(Error::shape("[delta_net] three parts")) };
            let heads = |x: &Array, h: usize| ops::reshape(x, &[1, x.dim(0) as i64, h as i64, -1]);
            // Of length one; the epsilon is that of the sum of squares.
            let root = (dk as f64).powf(-0.5);
            let unit = |x: &Array| rms_norm(&heads(x, hk)?, None, 1e-6 * root * root);
            let (q, k) = (ops::multiply(&unit(q)?, root * root)?, ops::multiply(&unit(k)?, root)?);
            let (gamma, beta) = (ops::expand_dims(&rows[1], 0)?, ops::expand_dims(&rows[2], 0)?);
            let state = kept.and_then(|s| s.get(1));
            let [y, state] = gated_delta_update(&q, &k, &heads(v, hv)?, &gamma, &beta, state, None)?;
            slot.set_state(vec![tail, state]);
            ops::squeeze(&y, 0)
        })?;
        let z = ops::reshape(&z, &[x.dim(0) as i64, hv as i64, dv as i64])?;
        let y = ops::multiply(silu(&wide(&z)?)?, wide(&self.norm.forward(&y)?)?)?;
        self.out_proj.forward(&ops::reshape(&ops::astype(&y, x.dtype())?, &[x.dim(0) as i64, -1])?)
    }
}
