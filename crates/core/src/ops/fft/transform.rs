//! Fourier transforms under transforms: the adjoint of each kind is another kind.

use super::{Fft, FftKind};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::view::reshape_to;
use crate::ops::{PadMode, multiply, pad, slice};
use crate::shape::Shape;
use crate::transforms::{Grads, Lane, Site, Transform};
use smallvec::{SmallVec, smallvec};

/// `a` with axis `axis` cropped, or padded with zeros, to `len`.
fn resized(a: &Array, axis: usize, len: usize) -> Result<Array> {
    let now = a.shape()[axis];
    if now < len {
        let width = |i| (0, if i == axis { len - now } else { 0 });
        return pad(a, (0..a.ndim()).map(width).collect::<Vec<_>>(), PadMode::Constant, 0);
    }
    let mut ranges = vec![(None, None, 1); axis + 1];
    ranges[axis].1 = Some(len as i64);
    slice(a, &ranges)
}

impl Fft {
    /// `a`, of the `n/2 + 1` kept frequencies, with those that stand for a mirrored one as well times `by`.
    fn weighted(&self, a: &Array, by: f32) -> Result<Array> {
        let kept = self.n / 2 + 1;
        let alone = |k: usize| k == 0 || 2 * k == self.n;
        let weights = (0..kept).map(|k| if alone(k) { 1.0 } else { by }).collect::<Vec<f32>>();
        let mut shape: Shape = SmallVec::from_elem(1, a.ndim());
        shape[self.axis] = kept;
        multiply(a, reshape_to(&Array::try_from_vec(weights, &[kept])?, shape)?)
    }
}

impl Transform for Fft {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, input) = (at.cotangent(0)?, &at.inputs[0]);
        let back = |kind: FftKind, g: Array| Array::apply1(Fft { kind, ..self.clone() }, smallvec![g]);
        let whole = match self.kind {
            FftKind::Forward => back(FftKind::Inverse, g)?,
            FftKind::Inverse => back(FftKind::Forward, g)?,
            FftKind::Real => back(FftKind::RealInverse, self.weighted(&g, 0.5)?)?,
            FftKind::RealInverse => self.weighted(&back(FftKind::Real, g)?, 2.0)?,
        };
        debug_assert_eq!(whole.dtype().is_complex(), input.dtype() == Dtype::Complex64);
        Ok(smallvec![Some(resized(&whole, self.axis, input.shape()[self.axis])?)])
    }

    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        let op = Fft { axis: self.axis + 1, ..self.clone() };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].array.clone()])?])
    }
}
