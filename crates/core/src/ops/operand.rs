//! Arguments of binary ops: an array, or a host number that takes the array's dtype.

use crate::array::Array;
use crate::dtype::{Dtype, c64};
use crate::error::Result;
use crate::ops::full::full_of;
use crate::scalar::Scalar;

/// An array or a host number.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// An array.
    Array(&'a Array),
    /// A number, weak in promotion.
    Scalar(Scalar),
}

/// What binary ops take on either side: `&Array` or a number.
pub trait Operand {
    /// The argument.
    fn arg(&self) -> Arg<'_>;
}

impl Operand for Array {
    fn arg(&self) -> Arg<'_> {
        Arg::Array(self)
    }
}
impl<T: Operand + ?Sized> Operand for &T {
    fn arg(&self) -> Arg<'_> {
        (**self).arg()
    }
}
macro_rules! scalars {
    ($($t:ty),*) => {$(
        impl Operand for $t {
            fn arg(&self) -> Arg<'_> {
                Arg::Scalar(Scalar::from(*self))
            }
        }
    )*};
}
scalars!(bool, i32, i64, u32, u64, usize, f32, f64, c64, half::f16, half::bf16);
impl Operand for Scalar {
    fn arg(&self) -> Arg<'_> {
        Arg::Scalar(*self)
    }
}

impl Arg<'_> {
    /// The dtype the op computes in, for one or two arguments.
    pub(crate) fn promote(op: &str, a: Arg<'_>, b: Arg<'_>) -> Result<Dtype> {
        Ok(match (a, b) {
            (Arg::Array(a), Arg::Array(b)) => a.dtype().promote(b.dtype()),
            (Arg::Array(a), Arg::Scalar(s)) | (Arg::Scalar(s), Arg::Array(a)) => s.dtype_beside(op, a.dtype())?,
            (Arg::Scalar(a), Arg::Scalar(b)) => a.dtype().promote(b.dtype()),
        })
    }

    /// The shape of the argument; numbers are 0-d.
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Arg::Array(a) => a.shape(),
            Arg::Scalar(_) => &[],
        }
    }

    /// The argument as an array of `dtype` and `shape`.
    pub(crate) fn materialize(self, dtype: Dtype, shape: &[usize]) -> Result<Array> {
        match self {
            Arg::Array(a) => super::broadcast_to(&super::astype(a, dtype)?, shape),
            Arg::Scalar(s) => Ok(full_of(s, dtype, shape)),
        }
    }
}
