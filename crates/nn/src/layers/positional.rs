//! Where a token stands, told to the model.

use super::truth;
use crate::Module;
use lapis::ops::fast::{Frequencies, Offset, rope};
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, ops};

/// Rotary position encoding (`nn.RoPE`); see [`rope()`].
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct RoPE {
    dims: usize,
    traditional: bool,
    base: f64,
    scale: f64,
}

impl RoPE {
    /// MLX's defaults: not `traditional`, `base` 10000, `scale` 1.
    pub fn new(dims: usize, traditional: bool, base: f64, scale: f64) -> RoPE {
        RoPE { dims, traditional, base, scale }
    }

    /// x (batch, ..., time, features) whose first row is at `offset`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward<'a>(&self, x: &Array, offset: impl Into<Offset<'a>>) -> Result<Array> {
        rope(x, self.dims, self.traditional, Frequencies::Base(self.base), self.scale, offset)
    }

    fn repr(&self) -> String {
        format!("{}, traditional={}", self.dims, truth(self.traditional))
    }
}

/// Sines and cosines of a position at frequencies that fall from `max_freq` to `min_freq`
/// (`nn.SinusoidalPositionalEncoding`).
#[derive(Module, Clone)]
pub struct SinusoidalPositionalEncoding {
    #[plain]
    sigmas: Array,
    scale: f64,
    cos_first: bool,
}

impl SinusoidalPositionalEncoding {
    /// MLX's defaults: frequencies from 1 down to 0.0001, scale √(2/dims), sines first.
    ///
    /// # Errors
    /// `dims` that are odd or 0.
    pub fn new(dims: usize) -> Result<SinusoidalPositionalEncoding> {
        SinusoidalPositionalEncoding::with(dims, 0.0001, 1.0, None, false, false)
    }

    /// With frequencies, a scale, cosines before sines, and frequencies counted in full turns.
    ///
    /// # Errors
    /// `dims` that are odd or 0.
    pub fn with(
        dims: usize,
        min_freq: f64,
        max_freq: f64,
        scale: Option<f64>,
        cos_first: bool,
        full_turns: bool,
    ) -> Result<SinusoidalPositionalEncoding> {
        if dims == 0 || !dims.is_multiple_of(2) {
            return Err(Error::value(format!(
                "[SinusoidalPositionalEncoding] dims must be positive and even, not {dims}"
            )));
        }
        let half = dims / 2;
        let along = match half {
            1 => lapis::array([1.0f32]),
            _ => ops::subtract(1, ops::divide(ops::arange(0, half, 1, None)?, half - 1)?)?,
        };
        let (low, high) = (min_freq.ln(), max_freq.ln());
        let mut sigmas = ops::exp(&ops::add(ops::multiply(&along, high - low)?, low)?)?;
        if full_turns {
            sigmas = ops::multiply(&sigmas, 2.0 * std::f64::consts::PI)?;
        }
        let scale = scale.unwrap_or((2.0 / dims as f64).sqrt());
        Ok(SinusoidalPositionalEncoding { sigmas, scale, cos_first })
    }

    /// Positions (...) to (..., dims).
    ///
    /// # Errors
    /// Positions that are not real numbers.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let angles = ops::multiply(ops::expand_dims(x, [-1])?, &self.sigmas)?;
        let (cos, sin) = (ops::cos(&angles)?, ops::sin(&angles)?);
        let y = ops::concatenate(&if self.cos_first { [cos, sin] } else { [sin, cos] }, -1)?;
        if self.scale == 1.0 { Ok(y) } else { ops::multiply(&y, self.scale) }
    }
}

/// Attention that fades with distance, by a slope for each head (`nn.ALiBi`).
#[derive(Module, Clone, Copy, Debug, Default)]
pub struct ALiBi;

impl ALiBi {
    /// Slopes (heads, 1, 1): `2^(-8 i / heads)` for a power of two; else those of the power below, then every second
    /// of the power above.
    ///
    /// # Errors
    /// A dtype that is not a number.
    pub fn create_alibi_slope(num_heads: usize, dtype: Dtype) -> Result<Array> {
        fn slopes(n: usize) -> Vec<f64> {
            if n.is_power_of_two() {
                let start = (-8.0 / n as f64).exp2();
                return (0..n).map(|i| start * start.powi(i as i32)).collect();
            }
            let below = n.next_power_of_two() / 2;
            let between = slopes(2 * below).into_iter().step_by(2).take(n - below);
            slopes(below).into_iter().chain(between).collect()
        }
        if num_heads == 0 {
            return Err(Error::value("[ALiBi] there must be at least one head"));
        }
        let slopes = Array::from_vec(slopes(num_heads), &[num_heads, 1, 1]);
        ops::astype(&slopes, dtype)
    }

    /// What is added to scores (1, heads, queries - offset, keys): `-slope * distance`.
    ///
    /// # Errors
    /// A dtype that is not a number.
    pub fn create_alibi_matrix(
        queries: usize,
        keys: usize,
        num_heads: usize,
        offset: usize,
        dtype: Dtype,
    ) -> Result<Array> {
        let (q, k) = (ops::arange(offset, queries, 1, None)?, ops::arange(0, keys, 1, None)?);
        let distance = ops::abs(&ops::subtract(ops::expand_dims(&q, [1])?, ops::expand_dims(&k, [0])?)?)?;
        let away = ops::negative(&ops::expand_dims(&distance, [0, 1])?)?;
        ops::astype(&ops::multiply(&away, ALiBi::create_alibi_slope(num_heads, dtype)?)?, dtype)
    }

    /// Scores (batch, heads, queries, keys) with the fading added, and a mask if given.
    ///
    /// # Errors
    /// Scores with another number of axes; a mask that does not broadcast.
    pub fn forward(&self, scores: &Array, offset: usize, mask: Option<&Array>) -> Result<Array> {
        let &[_, heads, queries, keys] = scores.shape() else {
            let s = show(scores.shape());
            return Err(Error::shape(format!("[ALiBi] scores of shape {s}; (batch, heads, queries, keys) is taken")));
        };
        let mut added = ALiBi::create_alibi_matrix(queries + offset, keys, heads, offset, scores.dtype())?;
        if let Some(mask) = mask {
            added = ops::add(&added, mask)?;
        }
        ops::add(scores, &added)
    }
}
