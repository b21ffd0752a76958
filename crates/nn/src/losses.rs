//! Losses. Reductions are those of MLX; each function's doc names MLX's default.

use lapis::ops::fast;
use lapis::shape::{axis, show};
use lapis::{Array, Error, Result, ops};
use std::f64::consts::{LN_2, PI};

/// What becomes of the losses of all samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reduction {
    /// They are given as they are.
    #[default]
    None,
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// From MLX's name: none, mean, sum.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<Reduction> {
        match name {
            "none" => Ok(Reduction::None),
            "mean" => Ok(Reduction::Mean),
            "sum" => Ok(Reduction::Sum),
            _ => Err(Error::value(format!("[loss] a reduction is none, mean or sum, not {name:?}"))),
        }
    }

    fn of(self, loss: Array) -> Result<Array> {
        match self {
            Reduction::None => Ok(loss),
            Reduction::Mean => ops::mean(&loss, (), false),
            Reduction::Sum => ops::sum(&loss, (), false),
        }
    }
}

/// An error unless all shapes are that of the first.
fn same_shapes(loss: &str, arrays: &[(&str, &Array)]) -> Result<()> {
    if arrays.iter().all(|(_, a)| a.shape() == arrays[0].1.shape()) {
        return Ok(());
    }
    let list: Vec<String> = arrays.iter().map(|(name, a)| format!("{name} {}", show(a.shape()))).collect();
    Err(Error::shape(format!("[{loss}] shapes differ: {}", list.join(", "))))
}

/// An error unless `b` has the shape of `a` without `axis`.
fn without_axis(loss: &str, a: &Array, at: i32, what: &str, b: &Array) -> Result<()> {
    let mut shape = a.shape().to_vec();
    shape.remove(axis(loss, at, a.ndim())?);
    if b.shape() == shape {
        return Ok(());
    }
    let (have, want) = (show(b.shape()), show(&shape));
    Err(Error::shape(format!("[{loss}] {what} of shape {have}; {want} is needed")))
}

fn weighted(loss: Array, name: &str, weights: Option<&Array>) -> Result<Array> {
    let Some(weights) = weights else { return Ok(loss) };
    same_shapes(name, &[("loss", &loss), ("weights", weights)])?;
    ops::multiply(&loss, weights)
}

/// What [`cross_entropy`] does beside its inputs; the default is MLX's.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a> {
    /// A factor for each target.
    pub weights: Option<&'a Array>,
    /// The axis of the classes.
    pub axis: i32,
    /// The part of the target that is spread evenly, in [0, 1).
    pub label_smoothing: f64,
    /// Default: none.
    pub reduction: Reduction,
}

impl Default for CrossEntropy<'_> {
    fn default() -> Self {
        CrossEntropy { weights: None, axis: -1, label_smoothing: 0.0, reduction: Reduction::None }
    }
}

/// `ln Σ e^logits - logits[target]`: targets are classes (the shape of logits without the axis of classes) or
/// probabilities (the shape of logits). The mean divides by the number of targets, whatever their weights.
///
/// # Errors
/// Shapes that do not fit; smoothing outside [0, 1).
pub fn cross_entropy(logits: &Array, targets: &Array, options: CrossEntropy<'_>) -> Result<Array> {
    let (name, CrossEntropy { weights, axis: at, label_smoothing: smoothing, reduction }) = ("cross_entropy", options);
    if !(0.0..1.0).contains(&smoothing) {
        return Err(Error::value(format!("[{name}] label smoothing is in [0, 1), not {smoothing}")));
    }
    let probabilities = targets.ndim() == logits.ndim();
    let last = axis(name, at, logits.ndim())? + 1 == logits.ndim();
    if probabilities {
        same_shapes(name, &[("logits", logits), ("targets", targets)])?;
    } else {
        without_axis(name, logits, at, "targets", targets)?;
    }
    let loss = if !probabilities && smoothing == 0.0 && last && logits.dtype().is_floating() {
        ops::astype(&fast::cross_entropy(logits, targets)?, logits.dtype())?
    } else {
        let x = ops::subtract(logits, ops::stop_gradient(&ops::max(logits, at, true)?)?)?;
        let score = if probabilities {
            ops::sum(&ops::multiply(&x, targets)?, at, false)?
        } else {
            ops::squeeze(&ops::take_along_axis(&x, &ops::expand_dims(targets, [at])?, at)?, [at])?
        };
        let whole = ops::logsumexp(&x, at, false)?;
        if smoothing > 0.0 {
            let even = ops::multiply(ops::mean(&x, at, false)?, smoothing)?;
            ops::subtract(ops::subtract(&whole, ops::multiply(&score, 1.0 - smoothing)?)?, &even)?
        } else {
            ops::subtract(&whole, &score)?
        }
    };
    reduction.of(weighted(loss, name, weights)?)
}

/// `ln(1 + e^x) - x t` of logits, or `-(t ln x + (1 - t) ln(1 - x))` of probabilities, whose logarithms are held above
/// -100. MLX's defaults: logits, mean.
///
/// # Errors
/// Shapes that differ.
pub fn binary_cross_entropy(
    inputs: &Array,
    targets: &Array,
    weights: Option<&Array>,
    with_logits: bool,
    reduction: Reduction,
) -> Result<Array> {
    let name = "binary_cross_entropy";
    same_shapes(name, &[("inputs", inputs), ("targets", targets)])?;
    let loss = if with_logits {
        ops::subtract(ops::logaddexp(0.0, inputs)?, ops::multiply(inputs, targets)?)?
    } else {
        let held = |x: &Array| ops::maximum(ops::log(x)?, -100);
        let on = ops::multiply(targets, held(inputs)?)?;
        let off = ops::multiply(ops::subtract(1, targets)?, held(&ops::subtract(1, inputs)?)?)?;
        ops::negative(&ops::add(&on, &off)?)?
    };
    reduction.of(weighted(loss, name, weights)?)
}

/// `|p - t|`. MLX's default: mean.
///
/// # Errors
/// Shapes that differ.
pub fn l1_loss(predictions: &Array, targets: &Array, reduction: Reduction) -> Result<Array> {
    same_shapes("l1_loss", &[("predictions", predictions), ("targets", targets)])?;
    reduction.of(ops::abs(&ops::subtract(predictions, targets)?)?)
}

/// `(p - t)²`. MLX's default: mean.
///
/// # Errors
/// Shapes that differ.
pub fn mse_loss(predictions: &Array, targets: &Array, reduction: Reduction) -> Result<Array> {
    same_shapes("mse_loss", &[("predictions", predictions), ("targets", targets)])?;
    reduction.of(ops::square(&ops::subtract(predictions, targets)?)?)
}

/// Minus the log probability (`inputs`) of the target's class. MLX's defaults: the last axis, none.
///
/// # Errors
/// Targets of another shape than that of inputs without the axis.
pub fn nll_loss(inputs: &Array, targets: &Array, at: i32, reduction: Reduction) -> Result<Array> {
    without_axis("nll_loss", inputs, at, "targets", targets)?;
    let picked = ops::take_along_axis(inputs, &ops::expand_dims(targets, [at])?, at)?;
    reduction.of(ops::negative(&ops::squeeze(&picked, [at])?)?)
}

/// `½ (ln v + (t - x)² / v)` with `v = max(vars, eps)`; `full` adds `½ ln 2π`. MLX's defaults: not full, 1e-6, mean.
///
/// # Errors
/// Shapes that differ.
pub fn gaussian_nll_loss(
    inputs: &Array,
    targets: &Array,
    vars: &Array,
    full: bool,
    eps: f64,
    reduction: Reduction,
) -> Result<Array> {
    same_shapes("gaussian_nll_loss", &[("inputs", inputs), ("targets", targets), ("vars", vars)])?;
    let v = ops::maximum(vars, eps)?;
    let far = ops::divide(ops::square(&ops::subtract(targets, inputs)?)?, &v)?;
    let mut loss = ops::multiply(ops::add(ops::log(&v)?, &far)?, 0.5)?;
    if full {
        loss = ops::add(&loss, 0.5 * (2.0 * PI).ln())?;
    }
    reduction.of(loss)
}

/// `Σ e^t (t - x)` along an axis, both being log probabilities. MLX's defaults: the last axis, none.
///
/// # Errors
/// Shapes that differ.
pub fn kl_div_loss(inputs: &Array, targets: &Array, at: i32, reduction: Reduction) -> Result<Array> {
    same_shapes("kl_div_loss", &[("inputs", inputs), ("targets", targets)])?;
    let terms = ops::multiply(ops::exp(targets)?, ops::subtract(targets, inputs)?)?;
    reduction.of(ops::sum(&terms, at, false)?)
}

/// `½ d² / beta` where `d = |p - t| < beta`, else `d - ½ beta`. MLX's defaults: 1, mean.
///
/// # Errors
/// Shapes that differ.
pub fn smooth_l1_loss(predictions: &Array, targets: &Array, beta: f64, reduction: Reduction) -> Result<Array> {
    same_shapes("smooth_l1_loss", &[("predictions", predictions), ("targets", targets)])?;
    let d = ops::abs(&ops::subtract(predictions, targets)?)?;
    let near = ops::divide(ops::multiply(ops::square(&d)?, 0.5)?, beta)?;
    reduction.of(ops::select(&ops::less(&d, beta)?, near, ops::subtract(&d, 0.5 * beta)?)?)
}

/// What [`triplet_loss`] does beside its inputs; the default is MLX's.
#[derive(Clone, Copy, Debug)]
pub struct Triplet {
    /// The axis of the features.
    pub axis: i32,
    /// The exponent of the norm.
    pub p: i32,
    /// By how much the negatives should be farther.
    pub margin: f64,
    /// Added under the root.
    pub eps: f64,
    /// Default: none.
    pub reduction: Reduction,
}

impl Default for Triplet {
    fn default() -> Self {
        Triplet { axis: -1, p: 2, margin: 1.0, eps: 1e-6, reduction: Reduction::None }
    }
}

/// `max(‖a - p‖ - ‖a - n‖ + margin, 0)`.
///
/// # Errors
/// Shapes that differ.
pub fn triplet_loss(anchors: &Array, positives: &Array, negatives: &Array, options: Triplet) -> Result<Array> {
    same_shapes("triplet_loss", &[("anchors", anchors), ("positives", positives), ("negatives", negatives)])?;
    let Triplet { axis: at, p, margin, eps, reduction } = options;
    let distance = |other: &Array| {
        let powers = ops::power(ops::abs(&ops::subtract(anchors, other)?)?, p)?;
        ops::power(ops::add(ops::sum(&powers, at, false)?, eps)?, 1.0 / f64::from(p))
    };
    let apart = ops::subtract(distance(positives)?, distance(negatives)?)?;
    reduction.of(ops::maximum(ops::add(&apart, margin)?, 0)?)
}

/// `max(1 - x t, 0)` with targets -1 or 1. MLX's default: none.
///
/// # Errors
/// Shapes that differ.
pub fn hinge_loss(inputs: &Array, targets: &Array, reduction: Reduction) -> Result<Array> {
    same_shapes("hinge_loss", &[("inputs", inputs), ("targets", targets)])?;
    reduction.of(ops::maximum(ops::subtract(1, ops::multiply(inputs, targets)?)?, 0)?)
}

/// `½ d²` where `d = |x - t| <= delta`, else `delta (d - ½ delta)`. MLX's defaults: 1, none.
///
/// # Errors
/// Shapes that differ.
pub fn huber_loss(inputs: &Array, targets: &Array, delta: f64, reduction: Reduction) -> Result<Array> {
    same_shapes("huber_loss", &[("inputs", inputs), ("targets", targets)])?;
    let d = ops::abs(&ops::subtract(inputs, targets)?)?;
    let near = ops::minimum(&d, delta)?;
    let far = ops::multiply(ops::subtract(&d, &near)?, delta)?;
    reduction.of(ops::add(ops::multiply(ops::square(&near)?, 0.5)?, &far)?)
}

/// `ln cosh(x - t)`. MLX's default: none.
///
/// # Errors
/// Shapes that differ.
pub fn log_cosh_loss(inputs: &Array, targets: &Array, reduction: Reduction) -> Result<Array> {
    same_shapes("log_cosh_loss", &[("inputs", inputs), ("targets", targets)])?;
    let d = ops::subtract(inputs, targets)?;
    reduction.of(ops::subtract(ops::logaddexp(&d, ops::negative(&d)?)?, LN_2)?)
}

/// `x1 · x2 / max(‖x1‖ ‖x2‖, eps)` along an axis. MLX's defaults: axis 1, 1e-8, none.
///
/// # Errors
/// Shapes that differ.
pub fn cosine_similarity_loss(x1: &Array, x2: &Array, at: i32, eps: f64, reduction: Reduction) -> Result<Array> {
    same_shapes("cosine_similarity_loss", &[("x1", x1), ("x2", x2)])?;
    let length = |x: &Array| ops::sqrt(&ops::sum(&ops::square(x)?, at, false)?);
    let dot = ops::sum(&ops::multiply(x1, x2)?, at, false)?;
    reduction.of(ops::divide(&dot, ops::maximum(ops::multiply(length(x1)?, length(x2)?)?, eps)?)?)
}

/// `max(0, -t (x1 - x2) + margin)` with targets -1 or 1. MLX's defaults: 0, none.
///
/// # Errors
/// Shapes that differ.
pub fn margin_ranking_loss(
    inputs1: &Array,
    inputs2: &Array,
    targets: &Array,
    margin: f64,
    reduction: Reduction,
) -> Result<Array> {
    same_shapes("margin_ranking_loss", &[("inputs1", inputs1), ("inputs2", inputs2), ("targets", targets)])?;
    let apart = ops::multiply(ops::negative(targets)?, ops::subtract(inputs1, inputs2)?)?;
    reduction.of(ops::maximum(0, ops::add(&apart, margin)?)?)
}
