//! Ranges.

use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use lapis_core::error::Result;
use lapis_core::ops::Arange;

/// `start + i * step`: integers in 64-bit arithmetic, floats in f64, cast at the end.
pub(crate) fn arange(op: &Arange, out: &mut Tensor) -> Result<()> {
    let (a, s) = (op.start.0, op.step.0);
    let float = |i: usize| a + i as f64 * s;
    let int = |i: usize| (a as i64).wrapping_add((s as i64).wrapping_mul(i as i64));
    macro_rules! write {
        ($t:ty, $f:expr) => {{
            let p = out.ptr().cast::<$t>();
            for i in 0..op.len {
                // SAFETY: the output holds `len` elements of this dtype.
                unsafe { p.add(i).write($f(i)) };
            }
        }};
    }
    // Integers count in whole steps; a fractional bound or step of an integer range counts in f64.
    let whole = a.fract() == 0.0 && s.fract() == 0.0;
    macro_rules! integer {
        ($t:ty) => {
            write!($t, |i| if whole { int(i) as $t } else { float(i) as i64 as $t })
        };
    }
    match op.dtype {
        Dtype::Bool => write!(u8, |i| u8::from(float(i) != 0.0)),
        Dtype::Uint8 => integer!(u8),
        Dtype::Uint16 => integer!(u16),
        Dtype::Uint32 => integer!(u32),
        Dtype::Uint64 => integer!(u64),
        Dtype::Int8 => integer!(i8),
        Dtype::Int16 => integer!(i16),
        Dtype::Int32 => integer!(i32),
        Dtype::Int64 => integer!(i64),
        Dtype::Float16 => write!(f16, |i| f16::from_f64(float(i))),
        Dtype::Bfloat16 => write!(bf16, |i| bf16::from_f64(float(i))),
        Dtype::Float32 => write!(f32, |i| float(i) as f32),
        Dtype::Float64 => write!(f64, float),
        Dtype::Complex64 => write!(c64, |i| c64::new(float(i) as f32, 0.0)),
    }
    Ok(())
}
