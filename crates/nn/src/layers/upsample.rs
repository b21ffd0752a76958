//! Larger (or smaller) images by interpolation.

use super::{Layer, float, truth};
use crate::Module;
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, ops};

/// How values between the given ones are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UpsampleMode {
    /// The nearest one.
    #[default]
    Nearest,
    /// On the line between two.
    Linear,
    /// On a cubic through four, with a = -0.75 (-0.5 when antialiased).
    Cubic,
}

/// What an [`Upsample`] does beside its factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UpsampleOptions {
    /// The interpolation.
    pub mode: UpsampleMode,
    /// Whether first and last positions fall on each other; else centres of pixels do.
    pub align_corners: bool,
    /// Whether the kernel widens when the image shrinks.
    pub antialias: bool,
}

/// All spatial axes of x (batch, spatial axes, channels) scaled (`nn.Upsample`): size N becomes `⌊factor · N⌋`.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct Upsample {
    #[plain]
    factors: Vec<f64>,
    /// Whether one factor was given for all axes.
    same: bool,
    #[plain]
    options: UpsampleOptions,
}

/// Where an output position takes from along one axis: positions (integers) and their weights, tap by tap.
struct Taps(Vec<(Array, Array)>);

impl Upsample {
    /// The nearest values, one factor for all axes.
    ///
    /// # Errors
    /// A factor that is not positive.
    pub fn new(factor: f64) -> Result<Upsample> {
        Upsample::with(&[factor], UpsampleOptions::default())
    }

    /// With one factor for all axes, or one for each.
    ///
    /// # Errors
    /// Factors that are not positive; antialiasing with `align_corners` or the nearest values.
    pub fn with(factors: &[f64], options: UpsampleOptions) -> Result<Upsample> {
        if factors.is_empty() || factors.iter().any(|&f| f.is_nan() || f <= 0.0 || f.is_infinite()) {
            return Err(Error::value(format!("[Upsample] factors must be positive, not {factors:?}")));
        }
        if options.antialias && (options.align_corners || options.mode == UpsampleMode::Nearest) {
            return Err(Error::value(
                "[Upsample] antialias goes neither with align_corners nor with the nearest values",
            ));
        }
        Ok(Upsample { factors: factors.to_vec(), same: factors.len() == 1, options })
    }

    fn repr(&self) -> String {
        let mode = match self.options.mode {
            UpsampleMode::Nearest => "nearest",
            UpsampleMode::Linear => "linear",
            UpsampleMode::Cubic => "cubic",
        };
        let list: Vec<String> = self.factors.iter().map(|&f| float(f)).collect();
        let factors = if self.same { list[0].clone() } else { format!("({})", list.join(", ")) };
        let mut text =
            format!("scale_factor={factors}, mode='{mode}', align_corners={}", truth(self.options.align_corners));
        if self.options.antialias {
            text += ", antialias=True";
        }
        text
    }

    /// Positions in the input of `n` places for each place of the output.
    fn places(&self, n: usize, factor: f64) -> Result<Array> {
        let m = (factor * n as f64) as usize;
        let i = ops::arange(0, m, 1, Some(Dtype::Float32))?;
        if self.options.align_corners {
            return ops::multiply(&i, (n as f64 - 1.0) / (m.max(2) as f64 - 1.0));
        }
        let step = 1.0 / factor;
        let start = ((m as f64 - 1.0) * step - n as f64 + 1.0) / 2.0;
        ops::subtract(ops::multiply(&i, step)?, start)
    }

    fn nearest(n: usize, factor: f64) -> Result<Taps> {
        let m = (factor * n as f64) as usize;
        let i = ops::arange(0, m, 1, Some(Dtype::Float32))?;
        let step = n as f64 / m as f64;
        let places = if m > n {
            ops::round(&ops::subtract(ops::multiply(ops::add(&i, 0.5)?, step)?, 0.5)?, 0)?
        } else {
            ops::multiply(&i, step)?
        };
        Ok(Taps(vec![(ops::astype(&places, Dtype::Uint32)?, ops::ones_like(&i, None)?)]))
    }

    fn taps(&self, n: usize, factor: f64) -> Result<Taps> {
        if self.options.mode == UpsampleMode::Nearest {
            return Upsample::nearest(n, factor);
        }
        let places = self.places(n, factor)?;
        let inside =
            |i: &Array| -> Result<Array> { ops::astype(&ops::minimum(ops::maximum(i, 0)?, n - 1)?, Dtype::Uint32) };
        if self.options.antialias {
            return self.wide_taps(&places, n, factor, &inside);
        }
        if self.options.mode == UpsampleMode::Linear {
            let places = ops::minimum(ops::maximum(&places, 0)?, n - 1)?;
            let left = ops::floor(&places)?;
            let weight = ops::subtract(&places, &left)?;
            let right = ops::ceil(&places)?;
            return Ok(Taps(vec![(inside(&left)?, ops::subtract(1, &weight)?), (inside(&right)?, weight)]));
        }
        let floor = ops::floor(&places)?;
        let tap = |k: i32| -> Result<(Array, Array)> {
            let at = ops::add(&floor, k)?;
            let x = ops::abs(&ops::subtract(&places, &at)?)?;
            Ok((inside(&at)?, if k == 0 || k == 1 { near(&x, -0.75)? } else { far(&x, -0.75)? }))
        };
        Ok(Taps([-1, 0, 1, 2].into_iter().map(tap).collect::<Result<_>>()?))
    }

    /// Taps of a kernel that is as wide as the output's pixels, normalised.
    fn wide_taps(
        &self,
        places: &Array,
        n: usize,
        factor: f64,
        inside: &dyn Fn(&Array) -> Result<Array>,
    ) -> Result<Taps> {
        let cubic = self.options.mode == UpsampleMode::Cubic;
        let width = (1.0 / factor).max(1.0);
        let reach = ((if cubic { 2.0 } else { 1.0 }) * width).ceil() as i64 + 1;
        let floor = ops::floor(places)?;
        let (mut taps, mut total) = (Vec::new(), ops::zeros_like(places, None)?);
        for k in 1 - reach..reach {
            let at = ops::add(&floor, k)?;
            let x = ops::divide(ops::abs(&ops::subtract(places, &at)?)?, width)?;
            let weight = if cubic {
                let outer = ops::select(&ops::less_equal(&x, 2)?, far(&x, -0.5)?, 0.0)?;
                ops::select(&ops::less_equal(&x, 1)?, near(&x, -0.5)?, outer)?
            } else {
                ops::maximum(ops::subtract(1, &x)?, 0)?
            };
            let there = ops::logical_and(ops::greater_equal(&at, 0)?, ops::less(&at, n)?)?;
            let weight = ops::select(&there, weight, 0.0)?;
            total = ops::add(&total, &weight)?;
            taps.push((inside(&at)?, weight));
        }
        let total = ops::select(&ops::greater(&total, 0)?, &total, 1.0)?;
        let part = |(at, weight): (Array, Array)| Ok((at, ops::divide(&weight, &total)?));
        Ok(Taps(taps.into_iter().map(part).collect::<Result<_>>()?))
    }
}

/// The cubic kernel within 1.
fn near(x: &Array, a: f64) -> Result<Array> {
    let inner = ops::subtract(ops::multiply(x, a + 2.0)?, a + 3.0)?;
    ops::add(ops::multiply(ops::multiply(&inner, x)?, x)?, 1)
}

/// The cubic kernel between 1 and 2.
fn far(x: &Array, a: f64) -> Result<Array> {
    let inner = ops::add(ops::multiply(ops::subtract(x, 5)?, x)?, 8)?;
    ops::multiply(ops::subtract(ops::multiply(&inner, x)?, 4)?, a)
}

impl Layer for Upsample {
    fn forward(&self, x: &Array) -> Result<Array> {
        let axes = x.ndim().saturating_sub(2);
        if axes == 0 || !(self.same || self.factors.len() == axes) {
            let (s, n) = (show(x.shape()), self.factors.len());
            return Err(Error::shape(format!("[Upsample] x of shape {s} has {axes} spatial axes for {n} factors")));
        }
        let mut out = x.clone();
        for i in 0..axes {
            let (axis, factor) = (i as i32 + 1, self.factors[if self.same { 0 } else { i }]);
            if self.options.mode == UpsampleMode::Nearest && factor.fract() == 0.0 {
                out = ops::repeat(&out, factor as usize, axis)?;
                continue;
            }
            // One axis after the other: the same sums as over all combinations of taps, and far fewer.
            let mut shape = vec![1; x.ndim()];
            let mut sum: Option<Array> = None;
            for (at, weight) in self.taps(x.shape()[i + 1], factor)?.0 {
                let sample = ops::take(&out, &at, axis)?;
                if self.options.mode == UpsampleMode::Nearest {
                    sum = Some(sample);
                    continue;
                }
                shape[i + 1] = weight.size();
                let part = ops::multiply(&sample, ops::reshape(&weight, &shape)?)?;
                sum = Some(match sum {
                    Some(sum) => ops::add(&sum, &part)?,
                    None => part,
                });
            }
            out = sum.unwrap_or(out);
        }
        Ok(out)
    }
}

/// The nearest values (`nn.upsample_nearest`): one factor for all axes or one for each.
///
/// # Errors
/// Factors that are not positive; an x without spatial axes.
pub fn upsample_nearest(x: &Array, factors: &[f64]) -> Result<Array> {
    Upsample::with(factors, UpsampleOptions::default())?.forward(x)
}

/// Values between two (`nn.upsample_linear`).
///
/// # Errors
/// As [`Upsample::with`]; an x without spatial axes.
pub fn upsample_linear(x: &Array, factors: &[f64], align_corners: bool, antialias: bool) -> Result<Array> {
    Upsample::with(factors, UpsampleOptions { mode: UpsampleMode::Linear, align_corners, antialias })?.forward(x)
}

/// Values on a cubic through four (`nn.upsample_cubic`).
///
/// # Errors
/// As [`Upsample::with`]; an x without spatial axes.
pub fn upsample_cubic(x: &Array, factors: &[f64], align_corners: bool, antialias: bool) -> Result<Array> {
    Upsample::with(factors, UpsampleOptions { mode: UpsampleMode::Cubic, align_corners, antialias })?.forward(x)
}
