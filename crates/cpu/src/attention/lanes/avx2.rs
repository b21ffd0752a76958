//! Eight lanes.

use super::super::kernels::{chains, place};
use super::{Elem, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Avx2;

const N: usize = 8;
type V = __m256;

/// Rows of eight 32-bit words to columns.
#[inline(always)]
unsafe fn transpose_words(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller runs on AVX2.
    unsafe {
        let mut u = r;
        for g in 0..2 {
            let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (xy, zw) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            u[4 * g] = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            u[4 * g + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
            u[4 * g + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(xy, zw);
            u[4 * g + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(xy, zw);
        }
        let mut out = r;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
        }
        out
    }
}

#[inline(always)]
unsafe fn transpose<T: Elem>(from: *const T, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
    // SAFETY: the caller runs on AVX2 and promises `keys` rows of `dim` elements.
    unsafe {
        let row = |k: usize| from.offset(k.min(keys - 1) as isize * stride);
        let starts = chains(dim);
        let whole = dim / N * N;
        for d0 in (0..whole).step_by(N) {
            let mut rows = [_mm256_setzero_ps(); N];
            for k in 0..N {
                rows[k] = T::load::<Avx2>(row(k).add(d0));
            }
            let columns = transpose_words(rows);
            for c in 0..N {
                _mm256_storeu_ps(to.add((place(&starts, d0) + c) * ld), columns[c]);
            }
        }
        for d in whole..dim {
            for k in 0..N {
                *to.add(place(&starts, d) * ld + k) = (*row(k).add(d)).get();
            }
        }
    }
}

// SAFETY of the blocks below: AVX2, FMA and F16C are there, and each touches exactly the elements its contract in
// `Lanes` names.
impl Lanes for Avx2 {
    const N: usize = N;
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale2(p: V, n: V) -> V {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(x: V, limit: f32, v: V) -> V {
        // SAFETY: see above.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(limit)), v) }
    }
    #[inline(always)]
    unsafe fn only(v: V, lo: isize, hi: isize) -> V {
        // SAFETY: see above.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(lo.clamp(0, 8) as i32), lane);
            let keep = _mm256_andnot_si256(lo, _mm256_cmpgt_epi32(_mm256_set1_epi32(hi.clamp(0, 8) as i32), lane));
            _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), v, _mm256_castsi256_ps(keep))
        }
    }
    #[inline(always)]
    unsafe fn copysign(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_and_ps(sign, b), _mm256_andnot_ps(sign, a))
        }
    }
    #[inline(always)]
    unsafe fn largest(v: V) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> V {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> V {
        // SAFETY: see above.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: V) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: V) {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
            let quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let bits = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256::<1>(bits));
            _mm_storeu_si128(p.cast(), packed)
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_even_odd(p: *const bf16) -> [V; 2] {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(-0x1_0000));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)), _mm256_castsi256_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn to_even_odd([a, b]: [V; 2]) -> [V; 2] {
        // SAFETY: see above.
        unsafe {
            let e = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
            let o = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            [
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(e)),
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(o)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn from_even_odd([e, o]: [V; 2]) -> [V; 2] {
        // SAFETY: see above.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(e, o), _mm256_unpackhi_ps(e, o));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
        }
    }
    #[inline(always)]
    unsafe fn transpose_f32(from: *const f32, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn transpose_f16(from: *const f16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn transpose_bf16(from: *const bf16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
