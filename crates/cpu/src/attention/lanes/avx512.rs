//! Sixteen lanes.

use super::super::kernels::{Ahead, BLOCK, chains, place};
use super::{Elem, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// AVX-512 F, BW, DQ, VL.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Avx512;

const N: usize = 16;
type V = __m512;

/// Rows of sixteen 32-bit words to columns.
#[inline(always)]
pub(in crate::attention) unsafe fn transpose_words(r: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller runs on AVX-512.
    unsafe {
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        // u[4 g + c]: in each 128-bit part p the words 4 p + c of the rows 4 g .. 4 g + 4.
        let mut u = r;
        for g in 0..4 {
            u[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
            u[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
            u[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
            u[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
        }
        let mut out = r;
        for c in 0..4 {
            let a = _mm512_shuffle_i32x4::<0b10_00_10_00>(u[c], u[4 + c]);
            let b = _mm512_shuffle_i32x4::<0b10_00_10_00>(u[8 + c], u[12 + c]);
            let x = _mm512_shuffle_i32x4::<0b11_01_11_01>(u[c], u[4 + c]);
            let y = _mm512_shuffle_i32x4::<0b11_01_11_01>(u[8 + c], u[12 + c]);
            out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            out[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            out[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
            out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y);
        }
        out
    }
}

/// The even and odd elements of sixteen pairs.
#[inline(always)]
pub(super) unsafe fn split_bf16(words: __m512i) -> [V; 2] {
    // SAFETY: the caller runs on AVX-512.
    unsafe {
        let odd = _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
    }
}

#[inline(always)]
pub(super) unsafe fn split_f16(words: __m512i) -> [V; 2] {
    // SAFETY: the caller runs on AVX-512.
    unsafe {
        let even_odd = _mm512_setr_epi64(
            0x0006_0004_0002_0000,
            0x000e_000c_000a_0008,
            0x0016_0014_0012_0010,
            0x001e_001c_001a_0018,
            0x0007_0005_0003_0001,
            0x000f_000d_000b_0009,
            0x0017_0015_0013_0011,
            0x001f_001d_001b_0019,
        );
        let halves = _mm512_permutexvar_epi16(even_odd, words);
        let odd = _mm512_extracti64x4_epi64::<1>(halves);
        [_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), _mm512_cvtph_ps(odd)]
    }
}

/// Elements of four bytes are no pairs.
pub(super) unsafe fn split_none(_: __m512i) -> [V; 2] {
    unreachable!("elements of two bytes only")
}

/// Four rows of 32 elements of two bytes (those in `mask`): word i of the result's part c belongs to chain c.
#[inline(always)]
pub(in crate::attention) unsafe fn transpose_four<T: Elem>(rows: [*const T; 4], d0: usize, mask: u32) -> [__m512i; 4] {
    // SAFETY: the caller promises AVX-512 and the elements in `mask`.
    unsafe {
        let mut r = [_mm512_setzero_si512(); 4];
        for k in 0..4 {
            r[k] = match mask {
                u32::MAX => _mm512_loadu_si512(rows[k].add(d0).cast()),
                _ => _mm512_maskz_loadu_epi16(mask, rows[k].add(d0).cast()),
            };
        }
        let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
        let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }
}

/// Transposes sixteen rows of elements of two bytes; with `WHOLE`, 32 of them.
#[inline(always)]
unsafe fn transpose_pairs<T: Elem, const WHOLE: bool>(
    rows: &[*const T; 16],
    d0: usize,
    dim: usize,
    starts: &[usize; 5],
    to: *mut f32,
    ld: usize,
) {
    // SAFETY: the caller promises AVX-512, elements `d0 .. dim` in each row and room for the columns.
    unsafe {
        let mut words = [_mm512_setzero_si512(); 16];
        for k in 0..16 {
            let p = rows[k].add(d0).cast();
            words[k] = if WHOLE {
                _mm512_loadu_si512(p)
            } else {
                _mm512_maskz_loadu_epi16(u32::MAX >> (32 - (dim - d0)), p.cast())
            };
        }
        let columns = transpose_words(words);
        for c in 0..16 {
            let [even, odd] = T::split512(columns[c]);
            let d = d0 + 2 * c;
            let at = to.add(place(starts, d) * ld);
            if WHOLE || d < dim {
                _mm512_storeu_ps(at, even);
            }
            if WHOLE || d + 1 < dim {
                _mm512_storeu_ps(at.add(ld), odd);
            }
        }
    }
}

#[inline(always)]
unsafe fn transpose_halves<T: Elem>(from: *const T, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
    // SAFETY: the contract of `Lanes::transpose_f16`.
    unsafe {
        let starts = chains(dim);
        let rows: [*const T; 16] = std::array::from_fn(|k| from.offset(k.min(keys - 1) as isize * stride));
        let whole = dim / 32 * 32;
        for d0 in (0..whole).step_by(32) {
            transpose_pairs::<T, true>(&rows, d0, dim, &starts, to, ld);
        }
        if whole < dim {
            transpose_pairs::<T, false>(&rows, whole, dim, &starts, to, ld);
        }
    }
}

// SAFETY of the blocks below: AVX-512 is there, and each touches exactly the elements its contract in `Lanes` names.
impl Lanes for Avx512 {
    const N: usize = N;
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale2(p: V, n: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(p, n) }
    }
    #[inline(always)]
    unsafe fn zero_below(x: V, limit: f32, v: V) -> V {
        // SAFETY: see above.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit)), v) }
    }
    #[inline(always)]
    unsafe fn only(v: V, lo: isize, hi: isize) -> V {
        let below = |n: isize| (1u32 << n.clamp(0, 16)) - 1;
        // SAFETY: see above.
        unsafe { _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), (below(hi) & !below(lo)) as __mmask16, v) }
    }
    #[inline(always)]
    unsafe fn copysign(a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe {
            let sign = _mm512_set1_epi32(i32::MIN);
            // Bitwise select: b where the sign bit is, a elsewhere.
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xca>(sign, _mm512_castps_si512(b), _mm512_castps_si512(a)))
        }
    }
    #[inline(always)]
    unsafe fn largest(v: V) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> V {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> V {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: V) {
        // SAFETY: see above.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_storeu_si256(p.cast(), half)
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: V) {
        // SAFETY: see above.
        unsafe {
            let x = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
            let quiet = _mm512_or_si512(x, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let bits = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_even_odd(p: *const bf16) -> [V; 2] {
        // SAFETY: see above.
        unsafe { split_bf16(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn to_even_odd([a, b]: [V; 2]) -> [V; 2] {
        // SAFETY: see above.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            [_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)]
        }
    }
    #[inline(always)]
    unsafe fn from_even_odd([e, o]: [V; 2]) -> [V; 2] {
        // SAFETY: see above.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [_mm512_permutex2var_ps(e, low, o), _mm512_permutex2var_ps(e, high, o)]
        }
    }
    #[inline(always)]
    unsafe fn transpose_f32(from: *const f32, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: see above.
        unsafe {
            let starts = chains(dim);
            for d0 in (0..dim).step_by(16) {
                let n = (dim - d0).min(16);
                let mut rows = [_mm512_setzero_si512(); 16];
                for k in 0..16 {
                    let p = from.offset(k.min(keys - 1) as isize * stride).add(d0);
                    rows[k] = _mm512_maskz_loadu_epi32(0xffff >> (16 - n), p.cast());
                }
                let columns = transpose_words(rows);
                for c in 0..n {
                    _mm512_storeu_si512(to.add(place(&starts, d0 + c) * ld).cast(), columns[c]);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose_f16(from: *const f16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose_halves(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn transpose_bf16(from: *const bf16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose_halves(from, stride, keys, dim, to, ld) }
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

    /// For each 32 elements eight vectors, of the elements 0, 1, .. 7 of each of the four chains; each four times.
    #[inline(always)]
    unsafe fn spread(q: *const f32, dim: usize, to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            for d0 in (0..dim).step_by(32) {
                let n = dim - d0;
                let mask = |n: usize| (0xffffu32 >> (16 - n.min(16))) as __mmask16;
                let low = _mm512_maskz_loadu_ps(mask(n), q.add(d0));
                let high = _mm512_maskz_loadu_ps(mask(n.saturating_sub(16)), q.wrapping_add(d0 + 16));
                let first = _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24);
                for i in 0..8 {
                    let index = _mm512_add_epi32(first, _mm512_set1_epi32(i));
                    let v = _mm512_permutex2var_ps(low, index, high);
                    _mm512_storeu_ps(to.add(d0 * 4 + i as usize * N), v);
                }
            }
        }
    }

    /// Eight keys at a time, the words of four of them transposed within 128-bit parts only, so that part c of a sum
    /// is chain c: half the shuffles of a full transposition, and nothing goes through memory.
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
            for key in (0..keys).step_by(8) {
                let rows = std::array::from_fn(|k| from.offset((key + k).min(keys - 1) as isize * stride));
                eight_keys::<T, M>(q, rows, dim, scale, scores.add(key), &mut ahead);
            }
        }
    }
}

#[inline(always)]
unsafe fn eight_keys<T: Elem, const M: usize>(
    q: *const f32,
    rows: [*const T; 8],
    dim: usize,
    scale: f32,
    scores: *mut f32,
    ahead: &mut Ahead,
) {
    // SAFETY: the contract of `Lanes::dot_in_place`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        let whole = dim / 32 * 32;
        let mut d0 = 0;
        while d0 < whole {
            let words = transpose_four::<T>([rows[0], rows[1], rows[2], rows[3]], d0, u32::MAX);
            let more = transpose_four::<T>([rows[4], rows[5], rows[6], rows[7]], d0, u32::MAX);
            multiply::<T, M>(q.add(d0 * 4), Avx512::spread_len(dim), words, more, &mut acc);
            ahead.fetch::<Avx512, 4>();
            // The queries are to be read again: there are no registers to keep them in.
            compiler_fence(SeqCst);
            d0 += 32;
        }
        if d0 < dim {
            let mask = u32::MAX >> (32 - (dim - d0));
            let words = transpose_four::<T>([rows[0], rows[1], rows[2], rows[3]], d0, mask);
            let more = transpose_four::<T>([rows[4], rows[5], rows[6], rows[7]], d0, mask);
            multiply::<T, M>(q.add(d0 * 4), Avx512::spread_len(dim), words, more, &mut acc);
        }
        for m in 0..M {
            let [x, y] = acc[m];
            let (low, high) =
                (_mm512_shuffle_f32x4::<0b10_00_10_00>(x, y), _mm512_shuffle_f32x4::<0b11_01_11_01>(x, y));
            // Per key chains 0 + 1 and 2 + 3.
            let sum = _mm512_add_ps(low, high);
            let first = _mm512_shuffle_f32x4::<0b10_00_10_00>(sum, sum);
            let second = _mm512_shuffle_f32x4::<0b11_01_11_01>(sum, sum);
            let sum = _mm256_add_ps(_mm512_castps512_ps256(first), _mm512_castps512_ps256(second));
            _mm256_storeu_ps(scores.add(m * BLOCK), _mm256_mul_ps(sum, _mm256_set1_ps(scale)));
        }
    }
}

#[inline(always)]
unsafe fn multiply<T: Elem, const M: usize>(
    q: *const f32,
    spread: usize,
    words: [__m512i; 4],
    more: [__m512i; 4],
    acc: &mut [[V; 2]; M],
) {
    // SAFETY: the caller promises AVX-512 and `M` rows of queries.
    unsafe {
        for i in 0..4 {
            let ([e0, o0], [e1, o1]) = (T::split512(words[i]), T::split512(more[i]));
            for m in 0..M {
                let q = q.add(m * spread + 2 * i * N);
                let (even, odd) = (_mm512_loadu_ps(q), _mm512_loadu_ps(q.add(N)));
                acc[m][0] = _mm512_fmadd_ps(even, e0, acc[m][0]);
                acc[m][1] = _mm512_fmadd_ps(even, e1, acc[m][1]);
                acc[m][0] = _mm512_fmadd_ps(odd, o0, acc[m][0]);
                acc[m][1] = _mm512_fmadd_ps(odd, o1, acc[m][1]);
            }
        }
    }
}
