//! Linear attention that fades: what is remembered of a head is one matrix, which becomes smaller by the same factor with
//! every row (Lightning attention).

use super::mamba::AWAY;
use super::{Layered, Norm, Rope};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{gated_delta_update, rms_norm};
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module, Param};

/// Sizes and rules of an attention that fades.
#[derive(Clone, Debug)]
pub struct FadingSizes {
    /// Of rows.
    pub width: usize,
    /// Heads, and their width.
    pub heads: [usize; 2],
    /// Groups of features that the norm of the result takes together.
    pub groups: usize,
    /// Biases of the projection to queries, keys and values, and of the one back.
    pub bias: [bool; 2],
    /// Whether queries and keys have norms.
    pub norms: bool,
    /// Positions of queries and keys.
    pub rope: Rope,
    /// Of the slopes of all heads in this layer.
    pub speed: f64,
    /// Added to what norms divide by.
    pub eps: f64,
}

/// A norm of groups of features.
#[derive(Module, Clone)]
pub struct GroupNorm {
    /// (features).
    pub weight: Param,
}

/// Linear attention that fades.
#[derive(Module, Clone)]
pub struct Fading {
    /// To queries, keys and values.
    pub query_key_value: Linear,
    /// Of each head of queries.
    pub query_layernorm: Option<Norm>,
    /// Of each head of keys.
    pub key_layernorm: Option<Norm>,
    /// To gates.
    pub g_proj: Linear,
    /// Of the result, before its gate.
    pub g_norm: GroupNorm,
    /// Back.
    pub dense: Linear,
    #[plain]
    sizes: FadingSizes,
}

/// How fast `n` heads fade: powers of two, and between them every second one of twice as many heads.
fn slopes(n: usize) -> Vec<f64> {
    let powers = |n: usize| (1..=n).map(move |i| (-(-((n as f64).log2() - 3.0)).exp2() * i as f64).exp2());
    let whole = if n.is_power_of_two() { n } else { n.next_power_of_two() / 2 };
    powers(whole).chain(powers(2 * whole).step_by(2)).take(n).collect()
}

impl Fading {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`]; heads that do not divide into groups.
    pub fn load(at: &At, s: FadingSizes) -> Result<Fading> {
        let inner = s.heads[0] * s.heads[1];
        if s.groups == 0 || !inner.is_multiple_of(s.groups) {
            let text = format!("[load] config.json: group_norm_size: {inner} features do not divide by {}", s.groups);
            return Err(Error::value(text));
        }
        let norm = |name: &str| s.norms.then(|| Norm::rms(at, name, s.heads[1], s.eps)).transpose();
        Ok(Fading {
            query_key_value: at.linear("query_key_value", s.width, 3 * inner, s.bias[0])?,
            query_layernorm: norm("query_layernorm")?,
            key_layernorm: norm("key_layernorm")?,
            g_proj: at.linear("g_proj", s.width, inner, false)?,
            g_norm: GroupNorm { weight: at.at("g_norm").param("weight", &[inner])? },
            dense: at.linear("dense", inner, s.width, s.bias[1])?,
            sizes: s,
        })
    }
}

impl Layered for Fading {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (s, [heads, head], rows) = (&self.sizes, self.sizes.heads, x.dim(0) as i64);
        let factors: Vec<f32> = slopes(heads).into_iter().map(|slope| (-slope * s.speed).exp() as f32).collect();
        let factors = Array::from_vec(factors, &[1, 1, heads]);
        let parts = ops::split(&self.query_key_value.forward(x)?, 3, -1)?;
        let [q, k, v] = &parts[..] else { return Err(Error::shape("[attention] queries, keys, values")) };
        let each = |x: &Array, norm: &Option<Norm>| {
            let x = ops::reshape(x, &[rows, heads as i64, head as i64])?;
            norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
        };
        let (q, k, v) = (each(q, &self.query_layernorm)?, each(k, &self.key_layernorm)?, each(v, &None)?);
        let turned = |x: &Array| ops::transpose(x, Some(&[0, 2, 1, 3]));
        let y = batch.each(layer, &[&q, &k, &v], |rows, slot| {
            let [q, k, v] = [0, 1, 2].map(|i| ops::expand_dims(&rows[i], 0));
            let place = |x: Array| turned(&s.rope.forward(&turned(&x)?, slot.at)?);
            let wide = |x: Array| ops::astype(&x, Dtype::Float32);
            let (q, k, v) = (wide(place(q?)?)?, wide(place(k?)?)?, wide(v?)?);
            let q = ops::multiply(&q, (head as f64).powf(-0.5))?;
            let n = q.dim(1);
            let gamma = ops::contiguous(&ops::broadcast_to(&factors, &[1, n, heads])?, false)?;
            let beta = ops::full(&[1, n, heads], 1.0 / AWAY, Some(Dtype::Float32))?;
            // Kept as mlx-lm keeps it: (1, heads, width of keys, width of values).
            let swap = |a: &Array| ops::contiguous(&ops::transpose(a, Some(&[0, 1, 3, 2]))?, false);
            let state = slot.state().and_then(<[Array]>::first).map(swap).transpose()?;
            let v = ops::multiply(&v, AWAY)?;
            let [y, state] = gated_delta_update(&q, &k, &v, &gamma, &beta, state.as_ref(), None)?;
            slot.set_state(vec![swap(&state)?]);
            ops::squeeze(&y, 0)
        })?;
        let y = ops::reshape(&ops::astype(&y, x.dtype())?, &[rows, s.groups as i64, -1])?;
        let y = ops::reshape(&rms_norm(&y, None, s.eps)?, &[rows, -1])?;
        let gate = ops::sigmoid(&self.g_proj.forward(x)?)?;
        self.dense.forward(&ops::multiply(ops::multiply(y, self.g_norm.weight.value())?, gate)?)
    }
}
