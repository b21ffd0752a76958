//! Discrete Fourier transforms (`mx.fft`). The op transforms one axis; functions over several axes chain it.
//!
//! Everything is computed in complex64 and float32. Kernels are in the crate `lapis-linalg`.

mod short_time;
mod transform;

pub use short_time::{Frames, istft, stft};

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::{Rule, astype, expect, real, roll};
use crate::scalar::Real;
use crate::shape::{self, Axes, show};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// Which transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FftKind {
    /// Complex to complex, `exp(-2πi jk/n)`.
    Forward,
    /// Complex to complex, `exp(2πi jk/n)`.
    Inverse,
    /// Real to the first `n/2 + 1` of its complex values.
    Real,
    /// The first `n/2 + 1` values of a Hermitian sequence to real ones.
    RealInverse,
}

/// The transform of one axis, cropped or padded with zeros to `n` points (for [`FftKind::RealInverse`] to `n/2 + 1`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fft {
    /// Which transform.
    pub kind: FftKind,
    /// Which axis.
    pub axis: usize,
    /// Points of the transform.
    pub n: usize,
    /// Factor of the result.
    pub scale: Real,
}

impl Rule for Fft {
    fn name(&self) -> &'static str {
        match self.kind {
            FftKind::Forward => "fft.fft",
            FftKind::Inverse => "fft.ifft",
            FftKind::Real => "fft.rfft",
            FftKind::RealInverse => "fft.irfft",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let mut shape = expect::only(self.name(), inputs)?;
        expect::axis(self.name(), self.axis, &shape)?;
        let from = if self.kind == FftKind::Real { Dtype::Float32 } else { Dtype::Complex64 };
        expect::dtype(self.name(), &inputs[0], inputs[0].dtype() == from)?;
        if self.n == 0 {
            let (name, axis, s) = (self.name(), self.axis, show(&shape));
            return Err(Error::value(format!("[{name}] a transform of 0 points along axis {axis} of shape {s}")));
        }
        shape[self.axis] = if self.kind == FftKind::Real { self.n / 2 + 1 } else { self.n };
        shape::elements(self.name(), &shape)?;
        let dtype = if self.kind == FftKind::RealInverse { Dtype::Float32 } else { Dtype::Complex64 };
        Ok(smallvec![Aval::new(shape, dtype)])
    }
}

/// Where the factor `1/n` stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum FftNorm {
    /// On the inverse.
    #[default]
    Backward,
    /// Its square root on both.
    Ortho,
    /// On the forward transform.
    Forward,
}

impl FftNorm {
    /// The norm called `backward`, `ortho` or `forward`.
    ///
    /// # Errors
    /// Other names.
    pub fn from_name(name: &str) -> Result<FftNorm> {
        match name {
            "backward" => Ok(FftNorm::Backward),
            "ortho" => Ok(FftNorm::Ortho),
            "forward" => Ok(FftNorm::Forward),
            _ => Err(Error::value(format!("[fft] norm is \"backward\", \"ortho\" or \"forward\", not {name:?}"))),
        }
    }

    fn scale(self, kind: FftKind, n: usize) -> f64 {
        let forward = matches!(kind, FftKind::Forward | FftKind::Real);
        match self {
            FftNorm::Ortho => 1.0 / (n as f64).sqrt(),
            FftNorm::Backward if !forward => 1.0 / n as f64,
            FftNorm::Forward if forward => 1.0 / n as f64,
            _ => 1.0,
        }
    }
}

/// One axis.
fn along(a: &Array, kind: FftKind, n: Option<usize>, axis: usize, norm: FftNorm) -> Result<Array> {
    let size = a.shape()[axis];
    let n = n.unwrap_or(if kind == FftKind::RealInverse { 2 * size.saturating_sub(1) } else { size });
    let a = match kind {
        FftKind::Real if a.dtype().is_complex() => real(a)?,
        FftKind::Real => astype(a, Dtype::Float32)?,
        // Through float32: a float64 array is rounded first.
        _ if a.dtype().is_complex() => a.clone(),
        _ => astype(&astype(a, Dtype::Float32)?, Dtype::Complex64)?,
    };
    Array::apply1(Fft { kind, axis, n, scale: Real(norm.scale(kind, n)) }, smallvec![a])
}

fn single(op: &str, a: &Array, kind: FftKind, n: impl Into<Option<usize>>, axis: i32, norm: FftNorm) -> Result<Array> {
    if a.ndim() == 0 {
        return Err(Error::shape(format!("[{op}] a 0-d array has no axis to transform")));
    }
    along(a, kind, n.into(), shape::axis(op, axis, a.ndim())?, norm)
}

/// Several axes: the real transform, if any, on the last of them, next to the real side.
fn several(
    op: &str,
    a: &Array,
    kind: FftKind,
    sizes: Option<&[usize]>,
    axes: Option<&[i32]>,
    norm: FftNorm,
) -> Result<Array> {
    if sizes.is_some() && axes.is_none() {
        return Err(Error::value(format!("[{op}] sizes without axes: say which axes they belong to")));
    }
    let axes: SmallVec<[usize; 4]> = match axes {
        None => (0..a.ndim()).collect(),
        Some(axes) => {
            shape::axes(op, &Axes::from(axes), a.ndim())?;
            axes.iter().map(|&i| shape::axis(op, i, a.ndim())).collect::<Result<_>>()?
        }
    };
    if let Some(sizes) = sizes
        && sizes.len() != axes.len()
    {
        return Err(Error::value(format!("[{op}] {} sizes for {} axes", sizes.len(), axes.len())));
    }
    let size = |i: usize| sizes.map(|s| s[i]);
    let Some(last) = axes.len().checked_sub(1) else { return Ok(a.clone()) };
    let complex = match kind {
        FftKind::Real => FftKind::Forward,
        FftKind::RealInverse => FftKind::Inverse,
        other => other,
    };
    let mut out = a.clone();
    if kind != FftKind::RealInverse {
        out = along(&out, kind, size(last), axes[last], norm)?;
    }
    for i in (0..last).rev() {
        out = along(&out, complex, size(i), axes[i], norm)?;
    }
    if kind == FftKind::RealInverse {
        out = along(&out, kind, size(last), axes[last], norm)?;
    }
    Ok(out)
}

macro_rules! transforms {
    ($($kind:ident $name:ident $two:ident $many:ident $doc:literal;)*) => {$(
        #[doc = concat!($doc, " along one axis (`mx.fft.", stringify!($name), "`).")]
        ///
        /// `n`: points of the transform; the axis is cropped or padded with zeros to it.
        ///
        /// # Errors
        /// An axis out of range; a transform of 0 points.
        pub fn $name(a: &Array, n: impl Into<Option<usize>>, axis: i32, norm: FftNorm) -> Result<Array> {
            single(concat!("fft.", stringify!($name)), a, FftKind::$kind, n, axis, norm)
        }

        #[doc = concat!($doc, " along two axes (`mx.fft.", stringify!($two), "`), the last two unless given.")]
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($many), "`].")]
        pub fn $two(a: &Array, sizes: Option<&[usize]>, axes: Option<&[i32]>, norm: FftNorm) -> Result<Array> {
            let op = concat!("fft.", stringify!($two));
            several(op, a, FftKind::$kind, sizes, Some(axes.unwrap_or(&[-2, -1])), norm)
        }

        #[doc = concat!($doc, " along several axes (`mx.fft.", stringify!($many), "`), all unless given.")]
        ///
        /// `sizes`: points of each transform, one an axis; needs `axes`.
        ///
        /// # Errors
        /// Axes out of range or named twice; sizes that do not belong to axes; a transform of 0 points.
        pub fn $many(a: &Array, sizes: Option<&[usize]>, axes: Option<&[i32]>, norm: FftNorm) -> Result<Array> {
            several(concat!("fft.", stringify!($many)), a, FftKind::$kind, sizes, axes, norm)
        }
    )*};
}

transforms! {
    Forward fft fft2 fftn "Discrete Fourier transform";
    Inverse ifft ifft2 ifftn "Inverse discrete Fourier transform";
    Real rfft rfft2 rfftn "Discrete Fourier transform of real values, without the mirrored half of the last axis,";
    RealInverse irfft irfft2 irfftn "Inverse of the transform of real values (`2 * (size - 1)` points on the last axis),";
}

/// Moves the zero frequency to the middle (`mx.fft.fftshift`): rolls `axes` (`()`: all) by half their size.
///
/// # Errors
/// Axes out of range or named twice.
pub fn fftshift(a: &Array, axes: impl Into<Axes>) -> Result<Array> {
    let axes = shape::axes("fft.fftshift", &axes.into(), a.ndim())?;
    let half = |n: usize| (n / 2) as i64;
    rolled(a, &axes, half)
}

/// Undoes [`fftshift`] (`mx.fft.ifftshift`).
///
/// # Errors
/// Axes out of range or named twice.
pub fn ifftshift(a: &Array, axes: impl Into<Axes>) -> Result<Array> {
    let axes = shape::axes("fft.ifftshift", &axes.into(), a.ndim())?;
    rolled(a, &axes, |n| -((n / 2) as i64))
}

fn rolled(a: &Array, axes: &[usize], shift: impl Fn(usize) -> i64) -> Result<Array> {
    if axes.is_empty() {
        return Ok(a.clone());
    }
    let shifts: Vec<i64> = axes.iter().map(|&i| shift(a.shape()[i])).collect();
    roll(a, shifts, axes.iter().map(|&i| i as i32).collect::<Vec<i32>>())
}

fn frequencies(op: &str, n: usize, d: f64, ks: impl Iterator<Item = i64>) -> Result<Array> {
    if n == 0 {
        return Err(Error::value(format!("[{op}] frequencies of 0 points")));
    }
    let data: Vec<f32> = ks.map(|k| (k as f64 / (n as f64 * d)) as f32).collect();
    let len = data.len();
    Array::try_from_vec(data, &[len])
}

/// Frequencies of the values of a transform of `n` points taken `d` apart (`mx.fft.fftfreq`), float32:
/// 0, 1, ..., then the negative ones, over `n * d`.
///
/// # Errors
/// n = 0.
pub fn fftfreq(n: usize, d: f64) -> Result<Array> {
    let n_ = n as i64;
    frequencies("fft.fftfreq", n, d, (0..(n_ + 1) / 2).chain(-(n_ / 2)..0))
}

/// The `n/2 + 1` frequencies of a real transform (`mx.fft.rfftfreq`), float32.
///
/// # Errors
/// n = 0.
pub fn rfftfreq(n: usize, d: f64) -> Result<Array> {
    frequencies("fft.rfftfreq", n, d, 0..=(n / 2) as i64)
}
