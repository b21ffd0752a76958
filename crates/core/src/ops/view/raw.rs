//! Views that take memory as it comes: any strides over it, its bits as another dtype.

use super::{ViewRule, one};
use crate::array::Array;
use crate::buffer::Tensor;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::Avals;
use crate::ops::{Rule, expect, not_equal};
use crate::shape::{self, Shape, Strides, show};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// Any strides over the row-major elements of the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsStrided {
    /// Sizes.
    pub shape: Shape,
    /// Strides in elements.
    pub strides: Strides,
    /// First element.
    pub offset: usize,
}

impl Rule for AsStrided {
    fn name(&self) -> &'static str {
        "as_strided"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let AsStrided { shape, strides, offset } = self;
        let size = shape::elements("as_strided", &expect::only("as_strided", inputs)?)?;
        shape::elements("as_strided", shape)?;
        if shape.len() != strides.len() {
            let (n, m) = (shape.len(), strides.len());
            return Err(Error::value(format!("[as_strided] {n} sizes but {m} strides")));
        }
        let (mut lo, mut hi) = (*offset as i128, *offset as i128);
        for (&d, &s) in shape.iter().zip(strides) {
            let reach = (d as i128 - 1) * s as i128;
            if reach < 0 { lo += reach } else { hi += reach }
        }
        if !shape.contains(&0) && (lo < 0 || hi >= size as i128) {
            let text = "reach outside an array of";
            return Err(Error::value(format!("[as_strided] elements {lo} to {hi} {text} {size} elements")));
        }
        one(self.shape.clone(), inputs[0].dtype())
    }
}

impl ViewRule for AsStrided {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        let offset = t.offset + self.offset * t.dtype.size();
        let (shape, strides) = (self.shape.clone(), self.strides.clone());
        t.is_row_contiguous().then(|| Tensor { offset, shape, strides, ..t.clone() })
    }
}

/// The row-major elements of `a` seen with any shape, strides and offset, in elements (`mx.as_strided`).
///
/// # Errors
/// A value error when an element would lie outside `a`.
pub fn as_strided(a: &Array, shape: &[usize], strides: &[isize], offset: usize) -> Result<Array> {
    let op = AsStrided { shape: shape.into(), strides: strides.into(), offset };
    Array::apply1(op, smallvec![a.clone()])
}

/// The bits of the elements read as another dtype.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitView {
    /// The dtype to read.
    pub dtype: Dtype,
}

impl Rule for BitView {
    fn name(&self) -> &'static str {
        "view"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count("view", inputs, 1)?;
        let a = &inputs[0];
        // Kernels count on bools of 0 and 1.
        expect::dtype("view", a, self.dtype != Dtype::Bool)?;
        let (from, to) = (a.dtype().size(), self.dtype.size());
        let mut shape: Shape = a.shape().into();
        match shape.last_mut() {
            Some(last) if (*last * from).is_multiple_of(to) => *last = *last * from / to,
            None if from == to => {}
            _ => {
                let (s, d) = (show(a.shape()), a.dtype());
                return Err(Error::shape(format!("[view] {d} of shape {s} cannot be read as {}", self.dtype)));
            }
        }
        one(shape, self.dtype)
    }
}

impl ViewRule for BitView {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        let (from, to) = (t.dtype.size(), self.dtype.size());
        if from == to {
            return Some(Tensor { dtype: self.dtype, ..t.clone() });
        }
        if !t.is_row_contiguous() || !t.offset.is_multiple_of(to) {
            return None;
        }
        let mut shape = t.shape.clone();
        let last = shape.last_mut()?;
        *last = *last * from / to;
        let strides = shape::row_strides(&shape);
        Some(Tensor { dtype: self.dtype, shape, strides, ..t.clone() })
    }
}

/// The bits of `a` read as `dtype`; the last axis scales by the ratio of sizes (`array.view`). Nonzero bytes read as
/// bool count as they are: make bool arrays with comparisons.
///
/// # Errors
/// A shape error when the last axis does not divide.
pub fn view(a: &Array, dtype: Dtype) -> Result<Array> {
    if a.dtype() == dtype {
        return Ok(a.clone());
    }
    if dtype == Dtype::Bool {
        return not_equal(&view(a, Dtype::Uint8)?, 0);
    }
    Array::apply1(BitView { dtype }, smallvec![a.clone()])
}
