//! Regular arrays: even spacings, unit and triangular matrices, diagonals, grids, windows.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::Inputs;
use crate::ops::view::reshape_to;
use crate::ops::{Arange, add, broadcast_to, divide, full, moveaxis, multiply, select, slice, slice_update};
use crate::ops::{astype, cos, equal, greater_equal, less_equal, minimum, subtract};
use crate::scalar::{Real, Scalar};
use crate::shape::{self, Shape, show};
use smallvec::smallvec;

/// `num` values evenly from `start` to `stop` (`mx.linspace`), which is the last one under `endpoint`. Computed in
/// f64; integer dtypes (default float32) truncate.
///
/// # Errors
/// A value error for bounds that are not finite.
pub fn linspace(
    start: impl Into<Scalar>,
    stop: impl Into<Scalar>,
    num: usize,
    endpoint: bool,
    dtype: Option<Dtype>,
) -> Result<Array> {
    let (start, stop) = (start.into().as_f64(), stop.into().as_f64());
    if !start.is_finite() || !stop.is_finite() {
        return Err(Error::value(format!("[linspace] bounds {start} and {stop} must be finite")));
    }
    let gaps = if endpoint { num.saturating_sub(1) } else { num }.max(1);
    let i = count(0, num, Dtype::Float64)?;
    // Multiplied before divided: whole steps stay whole.
    let mut values = add(&divide(&multiply(&i, stop - start)?, gaps as f64)?, start)?;
    if endpoint && num > 1 {
        values = select(&equal(&i, gaps as f64)?, stop, &values)?;
    }
    astype(&values, dtype.unwrap_or(Dtype::Float32))
}

/// `first, first + 1, ...`: `len` values.
fn count(first: i64, len: usize, dtype: Dtype) -> Result<Array> {
    shape::elements("arange", &[len])?;
    Array::apply1(Arange { start: Real(first as f64), step: Real(1.0), len, dtype }, Inputs::new())
}

/// Row numbers as a column and column numbers shifted by `-k`: the k-th diagonal is where they are equal.
fn rows_and_columns(n: usize, m: usize, k: i64) -> Result<(Array, Array)> {
    let rows = count(0, n, Dtype::Int64)?;
    Ok((reshape_to(&rows, smallvec![n, 1])?, count(-k, m, Dtype::Int64)?))
}

/// Ones on the k-th diagonal of an n by m matrix of zeros (`mx.eye`); `m` defaults to `n`, the dtype to float32.
///
/// # Errors
/// Overflow of the shape.
pub fn eye(n: usize, m: impl Into<Option<usize>>, k: i64, dtype: Option<Dtype>) -> Result<Array> {
    let m = m.into().unwrap_or(n);
    shape::elements("eye", &[n, m])?;
    let (rows, columns) = rows_and_columns(n, m, k)?;
    astype(&equal(&rows, &columns)?, dtype.unwrap_or(Dtype::Float32))
}

/// The n by n unit matrix (`mx.identity`); float32 by default.
///
/// # Errors
/// Overflow of the shape.
pub fn identity(n: usize, dtype: Option<Dtype>) -> Result<Array> {
    eye(n, None, 0, dtype)
}

/// Where the n by m matrix has its k-th diagonal or what is below it.
fn lower(n: usize, m: usize, k: i64) -> Result<Array> {
    let (rows, columns) = rows_and_columns(n, m, k)?;
    greater_equal(&rows, &columns)
}

/// Ones on and below the k-th diagonal of an n by m matrix of zeros (`mx.tri`); `m` defaults to `n`, the dtype to
/// float32.
///
/// # Errors
/// Overflow of the shape.
pub fn tri(n: usize, m: impl Into<Option<usize>>, k: i64, dtype: Option<Dtype>) -> Result<Array> {
    let m = m.into().unwrap_or(n);
    shape::elements("tri", &[n, m])?;
    astype(&lower(n, m, k)?, dtype.unwrap_or(Dtype::Float32))
}

fn matrix_sizes(op: &str, a: &Array) -> Result<(usize, usize)> {
    match *a.shape() {
        [.., n, m] => Ok((n, m)),
        _ => Err(Error::shape(format!("[{op}] needs two axes; the shape is {}", show(a.shape())))),
    }
}

/// The matrices in the last two axes with zeros above the k-th diagonal (`mx.tril`).
///
/// # Errors
/// A shape error for fewer than two axes.
pub fn tril(a: &Array, k: i64) -> Result<Array> {
    let (n, m) = matrix_sizes("tril", a)?;
    zero_unless(&lower(n, m, k)?, a)
}

/// The matrices in the last two axes with zeros below the k-th diagonal (`mx.triu`).
///
/// # Errors
/// A shape error for fewer than two axes.
pub fn triu(a: &Array, k: i64) -> Result<Array> {
    let (n, m) = matrix_sizes("triu", a)?;
    let (rows, columns) = rows_and_columns(n, m, k)?;
    zero_unless(&less_equal(&rows, &columns)?, a)
}

fn zero_unless(keep: &Array, a: &Array) -> Result<Array> {
    select(keep, a, &full(&[], 0, Some(a.dtype()))?)
}

/// Diagonals of the matrices in `axis1` and `axis2`, as a new last axis (`mx.diagonal`): element i is at row i, column
/// `i + offset`.
///
/// # Errors
/// An axis out of range; twice the same axis; fewer than two axes.
pub fn diagonal(a: &Array, offset: i64, axis1: i32, axis2: i32) -> Result<Array> {
    let (i, j) = (shape::axis("diagonal", axis1, a.ndim())?, shape::axis("diagonal", axis2, a.ndim())?);
    if i == j {
        return Err(Error::axis(format!("[diagonal] axis {i} is named twice")));
    }
    // With the two axes last, the diagonal is every (m+1)-th element of them merged.
    let rows_last = moveaxis(a, i as i32, -1)?;
    let last = moveaxis(&rows_last, if j > i { j as i32 - 1 } else { j as i32 }, -1)?;
    let (n, m) = matrix_sizes("diagonal", &last)?;
    let (first, len) = diagonal_place(n, m, offset);
    let mut flat: Shape = last.shape()[..a.ndim() - 2].into();
    flat.push(n * m);
    let mut ranges = vec![(None, None, 1); a.ndim() - 2];
    let stop = if len == 0 { first } else { first + (len - 1) * (m as i64 + 1) + 1 };
    ranges.push((Some(first), Some(stop), m as i64 + 1));
    slice(&reshape_to(&last, flat)?, &ranges)
}

/// First flat position and length of the k-th diagonal of an n by m matrix.
fn diagonal_place(n: usize, m: usize, k: i64) -> (i64, i64) {
    let (n, m) = (n as i64, m as i64);
    let (row, column) = ((-k.max(-n)).max(0), k.clamp(0, m));
    let len = (n - row).min(m - column).max(0);
    (if len == 0 { 0 } else { row * m + column }, len)
}

/// A matrix with the 1-D array `a` as its k-th diagonal, or the k-th diagonal of the matrix `a` (`mx.diag`).
///
/// # Errors
/// A shape error for other numbers of axes.
pub fn diag(a: &Array, k: i64) -> Result<Array> {
    match *a.shape() {
        [len] => {
            let n = usize::try_from(k.unsigned_abs()).ok().and_then(|k| k.checked_add(len));
            let n = n.ok_or_else(|| Error::overflow(format!("[diag] diagonal {k} is too far away")))?;
            shape::elements("diag", &[n, n])?;
            let zeros = full(&[n * n], 0, Some(a.dtype()))?;
            let (first, len) = diagonal_place(n, n, k);
            let stop = first + if len == 0 { 0 } else { (len - 1) * (n as i64 + 1) + 1 };
            let flat = slice_update(&zeros, a, &[(Some(first), Some(stop), n as i64 + 1)])?;
            reshape_to(&flat, smallvec![n, n])
        }
        [_, _] => diagonal(a, k, 0, 1),
        _ => Err(Error::shape(format!("[diag] needs one or two axes; the shape is {}", show(a.shape())))),
    }
}

/// How the first two axes of a grid are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Indexing {
    /// Cartesian: the first array runs along axis 1, the second along axis 0.
    Xy,
    /// Matrix: array i runs along axis i.
    Ij,
}

/// The coordinates of the grid that the arrays, 0-d or 1-D, span (`mx.meshgrid`): one array of the grid's shape for
/// each, or with size 1 along the other axes under `sparse`. Views.
///
/// # Errors
/// A shape error for arrays with more than one axis.
pub fn meshgrid(arrays: &[Array], sparse: bool, indexing: Indexing) -> Result<Vec<Array>> {
    let n = arrays.len();
    let axis_of = |i: usize| if indexing == Indexing::Xy && n > 1 && i < 2 { 1 - i } else { i };
    let mut grid: Shape = smallvec![1; n];
    for (i, a) in arrays.iter().enumerate() {
        if a.ndim() > 1 {
            return Err(Error::shape(format!("[meshgrid] array {i} has shape {}, not one axis", show(a.shape()))));
        }
        grid[axis_of(i)] = a.size();
    }
    let along = |(i, a): (usize, &Array)| {
        let mut shape: Shape = smallvec![1; n];
        shape[axis_of(i)] = a.size();
        let a = reshape_to(a, shape)?;
        if sparse { Ok(a) } else { broadcast_to(&a, &grid) }
    };
    arrays.iter().enumerate().map(along).collect()
}

// ------------------------------------------------------------------ windows

/// How far each of `len` points has risen toward the middle: 0 at the ends, 1 in the middle, in f64.
fn rise(len: usize) -> Result<Array> {
    let i = count(0, len, Dtype::Float64)?;
    // Mirrored, so that both halves have the same bits; a single point is the middle.
    let last = len.saturating_sub(1) as f64;
    if len <= 1 {
        return add(&i, 1.0);
    }
    divide(&minimum(&multiply(&i, 2.0)?, &multiply(&subtract(last, &i)?, 2.0)?)?, last)
}

/// `constant + first cos πx + second cos 2πx` over the rise x of a window.
fn cosines(len: usize, constant: f64, first: f64, second: f64) -> Result<Array> {
    let angle = multiply(&rise(len)?, std::f64::consts::PI)?;
    let mut window = add(&multiply(&cos(&angle)?, first)?, constant)?;
    if second != 0.0 {
        window = add(&window, &multiply(&cos(&multiply(&angle, 2.0)?)?, second)?)?;
    }
    astype(&window, Dtype::Float32)
}

/// The Bartlett (triangular) window of `len` points, float32 (`mx.bartlett`).
///
/// # Errors
/// Overflow of the shape.
pub fn bartlett(len: usize) -> Result<Array> {
    astype(&rise(len)?, Dtype::Float32)
}

/// The Hann window of `len` points, float32 (`mx.hanning`): `0.5 - 0.5 cos 2πx`, x from 0 to 1.
///
/// # Errors
/// Overflow of the shape.
pub fn hanning(len: usize) -> Result<Array> {
    cosines(len, 0.5, -0.5, 0.0)
}

/// The Hamming window of `len` points, float32 (`mx.hamming`): `0.54 - 0.46 cos 2πx`, x from 0 to 1.
///
/// # Errors
/// Overflow of the shape.
pub fn hamming(len: usize) -> Result<Array> {
    cosines(len, 0.54, -0.46, 0.0)
}

/// The Blackman window of `len` points, float32 (`mx.blackman`): `0.42 - 0.5 cos 2πx + 0.08 cos 4πx`, x from 0 to 1.
///
/// # Errors
/// Overflow of the shape.
pub fn blackman(len: usize) -> Result<Array> {
    cosines(len, 0.42, -0.5, 0.08)
}

impl Array {
    /// A matrix with this diagonal, or the diagonal of this matrix; see [`diag`].
    #[track_caller]
    pub fn diag(&self, k: i64) -> Array {
        crate::or_panic(diag(self, k))
    }

    /// Diagonals; see [`diagonal`].
    #[track_caller]
    pub fn diagonal(&self, offset: i64, axis1: i32, axis2: i32) -> Array {
        crate::or_panic(diagonal(self, offset, axis1, axis2))
    }
}
