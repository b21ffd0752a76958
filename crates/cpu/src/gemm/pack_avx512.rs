//! Panels on AVX-512: 16 bytes of 16 lanes are gathered by masked broadcasts into four registers, each 128-bit part of
//! which is then transposed in place: half the shuffles of a full 16 x 16 transposition.

use super::Quad;
use crate::turn::{fours, quarters};
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
/// bfloat16 in pairs
pub(crate) struct Pair;

/// `count` elements.
#[inline(always)]
unsafe fn load<E>(p: *const E, count: usize) -> __m128i {
    // SAFETY: they are readable, and at most 16 bytes.
    unsafe {
        match count * size_of::<E>() {
            16 => _mm_loadu_si128(p.cast()),
            bytes => _mm_maskz_loadu_epi8(mask(bytes), p.cast()),
        }
    }
}

/// 16 bytes each of lanes `j`, `j + step`, `j + 2 * step`, `j + 3 * step`.
#[inline(always)]
unsafe fn four<E>(lane: impl Fn(usize) -> *const E, j: usize, step: usize, count: usize) -> __m512i {
    // SAFETY: as above.
    unsafe {
        let v = _mm512_broadcast_i32x4(load(lane(j), count));
        let v = _mm512_mask_broadcast_i32x4(v, 0x00f0, load(lane(j + step), count));
        let v = _mm512_mask_broadcast_i32x4(v, 0x0f00, load(lane(j + 2 * step), count));
        _mm512_mask_broadcast_i32x4(v, 0xf000, load(lane(j + 3 * step), count))
    }
}

/// 16 bytes of every lane, such that each 128-bit part holds lanes that are neighbours.
#[inline(always)]
unsafe fn gather<E>(lane: impl Fn(usize) -> *const E, count: usize) -> [__m512i; 4] {
    // SAFETY: as above.
    unsafe {
        if size_of::<E>() == 8 {
            let zero = _mm512_setzero_si512();
            [four(&lane, 0, 2, count), four(&lane, 1, 2, count), zero, zero]
        } else {
            [four(&lane, 0, 4, count), four(&lane, 1, 4, count), four(&lane, 2, 4, count), four(&lane, 3, 4, count)]
        }
    }
}

#[inline(always)]
fn mask(lanes: usize) -> u16 {
    if lanes >= 16 { 0xffff } else { (1 << lanes) - 1 }
}

/// Single to four steps as they are, two-byte elements to eight.
macro_rules! words {
    ($name:ident, $e:ty, $p:ty, $per:literal, |$t:ident| $expand:expr, |$a:ident, $b:ident, $m:ident| $row:expr,
     |$x:ident| $splat:expr, |$c:ident, $u:ident, $v:ident| $fma:expr) => {
        impl Quad for $name {
            type E = $e;
            type P = $p;
            type A = f32;
            type V = __m512i;
            type S = __m512;
            const LANES: usize = 16;
            const PER: usize = $per;
            const LINES: bool = true;
            #[inline(always)]
            unsafe fn line(lane: impl Fn(usize) -> *const $e) -> [[__m512i; 4]; 4] {
                // SAFETY: handed on.
                unsafe { line(lane) }
            }
            #[inline(always)]
            unsafe fn gather(lane: impl Fn(usize) -> *const $e, count: usize) -> [__m512i; 4] {
                // SAFETY: handed on.
                unsafe { gather(lane, count) }
            }
            #[inline(always)]
            unsafe fn expand($t: [__m512i; 4]) -> [__m512i; 8] {
                // SAFETY: handed on.
                unsafe { $expand }
            }
            #[inline(always)]
            unsafe fn row($a: *const $e, $b: *const $e, count: usize) -> __m512i {
                let $m = mask(count);
                // SAFETY: `count` elements are readable.
                unsafe { $row }
            }
            #[inline(always)]
            unsafe fn put(v: __m512i, lanes: usize, out: *mut $p) {
                // SAFETY: `lanes` values are writable.
                unsafe {
                    match lanes {
                        16.. => _mm512_storeu_si512(out.cast(), v),
                        _ => _mm512_mask_storeu_epi32(out.cast(), mask(lanes), v),
                    }
                }
            }
            #[inline(always)]
            unsafe fn sums(p: *const f32) -> __m512 {
                // SAFETY: handed on.
                unsafe { if p.is_null() { _mm512_setzero_ps() } else { _mm512_loadu_ps(p) } }
            }
            #[inline(always)]
            unsafe fn keep(v: __m512, p: *mut f32) {
                // SAFETY: handed on.
                unsafe { _mm512_storeu_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn fma($x: *const $p, $v: __m512i, $c: __m512) -> __m512 {
                // SAFETY: `x` is readable.
                unsafe {
                    let $u = $splat;
                    $fma
                }
            }
        }
    };
}

/// See [`Quad::line`].
#[inline(always)]
unsafe fn line<E>(lane: impl Fn(usize) -> *const E) -> [[__m512i; 4]; 4] {
    // SAFETY: 64 bytes are readable at each address, and AVX-512F is there, promised by the caller.
    unsafe {
        let mut r = [_mm512_setzero_si512(); 16];
        for (l, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_si512(lane(l).cast());
        }
        let mut pieces = [[_mm512_setzero_si512(); 4]; 4];
        for i in 0..4 {
            let parts = quarters([r[i], r[4 + i], r[8 + i], r[12 + i]]);
            for c in 0..4 {
                pieces[c][i] = parts[c];
            }
        }
        pieces
    }
}

/// Both halves of each word as f32: bfloat16 is the upper half of one.
#[inline(always)]
unsafe fn expand_brain(t: [__m512i; 4]) -> [__m512i; 8] {
    // SAFETY: AVX-512F, promised by the caller.
    unsafe {
        let t = fours(t);
        let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        [
            _mm512_slli_epi32(t[0], 16),
            _mm512_and_si512(t[0], high),
            _mm512_slli_epi32(t[1], 16),
            _mm512_and_si512(t[1], high),
            _mm512_slli_epi32(t[2], 16),
            _mm512_and_si512(t[2], high),
            _mm512_slli_epi32(t[3], 16),
            _mm512_and_si512(t[3], high),
        ]
    }
}

/// Even and odd step of the lanes of `two`, as f32.
#[inline(always)]
unsafe fn widen_two(two: __m512i) -> (__m512i, __m512i) {
    // SAFETY: AVX-512F, promised by the caller.
    unsafe {
        let both = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), two);
        let odd = _mm512_extracti64x4_epi64(both, 1);
        let even = _mm512_castsi512_si256(both);
        (_mm512_castps_si512(_mm512_cvtph_ps(even)), _mm512_castps_si512(_mm512_cvtph_ps(odd)))
    }
}

#[inline(always)]
unsafe fn expand_half(t: [__m512i; 4]) -> [__m512i; 8] {
    // SAFETY: AVX-512F and BW, promised by the caller.
    unsafe {
        let (a, b) = (_mm512_unpacklo_epi16(t[0], t[1]), _mm512_unpackhi_epi16(t[0], t[1]));
        let (c, d) = (_mm512_unpacklo_epi16(t[2], t[3]), _mm512_unpackhi_epi16(t[2], t[3]));
        let (s0, s1) = widen_two(_mm512_unpacklo_epi32(a, c));
        let (s2, s3) = widen_two(_mm512_unpackhi_epi32(a, c));
        let (s4, s5) = widen_two(_mm512_unpacklo_epi32(b, d));
        let (s6, s7) = widen_two(_mm512_unpackhi_epi32(b, d));
        [s0, s1, s2, s3, s4, s5, s6, s7]
    }
}

#[inline(always)]
unsafe fn expand_words(t: [__m512i; 4]) -> [__m512i; 8] {
    // SAFETY: AVX-512F, promised by the caller.
    unsafe {
        let (t, z) = (fours(t), _mm512_setzero_si512());
        [t[0], t[1], t[2], t[3], z, z, z, z]
    }
}

/// 16 two-byte elements as words.
#[inline(always)]
unsafe fn halves<E>(p: *const E, mask: u16) -> __m512i {
    // SAFETY: the lanes in `mask` are readable.
    unsafe { _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast())) }
}

words!(
    Single,
    f32,
    f32,
    1,
    |t| expand_words(t),
    |a, _b, m| _mm512_maskz_loadu_epi32(m, a.cast()),
    |x| _mm512_set1_ps(*x),
    |c, u, v| _mm512_fmadd_ps(u, _mm512_castsi512_ps(v), c)
);
words!(
    Brain,
    bf16,
    f32,
    1,
    |t| expand_brain(t),
    |a, _b, m| _mm512_slli_epi32(halves(a, m), 16),
    |x| _mm512_set1_ps(*x),
    |c, u, v| _mm512_fmadd_ps(u, _mm512_castsi512_ps(v), c)
);
words!(
    Half,
    f16,
    f32,
    1,
    |t| expand_half(t),
    |a, _b, m| _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, a.cast()))),
    |x| _mm512_set1_ps(*x),
    |c, u, v| _mm512_fmadd_ps(u, _mm512_castsi512_ps(v), c)
);
// A null second row is past the end and counts as zeros.
words!(
    Pair,
    bf16,
    u32,
    2,
    |t| expand_words(t),
    |a, b, m| if b.is_null() {
        halves(a, m)
    } else {
        _mm512_or_si512(halves(a, m), _mm512_slli_epi32(halves(b, m), 16))
    },
    |x| _mm512_set1_epi32(*x as i32),
    |c, u, v| _mm512_dpbf16_ps(
        c,
        std::mem::transmute::<__m512i, __m512bh>(u),
        std::mem::transmute::<__m512i, __m512bh>(v)
    )
);

impl Quad for Double {
    type E = f64;
    type P = f64;
    type A = f64;
    type V = __m512i;
    type S = __m512d;
    const LANES: usize = 8;
    const PER: usize = 1;
    #[inline(always)]
    unsafe fn gather(lane: impl Fn(usize) -> *const f64, count: usize) -> [__m512i; 4] {
        // SAFETY: handed on.
        unsafe { gather(lane, count) }
    }
    #[inline(always)]
    unsafe fn expand(t: [__m512i; 4]) -> [__m512i; 8] {
        // SAFETY: AVX-512F, promised by the caller.
        unsafe {
            let z = _mm512_setzero_si512();
            [_mm512_unpacklo_epi64(t[0], t[1]), _mm512_unpackhi_epi64(t[0], t[1]), z, z, z, z, z, z]
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const f64, _: *const f64, count: usize) -> __m512i {
        // SAFETY: `count` elements are readable.
        unsafe { _mm512_maskz_loadu_epi64(mask(count) as u8, a.cast()) }
    }
    #[inline(always)]
    unsafe fn put(v: __m512i, lanes: usize, out: *mut f64) {
        // SAFETY: `lanes` values are writable.
        unsafe {
            match lanes {
                8.. => _mm512_storeu_si512(out.cast(), v),
                _ => _mm512_mask_storeu_epi64(out.cast(), mask(lanes) as u8, v),
            }
        }
    }
    #[inline(always)]
    unsafe fn sums(p: *const f64) -> __m512d {
        // SAFETY: handed on.
        unsafe { if p.is_null() { _mm512_setzero_pd() } else { _mm512_loadu_pd(p) } }
    }
    #[inline(always)]
    unsafe fn keep(v: __m512d, p: *mut f64) {
        // SAFETY: handed on.
        unsafe { _mm512_storeu_pd(p, v) }
    }
    #[inline(always)]
    unsafe fn fma(x: *const f64, v: __m512i, c: __m512d) -> __m512d {
        // SAFETY: `x` is readable.
        unsafe { _mm512_fmadd_pd(_mm512_set1_pd(*x), _mm512_castsi512_pd(v), c) }
    }
}
