//! Arrays of all ranks, one after the other, to one: in the order of ranks, half precision in f32. Knows no processes.

use bytemuck::{AnyBitPattern, NoUninit, bytes_of, pod_read_unaligned};
use half::{bf16, f16};
use lapis_core::dtype::{Dtype, c64};
use lapis_core::ops::collective::Kind;

/// An element type: what it is added and compared as, and back.
trait Number: AnyBitPattern + NoUninit {
    type Wide: Copy;
    fn wide(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
    fn sum(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// The larger; NaN, where one is.
    fn max(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn min(a: Self::Wide, b: Self::Wide) -> Self::Wide;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            type Wide = $t;
            fn wide(self) -> $t {
                self
            }
            fn narrow(wide: $t) -> $t {
                wide
            }
            fn sum(a: $t, b: $t) -> $t {
                a.wrapping_add(b)
            }
            fn max(a: $t, b: $t) -> $t {
                Ord::max(a, b)
            }
            fn min(a: $t, b: $t) -> $t {
                Ord::min(a, b)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! floats {
    ($($t:ty, $wide:ty, $up:expr, $down:expr;)*) => {$(
        impl Number for $t {
            type Wide = $wide;
            fn wide(self) -> $wide {
                $up(self)
            }
            fn narrow(wide: $wide) -> $t {
                $down(wide)
            }
            fn sum(a: $wide, b: $wide) -> $wide {
                a + b
            }
            fn max(a: $wide, b: $wide) -> $wide {
                if a.is_nan() || a >= b { a } else { b }
            }
            fn min(a: $wide, b: $wide) -> $wide {
                if a.is_nan() || a <= b { a } else { b }
            }
        }
    )*};
}
floats! {
    f32, f32, |x| x, |x| x;
    f64, f64, |x| x, |x| x;
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
}

/// Only sums are asked for.
impl Number for c64 {
    type Wide = c64;
    fn wide(self) -> c64 {
        self
    }
    fn narrow(wide: c64) -> c64 {
        wide
    }
    fn sum(a: c64, b: c64) -> c64 {
        a + b
    }
    fn max(a: c64, _: c64) -> c64 {
        a
    }
    fn min(a: c64, _: c64) -> c64 {
        a
    }
}

/// `parts` are as many arrays of the length of `output` as there are ranks.
pub(crate) fn combine(kind: &Kind, dtype: Dtype, parts: &[u8], output: &mut [u8]) {
    match dtype {
        // Any of them, for sums as well.
        Dtype::Bool if *kind == Kind::Sum => fold::<u8>(<u8 as Number>::max, parts, output),
        Dtype::Bool | Dtype::Uint8 => by_kind::<u8>(kind, parts, output),
        Dtype::Uint16 => by_kind::<u16>(kind, parts, output),
        Dtype::Uint32 => by_kind::<u32>(kind, parts, output),
        Dtype::Uint64 => by_kind::<u64>(kind, parts, output),
        Dtype::Int8 => by_kind::<i8>(kind, parts, output),
        Dtype::Int16 => by_kind::<i16>(kind, parts, output),
        Dtype::Int32 => by_kind::<i32>(kind, parts, output),
        Dtype::Int64 => by_kind::<i64>(kind, parts, output),
        Dtype::Float16 => by_kind::<f16>(kind, parts, output),
        Dtype::Bfloat16 => by_kind::<bf16>(kind, parts, output),
        Dtype::Float32 => by_kind::<f32>(kind, parts, output),
        Dtype::Float64 => by_kind::<f64>(kind, parts, output),
        Dtype::Complex64 => by_kind::<c64>(kind, parts, output),
    }
}

fn by_kind<T: Number>(kind: &Kind, parts: &[u8], output: &mut [u8]) {
    match kind {
        Kind::Max => fold::<T>(T::max, parts, output),
        Kind::Min => fold::<T>(T::min, parts, output),
        _ => fold::<T>(T::sum, parts, output),
    }
}

fn fold<T: Number>(with: impl Fn(T::Wide, T::Wide) -> T::Wide, parts: &[u8], output: &mut [u8]) {
    let (length, width) = (output.len(), size_of::<T>());
    for (i, out) in output.chunks_exact_mut(width).enumerate() {
        let at = |first: usize| pod_read_unaligned::<T>(&parts[first + i * width..][..width]).wide();
        let all = (1..parts.len() / length).fold(at(0), |sum, rank| with(sum, at(rank * length)));
        out.copy_from_slice(bytes_of(&T::narrow(all)));
    }
}
