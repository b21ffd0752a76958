//! The last steps of reductions on x86: 256 bits to one number, by halves.

use std::arch::x86_64::*;

/// An intrinsic call: callers hold a token of a level that has the instruction.
macro_rules! v {
    ($e:expr) => {
        // SAFETY: see the macro.
        unsafe { $e }
    };
}

macro_rules! reduce {
    ($($name:ident $elem:ty: $wide:ty, $low:ident $high:expr, $cast:ident, $op:ident, $cvt:ident;)*) => {$(
        /// Lane i with lane i + LANES/2, and so on.
        #[inline(always)]
        pub(super) unsafe fn $name(x: $wide) -> $elem {
            v!({
                let x = $op($low(x), $high(x));
                let x = $op(x, shuffle_halves!($cast x));
                reduce_last!($cast $op $cvt x)
            })
        }
    )*};
}
macro_rules! shuffle_halves {
    (ps $x:ident) => {
        _mm_movehl_ps($x, $x)
    };
    (pd $x:ident) => {
        _mm_unpackhi_pd($x, $x)
    };
    (epi32 $x:ident) => {
        _mm_shuffle_epi32::<0b1110>($x)
    };
    (epi64 $x:ident) => {
        _mm_shuffle_epi32::<0b1110>($x)
    };
}
macro_rules! reduce_last {
    (ps $op:ident $cvt:ident $x:ident) => {
        $cvt($op($x, _mm_movehdup_ps($x)))
    };
    (epi32 $op:ident $cvt:ident $x:ident) => {
        $cvt($op($x, _mm_shuffle_epi32::<1>($x)))
    };
    ($other:ident $op:ident $cvt:ident $x:ident) => {
        $cvt($x)
    };
}
reduce! {
    add_f32 f32: __m256, _mm256_castps256_ps128 _mm256_extractf128_ps::<1>, ps, _mm_add_ps, _mm_cvtss_f32;
    max_f32 f32: __m256, _mm256_castps256_ps128 _mm256_extractf128_ps::<1>, ps, _mm_max_ps, _mm_cvtss_f32;
    min_f32 f32: __m256, _mm256_castps256_ps128 _mm256_extractf128_ps::<1>, ps, _mm_min_ps, _mm_cvtss_f32;
    add_f64 f64: __m256d, _mm256_castpd256_pd128 _mm256_extractf128_pd::<1>, pd, _mm_add_pd, _mm_cvtsd_f64;
    max_f64 f64: __m256d, _mm256_castpd256_pd128 _mm256_extractf128_pd::<1>, pd, _mm_max_pd, _mm_cvtsd_f64;
    min_f64 f64: __m256d, _mm256_castpd256_pd128 _mm256_extractf128_pd::<1>, pd, _mm_min_pd, _mm_cvtsd_f64;
    add_i32 i32: __m256i, _mm256_castsi256_si128 _mm256_extracti128_si256::<1>, epi32, _mm_add_epi32, _mm_cvtsi128_si32;
    add_i64 i64: __m256i, _mm256_castsi256_si128 _mm256_extracti128_si256::<1>, epi64, _mm_add_epi64, _mm_cvtsi128_si64;
}
