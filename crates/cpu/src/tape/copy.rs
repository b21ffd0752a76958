//! Moving elements between layouts: strided copies, gathered tiles, widened and rounded halves, streaming stores.

use crate::simd::{self, Ahead, Kernel, LANES32, Simd, Vector};
use lapis_core::dtype::{Dtype, bf16, f16};

/// Gathers `n` elements with stride `step` into a tile, halves widened to f32.
///
/// # Safety
/// The elements can be read and the tile holds `n` of the wide dtype.
pub(super) unsafe fn gather(from: *const u8, dtype: Dtype, step: isize, n: usize, tile: *mut u8) {
    // SAFETY: the caller vouches for both sides.
    unsafe {
        match dtype {
            Dtype::Float16 | Dtype::Bfloat16 if step == 1 => simd::dispatch(Widen { from, dtype, n, out: tile.cast() }),
            Dtype::Float16 => strided(from.cast::<f16>(), step, n, tile.cast::<f32>(), |x| x.to_f32()),
            Dtype::Bfloat16 => strided(from.cast::<bf16>(), step, n, tile.cast::<f32>(), |x| x.to_f32()),
            _ if step == 1 => std::ptr::copy_nonoverlapping(from, tile, n * dtype.size()),
            _ => match dtype.size() {
                1 => strided(from, step, n, tile, |x| x),
                2 => strided(from.cast::<u16>(), step, n, tile.cast::<u16>(), |x| x),
                4 => strided(from.cast::<u32>(), step, n, tile.cast::<u32>(), |x| x),
                _ => strided(from.cast::<u64>(), step, n, tile.cast::<u64>(), |x| x),
            },
        }
    }
}

#[inline(always)]
unsafe fn strided<T: Copy, U>(from: *const T, step: isize, n: usize, to: *mut U, f: impl Fn(T) -> U) {
    // SAFETY: the caller vouches for `n` elements on both sides.
    unsafe {
        if step == 0 {
            for i in 0..n {
                to.add(i).write(f(from.read()));
            }
        } else {
            for i in 0..n {
                to.add(i).write(f(from.offset(i as isize * step).read()));
            }
        }
    }
}

struct Widen {
    from: *const u8,
    dtype: Dtype,
    n: usize,
    out: *mut f32,
}

impl Kernel for Widen {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        // SAFETY: whoever made this vouches for `n` elements on both sides.
        unsafe {
            while i < self.n {
                let m = LANES32.min(self.n - i);
                let v = match (self.dtype, m) {
                    (Dtype::Float16, LANES32) => s.load_f16(self.from.cast::<f16>().add(i)),
                    (Dtype::Float16, _) => s.load_f16_n(self.from.cast::<f16>().add(i), m),
                    (_, LANES32) => s.load_bf16(self.from.cast::<bf16>().add(i)),
                    _ => s.load_bf16_n(self.from.cast::<bf16>().add(i), m),
                };
                if m == LANES32 {
                    v.store(self.out.add(i))
                } else {
                    v.store_n(self.out.add(i), m)
                }
                i += LANES32;
            }
        }
    }
}

/// Rounds `n` f32 values to the precision of a half type, in place.
///
/// # Safety
/// The values can be read and written.
pub(super) unsafe fn round_to(dtype: Dtype, tile: *mut f32, n: usize) {
    simd::dispatch(Round { dtype, tile, n });
}

struct Round {
    dtype: Dtype,
    tile: *mut f32,
    n: usize,
}

impl Kernel for Round {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut half = [f16::ZERO; LANES32];
        let mut i = 0;
        // SAFETY: whoever made this vouches for `n` elements; `half` holds one vector.
        unsafe {
            while i < self.n {
                let m = LANES32.min(self.n - i);
                let p = self.tile.add(i);
                let v = if m == LANES32 { S::F32::load(s, p) } else { S::F32::load_n(s, p, m) };
                let r = if self.dtype == Dtype::Float16 {
                    s.store_f16(half.as_mut_ptr(), v);
                    s.load_f16(half.as_ptr())
                } else {
                    simd::nearest_bf16(s, v)
                };
                if m == LANES32 {
                    r.store(p)
                } else {
                    r.store_n(p, m)
                }
                i += LANES32;
            }
        }
    }
}

/// Writes `n` values of a tile to memory as `dtype`, past the cache when `streaming`. Whoever streams calls [`fence`] at
/// the end.
///
/// # Safety
/// The tile holds `n` wide values, the memory `n` elements.
pub(super) unsafe fn store(tile: *const u8, dtype: Dtype, out: *mut u8, n: usize, streaming: bool) {
    simd::dispatch(&Store { tile, dtype, out, n, streaming });
}

/// Asks for the elements `from..to` of what is ahead.
pub(super) fn fetch(ahead: &Ahead<'_>, from: usize, to: usize) {
    simd::dispatch(&Fetch { ahead, from, to });
}

struct Fetch<'a> {
    ahead: &'a Ahead<'a>,
    from: usize,
    to: usize,
}

impl Kernel for &Fetch<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for stream in self.ahead.streams {
            let from = stream.place(self.ahead.first + self.from);
            for at in (0..(self.to - self.from) * stream.size).step_by(64) {
                s.prefetch(from.wrapping_add(at));
            }
        }
    }
}

/// Ends a run of streaming stores: others may read what was written.
pub(super) fn fence() {
    simd::dispatch(Fence);
}

struct Fence;

impl Kernel for Fence {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.fence();
    }
}

struct Store {
    tile: *const u8,
    dtype: Dtype,
    out: *mut u8,
    n: usize,
    streaming: bool,
}

impl Kernel for &Store {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made this vouches for `n` elements on both sides; `store_nt` needs 64-byte alignment,
        // which is tested.
        unsafe {
            if self.dtype.is_half() {
                let from = self.tile.cast::<f32>();
                let mut i = 0;
                while i < self.n {
                    let m = LANES32.min(self.n - i);
                    let v = if m == LANES32 { S::F32::load(s, from.add(i)) } else { S::F32::load_n(s, from.add(i), m) };
                    match (self.dtype, m) {
                        (Dtype::Float16, LANES32) => s.store_f16(self.out.cast::<f16>().add(i), v),
                        (Dtype::Float16, _) => s.store_f16_n(self.out.cast::<f16>().add(i), m, v),
                        (_, LANES32) => s.store_bf16(self.out.cast::<bf16>().add(i), v),
                        _ => s.store_bf16_n(self.out.cast::<bf16>().add(i), m, v),
                    }
                    i += LANES32;
                }
                return;
            }
            let bytes = self.n * self.dtype.size();
            let mut i = 0;
            if self.streaming && (self.out as usize).is_multiple_of(64) {
                while i + 64 <= bytes {
                    S::F32::load(s, self.tile.add(i).cast()).store_nt(self.out.add(i).cast());
                    i += 64;
                }
            }
            std::ptr::copy_nonoverlapping(self.tile.add(i), self.out.add(i), bytes - i);
        }
    }
}
