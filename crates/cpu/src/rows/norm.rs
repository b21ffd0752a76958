//! Root-mean-square and layer normalisation. Moves x and the result once; 4 to 6 operations an element.

use super::{BLOCK, CHAINS, Elem, STREAMING, Shared, by_dtype, fetch_next, for_vectors, grain, in_stretches, rows};
use crate::pool;
use crate::simd::{self, Float, Kernel, LANES32, Simd, Vector};
use crate::tape::contiguous;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::fast::norm::Norm;

/// Computes `out` from x, weight and bias.
pub(crate) fn norm(op: &Norm, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let x = contiguous(&inputs[0])?;
    let mut rest = inputs[1..].iter();
    let weight = if op.weight { rest.next().map(contiguous).transpose()? } else { None };
    let bias = if op.bias { rest.next().map(contiguous).transpose()? } else { None };
    let job = Job { op, x: &x, weight: weight.as_deref(), bias: bias.as_deref(), out };
    by_dtype!(x.dtype, single(&job), double(&job));
    Ok(())
}

/// `rows` rows of `len` elements of `dtype`, one after the other, by this thread alone: root-mean-square, times `weight`.
///
/// # Safety
/// The rows can be read and written, and as many elements of `weight` as are in a row be read.
pub(crate) unsafe fn few(
    dtype: Dtype,
    eps: f64,
    x: *const u8,
    weight: *const u8,
    out: *mut u8,
    [rows, len]: [usize; 2],
) {
    fn wide<T: Elem>(eps: f64, x: *const u8, weight: *const u8, out: *mut u8, [rows, len]: [usize; 2]) {
        let (x, weight, bias, out) = (x.cast::<T>(), weight.cast(), std::ptr::null(), out.cast());
        simd::dispatch(Rows { x, weight, bias, out, rows, len, eps, centred: false, streaming: false });
    }
    let double = |row: usize| {
        let (x, out) = (x.cast::<f64>().wrapping_add(row * len), out.cast::<f64>().wrapping_add(row * len));
        // SAFETY: the caller's promises.
        unsafe { double_row(x, len, eps, false, weight.cast(), std::ptr::null(), out) }
    };
    by_dtype!(dtype, wide(eps, x, weight, out, [rows, len]), (0..rows).for_each(double));
}

struct Job<'a> {
    op: &'a Norm,
    x: &'a Tensor,
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    out: &'a Tensor,
}

fn pointer<T>(t: Option<&Tensor>) -> *const T {
    t.map_or(std::ptr::null(), |t| t.ptr().cast())
}

fn single<T: Elem>(job: &Job<'_>) {
    let (count, len) = rows(job.x);
    let (x, out) = (Shared(job.x.ptr().cast::<T>()), Shared(job.out.ptr().cast::<T>()));
    let (weight, bias) = (Shared(pointer::<T>(job.weight).cast_mut()), Shared(pointer::<T>(job.bias).cast_mut()));
    let streaming = job.out.nbytes() >= STREAMING && !job.out.buffer.same(&job.x.buffer);
    in_stretches(count, len, streaming, &|range| {
        let (first, rows) = (range.start * len, range.len());
        simd::dispatch(Rows {
            x: x.at(first),
            weight: weight.at(0),
            bias: bias.at(0),
            out: out.at(first),
            rows,
            len,
            eps: job.op.eps.0,
            centred: job.op.centred,
            streaming,
        });
    });
}

struct Rows<T> {
    x: *const T,
    weight: *const T,
    bias: *const T,
    out: *mut T,
    rows: usize,
    len: usize,
    eps: f64,
    centred: bool,
    streaming: bool,
}

impl<T: Elem> Kernel for Rows<T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            // SAFETY: whoever made this vouches for `rows` rows of `len` elements.
            unsafe { self.row(s, self.x.add(row * self.len), self.out.add(row * self.len)) };
        }
        if self.streaming {
            s.fence();
        }
    }
}

impl<T: Elem> Rows<T> {
    /// The sum over a row of `x - mean`, squared or not.
    ///
    /// # Safety
    /// The row can be read.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, s: S, x: *const T, mean: S::F32, squared: bool) -> f64 {
        let (mut total, mut from) = (0.0, 0);
        while from < self.len {
            let block = BLOCK.min(self.len - from);
            let mut acc = [s.f32(0.0); CHAINS];
            for_vectors!(block, |at, n, k| {
                let at = from + at;
                if squared && self.streaming {
                    fetch_next(s, x, self.len, at, 0);
                }
                // SAFETY: inside the row.
                let v = unsafe { T::load(s, x.add(at), n) };
                let mut d = v - mean;
                if n < LANES32 {
                    d = S::F32::select(<S::M32 as simd::Mask<S>>::first(s, n), d, s.f32(0.0));
                }
                acc[k] = if squared { d.fma(d, acc[k]) } else { acc[k] + d };
            });
            from += block;
            total += f64::from(((acc[0] + acc[1]) + (acc[2] + acc[3])).reduce_add());
        }
        total
    }

    /// # Safety
    /// Row, weight and bias can be read, the result written.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, x: *const T, out: *mut T) {
        let n = self.len as f64;
        // SAFETY: passed on; null pointers are not used.
        unsafe {
            let mean = if self.centred { (self.sum(s, x, s.f32(0.0), false) / n) as f32 } else { 0.0 };
            let mean = s.f32(mean);
            let spread = self.sum(s, x, mean, true) / n;
            let scale = s.f32((1.0 / (spread + self.eps).sqrt()) as f32);
            for_vectors!(self.len, |at, n, _k| {
                let mut y = (T::load(s, x.add(at), n) - mean) * scale;
                if !self.weight.is_null() {
                    y = T::round(s, y) * T::load(s, self.weight.add(at), n);
                }
                if !self.bias.is_null() {
                    y = T::round(s, y) + T::load(s, self.bias.add(at), n);
                }
                if self.streaming && n == LANES32 {
                    fetch_next(s, x, self.len, at, 1);
                    T::stream(s, out.add(at), y);
                } else {
                    T::store(s, out.add(at), n, y);
                }
            });
        }
    }
}

fn double(job: &Job<'_>) {
    let (count, len) = rows(job.x);
    let (x, out) = (Shared(job.x.ptr().cast::<f64>()), Shared(job.out.ptr().cast::<f64>()));
    let (weight, bias) = (Shared(pointer::<f64>(job.weight).cast_mut()), Shared(pointer::<f64>(job.bias).cast_mut()));
    let (eps, centred) = (job.op.eps.0, job.op.centred);
    pool::for_each_chunk(count, grain(len), &|range| {
        for row in range {
            let (x, y) = (x.at(row * len), out.at(row * len));
            // SAFETY: the row lies in both tensors; tasks write different rows.
            unsafe { double_row(x, len, eps, centred, weight.at(0), bias.at(0), y) }
        }
    });
}

/// # Safety
/// `len` elements can be read of the row, and of weight and bias where they are not null, and be written.
unsafe fn double_row(
    x: *const f64,
    len: usize,
    eps: f64,
    centred: bool,
    weight: *const f64,
    bias: *const f64,
    out: *mut f64,
) {
    // SAFETY: the caller's promises.
    let at = |p: *const f64, i: usize| unsafe { p.add(i).read() };
    let mean = if centred { (0..len).map(|i| at(x, i)).sum::<f64>() / len as f64 } else { 0.0 };
    let spread = (0..len).map(|i| (at(x, i) - mean) * (at(x, i) - mean)).sum::<f64>() / len as f64;
    let scale = 1.0 / (spread + eps).sqrt();
    for i in 0..len {
        let mut y = (at(x, i) - mean) * scale;
        if !weight.is_null() {
            y *= at(weight, i);
        }
        if !bias.is_null() {
            y += at(bias, i);
        }
        // SAFETY: the caller's promises.
        unsafe { out.add(i).write(y) }
    }
}
