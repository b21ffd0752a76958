//! Running reductions along an axis.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::node::{Aval, Avals};
use crate::ops::{Rule, astype, reshape};
use crate::shape;
use smallvec::smallvec;

/// What a scan keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScanKind {
    /// Running sum.
    Sum,
    /// Running product.
    Prod,
    /// Running maximum.
    Max,
    /// Running minimum.
    Min,
    /// Running `ln(sum(exp))`.
    LogAddExp,
}

/// A running reduction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scan {
    /// What is kept.
    pub kind: ScanKind,
    /// Along which axis.
    pub axis: usize,
    /// From the end.
    pub reverse: bool,
    /// Whether an element counts for its own place.
    pub inclusive: bool,
}

impl Rule for Scan {
    fn name(&self) -> &'static str {
        match self.kind {
            ScanKind::Sum => "cumsum",
            ScanKind::Prod => "cumprod",
            ScanKind::Max => "cummax",
            ScanKind::Min => "cummin",
            ScanKind::LogAddExp => "logcumsumexp",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
    }
}

fn scan(kind: ScanKind, a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    let op = Scan { kind, axis: 0, reverse, inclusive };
    let Some(axis) = axis else {
        return Array::apply1(op, smallvec![reshape(a, &[-1])?]);
    };
    let axis = shape::axis(op.name(), axis, a.ndim())?;
    Array::apply1(Scan { axis, ..op }, smallvec![a.clone()])
}

/// Running sum along `axis`, or of the flattened array (`mx.cumsum`); bool gives int32. Exclusive scans start with 0.
///
/// # Errors
/// An axis out of range.
pub fn cumsum(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool, dtype: Option<Dtype>) -> Result<Array> {
    let natural = if a.dtype() == Dtype::Bool { Dtype::Int32 } else { a.dtype() };
    scan(ScanKind::Sum, &astype(a, dtype.unwrap_or(natural))?, axis, reverse, inclusive)
}

/// Running product along `axis` (`mx.cumprod`). Exclusive scans start with 1.
///
/// # Errors
/// An axis out of range.
pub fn cumprod(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool, dtype: Option<Dtype>) -> Result<Array> {
    scan(ScanKind::Prod, &astype(a, dtype.unwrap_or(a.dtype()))?, axis, reverse, inclusive)
}

/// Running maximum along `axis`; NaN from the first NaN on (`mx.cummax`). Exclusive scans start with the lowest value.
///
/// # Errors
/// An axis out of range.
pub fn cummax(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    scan(ScanKind::Max, a, axis, reverse, inclusive)
}

/// Running minimum along `axis`; see [`cummax`].
///
/// # Errors
/// An axis out of range.
pub fn cummin(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    scan(ScanKind::Min, a, axis, reverse, inclusive)
}

/// Running `ln(sum(exp))` along `axis` without overflow (`mx.logcumsumexp`). Exclusive scans start with -inf.
///
/// # Errors
/// An axis out of range.
pub fn logcumsumexp(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    scan(ScanKind::LogAddExp, &astype(a, a.dtype().to_inexact())?, axis, reverse, inclusive)
}

impl Array {
    /// Running sum; see [`cumsum`].
    #[track_caller]
    pub fn cumsum(&self, axis: i32) -> Array {
        crate::or_panic(cumsum(self, Some(axis), false, true, None))
    }
    /// Running product; see [`cumprod`].
    #[track_caller]
    pub fn cumprod(&self, axis: i32) -> Array {
        crate::or_panic(cumprod(self, Some(axis), false, true, None))
    }
}
