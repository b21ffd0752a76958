//! Softmax, log-sum-exp and cross entropy of rows. Moves the input once (and the result, for softmax); the work is one
//! exponential an element.

use super::{BLOCK, CHAINS, Elem, STREAMING, Shared, by_dtype, for_vectors, grain, rows};
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
    pool::for_each_chunk(count, grain(len), &|range| {
        with_scratch(len * 4, |scratch| {
            let scratch = scratch.cast();
            let (first, rows) = (range.start * len, range.len());
            simd::dispatch(SoftmaxRows { x: x.at(first), out: out.at(first), scratch, rows, len, streaming });
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

/// The sum of `exp(x - top)` over a row, where no x is above `top`; the terms go to `keep` where it is not null. The row
/// behind this one is fetched meanwhile, if `ahead`.
///
/// # Safety
/// The row can be read, and `keep` written.
#[inline(always)]
unsafe fn exponentials<S: Simd, T: Elem>(s: S, x: *const T, len: usize, top: f32, keep: *mut f32, ahead: bool) -> f64 {
    let top = s.f32(top);
    let (mut total, mut from) = (0.0, 0);
    while from < len {
        let block = BLOCK.min(len - from);
        let mut acc = [s.f32(0.0); CHAINS];
        for_vectors!(block, |at, n, k| {
            let at = from + at;
            if ahead {
                s.prefetch_far(x.wrapping_add(len + at).cast());
            }
            // SAFETY: inside the row.
            unsafe {
                let mut v = T::load(s, x.add(at), n);
                if n < LANES32 {
                    v = S::F32::select(S::M32::first(s, n), v, s.f32(f32::NEG_INFINITY));
                }
                let e = vec::exp_negative(s, v - top);
                if !keep.is_null() {
                    f32::store(s, keep.add(at), n, e);
                }
                acc[k] = acc[k] + e;
            }
        });
        from += block;
        total += f64::from(((acc[0] + acc[1]) + (acc[2] + acc[3])).reduce_add());
    }
    total
}

/// While the terms of one row are scaled and written, the largest element of the next is looked for: so memory reads
/// while it writes. The row after that is fetched while exponentials are computed.
struct SoftmaxRows<T> {
    x: *const T,
    out: *mut T,
    scratch: *mut f32,
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
            for row in 0..self.rows {
                let x = self.x.add(row * self.len);
                let total = exponentials(s, x, self.len, top, self.scratch, self.streaming);
                let next = if row + 1 < self.rows { x.add(self.len) } else { x };
                top = self.finish(s, self.out.add(row * self.len), (1.0 / total) as f32, next);
            }
        }
        if self.streaming {
            s.fence();
        }
    }
}

impl<T: Elem> SoftmaxRows<T> {
    /// Writes a row: the terms in scratch times `scale`. Returns the largest element of `next`.
    ///
    /// # Safety
    /// The row `next` and scratch can be read, the result written.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, out: *mut T, scale: f32, next: *const T) -> f32 {
        let scale = s.f32(scale);
        let mut top = Largest::new(s);
        for_vectors!(self.len, |at, n, k| {
            // SAFETY: inside the rows.
            unsafe {
                let y = <f32 as Elem>::load(s, self.scratch.add(at), n) * scale;
                if self.streaming && n == LANES32 {
                    T::stream(s, out.add(at), y);
                } else {
                    T::store(s, out.add(at), n, y);
                }
                top.see(s, next.add(at), n, k);
            }
        });
        top.get()
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
            finish(f64::from(top), exponentials(s, self.x, self.len, top, std::ptr::null_mut(), true))
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
