//! Shapes, strides and axes: checked arithmetic on them, nothing else.
//!
//! Dimensions are `usize`, strides `isize`, both in elements. Every product is checked.

use crate::error::{Error, Result};
use smallvec::SmallVec;
use std::fmt::Write;

/// Sizes of the axes, outermost first.
pub type Shape = SmallVec<[usize; 4]>;
/// Distances between neighbours along each axis, in elements; 0 repeats, negative runs backwards.
pub type Strides = SmallVec<[isize; 4]>;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("lapis needs a 64-bit machine: sizes are 64-bit by promise");

/// `(2,3)`, as error messages print shapes.
pub fn show(shape: &[usize]) -> String {
    let mut s = String::from("(");
    for (i, d) in shape.iter().enumerate() {
        let _ = write!(s, "{}{d}", if i == 0 { "" } else { "," });
    }
    s.push_str(if shape.len() == 1 { ",)" } else { ")" });
    s
}

/// Number of elements of a shape.
///
/// # Errors
/// Overflow when the product, or its bytes at 8 bytes an element, does not fit in 63 bits.
pub fn elements(op: &str, shape: &[usize]) -> Result<usize> {
    let mut n: usize = 1;
    let mut zero = false;
    for &d in shape {
        zero |= d == 0;
        n = n.checked_mul(d.max(1)).filter(|&n| n <= (isize::MAX as usize) / 16).ok_or_else(|| {
            Error::overflow(format!("[{op}] shape {} has more elements than fit in 64-bit sizes", show(shape)))
        })?;
    }
    Ok(if zero { 0 } else { n })
}

/// Strides of a row-major array without gaps.
pub fn row_strides(shape: &[usize]) -> Strides {
    let mut strides: Strides = SmallVec::from_elem(0, shape.len());
    let mut next = 1isize;
    for i in (0..shape.len()).rev() {
        strides[i] = next;
        next *= shape[i].max(1) as isize;
    }
    strides
}

/// Whether `strides` describe a row-major array without gaps; axes of size 1 do not matter.
pub fn is_row_contiguous(shape: &[usize], strides: &[isize]) -> bool {
    let mut next = 1isize;
    for i in (0..shape.len()).rev() {
        if shape[i] == 1 {
            continue;
        }
        if strides[i] != next {
            return shape.contains(&0);
        }
        next *= shape[i] as isize;
    }
    true
}

/// The axis `axis` of an array with `ndim` axes; negative axes count from the end.
///
/// # Errors
/// An axis error out of range.
pub fn axis(op: &str, axis: i32, ndim: usize) -> Result<usize> {
    let n = ndim as i64;
    let a = i64::from(axis);
    if a < -n || a >= n {
        return Err(Error::axis(format!("[{op}] axis {axis} is out of range for an array with {ndim} dimensions")));
    }
    Ok(if a < 0 { (a + n) as usize } else { a as usize })
}

/// Normalised, sorted, distinct axes; `Axes::All` names every axis.
///
/// # Errors
/// An axis error out of range, or for an axis that is named twice.
pub fn axes(op: &str, axes: &Axes, ndim: usize) -> Result<SmallVec<[usize; 4]>> {
    let list = match axes {
        Axes::All => return Ok((0..ndim).collect()),
        Axes::List(list) => list,
    };
    let mut out: SmallVec<[usize; 4]> = SmallVec::new();
    for &a in list {
        let a = axis(op, a, ndim)?;
        if out.contains(&a) {
            return Err(Error::axis(format!("[{op}] axis {a} is named twice in {list:?}")));
        }
        out.push(a);
    }
    out.sort_unstable();
    Ok(out)
}

/// The shape two shapes broadcast to.
///
/// # Errors
/// A shape error when they do not.
pub fn broadcast(op: &str, a: &[usize], b: &[usize]) -> Result<Shape> {
    if a == b {
        return Ok(a.into());
    }
    let n = a.len().max(b.len());
    let mut out: Shape = SmallVec::from_elem(1, n);
    for i in 0..n {
        let da = if i + a.len() >= n { a[i + a.len() - n] } else { 1 };
        let db = if i + b.len() >= n { b[i + b.len() - n] } else { 1 };
        out[i] = match (da, db) {
            (1, d) | (d, 1) => d,
            (x, y) if x == y => x,
            _ => return Err(Error::shape(format!("[{op}] shapes {} and {} cannot be broadcast", show(a), show(b)))),
        };
    }
    Ok(out)
}

/// Axes of a reduction: all of them, one, or a list. Negative axes count from the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axes {
    /// Every axis.
    All,
    /// These axes.
    List(SmallVec<[i32; 4]>),
}

impl From<i32> for Axes {
    fn from(a: i32) -> Axes {
        Axes::List(SmallVec::from_slice(&[a]))
    }
}
impl From<&[i32]> for Axes {
    fn from(a: &[i32]) -> Axes {
        Axes::List(a.into())
    }
}
impl<const N: usize> From<[i32; N]> for Axes {
    fn from(a: [i32; N]) -> Axes {
        Axes::List(a.as_slice().into())
    }
}
impl<const N: usize> From<&[i32; N]> for Axes {
    fn from(a: &[i32; N]) -> Axes {
        Axes::List(a.as_slice().into())
    }
}
impl From<Vec<i32>> for Axes {
    fn from(a: Vec<i32>) -> Axes {
        Axes::List(a.into())
    }
}
impl<T: Into<Axes>> From<Option<T>> for Axes {
    fn from(a: Option<T>) -> Axes {
        a.map_or(Axes::All, Into::into)
    }
}
impl From<()> for Axes {
    fn from(_: ()) -> Axes {
        Axes::All
    }
}
