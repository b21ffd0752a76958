//! Running reductions, line by line. Floats are summed and multiplied in f64 (complex in pairs of them) and rounded
//! once an element, so that half precision loses nothing on the way.

use crate::lines::{Lines, for_lines};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use lapis_core::error::{Error, Result};
use lapis_core::ops::{Scan, ScanKind};
use num_complex::Complex;

type C = Complex<f64>;

/// Computes a scan.
pub(crate) fn run(op: &Scan, input: &Tensor, out: &mut Tensor) -> Result<()> {
    use ScanKind::{LogAddExp, Max, Min, Prod, Sum};
    macro_rules! int {
        ($t:ty) => {
            match op.kind {
                Sum => lines::<$t, $t>(op, input, out, 0, |a, x| a.wrapping_add(x), |a| a),
                Prod => lines::<$t, $t>(op, input, out, 1, |a, x| a.wrapping_mul(x), |a| a),
                Max => lines::<$t, $t>(op, input, out, <$t>::MIN, |a, x| a.max(x), |a| a),
                Min => lines::<$t, $t>(op, input, out, <$t>::MAX, |a, x| a.min(x), |a| a),
                LogAddExp => return unsupported(op, input.dtype),
            }
        };
    }
    macro_rules! float {
        ($t:ty, $up:expr, $down:expr) => {
            match op.kind {
                Sum => lines::<$t, f64>(op, input, out, 0.0, |a, x| a + $up(x), $down),
                Prod => lines::<$t, f64>(op, input, out, 1.0, |a, x| a * $up(x), $down),
                Max => lines::<$t, f64>(op, input, out, f64::NEG_INFINITY, |a, x| larger(a, $up(x)), $down),
                Min => lines::<$t, f64>(op, input, out, f64::INFINITY, |a, x| -larger(-a, -$up(x)), $down),
                LogAddExp => {
                    // The running value is max + ln(sum): exact enough in f64 for every narrower type.
                    lines::<$t, f64>(op, input, out, f64::NEG_INFINITY, |a, x| log_add(a, $up(x)), $down)
                }
            }
        };
    }
    match input.dtype {
        Dtype::Bool => match op.kind {
            Sum | Max => lines::<u8, u8>(op, input, out, 0, |a, x| a | x, |a| a),
            _ => lines::<u8, u8>(op, input, out, 1, |a, x| a & x, |a| a),
        },
        Dtype::Uint8 => int!(u8),
        Dtype::Uint16 => int!(u16),
        Dtype::Uint32 => int!(u32),
        Dtype::Uint64 => int!(u64),
        Dtype::Int8 => int!(i8),
        Dtype::Int16 => int!(i16),
        Dtype::Int32 => int!(i32),
        Dtype::Int64 => int!(i64),
        Dtype::Float16 => float!(f16, f16::to_f64, f16::from_f64),
        Dtype::Bfloat16 => float!(bf16, bf16::to_f64, bf16::from_f64),
        Dtype::Float32 => float!(f32, f64::from, |a| a as f32),
        Dtype::Float64 => float!(f64, |x: f64| x, |a| a),
        Dtype::Complex64 => complex(op, input, out)?,
    }
    Ok(())
}

fn unsupported(op: &Scan, dtype: Dtype) -> Result<()> {
    Err(Error::dtype(format!("[{:?}] {dtype} is not a type it takes", op.kind)))
}

fn larger(a: f64, x: f64) -> f64 {
    if a > x || a.is_nan() { a } else { x }
}

fn log_add(a: f64, x: f64) -> f64 {
    if a.is_nan() || x.is_nan() {
        return f64::NAN;
    }
    let (hi, lo) = if a > x { (a, x) } else { (x, a) };
    if lo == f64::NEG_INFINITY || hi == f64::INFINITY { hi } else { hi + (lo - hi).exp().ln_1p() }
}

fn complex(op: &Scan, input: &Tensor, out: &Tensor) -> Result<()> {
    let up = |z: c64| C::new(f64::from(z.re), f64::from(z.im));
    let down = |z: C| c64::new(z.re as f32, z.im as f32);
    let key = |z: C| (z.re, z.im);
    let nan = |z: C| z.re.is_nan() || z.im.is_nan();
    let (lo, hi) = (C::new(f64::NEG_INFINITY, f64::NEG_INFINITY), C::new(f64::INFINITY, f64::INFINITY));
    match op.kind {
        ScanKind::Sum => lines(op, input, out, C::new(0.0, 0.0), |a, x| a + up(x), down),
        ScanKind::Prod => lines(op, input, out, C::new(1.0, 0.0), |a, x| a * up(x), down),
        ScanKind::Max => {
            let f = |a: C, x: c64| if nan(a) || (!nan(up(x)) && key(a) > key(up(x))) { a } else { up(x) };
            lines(op, input, out, lo, f, down);
        }
        ScanKind::Min => {
            let f = |a: C, x: c64| if nan(a) || (!nan(up(x)) && key(a) < key(up(x))) { a } else { up(x) };
            lines(op, input, out, hi, f, down);
        }
        ScanKind::LogAddExp => {
            let f = |a: C, x: c64| {
                let x = up(x);
                let (hi, lo) = if a.re > x.re { (a, x) } else { (x, a) };
                if lo.re == f64::NEG_INFINITY { hi } else { hi + (C::new(1.0, 0.0) + (lo - hi).exp()).ln() }
            };
            lines(op, input, out, C::new(f64::NEG_INFINITY, 0.0), f, down);
        }
    }
    Ok(())
}

fn lines<T: Copy, A: Copy + Sync>(
    op: &Scan,
    input: &Tensor,
    out: &Tensor,
    start: A,
    push: impl Fn(A, T) -> A + Sync,
    finish: impl Fn(A) -> T + Sync,
) {
    let (from, to) = (Lines::new(input, op.axis), Lines::new(out, op.axis));
    for_lines(from.count(), from.len, &|range| {
        let mut line: Vec<T> = Vec::new();
        for i in range {
            // SAFETY: `T` is the dtype; every line is written by one task.
            unsafe { from.read(i, &mut line) };
            let mut acc = start;
            let mut visit = |v: &mut T| {
                let next = push(acc, *v);
                *v = finish(if op.inclusive { next } else { acc });
                acc = next;
            };
            if op.reverse {
                line.iter_mut().rev().for_each(&mut visit);
            } else {
                line.iter_mut().for_each(&mut visit);
            }
            // SAFETY: as above.
            unsafe { to.write(i, &line) };
        }
    });
}
