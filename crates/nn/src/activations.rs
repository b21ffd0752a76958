//! Activations: functions, and the same as layers.

use crate::{Layer, Module, Param};
use lapis::{Array, Error, Result, ops};
use std::f64::consts::{PI, SQRT_2};

pub use lapis::ops::{sigmoid, tanh};

/// `max(x, 0)`.
///
/// # Errors
/// None for real numbers.
pub fn relu(x: &Array) -> Result<Array> {
    ops::maximum(x, 0)
}

/// `max(x, 0)²`.
///
/// # Errors
/// None for real numbers.
pub fn relu2(x: &Array) -> Result<Array> {
    ops::square(&relu(x)?)
}

/// `min(max(x, 0), 6)`.
///
/// # Errors
/// None for real numbers.
pub fn relu6(x: &Array) -> Result<Array> {
    ops::minimum(relu(x)?, 6.0)
}

/// `max(slope x, x)`.
///
/// # Errors
/// None for real numbers.
pub fn leaky_relu(x: &Array, negative_slope: f64) -> Result<Array> {
    ops::maximum(ops::multiply(x, negative_slope)?, x)
}

/// `x` where positive, else `alpha (e^x - 1)`.
///
/// # Errors
/// None for real numbers.
pub fn elu(x: &Array, alpha: f64) -> Result<Array> {
    let below = ops::multiply(ops::subtract(ops::exp(x)?, 1)?, alpha)?;
    ops::select(&ops::greater(x, 0)?, x, below)
}

/// `max(x, 0) + alpha (e^(min(x, 0) / alpha) - 1)`.
///
/// # Errors
/// None for real numbers.
pub fn celu(x: &Array, alpha: f64) -> Result<Array> {
    let below = ops::exp(&ops::divide(ops::minimum(x, 0.0)?, alpha)?)?;
    ops::add(ops::maximum(x, 0.0)?, ops::multiply(ops::subtract(&below, 1)?, alpha)?)
}

/// `1.0507 elu(x, 1.67326)`.
///
/// # Errors
/// None for real numbers.
pub fn selu(x: &Array) -> Result<Array> {
    ops::multiply(elu(x, 1.67326)?, 1.0507)
}

/// `max(0, x) + alpha min(0, x)`.
///
/// # Errors
/// An `alpha` that does not broadcast to `x`.
pub fn prelu(x: &Array, alpha: &Array) -> Result<Array> {
    ops::add(ops::maximum(0, x)?, ops::multiply(alpha, ops::minimum(0, x)?)?)
}

/// `x σ(x)`.
///
/// # Errors
/// None for real numbers.
pub fn silu(x: &Array) -> Result<Array> {
    ops::multiply(x, sigmoid(x)?)
}

/// `x tanh(softplus(x))`.
///
/// # Errors
/// None for real numbers.
pub fn mish(x: &Array) -> Result<Array> {
    ops::multiply(x, tanh(&softplus(x)?)?)
}

/// `ln(1 + e^x)`.
///
/// # Errors
/// None for real numbers.
pub fn softplus(x: &Array) -> Result<Array> {
    ops::logaddexp(x, 0)
}

/// `x / (1 + |x|)`.
///
/// # Errors
/// None for real numbers.
pub fn softsign(x: &Array) -> Result<Array> {
    ops::divide(x, ops::add(1, ops::abs(x)?)?)
}

/// `x` moved by `lambd` towards 0; 0 within.
///
/// # Errors
/// None for real numbers.
pub fn softshrink(x: &Array, lambd: f64) -> Result<Array> {
    let moved = ops::subtract(x, ops::multiply(ops::sign(x)?, lambd)?)?;
    ops::select(&ops::greater(ops::abs(x)?, lambd)?, moved, 0)
}

/// `x` where `|x| > lambd`, else 0.
///
/// # Errors
/// None for real numbers.
pub fn hard_shrink(x: &Array, lambd: f64) -> Result<Array> {
    ops::select(&ops::greater(ops::abs(x)?, lambd)?, x, 0)
}

/// `x min(max(x + 3, 0), 6) / 6`.
///
/// # Errors
/// None for real numbers.
pub fn hardswish(x: &Array) -> Result<Array> {
    let gate = ops::minimum(ops::maximum(ops::add(x, 3)?, 0)?, 6)?;
    ops::divide(ops::multiply(x, &gate)?, 6)
}

/// `x` held between two values.
///
/// # Errors
/// None for real numbers.
pub fn hard_tanh(x: &Array, min_val: f64, max_val: f64) -> Result<Array> {
    ops::minimum(ops::maximum(x, min_val)?, max_val)
}

/// 1 where `x >= threshold`, else 0 (int32).
///
/// # Errors
/// None for real numbers.
pub fn step(x: &Array, threshold: f64) -> Result<Array> {
    ops::astype(&ops::greater_equal(x, threshold)?, lapis::Dtype::Int32)
}

/// `-softplus(-x)`.
///
/// # Errors
/// None for real numbers.
pub fn log_sigmoid(x: &Array) -> Result<Array> {
    ops::negative(&softplus(&ops::negative(x)?)?)
}

/// `e^x`, divided by its sum along an axis.
///
/// # Errors
/// An axis out of range.
pub fn softmax(x: &Array, axis: i32) -> Result<Array> {
    ops::softmax(x, axis)
}

/// [`softmax`] of `-x`.
///
/// # Errors
/// An axis out of range.
pub fn softmin(x: &Array, axis: i32) -> Result<Array> {
    ops::softmax(&ops::negative(x)?, axis)
}

/// The logarithm of [`softmax`], without overflow.
///
/// # Errors
/// An axis out of range.
pub fn log_softmax(x: &Array, axis: i32) -> Result<Array> {
    let x = ops::subtract(x, ops::stop_gradient(&ops::max(x, axis, true)?)?)?;
    ops::subtract(&x, ops::logsumexp(&x, axis, true)?)
}

/// `a σ(b)` of the two halves along an axis.
///
/// # Errors
/// An axis out of range or of odd length.
pub fn glu(x: &Array, axis: i32) -> Result<Array> {
    let parts = ops::split(x, 2usize, axis)?;
    let [a, b] = parts.as_slice() else {
        return Err(Error::shape("[glu] the axis does not divide into halves"));
    };
    ops::multiply(a, sigmoid(b)?)
}

/// `x Φ(x)` with the normal distribution function.
///
/// # Errors
/// None for real numbers.
pub fn gelu(x: &Array) -> Result<Array> {
    let twice = ops::add(1, ops::erf(&ops::divide(x, SQRT_2)?)?)?;
    ops::divide(ops::multiply(x, &twice)?, 2)
}

/// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
///
/// # Errors
/// None for real numbers.
pub fn gelu_approx(x: &Array) -> Result<Array> {
    let cubed = ops::multiply(ops::multiply(x, x)?, x)?;
    let inner = ops::multiply(ops::add(x, ops::multiply(&cubed, 0.044715)?)?, (2.0 / PI).sqrt())?;
    ops::multiply(ops::multiply(x, 0.5)?, ops::add(1, tanh(&inner)?)?)
}

/// `x σ(1.702 x)`.
///
/// # Errors
/// None for real numbers.
pub fn gelu_fast_approx(x: &Array) -> Result<Array> {
    ops::multiply(x, sigmoid(&ops::multiply(x, 1.702)?)?)
}

// ------------------------------------------------------------------ layers

macro_rules! plain {
    ($($name:ident $f:expr, $what:literal;)*) => {$(
        #[doc = concat!("The layer of ", $what, ".")]
        #[derive(Module, Clone, Copy, Debug, Default)]
        pub struct $name;

        impl Layer for $name {
            fn forward(&self, x: &Array) -> Result<Array> {
                let f: fn(&Array) -> Result<Array> = $f;
                f(x)
            }
        }
    )*};
}
plain! {
    Sigmoid sigmoid, "[`sigmoid`]";
    ReLU relu, "[`relu`]";
    ReLU2 relu2, "[`relu2`]";
    ReLU6 relu6, "[`relu6`]";
    SELU selu, "[`selu`]";
    SiLU silu, "[`silu`]";
    Mish mish, "[`mish`]";
    Softplus softplus, "[`softplus`]";
    Softsign softsign, "[`softsign`]";
    Hardswish hardswish, "[`hardswish`]";
    HardTanh |x| hard_tanh(x, -1.0, 1.0), "[`hard_tanh`] between -1 and 1";
    Tanh tanh, "[`tanh`]";
    LogSigmoid log_sigmoid, "[`log_sigmoid`]";
    Softmax |x| softmax(x, -1), "[`softmax`] along the last axis";
    Softmin |x| softmin(x, -1), "[`softmin`] along the last axis";
    LogSoftmax |x| log_softmax(x, -1), "[`log_softmax`] along the last axis";
}

macro_rules! with_number {
    ($($name:ident $f:ident $field:ident: $t:ty = $default:expr;)*) => {$(
        #[doc = concat!("The layer of [`", stringify!($f), "`]; by default with ", stringify!($default), ".")]
        #[derive(Module, Clone, Copy, Debug)]
        pub struct $name {
            /// The function's second argument.
            pub $field: $t,
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $field: $default }
            }
        }

        impl Layer for $name {
            fn forward(&self, x: &Array) -> Result<Array> {
                $f(x, self.$field)
            }
        }
    )*};
}
with_number! {
    LeakyReLU leaky_relu negative_slope: f64 = 0.01;
    ELU elu alpha: f64 = 1.0;
    CELU celu alpha: f64 = 1.0;
    Softshrink softshrink lambd: f64 = 0.5;
    HardShrink hard_shrink lambd: f64 = 0.5;
    Step step threshold: f64 = 0.0;
    GLU glu axis: i32 = -1;
}

/// The layer of [`prelu`]: weight (parameters,).
#[derive(Module, Clone, Debug)]
pub struct PReLU {
    /// One slope, or one a channel.
    pub weight: Param,
}

impl PReLU {
    /// MLX's defaults: one parameter, 0.25.
    ///
    /// # Errors
    /// None for sizes that fit in memory.
    pub fn new(num_parameters: usize, init: f64) -> Result<PReLU> {
        Ok(PReLU { weight: Param::new(ops::full(&[num_parameters], init, Some(lapis::Dtype::Float32))?) })
    }
}

impl Layer for PReLU {
    fn forward(&self, x: &Array) -> Result<Array> {
        prelu(x, &self.weight)
    }
}

/// How [`GELU`] computes.
#[derive(Module, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GeluApprox {
    /// [`gelu`].
    #[default]
    None,
    /// [`gelu_approx`].
    Precise,
    /// [`gelu_fast_approx`].
    Fast,
}

impl GeluApprox {
    /// From MLX's name: none, precise, tanh, fast.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<GeluApprox> {
        match name {
            "none" => Ok(GeluApprox::None),
            "precise" | "tanh" => Ok(GeluApprox::Precise),
            "fast" => Ok(GeluApprox::Fast),
            _ => Err(Error::value(format!("[GELU] approx is none, precise, tanh or fast, not {name:?}"))),
        }
    }
}

/// The layer of [`gelu`] and its approximations.
#[derive(Module, Clone, Copy, Debug, Default)]
pub struct GELU {
    /// Which one.
    pub approx: GeluApprox,
}

impl Layer for GELU {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self.approx {
            GeluApprox::None => gelu(x),
            GeluApprox::Precise => gelu_approx(x),
            GeluApprox::Fast => gelu_fast_approx(x),
        }
    }
}
