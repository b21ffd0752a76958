//! Eight lanes.

use super::super::kernels::{Ahead, BLOCK, chains, place};
use super::{Elem, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Avx2;

const N: usize = 8;
type V = __m256;

/// Rows of eight 32-bit words to columns.
#[inline(always)]
pub(in crate::attention) unsafe fn transpose_words(r: [__m256; 8]) -> [__m256; 8] {
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

/// Words of f32 are not pairs of elements.
#[inline(always)]
pub(super) unsafe fn split_none(_words: __m256i) -> [__m256; 2] {
    unreachable!("elements of two bytes only")
}

#[inline(always)]
pub(super) unsafe fn split_bf16(words: __m256i) -> [__m256; 2] {
    // SAFETY: the caller runs on AVX2.
    unsafe {
        let odd = _mm256_and_si256(words, _mm256_set1_epi32(-0x1_0000));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(odd)]
    }
}

#[inline(always)]
pub(super) unsafe fn split_f16(words: __m256i) -> [__m256; 2] {
    // SAFETY: the caller runs on AVX2 with F16C.
    unsafe {
        let apart = _mm256_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        );
        let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(words, apart));
        let odd = _mm256_extracti128_si256::<1>(halves);
        [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(odd)]
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
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    fn spread_len(dim: usize) -> usize {
        dim.div_ceil(32) * 128
    }

    /// For each 32 elements sixteen vectors: of the elements 0, 1, .. 7 of the first two chains, then of the others; each
    /// element four times.
    #[inline(always)]
    unsafe fn spread(q: *const f32, dim: usize, to: *mut f32) {
        for d0 in (0..dim).step_by(32) {
            for (at, element) in (0..128).map(|at| (at, at / 64 * 16 + at / 4 % 2 * 8 + at / 8 % 8)) {
                // SAFETY: the caller promises `dim` queries and room for the rows.
                unsafe { *to.add(d0 * 4 + at) = if d0 + element < dim { *q.add(d0 + element) } else { 0.0 } }
            }
        }
    }

    /// Four keys at a time, their words transposed within 128-bit parts only, so that each part of a sum is one chain.
    #[inline(always)]
    unsafe fn dot_in_place<T: Elem, const M: usize>(
        q: *const f32,
        from: *const T,
        stride: isize,
        keys: usize,
        dim: usize,
        scale: f32,
        scores: *mut f32,
        ahead: &Ahead,
    ) {
        // Of its own, to live in registers.
        let mut ahead = *ahead;
        // SAFETY: see above.
        unsafe {
            for key in (0..keys.next_multiple_of(N)).step_by(4) {
                let rows = std::array::from_fn(|k| from.offset((key + k).min(keys - 1) as isize * stride));
                four_keys::<T, M>(q, rows, dim, scale, scores.add(key), &mut ahead);
            }
        }
    }
}

#[inline(always)]
unsafe fn four_keys<T: Elem, const M: usize>(
    q: *const f32,
    rows: [*const T; 4],
    dim: usize,
    scale: f32,
    scores: *mut f32,
    ahead: &mut Ahead,
) {
    // SAFETY: the contract of `Lanes::dot_in_place`.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; M];
        let whole = dim / 32 * 32;
        for d0 in (0..whole).step_by(32) {
            let rows = [rows[0].add(d0), rows[1].add(d0), rows[2].add(d0), rows[3].add(d0)];
            multiply::<T, M>(q.add(d0 * 4), Avx2::spread_len(dim), rows, &mut acc);
            ahead.fetch::<Avx2, 2>();
        }
        if whole < dim {
            // Elements of two bytes, then zeros.
            let mut tail = [[0u16; 32]; 4];
            for (row, tail) in rows.iter().zip(&mut tail) {
                std::ptr::copy_nonoverlapping(row.add(whole).cast::<u16>(), tail.as_mut_ptr(), dim - whole);
            }
            let rows: [*const T; 4] = std::array::from_fn(|k| tail[k].as_ptr().cast());
            multiply::<T, M>(q.add(whole * 4), Avx2::spread_len(dim), rows, &mut acc);
        }
        for m in 0..M {
            // Chains 0 + 1, chains 2 + 3, both.
            let [a, b] = acc[m];
            let first = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let second = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b));
            _mm_storeu_ps(scores.add(m * BLOCK), _mm_mul_ps(_mm_add_ps(first, second), _mm_set1_ps(scale)));
        }
    }
}

/// 32 elements of four keys.
#[inline(always)]
unsafe fn multiply<T: Elem, const M: usize>(q: *const f32, spread: usize, rows: [*const T; 4], acc: &mut [[V; 2]; M]) {
    // SAFETY: the caller promises AVX2, 32 elements in each row and `M` rows of queries.
    unsafe {
        for half in 0..2 {
            let mut r = [_mm256_setzero_si256(); 4];
            for k in 0..4 {
                r[k] = _mm256_loadu_si256(rows[k].add(16 * half).cast());
            }
            let (a, b) = (_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1]));
            let (c, d) = (_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3]));
            let words = [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ];
            for i in 0..4 {
                let [even, odd] = T::split256(words[i]);
                for m in 0..M {
                    let q = q.add(m * spread + half * 64 + 2 * i * N);
                    acc[m][half] = _mm256_fmadd_ps(_mm256_loadu_ps(q), even, acc[m][half]);
                    acc[m][half] = _mm256_fmadd_ps(_mm256_loadu_ps(q.add(N)), odd, acc[m][half]);
                }
            }
            // The queries are to be read again: there are no registers to keep them in.
            compiler_fence(SeqCst);
        }
    }
}
