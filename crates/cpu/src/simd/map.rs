//! Elementwise loops over slices, tails included.

use super::{LANES32, Simd, Vector};

/// An elementwise function of one `f32` vector.
pub trait Map1: Copy {
    /// The function.
    fn call<S: Simd>(self, s: S, x: S::F32) -> S::F32;
}

/// An elementwise function of two `f32` vectors.
pub trait Map2: Copy {
    /// The function.
    fn call<S: Simd>(self, s: S, x: S::F32, y: S::F32) -> S::F32;
}

/// `out[i] = f(x[i])`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn map1<S: Simd, F: Map1>(s: S, f: F, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    // SAFETY: both slices hold that many elements.
    unsafe { map1_raw(s, f, x.as_ptr(), out.as_mut_ptr(), x.len(), &Ahead::NONE) }
}

/// `out[i] = f(x[i], y[i])`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn map2<S: Simd, F: Map2>(s: S, f: F, x: &[f32], y: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && y.len() == out.len());
    // SAFETY: all slices hold that many elements.
    unsafe { map2_raw(s, f, x.as_ptr(), y.as_ptr(), out.as_mut_ptr(), x.len()) }
}

/// Elements that lie one behind the other; of size 0: all in one place.
#[derive(Clone, Copy)]
pub struct Stream {
    /// Where it begins.
    pub at: *const u8,
    /// Bytes of its elements.
    pub size: usize,
}

impl Stream {
    /// The address of element `i`, which may lie anywhere.
    #[inline(always)]
    pub fn place(self, i: usize) -> *const u8 {
        self.at.wrapping_add(i * self.size)
    }
}

/// What will be read soon: elements of `streams` from `first` on.
#[derive(Clone, Copy)]
pub struct Ahead<'a> {
    /// Of what.
    pub streams: &'a [Stream],
    /// From which element on.
    pub first: usize,
}

impl Ahead<'_> {
    /// Nothing.
    pub const NONE: Ahead<'static> = Ahead { streams: &[], first: 0 };
}

/// [`map1`] on pointers; `out` may be `x` itself, but not overlap it otherwise. As many elements of what is `ahead` are
/// fetched meanwhile, a little with every vector, so that memory works while the function is computed.
///
/// # Safety
/// `n` elements can be read from `x` on and written from `out` on.
#[inline(always)]
pub unsafe fn map1_raw<S: Simd, F: Map1>(s: S, f: F, x: *const f32, out: *mut f32, n: usize, ahead: &Ahead<'_>) {
    let whole = n / LANES32 * LANES32;
    // SAFETY: all accesses lie in the `n` elements that the caller vouches for.
    unsafe {
        let mut i = 0;
        while i < whole {
            for stream in ahead.streams {
                s.prefetch(stream.place(ahead.first + i));
            }
            f.call(s, S::F32::load(s, x.add(i))).store(out.add(i));
            i += LANES32;
        }
        if i < n {
            f.call(s, S::F32::load_n(s, x.add(i), n - i)).store_n(out.add(i), n - i);
        }
    }
}

/// [`map2`] on pointers; `out` may be `x` or `y` itself, but not overlap them otherwise.
///
/// # Safety
/// `n` elements can be read from `x` and `y` on and written from `out` on.
#[inline(always)]
pub unsafe fn map2_raw<S: Simd, F: Map2>(s: S, f: F, x: *const f32, y: *const f32, out: *mut f32, n: usize) {
    let whole = n / LANES32 * LANES32;
    // SAFETY: all accesses lie in the `n` elements that the caller vouches for.
    unsafe {
        let mut i = 0;
        while i < whole {
            f.call(s, S::F32::load(s, x.add(i)), S::F32::load(s, y.add(i))).store(out.add(i));
            i += LANES32;
        }
        if i < n {
            let (a, b) = (S::F32::load_n(s, x.add(i), n - i), S::F32::load_n(s, y.add(i), n - i));
            f.call(s, a, b).store_n(out.add(i), n - i);
        }
    }
}
