//! One instruction over one tile: finds the loop for its dtype.

use super::{cast, complex, float, int};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Simd};
use lapis_core::dtype::{Dtype, c64};
use lapis_core::ops::Ew;

/// Pointers of the arguments of an instruction.
pub(super) type Args = [*const u8; 3];

/// Applies `op` to `n` elements. `from` and `to` are wide dtypes (no halves).
///
/// # Safety
/// Every argument holds `n` elements of `from` (the condition of a select: bool), `out` has room for `n` of `to` and
/// is one of the arguments or overlaps none.
pub(super) unsafe fn step(isa: Isa, op: Ew, from: Dtype, to: Dtype, n: usize, args: &Args, out: *mut u8) {
    // By reference all the way; see `math::Args1`.
    simd::dispatch_with(isa, &Step { op, from, to, n, args, out });
}

struct Step<'a> {
    op: Ew,
    from: Dtype,
    to: Dtype,
    n: usize,
    args: &'a Args,
    out: *mut u8,
}

impl Kernel for &Step<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let &Step { op, from, to, n, args: &args, out } = self;
        // SAFETY: whoever made this vouches for the places.
        unsafe {
            match op {
                Ew::AsType => return cast::cast(from, to, n, args[0], out),
                Ew::Select => return select(from.size(), n, args, out),
                _ => {}
            }
            match from {
                Dtype::Float32 => float::f32_step(s, op, n, args, out),
                Dtype::Float64 => float::f64_step(op, n, args, out),
                Dtype::Complex64 => complex::step(op, n, args.map(|a| a.cast::<c64>()), out),
                Dtype::Bool => int::bool_step(op, n, args, out),
                Dtype::Uint8 => int::step::<u8>(op, n, args, out),
                Dtype::Uint16 => int::step::<u16>(op, n, args, out),
                Dtype::Uint32 => int::step::<u32>(op, n, args, out),
                Dtype::Uint64 => int::step::<u64>(op, n, args, out),
                Dtype::Int8 => int::step::<i8>(op, n, args, out),
                Dtype::Int16 => int::step::<i16>(op, n, args, out),
                Dtype::Int32 => int::step::<i32>(op, n, args, out),
                Dtype::Int64 => int::step::<i64>(op, n, args, out),
                Dtype::Float16 | Dtype::Bfloat16 => unreachable!("halves are wide here"),
            }
        }
    }
}

#[inline(always)]
unsafe fn select(size: usize, n: usize, args: Args, out: *mut u8) {
    #[inline(always)]
    unsafe fn go<T: Copy>(n: usize, [c, x, y]: Args, out: *mut u8) {
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements everywhere.
            unsafe {
                let (a, b) = (x.cast::<T>().add(i).read(), y.cast::<T>().add(i).read());
                out.cast::<T>().add(i).write(if c.add(i).read() != 0 { a } else { b });
            }
        }
    }
    // SAFETY: passed on.
    unsafe {
        match size {
            1 => go::<u8>(n, args, out),
            2 => go::<u16>(n, args, out),
            4 => go::<u32>(n, args, out),
            _ => go::<u64>(n, args, out),
        }
    }
}

/// `out[i] = f(a[i])`.
///
/// # Safety
/// `n` elements on both sides.
#[inline(always)]
pub(super) unsafe fn map1<T: Copy, U>(n: usize, a: *const T, out: *mut u8, f: impl Fn(T) -> U) {
    for i in 0..n {
        // SAFETY: the caller vouches for `n` elements.
        unsafe { out.cast::<U>().add(i).write(f(a.add(i).read())) };
    }
}

/// `out[i] = f(a[i], b[i])`.
///
/// # Safety
/// `n` elements everywhere.
#[inline(always)]
pub(super) unsafe fn map2<T: Copy, U>(n: usize, a: *const T, b: *const T, out: *mut u8, f: impl Fn(T, T) -> U) {
    for i in 0..n {
        // SAFETY: the caller vouches for `n` elements.
        unsafe { out.cast::<U>().add(i).write(f(a.add(i).read(), b.add(i).read())) };
    }
}
