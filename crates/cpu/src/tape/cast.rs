//! Casts between wide dtypes. Halves arrive here as f32 and are rounded by the caller.

use super::step::map1;
use lapis_core::dtype::{Dtype, c64};

/// Float to integer: truncation, modulo the width outside the range, 0 for NaN, infinities and 2^63 and beyond.
macro_rules! from_float {
    ($n:ident, $a:expr, $f:ty, $out:ident, $to:ident) => {{
        let a = $a.cast::<$f>();
        match $to {
            Dtype::Bool => map1($n, a, $out, |x: $f| u8::from(x != 0.0)),
            Dtype::Uint8 => map1($n, a, $out, |x: $f| whole(x as f64) as u8),
            Dtype::Uint16 => map1($n, a, $out, |x: $f| whole(x as f64) as u16),
            Dtype::Uint32 => map1($n, a, $out, |x: $f| whole(x as f64) as u32),
            Dtype::Uint64 => map1($n, a, $out, |x: $f| {
                let high = (9_223_372_036_854_775_808.0..18_446_744_073_709_551_616.0).contains(&x);
                if high { x as u64 } else { whole(x as f64) as u64 }
            }),
            Dtype::Int8 => map1($n, a, $out, |x: $f| whole(x as f64) as i8),
            Dtype::Int16 => map1($n, a, $out, |x: $f| whole(x as f64) as i16),
            Dtype::Int32 => map1($n, a, $out, |x: $f| whole(x as f64) as i32),
            Dtype::Int64 => {
                map1($n, a, $out, |x: $f| if x == -9_223_372_036_854_775_808.0 { i64::MIN } else { whole(x as f64) })
            }
            Dtype::Float32 => map1($n, a, $out, |x: $f| x as f32),
            Dtype::Float64 => map1($n, a, $out, |x: $f| x as f64),
            Dtype::Complex64 => map1($n, a, $out, |x: $f| c64::new(x as f32, 0.0)),
            Dtype::Float16 | Dtype::Bfloat16 => unreachable!("halves are wide here"),
        }
    }};
}

#[inline(always)]
fn whole(x: f64) -> i64 {
    let fits = x.abs() < 9_223_372_036_854_775_808.0;
    // SAFETY: the value was tested; NaN fails the test and becomes 0.
    if fits { unsafe { x.to_int_unchecked::<i64>() } } else { 0 }
}

macro_rules! from_int {
    ($n:ident, $a:expr, $i:ty, $out:ident, $to:ident) => {{
        let a = $a.cast::<$i>();
        match $to {
            Dtype::Bool => map1($n, a, $out, |x: $i| u8::from(x != 0)),
            Dtype::Uint8 | Dtype::Int8 => map1($n, a, $out, |x: $i| x as u8),
            Dtype::Uint16 | Dtype::Int16 => map1($n, a, $out, |x: $i| x as u16),
            Dtype::Uint32 | Dtype::Int32 => map1($n, a, $out, |x: $i| x as u32),
            Dtype::Uint64 | Dtype::Int64 => map1($n, a, $out, |x: $i| x as u64),
            Dtype::Float32 => map1($n, a, $out, |x: $i| x as f32),
            Dtype::Float64 => map1($n, a, $out, |x: $i| x as f64),
            Dtype::Complex64 => map1($n, a, $out, |x: $i| c64::new(x as f32, 0.0)),
            Dtype::Float16 | Dtype::Bfloat16 => unreachable!("halves are wide here"),
        }
    }};
}

/// Casts `n` elements.
///
/// # Safety
/// As `step::step`.
#[inline(always)]
pub(super) unsafe fn cast(from: Dtype, to: Dtype, n: usize, a: *const u8, out: *mut u8) {
    // SAFETY: passed on from the caller.
    unsafe {
        match from {
            Dtype::Bool | Dtype::Uint8 => from_int!(n, a, u8, out, to),
            Dtype::Uint16 => from_int!(n, a, u16, out, to),
            Dtype::Uint32 => from_int!(n, a, u32, out, to),
            Dtype::Uint64 => from_int!(n, a, u64, out, to),
            Dtype::Int8 => from_int!(n, a, i8, out, to),
            Dtype::Int16 => from_int!(n, a, i16, out, to),
            Dtype::Int32 => from_int!(n, a, i32, out, to),
            Dtype::Int64 => from_int!(n, a, i64, out, to),
            Dtype::Float32 => from_float!(n, a, f32, out, to),
            Dtype::Float64 => from_float!(n, a, f64, out, to),
            Dtype::Complex64 => from_complex(to, n, a.cast(), out),
            Dtype::Float16 | Dtype::Bfloat16 => unreachable!("halves are wide here"),
        }
    }
}

/// The real part, cast; bool is "not zero".
#[inline(always)]
unsafe fn from_complex(to: Dtype, n: usize, a: *const c64, out: *mut u8) {
    for i in 0..n {
        // SAFETY: the caller vouches for `n` elements.
        unsafe {
            let z = a.add(i).read();
            match to {
                Dtype::Complex64 => out.cast::<c64>().add(i).write(z),
                Dtype::Bool => out.add(i).write(u8::from(z.re != 0.0 || z.im != 0.0)),
                _ => cast(Dtype::Float32, to, 1, (&raw const z.re).cast(), out.add(i * to.size())),
            }
        }
    }
}
