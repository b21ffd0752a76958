//! Attention with projections.

use super::{Layer, Linear};
use crate::Module;
use lapis::ops::fast::{AttentionMask, AttentionOptions, scaled_dot_product_attention};
use lapis::{Array, Dtype, Error, Result, ops};

/// Sizes of a [`MultiHeadAttention`]; `None` is MLX's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// Features of the queries; default `dims`.
    pub query_input_dims: Option<usize>,
    /// Features of the keys; default `dims`.
    pub key_input_dims: Option<usize>,
    /// Features of the values; default those of the keys.
    pub value_input_dims: Option<usize>,
    /// Features of the projected values; default `dims`.
    pub value_dims: Option<usize>,
    /// Features of the result; default `dims`.
    pub value_output_dims: Option<usize>,
    /// Whether the projections have biases.
    pub bias: bool,
}

/// Scaled dot product attention of projected queries, keys and values (`nn.MultiHeadAttention`).
#[derive(Module, Clone, Debug)]
pub struct MultiHeadAttention {
    /// Queries to heads.
    pub query_proj: Linear,
    /// Keys to heads.
    pub key_proj: Linear,
    /// Values to heads.
    pub value_proj: Linear,
    /// Heads to the result.
    pub out_proj: Linear,
    num_heads: usize,
}

impl MultiHeadAttention {
    /// With all sizes `dims` and no biases.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::with`].
    pub fn new(dims: usize, num_heads: usize) -> Result<MultiHeadAttention> {
        MultiHeadAttention::with(dims, num_heads, Heads::default())
    }

    /// With these sizes.
    ///
    /// # Errors
    /// `dims` that the heads do not divide.
    pub fn with(dims: usize, num_heads: usize, sizes: Heads) -> Result<MultiHeadAttention> {
        let key = sizes.key_input_dims.unwrap_or(dims);
        let value = sizes.value_dims.unwrap_or(dims);
        if num_heads == 0 || !dims.is_multiple_of(num_heads) || !value.is_multiple_of(num_heads) {
            return Err(Error::value(format!(
                "[MultiHeadAttention] {dims} features (values: {value}) do not divide into {num_heads} heads"
            )));
        }
        Ok(MultiHeadAttention {
            query_proj: Linear::new(sizes.query_input_dims.unwrap_or(dims), dims, sizes.bias)?,
            key_proj: Linear::new(key, dims, sizes.bias)?,
            value_proj: Linear::new(sizes.value_input_dims.unwrap_or(key), value, sizes.bias)?,
            out_proj: Linear::new(value, sizes.value_output_dims.unwrap_or(dims), sizes.bias)?,
            num_heads,
        })
    }

    /// Queries (batch, queries, features) over keys and values (batch, keys, features).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, queries: &Array, keys: &Array, values: &Array, mask: AttentionMask<'_>) -> Result<Array> {
        let heads = |x: &Array| {
            let split = ops::unflatten(x, -1, &[self.num_heads as i64, -1])?;
            ops::transpose(&split, Some(&[0, 2, 1, 3]))
        };
        for (what, x) in [("queries", queries), ("keys", keys), ("values", values)] {
            if x.ndim() != 3 {
                let s = lapis::shape::show(x.shape());
                return Err(Error::shape(format!(
                    "[MultiHeadAttention] {what} of shape {s}; (batch, length, features) is taken"
                )));
            }
        }
        let q = heads(&self.query_proj.forward(queries)?)?;
        let k = heads(&self.key_proj.forward(keys)?)?;
        let v = heads(&self.value_proj.forward(values)?)?;
        let scale = (1.0 / q.shape()[3] as f64).sqrt();
        let options = AttentionOptions { scale, mask, ..AttentionOptions::default() };
        let y = scaled_dot_product_attention(&q, &k, &v, &options)?;
        self.out_proj.forward(&ops::flatten(&ops::transpose(&y, Some(&[0, 2, 1, 3]))?, -2, -1)?)
    }

    /// A mask (n, n) to be added to scores: the dtype's lowest number above the diagonal, 0 elsewhere.
    ///
    /// # Errors
    /// A dtype that is not real floating.
    pub fn create_additive_causal_mask(n: usize, dtype: Dtype) -> Result<Array> {
        let lowest = match dtype {
            Dtype::Float16 => -65504.0,
            Dtype::Bfloat16 => f64::from(f32::from_bits(0xff7f_0000)),
            Dtype::Float32 => f64::from(f32::MIN),
            Dtype::Float64 => f64::MIN,
            _ => {
                return Err(Error::dtype(format!("[create_additive_causal_mask] {dtype} is not a real floating type")));
            }
        };
        let i = ops::arange(0, n, 1, None)?;
        let above = ops::less(ops::expand_dims(&i, [1])?, ops::expand_dims(&i, [0])?)?;
        ops::multiply(ops::astype(&above, dtype)?, lowest)
    }
}
