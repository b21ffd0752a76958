//! Softmax, log-sum-exp and cross entropy of rows. Moves the input once (and the result, for softmax); the work is one
//! exponential an element.

use super::{BLOCK, CHAINS, Elem, STREAMING, Shared, by_dtype, for_vectors, grain, in_stretches, rows};
use crate::math::{self, vec};
use crate::pool;
use crate::simd::{self, Float, Kernel, LANES32, Mask, Simd, Vector};
use crate::tape::{contiguous, with_scratch};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};

/// Softmax of every row.
pub(crate) fn softmax(input: &Tensor, out: &mut Tensor) -> Result<()> {
    let x = contiguous(input)?;
    by_dtype!(x.dtype, softmax_rows(&x, out), softmax_double(&x, out));
    Ok(())
}

fn softmax_rows<T: Elem>(x: &Tensor, out: &Tensor) {
    let (count, len) = rows(x);
    let streaming = out.nbytes() >= STREAMING;
    let (x, out) = (Shared(x.ptr().cast::<T>()), Shared(out.ptr().cast::<T>()));
    in_stretches(count, len, streaming, &|range| {
        with_scratch(len * 4, |terms| {
            let (first, rows) = (range.start * len, range.len());
            simd::dispatch(SoftmaxRows {
                x: x.at(first),
                out: out.at(first),
                terms: terms.cast(),
                rows,
                len,
                streaming,
            });
        });
    });
}

/// The largest of the elements it has seen; NaN are passed over.
struct Largest<S: Simd>([S::F32; CHAINS]);

impl<S: Simd> Largest<S> {
    #[inline(always)]
    fn new(s: S) -> Self {
        Largest([s.f32(f32::NEG_INFINITY); CHAINS])
    }

    /// The first `n` elements from `x` on, for chain `k`.
    ///
    /// # Safety
    /// `n` elements can be read.
    #[inline(always)]
    unsafe fn see<T: Elem>(&mut self, s: S, x: *const T, n: usize, k: usize) {
        // SAFETY: passed on.
        let mut v = unsafe { T::load(s, x, n) };
        if n < LANES32 {
            v = S::F32::select(S::M32::first(s, n), v, self.0[k]);
        }
        self.0[k] = v.max(self.0[k]);
    }

    #[inline(always)]
    fn get(self) -> f32 {
        let [a, b, c, d] = self.0;
        a.max(b).max(c.max(d)).reduce_max()
    }
}

/// The largest element of a row; NaN are passed over.
///
/// # Safety
/// The row can be read.
#[inline(always)]
unsafe fn largest<S: Simd, T: Elem>(s: S, x: *const T, len: usize) -> f32 {
    let mut top = Largest::new(s);
    for_vectors!(len, |at, n, k| {
        // SAFETY: inside the row.
        unsafe { top.see(s, x.add(at), n, k) };
    });
    top.get()
}

/// Whether there is a NaN in a row.
///
/// # Safety
/// The row can be read.
#[inline(always)]
unsafe fn has_nan<S: Simd, T: Elem>(s: S, x: *const T, len: usize) -> bool {
    let mut found = S::M32::first(s, 0);
    for_vectors!(len, |at, n, _k| {
        // SAFETY: inside the row; lanes beyond `n` are zero.
        found = found | unsafe { T::load(s, x.add(at), n) }.is_nan();
    });
    found.any()
}

/// What one pass over a row does besides its exponentials, for each vector.
trait Beside<S: Simd, T> {
    /// Elements `at..at + n`, of chain `k`; `e` are the terms of this row.
    ///
    /// # Safety
    /// The elements are inside the rows that this knows.
    unsafe fn vector(&mut self, s: S, at: usize, n: usize, k: usize, e: S::F32);
}

/// The sum of `exp(x - top)` over a row, where no x is above `top`.
///
/// # Safety
/// The row can be read, and what `beside` knows.
#[inline(always)]
unsafe fn exponentials<S: Simd, T: Elem>(
    s: S,
    x: *const T,
    len: usize,
    top: f32,
    mut beside: impl Beside<S, T>,
) -> f64 {
    let top = s.f32(top);
    let (mut total, mut from) = (0.0, 0);
    while from < len {
        let block = BLOCK.min(len - from);
        let mut acc = [s.f32(0.0); CHAINS];
        for_vectors!(block, |at, n, k| {
            let at = from + at;
            // SAFETY: inside the row.
            unsafe {
                let mut v = T::load(s, x.add(at), n);
                if n < LANES32 {
                    v = S::F32::select(S::M32::first(s, n), v, s.f32(f32::NEG_INFINITY));
                }
                let e = vec::exp_negative(s, v - top);
                acc[k] = acc[k] + e;
                beside.vector(s, at, n, k, e);
            }
        });
        from += block;
        total += f64::from(((acc[0] + acc[1]) + (acc[2] + acc[3])).reduce_add());
    }
    total
}

/// Fetches the row behind this one.
struct Ahead<T>(*const T, usize);

impl<S: Simd, T: Elem> Beside<S, T> for Ahead<T> {
    #[inline(always)]
    unsafe fn vector(&mut self, s: S, at: usize, _: usize, _: usize, _: S::F32) {
        s.prefetch_far(self.0.wrapping_add(self.1 + at).cast());
    }
}

/// Rows in a pipeline, so that memory reads and writes all the time: one pass writes a row, takes the exponentials of the
/// next and looks for the largest element of the one after that.
struct SoftmaxRows<T> {
    x: *const T,
    out: *mut T,
    /// The terms of a row until they are written.
    terms: *mut f32,
    rows: usize,
    len: usize,
    streaming: bool,
}

impl<T: Elem> Kernel for SoftmaxRows<T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made this vouches for `rows` rows, at least one, of `len` elements and a row of scratch.
        unsafe {
            let mut top = largest(s, self.x, self.len);
            let mut scale = 0.0;
            for row in 0..self.rows {
                let (x, out) = (self.x.add(row * self.len), self.out.wrapping_add(row * self.len));
                let next = if row + 1 < self.rows { x.add(self.len) } else { x };
                let before = if row > 0 { out.wrapping_sub(self.len) } else { std::ptr::null_mut() };
                let mut next_top = Largest::new(s);
                let pass = Pass {
                    rows: &self,
                    before,
                    scale: s.f32(scale),
                    next,
                    top: &mut next_top,
                    ahead: x.wrapping_add(self.len),
                };
                let total = exponentials(s, x, self.len, top, pass);
                scale = (1.0 / total) as f32;
                top = next_top.get();
            }
            let scale = s.f32(scale);
            for_vectors!(self.len, |at, n, _k| {
                self.write(s, self.out.add((self.rows - 1) * self.len), at, n, scale);
            });
        }
        if self.streaming {
            s.fence();
        }
    }
}

impl<T: Elem> SoftmaxRows<T> {
    /// Writes terms times `scale` to a row.
    ///
    /// # Safety
    /// `at..at + n` is inside a row.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, out: *mut T, at: usize, n: usize, scale: S::F32) {
        // SAFETY: inside the row of terms and the row of the result.
        unsafe {
            let y = <f32 as Elem>::load(s, self.terms.add(at), n) * scale;
            if self.streaming && n == LANES32 {
                T::stream(s, out.add(at), y);
            } else {
                T::store(s, out.add(at), n, y);
            }
        }
    }
}

/// What a pass does for the rows beside its own.
struct Pass<'a, S: Simd, T> {
    rows: &'a SoftmaxRows<T>,
    /// The row of the result whose terms wait, or null, and their scale.
    before: *mut T,
    scale: S::F32,
    /// The next row, or any where there is none.
    next: *const T,
    top: &'a mut Largest<S>,
    /// What is read next, here or by the next task.
    ahead: *const T,
}

/// Bytes ahead of which the next row is asked for.
const AHEAD: usize = 2048;

impl<S: Simd, T: Elem> Beside<S, T> for Pass<'_, S, T> {
    #[inline(always)]
    unsafe fn vector(&mut self, s: S, at: usize, n: usize, k: usize, e: S::F32) {
        // SAFETY: whoever made this vouches for the rows.
        unsafe {
            if !self.before.is_null() {
                self.rows.write(s, self.before, at, n, self.scale);
            }
            f32::store(s, self.rows.terms.add(at), n, e);
            if self.rows.streaming {
                s.prefetch_far(self.ahead.wrapping_add(at).cast::<u8>().wrapping_add(AHEAD));
            }
            self.top.see(s, self.next.add(at), n, k);
        }
    }
}

fn softmax_double(x: &Tensor, out: &Tensor) {
    let (count, len) = rows(x);
    let (x, out) = (Shared(x.ptr().cast::<f64>()), Shared(out.ptr().cast::<f64>()));
    pool::for_each_chunk(count, grain(len), &|range| {
        for row in range {
            // SAFETY: the row lies in both tensors; tasks write different rows.
            let (x, y) = unsafe {
                (
                    std::slice::from_raw_parts(x.at(row * len), len),
                    std::slice::from_raw_parts_mut(out.at(row * len), len),
                )
            };
            let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::unary_f64(math::Unary::Exp, x - top));
            let total: f64 = y.iter().sum();
            y.iter_mut().for_each(|y| *y /= total);
        }
    });
}

/// `max + ln(sum(exp(x - max)))` of every row.
pub(crate) fn logsumexp(input: &Tensor, out: &mut Tensor) -> Result<()> {
    let x = contiguous(input)?;
    let (dtype, to) = (out.dtype, Shared(out.ptr()));
    each_lse(&x, out.size(), &|row, lse| {
        // SAFETY: one element of the result for every row.
        unsafe {
            match dtype {
                Dtype::Float16 => to.at(0).cast::<half::f16>().add(row).write(half::f16::from_f64(lse)),
                Dtype::Bfloat16 => to.at(0).cast::<half::bf16>().add(row).write(half::bf16::from_f64(lse)),
                Dtype::Float32 => to.at(0).cast::<f32>().add(row).write(lse as f32),
                _ => to.at(0).cast::<f64>().add(row).write(lse),
            }
        }
    });
    Ok(())
}

/// Calls `f` with every row's number and log-sum-exp. `count` rows, which may be empty.
fn each_lse(x: &Tensor, count: usize, f: &(dyn Fn(usize, f64) + Sync)) {
    let len = x.shape.last().copied().unwrap_or(1);
    fn single<T: Elem>(x: &Tensor, count: usize, len: usize, f: &(dyn Fn(usize, f64) + Sync)) {
        let x = Shared(x.ptr().cast::<T>());
        pool::for_each_chunk(count, grain(len), &|range| {
            for row in range {
                f(row, simd::dispatch(LogSumExp { x: x.at(row * len), len }));
            }
        });
    }
    fn double(x: &Tensor, count: usize, len: usize, f: &(dyn Fn(usize, f64) + Sync)) {
        let x = Shared(x.ptr().cast::<f64>());
        pool::for_each_chunk(count, grain(len), &|range| {
            for row in range {
                // SAFETY: the row lies in the tensor.
                let x = unsafe { std::slice::from_raw_parts(x.at(row * len), len) };
                let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = x.iter().map(|&x| math::unary_f64(math::Unary::Exp, x - top)).sum();
                let lse = match (x.iter().any(|x| x.is_nan()), top.is_infinite()) {
                    (true, _) => f64::NAN,
                    (_, true) => top,
                    _ => finish(top, total),
                };
                f(row, lse);
            }
        });
    }
    by_dtype!(x.dtype, single(x, count, len, f), double(x, count, len, f));
}

fn finish(top: f64, total: f64) -> f64 {
    top + math::unary_f64(math::Unary::Log, total)
}

struct LogSumExp<T> {
    x: *const T,
    len: usize,
}

impl<T: Elem> Kernel for LogSumExp<T> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // SAFETY: whoever made this vouches for one row.
        unsafe {
            let top = largest(s, self.x, self.len);
            if top.is_infinite() {
                return if has_nan(s, self.x, self.len) { f64::NAN } else { f64::from(top) };
            }
            finish(f64::from(top), exponentials(s, self.x, self.len, top, Ahead(self.x, self.len)))
        }
    }
}

/// `logsumexp(logits) - logits[target]` of every row, in float32.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor, out: &mut Tensor) -> Result<()> {
    let (x, targets) = (contiguous(logits)?, contiguous(targets)?);
    let classes = x.shape.last().copied().unwrap_or(1);
    let targets: &[i64] = bytemuck::cast_slice(targets.contiguous_bytes());
    if let Some(bad) = targets.iter().find(|&&t| t < 0 || t as usize >= classes) {
        return Err(Error::index(format!("[cross_entropy] target {bad} is none of {classes} classes")));
    }
    let to = Shared(out.ptr().cast::<f32>());
    each_lse(&x, targets.len(), &|row, lse| {
        let at = row * classes + targets[row] as usize;
        // SAFETY: the target was checked; one element of the result for every row.
        unsafe {
            let logit = match x.dtype {
                Dtype::Float16 => x.ptr().cast::<half::f16>().add(at).read().to_f64(),
                Dtype::Bfloat16 => x.ptr().cast::<half::bf16>().add(at).read().to_f64(),
                Dtype::Float32 => f64::from(x.ptr().cast::<f32>().add(at).read()),
                _ => x.ptr().cast::<f64>().add(at).read(),
            };
            to.at(row).write((lse - logit) as f32);
        }
    });
    Ok(())
}
