//! Panels on AVX2: as on AVX-512 with half the lanes; the last elements of a lane or row go through a small buffer.

use super::Quad;
use lapis_core::dtype::{bf16, f16};
use std::arch::x86_64::*;

/// float32
pub(crate) struct Single;
/// bfloat16 to f32
pub(crate) struct Brain;
/// float16 to f32
pub(crate) struct Half;
/// float64
pub(crate) struct Double;

/// `count` elements.
#[inline(always)]
unsafe fn load<E>(p: *const E, count: usize) -> __m128i {
    // SAFETY: they are readable, and at most 16 bytes.
    unsafe {
        if count * size_of::<E>() == 16 {
            return _mm_loadu_si128(p.cast());
        }
        let mut buffer = [0u8; 16];
        std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr().cast(), count);
        _mm_loadu_si128(buffer.as_ptr().cast())
    }
}

/// 16 bytes each of lanes `j` and `j + step`.
#[inline(always)]
unsafe fn two<E>(lane: impl Fn(usize) -> *const E, j: usize, step: usize, count: usize) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let low = _mm256_castsi128_si256(load(lane(j), count));
        _mm256_inserti128_si256(low, load(lane(j + step), count), 1)
    }
}

#[inline(always)]
unsafe fn gather<E>(lane: impl Fn(usize) -> *const E, count: usize) -> [__m256i; 4] {
    // SAFETY: as above.
    unsafe {
        if size_of::<E>() == 8 {
            let zero = _mm256_setzero_si256();
            [two(&lane, 0, 2, count), two(&lane, 1, 2, count), zero, zero]
        } else {
            [two(&lane, 0, 4, count), two(&lane, 1, 4, count), two(&lane, 2, 4, count), two(&lane, 3, 4, count)]
        }
    }
}

#[inline(always)]
unsafe fn transpose_words(t: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: AVX2, promised by the caller.
    unsafe {
        let (a, b) = (_mm256_unpacklo_epi32(t[0], t[1]), _mm256_unpackhi_epi32(t[0], t[1]));
        let (c, d) = (_mm256_unpacklo_epi32(t[2], t[3]), _mm256_unpackhi_epi32(t[2], t[3]));
        [
            _mm256_unpacklo_epi64(a, c),
            _mm256_unpackhi_epi64(a, c),
            _mm256_unpacklo_epi64(b, d),
            _mm256_unpackhi_epi64(b, d),
        ]
    }
}

macro_rules! words {
    ($name:ident, $e:ty, $expand:ident, |$p:ident| $row:expr) => {
        impl Quad for $name {
            type E = $e;
            type P = f32;
            type A = f32;
            type V = __m256i;
            type S = __m256;
            const LANES: usize = 8;
            const PER: usize = 1;
            #[inline(always)]
            unsafe fn gather(lane: impl Fn(usize) -> *const $e, count: usize) -> [__m256i; 4] {
                // SAFETY: handed on.
                unsafe { gather(lane, count) }
            }
            #[inline(always)]
            unsafe fn expand(t: [__m256i; 4]) -> [__m256i; 8] {
                // SAFETY: handed on.
                unsafe { $expand(t) }
            }
            #[inline(always)]
            unsafe fn row(a: *const $e, _: *const $e, count: usize) -> __m256i {
                // SAFETY: `count` elements are readable.
                unsafe {
                    let $p = a;
                    if count >= 8 {
                        return $row;
                    }
                    let mut buffer = [0u32; 8];
                    std::ptr::copy_nonoverlapping(a, buffer.as_mut_ptr().cast(), count);
                    let $p = buffer.as_ptr().cast::<$e>();
                    $row
                }
            }
            #[inline(always)]
            unsafe fn put(v: __m256i, lanes: usize, out: *mut f32) {
                // SAFETY: `lanes` values are writable.
                unsafe {
                    if lanes >= 8 {
                        return _mm256_storeu_si256(out.cast(), v);
                    }
                    // A masked store takes AMD's processors some 40 operations.
                    let (mut out, mut v) = (out, v);
                    if lanes & 4 != 0 {
                        _mm_storeu_si128(out.cast(), _mm256_castsi256_si128(v));
                        (out, v) = (out.add(4), _mm256_permute2x128_si256::<0x81>(v, v));
                    }
                    let mut low = _mm256_castsi256_si128(v);
                    if lanes & 2 != 0 {
                        _mm_storel_epi64(out.cast(), low);
                        (out, low) = (out.add(2), _mm_unpackhi_epi64(low, low));
                    }
                    if lanes & 1 != 0 {
                        _mm_storeu_si32(out.cast(), low);
                    }
                }
            }
            #[inline(always)]
            unsafe fn sums(p: *const f32) -> __m256 {
                // SAFETY: handed on.
                unsafe { if p.is_null() { _mm256_setzero_ps() } else { _mm256_loadu_ps(p) } }
            }
            #[inline(always)]
            unsafe fn keep(v: __m256, p: *mut f32) {
                // SAFETY: handed on.
                unsafe { _mm256_storeu_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn fma(x: *const f32, v: __m256i, c: __m256) -> __m256 {
                // SAFETY: `x` is readable.
                unsafe { _mm256_fmadd_ps(_mm256_set1_ps(*x), _mm256_castsi256_ps(v), c) }
            }
        }
    };
}

#[inline(always)]
unsafe fn expand_words(t: [__m256i; 4]) -> [__m256i; 8] {
    // SAFETY: AVX2, promised by the caller.
    unsafe {
        let (t, z) = (transpose_words(t), _mm256_setzero_si256());
        [t[0], t[1], t[2], t[3], z, z, z, z]
    }
}

/// Both halves of each word as f32: bfloat16 is the upper half of one.
#[inline(always)]
unsafe fn expand_brain(t: [__m256i; 4]) -> [__m256i; 8] {
    // SAFETY: AVX2, promised by the caller.
    unsafe {
        let t = transpose_words(t);
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        [
            _mm256_slli_epi32(t[0], 16),
            _mm256_and_si256(t[0], high),
            _mm256_slli_epi32(t[1], 16),
            _mm256_and_si256(t[1], high),
            _mm256_slli_epi32(t[2], 16),
            _mm256_and_si256(t[2], high),
            _mm256_slli_epi32(t[3], 16),
            _mm256_and_si256(t[3], high),
        ]
    }
}

/// Even and odd step of the lanes of `two`, as f32.
#[inline(always)]
unsafe fn widen_two(two: __m256i) -> (__m256i, __m256i) {
    // SAFETY: AVX2 and F16C, promised by the caller.
    unsafe {
        let both = _mm256_permute4x64_epi64(two, 0b11_01_10_00);
        let (even, odd) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
        (_mm256_castps_si256(_mm256_cvtph_ps(even)), _mm256_castps_si256(_mm256_cvtph_ps(odd)))
    }
}

#[inline(always)]
unsafe fn expand_half(t: [__m256i; 4]) -> [__m256i; 8] {
    // SAFETY: AVX2 and F16C, promised by the caller.
    unsafe {
        let (a, b) = (_mm256_unpacklo_epi16(t[0], t[1]), _mm256_unpackhi_epi16(t[0], t[1]));
        let (c, d) = (_mm256_unpacklo_epi16(t[2], t[3]), _mm256_unpackhi_epi16(t[2], t[3]));
        let (s0, s1) = widen_two(_mm256_unpacklo_epi32(a, c));
        let (s2, s3) = widen_two(_mm256_unpackhi_epi32(a, c));
        let (s4, s5) = widen_two(_mm256_unpacklo_epi32(b, d));
        let (s6, s7) = widen_two(_mm256_unpackhi_epi32(b, d));
        [s0, s1, s2, s3, s4, s5, s6, s7]
    }
}

words!(Single, f32, expand_words, |p| _mm256_loadu_si256(p.cast()));
words!(Brain, bf16, expand_brain, |p| _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16));
words!(Half, f16, expand_half, |p| _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))));

impl Quad for Double {
    type E = f64;
    type P = f64;
    type A = f64;
    type V = __m256i;
    type S = __m256d;
    const LANES: usize = 4;
    const PER: usize = 1;
    #[inline(always)]
    unsafe fn gather(lane: impl Fn(usize) -> *const f64, count: usize) -> [__m256i; 4] {
        // SAFETY: handed on.
        unsafe { gather(lane, count) }
    }
    #[inline(always)]
    unsafe fn expand(t: [__m256i; 4]) -> [__m256i; 8] {
        // SAFETY: AVX2, promised by the caller.
        unsafe {
            let z = _mm256_setzero_si256();
            [_mm256_unpacklo_epi64(t[0], t[1]), _mm256_unpackhi_epi64(t[0], t[1]), z, z, z, z, z, z]
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const f64, _: *const f64, count: usize) -> __m256i {
        // SAFETY: `count` elements are readable.
        unsafe {
            if count >= 4 {
                return _mm256_loadu_si256(a.cast());
            }
            let mut buffer = [0f64; 4];
            std::ptr::copy_nonoverlapping(a, buffer.as_mut_ptr(), count);
            _mm256_loadu_si256(buffer.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn put(v: __m256i, lanes: usize, out: *mut f64) {
        // SAFETY: `lanes` values are writable.
        unsafe {
            if lanes >= 4 {
                return _mm256_storeu_si256(out.cast(), v);
            }
            let mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(lanes as i64), _mm256_setr_epi64x(0, 1, 2, 3));
            _mm256_maskstore_epi64(out.cast(), mask, v);
        }
    }
    #[inline(always)]
    unsafe fn sums(p: *const f64) -> __m256d {
        // SAFETY: handed on.
        unsafe { if p.is_null() { _mm256_setzero_pd() } else { _mm256_loadu_pd(p) } }
    }
    #[inline(always)]
    unsafe fn keep(v: __m256d, p: *mut f64) {
        // SAFETY: handed on.
        unsafe { _mm256_storeu_pd(p, v) }
    }
    #[inline(always)]
    unsafe fn fma(x: *const f64, v: __m256i, c: __m256d) -> __m256d {
        // SAFETY: `x` is readable.
        unsafe { _mm256_fmadd_pd(_mm256_set1_pd(*x), _mm256_castsi256_pd(v), c) }
    }
}
