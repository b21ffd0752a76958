//! Initialisers: each gives a function of an array, of which the shape is used. Draws come from this thread's random
//! state, as MLX draws them: the same seed gives the same values.

use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, ops, random};

/// One value everywhere.
pub fn constant(value: f64, dtype: Dtype) -> impl Fn(&Array) -> Result<Array> {
    move |a| ops::full(a.shape(), value, Some(dtype))
}

fn gaussian(shape: &[usize], mean: f64, std: f64, dtype: Dtype) -> Result<Array> {
    let number = |x: f64| Array::from_vec(vec![x as f32], &[]);
    let (loc, scale) = (number(mean), number(std));
    random::normal(shape, dtype, (mean != 0.0).then_some(&loc), (std != 1.0).then_some(&scale), None)
}

/// Normal. MLX's defaults: mean 0, deviation 1, float32.
pub fn normal(mean: f64, std: f64, dtype: Dtype) -> impl Fn(&Array) -> Result<Array> {
    move |a| gaussian(a.shape(), mean, std, dtype)
}

/// Uniform in [low, high). MLX's defaults: 0, 1, float32.
pub fn uniform(low: f64, high: f64, dtype: Dtype) -> impl Fn(&Array) -> Result<Array> {
    move |a| random::uniform(low, high, a.shape(), dtype, None)
}

/// Ones on the diagonal of a square matrix.
pub fn identity(dtype: Dtype) -> impl Fn(&Array) -> Result<Array> {
    move |a| match a.shape() {
        &[n, m] if n == m => ops::eye(n, n, 0, Some(dtype)),
        s => Err(Error::shape(format!("[identity] shape {}; a square matrix is taken", show(s)))),
    }
}

/// How many inputs reach an output, and outputs an input: the last and the first axis, times the axes between.
fn fans(a: &Array) -> Result<(f64, f64)> {
    let s = a.shape();
    let [first, between @ .., last] = s else {
        return Err(Error::shape(format!("[init] shape {}; at least two axes are needed", show(s))));
    };
    let field = between.iter().product::<usize>() as f64;
    Ok((*last as f64 * field, *first as f64 * field))
}

/// Normal with deviation `gain √(2 / (fan_in + fan_out))`; the second argument is the gain, usually 1.
pub fn glorot_normal(dtype: Dtype) -> impl Fn(&Array, f64) -> Result<Array> {
    move |a, gain| {
        let (fan_in, fan_out) = fans(a)?;
        gaussian(a.shape(), 0.0, gain * (2.0 / (fan_in + fan_out)).sqrt(), dtype)
    }
}

/// Uniform in ±`gain √(6 / (fan_in + fan_out))`; the second argument is the gain, usually 1.
pub fn glorot_uniform(dtype: Dtype) -> impl Fn(&Array, f64) -> Result<Array> {
    move |a, gain| {
        let (fan_in, fan_out) = fans(a)?;
        let limit = gain * (6.0 / (fan_in + fan_out)).sqrt();
        random::uniform(-limit, limit, a.shape(), dtype, None)
    }
}

/// Which count an He initialiser goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fan {
    /// Inputs of an output.
    #[default]
    In,
    /// Outputs of an input.
    Out,
}

impl Fan {
    fn of(self, a: &Array) -> Result<f64> {
        let (fan_in, fan_out) = fans(a)?;
        Ok(if self == Fan::In { fan_in } else { fan_out })
    }
}

/// Normal with deviation `gain / √fan`; further arguments: which fan (usually in) and the gain (usually 1).
pub fn he_normal(dtype: Dtype) -> impl Fn(&Array, Fan, f64) -> Result<Array> {
    move |a, fan, gain| gaussian(a.shape(), 0.0, gain / fan.of(a)?.sqrt(), dtype)
}

/// Uniform in ±`gain √(3 / fan)`; further arguments: which fan (usually in) and the gain (usually 1).
pub fn he_uniform(dtype: Dtype) -> impl Fn(&Array, Fan, f64) -> Result<Array> {
    move |a, fan, gain| {
        let limit = gain * (3.0 / fan.of(a)?).sqrt();
        random::uniform(-limit, limit, a.shape(), dtype, None)
    }
}

/// Normal with `⌈sparsity · columns⌉` zeros in each row of a matrix. MLX's defaults: mean 0, deviation 1, float32.
pub fn sparse(sparsity: f64, mean: f64, std: f64, dtype: Dtype) -> impl Fn(&Array) -> Result<Array> {
    move |a| {
        let &[_, columns] = a.shape() else {
            return Err(Error::shape(format!("[sparse] shape {}; a matrix is taken", show(a.shape()))));
        };
        if !(0.0..=1.0).contains(&sparsity) {
            return Err(Error::value(format!("[sparse] sparsity is in [0, 1], not {sparsity}")));
        }
        let zeros = (sparsity * columns as f64).ceil() as i64;
        let order = ops::argsort(&random::uniform(0.0, 1.0, a.shape(), Dtype::Float32, None)?, Some(1))?;
        let values = gaussian(a.shape(), mean, std, dtype)?;
        let chosen = ops::slice(&order, &[(None, None, 1), (None, Some(zeros), 1)])?;
        ops::put_along_axis(&values, &chosen, 0, 1)
    }
}

/// Orthogonal rows or columns, times `gain`: from the QR decomposition of a square normal matrix, with the signs of
/// the diagonal of R. MLX's default gain: 1.
pub fn orthogonal(gain: f64, dtype: Dtype) -> impl Fn(&Array) -> Result<Array> {
    move |a| {
        let &[rows, columns] = a.shape() else {
            return Err(Error::shape(format!("[orthogonal] shape {}; a matrix is taken", show(a.shape()))));
        };
        let n = rows.max(columns);
        let (q, r) = ops::linalg::qr(&gaussian(&[n, n], 0.0, 1.0, Dtype::Float32)?)?;
        let q = ops::multiply(&q, ops::sign(&ops::diag(&r, 0)?)?)?;
        let cut = ops::slice(&q, &[(None, Some(rows as i64), 1), (None, Some(columns as i64), 1)])?;
        ops::astype(&ops::multiply(&cut, gain)?, dtype)
    }
}
