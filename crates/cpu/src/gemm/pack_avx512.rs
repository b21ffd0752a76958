//! Packing on AVX-512: 16 bytes of 16 lanes are gathered by masked broadcasts into four registers, each 128-bit part of
//! which is then transposed in place: half the shuffles of a full 16 x 16 transposition.

use super::Lanes;
use std::arch::x86_64::*;

/// How 16 bytes of every lane become packed steps.
pub(super) trait Quad {
    /// Element in memory.
    type E: Copy;
    /// Packed value.
    type P: Copy;
    /// Lanes of one register.
    const LANES: usize;
    /// Elements in 16 bytes.
    const CHUNK: usize;
    /// Elements of one packed step.
    const PER: usize;
    /// Writes the first `steps` steps of `t` at `out`, `out + w`, ..., the lanes in `mask` only.
    unsafe fn emit(t: [__m512i; 4], steps: usize, mask: u16, w: usize, out: *mut Self::P);
    /// Reads the lanes in `mask` of the step at `a` (and `b` when a step has two).
    unsafe fn row(a: *const Self::E, b: *const Self::E, mask: u16) -> __m512i;
}

/// float32
pub(super) struct Single;
/// bfloat16 to f32
pub(super) struct Brain;
/// float16 to f32
pub(super) struct Half;
/// float64
pub(super) struct Double;
/// bfloat16 in pairs
pub(super) struct Pair;

/// The bytes of lane `l` from element `at` that `bytes` selects.
#[inline(always)]
unsafe fn load<E>(lanes: &[*const E], l: usize, at: usize, bytes: u16) -> __m128i {
    // SAFETY: these bytes are readable.
    unsafe {
        match bytes {
            0xffff => _mm_loadu_si128(lanes[l].add(at).cast()),
            _ => _mm_maskz_loadu_epi8(bytes, lanes[l].add(at).cast()),
        }
    }
}

/// 16 bytes each of lanes `j`, `j + step`, `j + 2 * step`, `j + 3 * step`.
#[inline(always)]
unsafe fn four<E>(lanes: &[*const E], j: usize, step: usize, at: usize, bytes: u16) -> __m512i {
    // SAFETY: as above.
    unsafe {
        let v = _mm512_broadcast_i32x4(load(lanes, j, at, bytes));
        let v = _mm512_mask_broadcast_i32x4(v, 0x00f0, load(lanes, j + step, at, bytes));
        let v = _mm512_mask_broadcast_i32x4(v, 0x0f00, load(lanes, j + 2 * step, at, bytes));
        _mm512_mask_broadcast_i32x4(v, 0xf000, load(lanes, j + 3 * step, at, bytes))
    }
}

/// 16 bytes of every lane, such that each 128-bit part holds lanes that are neighbours.
#[inline(always)]
unsafe fn gather<E>(lanes: &[*const E], at: usize, bytes: u16) -> [__m512i; 4] {
    // SAFETY: as above.
    unsafe {
        if size_of::<E>() == 8 {
            let zero = _mm512_setzero_si512();
            [four(lanes, 0, 2, at, bytes), four(lanes, 1, 2, at, bytes), zero, zero]
        } else {
            [
                four(lanes, 0, 4, at, bytes),
                four(lanes, 1, 4, at, bytes),
                four(lanes, 2, 4, at, bytes),
                four(lanes, 3, 4, at, bytes),
            ]
        }
    }
}

/// Transposes the 4 x 4 words of each 128-bit part.
#[inline(always)]
unsafe fn transpose_words(t: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: AVX-512F, promised by the caller.
    unsafe {
        let (a, b) = (_mm512_unpacklo_epi32(t[0], t[1]), _mm512_unpackhi_epi32(t[0], t[1]));
        let (c, d) = (_mm512_unpacklo_epi32(t[2], t[3]), _mm512_unpackhi_epi32(t[2], t[3]));
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }
}

#[inline(always)]
unsafe fn put_words<T>(v: __m512i, mask: u16, out: *mut T) {
    // SAFETY: the lanes in `mask` are writable.
    unsafe {
        if mask == 0xffff {
            _mm512_storeu_si512(out.cast(), v);
        } else {
            _mm512_mask_storeu_epi32(out.cast(), mask, v);
        }
    }
}

impl Quad for Single {
    type E = f32;
    type P = f32;
    const LANES: usize = 16;
    const CHUNK: usize = 4;
    const PER: usize = 1;
    #[inline(always)]
    unsafe fn emit(t: [__m512i; 4], steps: usize, mask: u16, w: usize, out: *mut f32) {
        // SAFETY: handed on.
        unsafe {
            let t = transpose_words(t);
            for s in 0..steps {
                put_words(t[s], mask, out.add(s * w));
            }
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const f32, _: *const f32, mask: u16) -> __m512i {
        // SAFETY: the lanes in `mask` are readable.
        unsafe { _mm512_maskz_loadu_epi32(mask, a.cast()) }
    }
}

impl Quad for Brain {
    type E = lapis_core::dtype::bf16;
    type P = f32;
    const LANES: usize = 16;
    const CHUNK: usize = 8;
    const PER: usize = 1;
    #[inline(always)]
    unsafe fn emit(t: [__m512i; 4], steps: usize, mask: u16, w: usize, out: *mut f32) {
        // SAFETY: handed on.
        unsafe {
            let t = transpose_words(t);
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            for s in 0..steps {
                let pair = t[s / 2];
                let v = if s % 2 == 0 { _mm512_slli_epi32(pair, 16) } else { _mm512_and_si512(pair, high) };
                put_words(v, mask, out.add(s * w));
            }
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const Self::E, _: *const Self::E, mask: u16) -> __m512i {
        // SAFETY: the lanes in `mask` are readable.
        unsafe { _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a.cast())), 16) }
    }
}

impl Quad for Half {
    type E = lapis_core::dtype::f16;
    type P = f32;
    const LANES: usize = 16;
    const CHUNK: usize = 8;
    const PER: usize = 1;
    #[inline(always)]
    unsafe fn emit(t: [__m512i; 4], steps: usize, mask: u16, w: usize, out: *mut f32) {
        // SAFETY: handed on.
        unsafe {
            let (a, b) = (_mm512_unpacklo_epi16(t[0], t[1]), _mm512_unpackhi_epi16(t[0], t[1]));
            let (c, d) = (_mm512_unpacklo_epi16(t[2], t[3]), _mm512_unpackhi_epi16(t[2], t[3]));
            // Each part: two steps of its four lanes.
            let two = [
                _mm512_unpacklo_epi32(a, c),
                _mm512_unpackhi_epi32(a, c),
                _mm512_unpacklo_epi32(b, d),
                _mm512_unpackhi_epi32(b, d),
            ];
            let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            for s in 0..steps {
                let both = _mm512_permutexvar_epi64(order, two[s / 2]);
                let v = if s % 2 == 0 { _mm512_castsi512_si256(both) } else { _mm512_extracti64x4_epi64(both, 1) };
                put_words(_mm512_castps_si512(_mm512_cvtph_ps(v)), mask, out.add(s * w));
            }
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const Self::E, _: *const Self::E, mask: u16) -> __m512i {
        // SAFETY: the lanes in `mask` are readable.
        unsafe { _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, a.cast()))) }
    }
}

impl Quad for Double {
    type E = f64;
    type P = f64;
    const LANES: usize = 8;
    const CHUNK: usize = 2;
    const PER: usize = 1;
    #[inline(always)]
    unsafe fn emit(t: [__m512i; 4], steps: usize, mask: u16, w: usize, out: *mut f64) {
        // SAFETY: the lanes in `mask` are writable.
        unsafe {
            let t = [_mm512_unpacklo_epi64(t[0], t[1]), _mm512_unpackhi_epi64(t[0], t[1])];
            for s in 0..steps {
                _mm512_mask_storeu_epi64(out.add(s * w).cast(), mask as u8, t[s]);
            }
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const f64, _: *const f64, mask: u16) -> __m512i {
        // SAFETY: the lanes in `mask` are readable.
        unsafe { _mm512_maskz_loadu_epi64(mask as u8, a.cast()) }
    }
}

impl Quad for Pair {
    type E = lapis_core::dtype::bf16;
    type P = u32;
    const LANES: usize = 16;
    const CHUNK: usize = 8;
    const PER: usize = 2;
    #[inline(always)]
    unsafe fn emit(t: [__m512i; 4], steps: usize, mask: u16, w: usize, out: *mut u32) {
        // SAFETY: handed on.
        unsafe {
            let t = transpose_words(t);
            for s in 0..steps {
                put_words(t[s], mask, out.add(s * w));
            }
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const Self::E, b: *const Self::E, mask: u16) -> __m512i {
        // SAFETY: the lanes in `mask` are readable; a null `b` is past the end and counts as zeros.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a.cast()));
            if b.is_null() {
                return low;
            }
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b.cast()));
            _mm512_or_si512(low, _mm512_slli_epi32(high, 16))
        }
    }
}

#[inline(always)]
fn mask(lanes: usize) -> u16 {
    if lanes >= 16 { 0xffff } else { (1 << lanes) - 1 }
}

/// See [`super::Pack::transpose`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn transpose<Q: Quad>(lanes: &Lanes<Q::E>, k: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: every lane has `k` elements and `dst` the room; masks keep the last chunk and the last lanes inside.
    unsafe {
        let full = k / Q::CHUNK * Q::CHUNK;
        for g in (0..w).step_by(Q::LANES) {
            let group = &lanes[g..g + Q::LANES];
            let out = dst.add(g);
            let steps = Q::CHUNK / Q::PER;
            if w - g >= Q::LANES {
                for at in (0..full).step_by(Q::CHUNK) {
                    Q::emit(gather(group, at, 0xffff), steps, 0xffff, w, out.add(at / Q::PER * w));
                }
            } else {
                let m = mask(w - g);
                for at in (0..full).step_by(Q::CHUNK) {
                    Q::emit(gather(group, at, 0xffff), steps, m, w, out.add(at / Q::PER * w));
                }
            }
            if full < k {
                let t = gather(group, full, mask((k - full) * size_of::<Q::E>()));
                Q::emit(t, (k - full).div_ceil(Q::PER), mask(w - g), w, out.add(full / Q::PER * w));
            }
        }
    }
}

/// See [`super::Pack::copy`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn copy<Q: Quad>(src: *const Q::E, ks: isize, k: usize, count: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: `count` elements are readable at every step, `w` values writable.
    unsafe {
        for (step, j) in (0..k).step_by(Q::PER).enumerate() {
            let a = src.offset(j as isize * ks);
            let b = if Q::PER == 2 && j + 1 < k { a.offset(ks) } else { std::ptr::null() };
            let out = dst.add(step * w);
            for g in (0..count).step_by(Q::LANES) {
                let pair = if b.is_null() { b } else { b.add(g) };
                let v = Q::row(a.add(g), pair, mask((count - g).min(Q::LANES)));
                let m = mask((w - g).min(Q::LANES));
                if Q::LANES == 8 {
                    _mm512_mask_storeu_epi64(out.add(g).cast(), m as u8, v);
                } else {
                    put_words(v, m, out.add(g));
                }
            }
        }
    }
}
