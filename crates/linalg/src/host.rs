//! Tensors as slices, batches in parallel: what all kernels of this crate stand on.

use faer::traits::ComplexField;
use lapis_core::backend::each;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Element, c64};
use lapis_core::error::{Error, Result};
use lapis_core::shape::show;
use std::borrow::Cow;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::sync::{Mutex, PoisonError};

/// An element type of matrices.
pub(crate) trait Scalar:
    ComplexField<Real: faer::traits::RealField>
    + Element
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The type of magnitudes.
    type Magnitude: Element;
    const ZERO: Self;
    const ONE: Self;
    fn magnitude(self) -> f64;
    fn finite(self) -> bool;
    fn real_part(self) -> Self::Magnitude;
    fn conjugate(self) -> Self;
    fn scaled(self, by: f64) -> Self;
    fn from_f64(x: f64) -> Self::Magnitude;
}

macro_rules! reals {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            type Magnitude = $t;
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            fn magnitude(self) -> f64 {
                f64::from(self).abs()
            }
            fn finite(self) -> bool {
                self.is_finite()
            }
            fn real_part(self) -> $t {
                self
            }
            fn conjugate(self) -> $t {
                self
            }
            fn scaled(self, by: f64) -> $t {
                (f64::from(self) * by) as $t
            }
            fn from_f64(x: f64) -> $t {
                x as $t
            }
        }
    )*};
}
reals!(f32, f64);

impl Scalar for c64 {
    type Magnitude = f32;
    const ZERO: c64 = c64::new(0.0, 0.0);
    const ONE: c64 = c64::new(1.0, 0.0);
    fn magnitude(self) -> f64 {
        f64::from(self.re).hypot(f64::from(self.im))
    }
    fn finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }
    fn real_part(self) -> f32 {
        self.re
    }
    fn conjugate(self) -> c64 {
        c64::new(self.re, -self.im)
    }
    fn scaled(self, by: f64) -> c64 {
        c64::new((f64::from(self.re) * by) as f32, (f64::from(self.im) * by) as f32)
    }
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
}

/// The elements of a tensor in row-major order; in place where they lie so.
pub(crate) fn values<T: Element>(t: &Tensor) -> Cow<'_, [T]> {
    if t.is_row_contiguous() {
        let bytes = t.contiguous_bytes();
        return T::try_cast(bytes).map_or_else(|| Cow::Owned(T::read(bytes)), Cow::Borrowed);
    }
    let size = size_of::<T>();
    let mut at = vec![t.offset as isize];
    for (&d, &s) in t.shape.iter().zip(&t.strides) {
        at = at.iter().flat_map(|&o| (0..d as isize).map(move |i| o + i * s * size as isize)).collect();
    }
    let bytes = t.buffer.bytes();
    let mut row_major = Vec::with_capacity(at.len() * size);
    for o in at {
        row_major.extend_from_slice(&bytes[o as usize..o as usize + size]);
    }
    Cow::Owned(T::read(&row_major))
}

/// The elements of an output.
///
/// # Errors
/// Memory that the host may not write: no output is.
pub(crate) fn output<T: Element>(t: &mut Tensor) -> Result<&mut [T]> {
    if t.size() == 0 {
        return Ok(&mut []);
    }
    let bytes = t.contiguous_bytes_mut().and_then(T::try_cast_mut);
    bytes.ok_or_else(|| Error::eval("[linalg] the output is not row-major memory of its own on the host"))
}

/// `all` in `count` equal parts.
pub(crate) fn parts<T>(mut all: &mut [T], count: usize) -> Vec<&mut [T]> {
    let each = all.len() / count.max(1);
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        let (part, rest) = all.split_at_mut(each);
        out.push(part);
        all = rest;
    }
    out
}

/// What is wrong with a matrix.
pub(crate) type Fault = &'static str;
/// What computing with one matrix gives.
pub(crate) type Checked<T> = std::result::Result<T, Fault>;

/// The fault of a matrix with NaN or infinity where the algorithm would not end.
pub(crate) const NOT_FINITE: Fault = "holds NaN or infinity";

/// A batch of matrices of one op.
pub(crate) struct Batch<'a> {
    /// Name of the op.
    pub(crate) name: &'a str,
    /// Batch axes.
    pub(crate) lead: &'a [usize],
    /// Operations one matrix costs, roughly.
    pub(crate) work: usize,
}

/// Operations from which a parallel region pays.
const REGION: usize = 1 << 18;

impl Batch<'_> {
    /// Number of matrices.
    pub(crate) fn count(&self) -> usize {
        self.lead.iter().product()
    }

    /// Runs `f` on every item, in parallel when there is enough to do. The fault of the first faulty matrix is the
    /// error.
    pub(crate) fn each<I: Send>(&self, items: Vec<I>, f: impl Fn(usize, I) -> Checked<()> + Sync) -> Result<()> {
        let n = items.len();
        let first: Mutex<Option<(usize, Fault)>> = Mutex::new(None);
        let tasks = (n.saturating_mul(self.work.max(1)) / REGION).clamp(1, n.max(1));
        each(
            items.into_iter().enumerate().collect(),
            n.div_ceil(tasks),
            || (),
            |(), (i, item)| {
                if let Err(fault) = f(i, item) {
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.is_none_or(|(j, _)| i < j) {
                        *first = Some((i, fault));
                    }
                }
            },
        );
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((i, fault)) => Err(self.error(i, fault)),
        }
    }

    fn error(&self, mut i: usize, fault: Fault) -> Error {
        if self.lead.is_empty() {
            return Error::eval(format!("[{}] the matrix {fault}", self.name));
        }
        let mut index = vec![0; self.lead.len()];
        for (slot, &d) in index.iter_mut().zip(self.lead).rev() {
            *slot = i % d;
            i /= d;
        }
        Error::eval(format!("[{}] the matrix of batch index {} {fault}", self.name, show(&index)))
    }
}

/// The batch of the last two axes of `t`, and these axes.
pub(crate) fn batch<'a>(name: &'a str, t: &'a Tensor) -> (Batch<'a>, usize, usize) {
    let lead = t.shape.len() - 2;
    let (m, n) = (t.shape[lead], t.shape[lead + 1]);
    (Batch { name, lead: &t.shape[..lead], work: 2 * m * n * m.min(n) }, m, n)
}

/// Matrix `i` of a row-major batch.
pub(crate) fn matrix<T>(all: &[T], i: usize, m: usize, n: usize) -> faer::MatRef<'_, T> {
    faer::MatRef::from_row_major_slice(&all[i * m * n..(i + 1) * m * n], m, n)
}

/// Writes `value(i, j)` row by row.
pub(crate) fn fill<T>(out: &mut [T], columns: usize, value: impl Fn(usize, usize) -> T) {
    for (i, row) in out.chunks_exact_mut(columns.max(1)).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            *x = value(i, j);
        }
    }
}
