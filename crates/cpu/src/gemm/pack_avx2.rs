//! Packing on AVX2: as on AVX-512 with half the lanes; the last bytes of a lane go through a small buffer.

use super::Lanes;
use std::arch::x86_64::*;

/// How 16 bytes of every lane become packed steps; see the AVX-512 file.
pub(super) trait Quad {
    type E: Copy;
    type P: Copy;
    const LANES: usize;
    const CHUNK: usize;
    unsafe fn emit(t: [__m256i; 4], steps: usize, lanes: usize, w: usize, out: *mut Self::P);
    /// Reads `LANES` elements.
    unsafe fn row(a: *const Self::E) -> __m256i;
    /// Writes the first `lanes` lanes.
    unsafe fn put(v: __m256i, lanes: usize, out: *mut Self::P);
}

/// float32
pub(super) struct Single;
/// bfloat16 to f32
pub(super) struct Brain;
/// float16 to f32
pub(super) struct Half;
/// float64
pub(super) struct Double;

/// `count` elements of lane `l` from `at`.
#[inline(always)]
unsafe fn load<E>(lanes: &[*const E], l: usize, at: usize, count: usize) -> __m128i {
    // SAFETY: they are readable, and at most 16 bytes.
    unsafe {
        if count * size_of::<E>() == 16 {
            return _mm_loadu_si128(lanes[l].add(at).cast());
        }
        let mut buffer = [0u8; 16];
        std::ptr::copy_nonoverlapping(lanes[l].add(at), buffer.as_mut_ptr().cast(), count);
        _mm_loadu_si128(buffer.as_ptr().cast())
    }
}

/// 16 bytes each of lanes `j` and `j + step`.
#[inline(always)]
unsafe fn two<E>(lanes: &[*const E], j: usize, step: usize, at: usize, count: usize) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let low = _mm256_castsi128_si256(load(lanes, j, at, count));
        _mm256_inserti128_si256(low, load(lanes, j + step, at, count), 1)
    }
}

#[inline(always)]
unsafe fn gather<E>(lanes: &[*const E], at: usize, count: usize) -> [__m256i; 4] {
    // SAFETY: as above.
    unsafe {
        if size_of::<E>() == 8 {
            let zero = _mm256_setzero_si256();
            [two(lanes, 0, 2, at, count), two(lanes, 1, 2, at, count), zero, zero]
        } else {
            [
                two(lanes, 0, 4, at, count),
                two(lanes, 1, 4, at, count),
                two(lanes, 2, 4, at, count),
                two(lanes, 3, 4, at, count),
            ]
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

#[inline(always)]
unsafe fn put_words(v: __m256i, lanes: usize, out: *mut f32) {
    // SAFETY: `lanes` values are writable.
    unsafe {
        if lanes >= 8 {
            _mm256_storeu_si256(out.cast(), v);
        } else {
            let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskstore_epi32(out.cast(), _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), index), v);
        }
    }
}

macro_rules! to_single {
    ($name:ident, $e:ty, $chunk:literal, |$t:ident, $s:ident| $step:expr, |$p:ident| $row:expr, $prepare:ident) => {
        impl Quad for $name {
            type E = $e;
            type P = f32;
            const LANES: usize = 8;
            const CHUNK: usize = $chunk;
            #[inline(always)]
            unsafe fn emit(t: [__m256i; 4], steps: usize, lanes: usize, w: usize, out: *mut f32) {
                // SAFETY: handed on.
                unsafe {
                    let $t = $prepare(t);
                    for $s in 0..steps {
                        put_words($step, lanes, out.add($s * w));
                    }
                }
            }
            #[inline(always)]
            unsafe fn row($p: *const $e) -> __m256i {
                // SAFETY: eight elements are readable.
                unsafe { $row }
            }
            #[inline(always)]
            unsafe fn put(v: __m256i, lanes: usize, out: *mut f32) {
                // SAFETY: handed on.
                unsafe { put_words(v, lanes, out) }
            }
        }
    };
}
to_single!(Single, f32, 4, |t, s| t[s], |p| _mm256_loadu_si256(p.cast()), transpose_words);
to_single!(
    Brain,
    lapis_core::dtype::bf16,
    8,
    |t, s| if s % 2 == 0 {
        _mm256_slli_epi32(t[s / 2], 16)
    } else {
        _mm256_and_si256(t[s / 2], _mm256_set1_epi32(0xffff_0000_u32 as i32))
    },
    |p| _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16),
    transpose_words
);
to_single!(
    Half,
    lapis_core::dtype::f16,
    8,
    |t, s| {
        let v = if s % 2 == 0 { _mm256_castsi256_si128(t[s / 2]) } else { _mm256_extracti128_si256(t[s / 2], 1) };
        _mm256_castps_si256(_mm256_cvtph_ps(v))
    },
    |p| _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))),
    transpose_halves
);

/// Four registers of two steps each: the even step of all lanes in the low half, the odd one in the high half.
#[inline(always)]
unsafe fn transpose_halves(t: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: AVX2, promised by the caller.
    unsafe {
        let (a, b) = (_mm256_unpacklo_epi16(t[0], t[1]), _mm256_unpackhi_epi16(t[0], t[1]));
        let (c, d) = (_mm256_unpacklo_epi16(t[2], t[3]), _mm256_unpackhi_epi16(t[2], t[3]));
        [
            _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(a, c), 0b11_01_10_00),
            _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(a, c), 0b11_01_10_00),
            _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(b, d), 0b11_01_10_00),
            _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(b, d), 0b11_01_10_00),
        ]
    }
}

impl Quad for Double {
    type E = f64;
    type P = f64;
    const LANES: usize = 4;
    const CHUNK: usize = 2;
    #[inline(always)]
    unsafe fn emit(t: [__m256i; 4], steps: usize, lanes: usize, w: usize, out: *mut f64) {
        // SAFETY: handed on.
        unsafe {
            let t = [_mm256_unpacklo_epi64(t[0], t[1]), _mm256_unpackhi_epi64(t[0], t[1])];
            for s in 0..steps {
                Self::put(t[s], lanes, out.add(s * w));
            }
        }
    }
    #[inline(always)]
    unsafe fn row(a: *const f64) -> __m256i {
        // SAFETY: four elements are readable.
        unsafe { _mm256_loadu_si256(a.cast()) }
    }
    #[inline(always)]
    unsafe fn put(v: __m256i, lanes: usize, out: *mut f64) {
        // SAFETY: `lanes` values are writable.
        unsafe {
            if lanes >= 4 {
                _mm256_storeu_si256(out.cast(), v);
            } else {
                let mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(lanes as i64), _mm256_setr_epi64x(0, 1, 2, 3));
                _mm256_maskstore_epi64(out.cast(), mask, v);
            }
        }
    }
}

/// See [`super::Pack::transpose`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn transpose<Q: Quad>(lanes: &Lanes<Q::E>, k: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: every lane has `k` elements and `dst` the room.
    unsafe {
        let full = k / Q::CHUNK * Q::CHUNK;
        for g in (0..w).step_by(Q::LANES) {
            let group = &lanes[g..g + Q::LANES];
            let out = dst.add(g);
            if w - g >= Q::LANES {
                for at in (0..full).step_by(Q::CHUNK) {
                    Q::emit(gather(group, at, Q::CHUNK), Q::CHUNK, Q::LANES, w, out.add(at * w));
                }
            } else {
                for at in (0..full).step_by(Q::CHUNK) {
                    Q::emit(gather(group, at, Q::CHUNK), Q::CHUNK, w - g, w, out.add(at * w));
                }
            }
            if full < k {
                Q::emit(gather(group, full, k - full), k - full, w - g, w, out.add(full * w));
            }
        }
    }
}

/// See [`super::Pack::copy`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn copy<Q: Quad>(src: *const Q::E, ks: isize, k: usize, count: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: `count` elements are readable at every step, `w` values writable.
    unsafe {
        for j in 0..k {
            let (a, out) = (src.offset(j as isize * ks), dst.add(j * w));
            for g in (0..count).step_by(Q::LANES) {
                let left = count - g;
                let v = if left >= Q::LANES {
                    Q::row(a.add(g))
                } else {
                    let mut buffer = [0u64; 4];
                    std::ptr::copy_nonoverlapping(a.add(g), buffer.as_mut_ptr().cast(), left);
                    Q::row(buffer.as_ptr().cast())
                };
                Q::put(v, w - g, out.add(g));
            }
        }
    }
}
