//! Kernels that work row by row along the last axis: norms, softmax, rope, the gated delta rule.
//!
//! Rows are read from memory once and stay in the first-level cache while they are worked on. Halves are widened to f32
//! on the way in and rounded once on the way out; float64 has plain loops of its own. Sums run in blocks of 1024 with
//! f64 between them, in an order that depends on nothing but the length of the row.

pub(crate) mod delta;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod softmax;

use crate::simd::{self, LANES32, Simd, Vector};
use crate::{pool, stretch};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{bf16, f16};
use std::ops::Range;

/// Elements between two roundings of a sum to f64.
const BLOCK: usize = 1024;
/// Results from this many bytes on are written past the cache.
const STREAMING: usize = 4 << 20;

/// Types that are worked on as f32.
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    /// Reads `n` <= 16 elements; other lanes are zero.
    ///
    /// # Safety
    /// `n` elements can be read.
    unsafe fn load<S: Simd>(s: S, p: *const Self, n: usize) -> S::F32;
    /// Rounds and writes the first `n` <= 16 lanes.
    ///
    /// # Safety
    /// `n` elements can be written.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, n: usize, v: S::F32);
    /// The values rounded to this type and widened again.
    fn round<S: Simd>(s: S, v: S::F32) -> S::F32;
    /// Writes 16 lanes past the cache where the type can and the address allows it.
    ///
    /// # Safety
    /// 16 elements can be written.
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, p: *mut Self, v: S::F32) {
        // SAFETY: passed on.
        unsafe { Self::store(s, p, LANES32, v) }
    }
}

impl Elem for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::F32 {
        // SAFETY: passed on.
        unsafe { if n >= LANES32 { S::F32::load(s, p) } else { S::F32::load_n(s, p, n) } }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(_: S, p: *mut f32, n: usize, v: S::F32) {
        // SAFETY: passed on.
        unsafe { if n >= LANES32 { v.store(p) } else { v.store_n(p, n) } }
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, v: S::F32) -> S::F32 {
        v
    }
    #[inline(always)]
    unsafe fn stream<S: Simd>(_: S, p: *mut f32, v: S::F32) {
        // SAFETY: passed on; the alignment is tested.
        unsafe { if (p as usize).is_multiple_of(64) { v.store_nt(p) } else { v.store(p) } }
    }
}

macro_rules! half_elem {
    ($t:ty, $load:ident, $load_n:ident, $store:ident, $store_n:ident, $s:ident, $v:ident => $round:expr) => {
        impl Elem for $t {
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const $t, n: usize) -> S::F32 {
                // SAFETY: passed on.
                unsafe { if n >= LANES32 { s.$load(p) } else { s.$load_n(p, n) } }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut $t, n: usize, v: S::F32) {
                // SAFETY: passed on.
                unsafe { if n >= LANES32 { s.$store(p, v) } else { s.$store_n(p, n, v) } }
            }
            #[inline(always)]
            fn round<S: Simd>($s: S, $v: S::F32) -> S::F32 {
                $round
            }
        }
    };
}
half_elem!(f16, load_f16, load_f16_n, store_f16, store_f16_n, s, v => {
    let mut half = [f16::ZERO; LANES32];
    // SAFETY: `half` holds one vector.
    unsafe {
        s.store_f16(half.as_mut_ptr(), v);
        s.load_f16(half.as_ptr())
    }
});
half_elem!(bf16, load_bf16, load_bf16_n, store_bf16, store_bf16_n, s, v => simd::nearest_bf16(s, v));

/// Calls `$f::<T>(...)` for the f32-like type of a dtype, or `$double(...)` for float64.
macro_rules! by_dtype {
    ($dtype:expr, $f:ident($($arg:expr),* $(,)?), $double:expr) => {
        match $dtype {
            lapis_core::dtype::Dtype::Float16 => $f::<lapis_core::dtype::f16>($($arg),*),
            lapis_core::dtype::Dtype::Bfloat16 => $f::<lapis_core::dtype::bf16>($($arg),*),
            lapis_core::dtype::Dtype::Float32 => $f::<f32>($($arg),*),
            _ => $double,
        }
    };
}
pub(crate) use by_dtype;

/// Sums and maxima of a row run in this many chains, or the processor would wait for each step.
pub(crate) const CHAINS: usize = 4;

/// `$body` for every vector of `$len` elements: `$at` its first element, `$n` how many of its 16 lanes are in use, `$k` the
/// chain it belongs to. Whole vectors come first, so that their loop has no branch.
macro_rules! for_vectors {
    ($len:expr, |$at:ident, $n:ident, $k:ident| $body:block) => {{
        let len: usize = $len;
        let mut from = 0;
        while from + $crate::rows::CHAINS * LANES32 <= len {
            for $k in 0..$crate::rows::CHAINS {
                let ($at, $n) = (from + $k * LANES32, LANES32);
                $body
            }
            from += $crate::rows::CHAINS * LANES32;
        }
        let mut $k = 0;
        while from < len {
            let ($at, $n) = (from, LANES32.min(len - from));
            $body(from, $k) = (from + $n, $k + 1);
        }
    }};
}
pub(crate) use for_vectors;

/// Asks for a line of the row behind this one: pass `pass` of two over a row fetches one half of it, so that memory is
/// busy all the time. `at` counts elements of this row.
#[inline(always)]
pub(crate) fn fetch_next<S: Simd, T>(s: S, x: *const T, len: usize, at: usize, pass: usize) {
    if (at / LANES32).is_multiple_of(2) {
        s.prefetch_far(x.wrapping_add(len + (pass * len + at) / 2).cast());
    }
}

/// Rows of a row-major tensor: their number and length.
pub(crate) fn rows(t: &Tensor) -> (usize, usize) {
    let len = t.shape.last().copied().unwrap_or(1);
    (t.size().checked_div(len).unwrap_or(0), len)
}

/// Rows that one task takes: few, so that steps of some sequences are shared out, too.
pub(crate) fn grain(len: usize) -> usize {
    (4usize << 10).div_ceil(len.max(1))
}

/// Calls `f` with ranges of `count` rows of `len` elements. Where there are many (`streaming`), each thread goes along rows
/// that are neighbours in memory: what it asked for ahead is what it reads next.
pub(crate) fn in_stretches(count: usize, len: usize, streaming: bool, f: &(dyn Fn(Range<usize>) + Sync)) {
    if streaming {
        let each = 16 * grain(len);
        stretch::run(count.div_ceil(each), &|task| f(task * each..count.min((task + 1) * each)));
    } else {
        pool::for_each_chunk(count, grain(len), f);
    }
}

/// An address that tasks share; they write different rows.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);
// SAFETY: every use is an unsafe act with its own argument.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    pub(crate) fn at(self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}
