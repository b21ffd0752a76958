//! Attention of bfloat16 by dot products of pairs (`vdpbf16ps`), where a machine does them at twice the rate of multiply-adds.
//!
//! The order of work and its chains are those of `kernels`, with pairs of head elements, or of keys, in place of single ones: a
//! buffer has words of two in place of floats. Products of bfloat16 are exact in f32, so scores lose nothing. Weights
//! are rounded to bfloat16 (as results are), and divided by the sum of what they were rounded to.

use super::dispatch::{Kernels, enabled};
use super::kernels::{self, Ahead, BLOCK, Softmax, Weights, chains, place};
use super::lanes::Elem;
use super::lanes::avx512::{Avx512, transpose_four, transpose_words};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// AVX-512 with BF16, for operands of bfloat16 whose head width is a multiple of eight.
pub(super) struct Pairs;

const N: usize = 16;
type V = __m512;

/// `acc` and the products of both elements of each word.
#[inline(always)]
unsafe fn dot2(acc: V, a: __m512i, b: __m512i) -> V {
    // SAFETY: the caller runs on AVX-512 with BF16; any bits are two bfloat16.
    unsafe {
        _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// Sums of `M` rows and `2 N` keys over the words of a chain.
#[inline(always)]
unsafe fn chain<const M: usize>(q: *const u32, panel: *const u32, words: Range<usize>) -> [[V; 2]; M] {
    // SAFETY: as `dot`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        for d in words {
            let k0 = _mm512_loadu_si512(panel.add(d * 2 * N).cast());
            let k1 = _mm512_loadu_si512(panel.add(d * 2 * N + N).cast());
            for r in 0..M {
                let x = _mm512_set1_epi32(*q.add(d * M + r) as i32);
                acc[r][0] = dot2(acc[r][0], x, k0);
                acc[r][1] = dot2(acc[r][1], x, k1);
            }
        }
        acc
    }
}

/// Scores of `M` rows against a panel of `2 N` keys: `q` is `[dim / 2][M]` words, `panel` is `[dim / 2][2 N]`.
#[inline(always)]
unsafe fn dot<const M: usize>(q: *const u32, panel: *const u32, dim: usize, scale: f32, scores: *mut f32) {
    // SAFETY: the caller promises the sizes named above and the instruction set.
    unsafe {
        let starts = chains(dim).map(|d| d / 2);
        let [a, b, c, d] = [0, 1, 2, 3].map(|c| starts[c]..starts[c + 1]);
        let [a, b] = [chain::<M>(q, panel, a), chain::<M>(q, panel, b)];
        let mut first = a;
        for r in 0..M {
            for j in 0..2 {
                first[r][j] = _mm512_add_ps(a[r][j], b[r][j]);
            }
        }
        let [c, d] = [chain::<M>(q, panel, c), chain::<M>(q, panel, d)];
        for r in 0..M {
            for j in 0..2 {
                let sum = _mm512_add_ps(first[r][j], _mm512_add_ps(c[r][j], d[r][j]));
                _mm512_storeu_ps(scores.add(r * BLOCK + j * N), _mm512_mul_ps(sum, _mm512_set1_ps(scale)));
            }
        }
    }
}

/// Scores of `M` rows of spread queries against eight keys in place.
#[inline(always)]
unsafe fn eight_keys<const M: usize>(
    q: *const u32,
    rows: [*const bf16; 8],
    dim: usize,
    scale: f32,
    scores: *mut f32,
    ahead: &mut Ahead,
) {
    let spread = Pairs::spread_len::<bf16>(dim);
    // SAFETY: the contract of `Kernels::dot_in_place`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        for d0 in (0..dim).step_by(32) {
            let mask = u32::MAX >> 32usize.saturating_sub(dim - d0);
            let first = transpose_four::<bf16>([rows[0], rows[1], rows[2], rows[3]], d0, mask);
            let second = transpose_four::<bf16>([rows[4], rows[5], rows[6], rows[7]], d0, mask);
            for i in 0..4 {
                for m in 0..M {
                    let q = _mm512_loadu_si512(q.add(m * spread + 2 * d0 + i * N).cast());
                    acc[m][0] = dot2(acc[m][0], q, first[i]);
                    acc[m][1] = dot2(acc[m][1], q, second[i]);
                }
            }
            ahead.fetch::<Avx512, 4>();
            // The queries are to be read again: there are no registers to keep them in.
            compiler_fence(SeqCst);
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

/// Keys (at most `2 N`) to words `[dim / 2][2 N]`, pairs of elements in the order that `place` gives.
#[inline(always)]
pub(super) unsafe fn pack_keys(
    from: *const bf16,
    stride: isize,
    keys: usize,
    dim: usize,
    to: *mut u32,
    place: impl Fn(usize) -> usize,
) {
    // SAFETY: the caller promises the keys, room for the words, and the instruction set.
    unsafe {
        for first in [0, N] {
            // Where there are no keys any more, the scores of the last one stand for those of none: they are not looked at.
            let rows: [*const bf16; N] =
                std::array::from_fn(|k| from.offset((first + k).min(keys - 1) as isize * stride));
            for d0 in (0..dim).step_by(32) {
                let mask = u32::MAX >> 32usize.saturating_sub(dim - d0);
                let mut words = [_mm512_setzero_si512(); N];
                for k in 0..N {
                    words[k] = _mm512_maskz_loadu_epi16(mask, rows[k].add(d0).cast());
                }
                let columns = transpose_words(words);
                for c in 0..N.min((dim - d0) / 2) {
                    let at = place(d0 + 2 * c) / 2 * 2 * N + first;
                    _mm512_storeu_si512(to.add(at).cast(), columns[c]);
                }
            }
        }
    }
}

/// `e^x` within 4e-6 of itself where it is above 1e-7, which is enough for what is rounded to eight bits: exactly 1 for 0, 0 for
/// minus infinity, NaN for NaN.
///
/// In base 2, so that the instruction that puts the exponent in takes the whole part by itself.
#[inline(always)]
unsafe fn exp(x: V) -> V {
    const FLOOR: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    // SAFETY: the caller promises AVX-512.
    unsafe {
        let x = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let part = _mm512_reduce_ps::<FLOOR>(x);
        let mut p = _mm512_set1_ps(0.013_426_684);
        for c in [0.052_242_473, 0.241_280_2, 0.693_044_84, 1.0] {
            p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(c));
        }
        _mm512_scalef_ps(p, x)
    }
}

/// Weights rounded to bfloat16, one behind the other from where their row of scores began.
pub(super) struct Rounded;

impl Weights<Avx512> for Rounded {
    #[inline(always)]
    unsafe fn put(row: *mut f32, i: usize, x: V) -> V {
        // SAFETY: the caller promises the row and the instruction set; scores from `i` on lie behind what is written.
        unsafe {
            let halves: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(exp(x)));
            _mm256_storeu_si256(row.cast::<bf16>().add(i).cast(), halves);
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
}

/// Words of the values of two keys, in the order of columns but for each eight: four here, four there.
#[inline(always)]
unsafe fn interleave(first: __m512i, second: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller promises AVX-512.
    unsafe { [_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)] }
}

/// 32 columns in the order of [`interleave`].
#[inline(always)]
unsafe fn to_interleaved([a, b]: [V; 2]) -> [V; 2] {
    // SAFETY: the caller promises AVX-512.
    unsafe { [_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)] }
}

/// 32 columns out of the order of [`interleave`].
#[inline(always)]
unsafe fn from_interleaved([low, high]: [V; 2]) -> [V; 2] {
    // SAFETY: the caller promises AVX-512.
    unsafe {
        let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        [_mm512_permutex2var_ps(low, first, high), _mm512_permutex2var_ps(low, second, high)]
    }
}

/// Values `[keys][width]`, filled up with zeros to a multiple of `TOGETHER` keys, to panels `[width / 32][keys / 2][32]` of words
/// of two keys. What comes next is fetched meanwhile.
#[inline(always)]
pub(super) unsafe fn pack_values<const TOGETHER: usize>(
    from: *const bf16,
    stride: isize,
    keys: usize,
    width: usize,
    to: *mut u32,
    ahead: &mut Ahead,
) {
    let all = keys.next_multiple_of(TOGETHER);
    // SAFETY: the caller promises `keys` rows of `width` values, room for the panels, and the instruction set.
    unsafe {
        for k in (0..all).step_by(2) {
            let row = from.wrapping_offset(k as isize * stride);
            ahead.used::<Avx512>(2 * width * size_of::<bf16>());
            for c in (0..width).step_by(2 * N) {
                let columns = u32::MAX >> (2 * N).saturating_sub(width - c);
                let mask = |k| if k < keys { columns } else { 0 };
                let first = _mm512_maskz_loadu_epi16(mask(k), row.wrapping_add(c).cast());
                let second = _mm512_maskz_loadu_epi16(mask(k + 1), row.wrapping_offset(stride).wrapping_add(c).cast());
                let words = interleave(first, second).map(|v| _mm512_castsi512_ps(v));
                for (j, words) in from_interleaved(words).into_iter().enumerate() {
                    _mm512_storeu_ps(to.add(c * all / 2 + k * N + j * N).cast(), words);
                }
            }
        }
    }
}

/// `acc = acc * shrink + weights * values` for `M` rows, `keys` keys and 32 columns; `values` is `[keys / 2][32]` words.
#[inline(always)]
unsafe fn weigh<const M: usize>(
    weights: *const u32,
    keys: usize,
    values: *const u32,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
) {
    // SAFETY: the caller promises the sizes named above and the instruction set.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; M];
        for r in 0..M {
            let f = _mm512_set1_ps(*shrink.add(r));
            for j in 0..2 {
                sum[r][j] = _mm512_mul_ps(_mm512_loadu_ps(acc.add(r * ld + j * N)), f);
            }
        }
        for k in 0..keys.div_ceil(2) {
            let v0 = _mm512_loadu_si512(values.add(k * 2 * N).cast());
            let v1 = _mm512_loadu_si512(values.add(k * 2 * N + N).cast());
            for r in 0..M {
                let w = _mm512_set1_epi32(*weights.add(r * BLOCK + k) as i32);
                sum[r][0] = dot2(sum[r][0], w, v0);
                sum[r][1] = dot2(sum[r][1], w, v1);
            }
        }
        for r in 0..M {
            for j in 0..2 {
                _mm512_storeu_ps(acc.add(r * ld + j * N), sum[r][j]);
            }
        }
    }
}

/// Values in place of those of a key that is not there.
static ZEROS: [bf16; 8 * N] = [bf16::ZERO; 8 * N];

/// [`weigh`] for `32 P` columns of values as they lie in memory. Without `shrink`, `acc` is continued as it is.
#[inline(always)]
unsafe fn weigh_in_place<const M: usize, const P: usize>(
    weights: *const u32,
    keys: usize,
    values: *const bf16,
    stride: isize,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller promises `keys` rows of `32 P` values, `M` rows of as many sums, and the instruction set.
    unsafe {
        let mut sum = [[[_mm512_setzero_ps(); 2]; P]; M];
        for r in 0..M {
            for p in 0..P {
                let at = acc.add(r * ld + p * 2 * N);
                let mut pair = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(N))];
                if !shrink.is_null() {
                    let f = _mm512_set1_ps(*shrink.add(r));
                    pair = [_mm512_mul_ps(pair[0], f), _mm512_mul_ps(pair[1], f)];
                }
                sum[r][p] = to_interleaved(pair);
            }
        }
        for k in (0..keys).step_by(2) {
            let row = values.offset(k as isize * stride);
            let next = if k + 1 < keys { row.offset(stride) } else { ZEROS.as_ptr() };
            ahead.used::<Avx512>(4 * N * P * size_of::<bf16>());
            for p in 0..P {
                let first = _mm512_loadu_si512(row.add(p * 2 * N).cast());
                let second = _mm512_loadu_si512(next.add(p * 2 * N).cast());
                let v = interleave(first, second);
                for r in 0..M {
                    let w = _mm512_set1_epi32(*weights.add(r * BLOCK + k / 2) as i32);
                    sum[r][p][0] = dot2(sum[r][p][0], w, v[0]);
                    sum[r][p][1] = dot2(sum[r][p][1], w, v[1]);
                }
            }
        }
        for r in 0..M {
            for p in 0..P {
                let at = acc.add(r * ld + p * 2 * N);
                let pair = from_interleaved(sum[r][p]);
                _mm512_storeu_ps(at, pair[0]);
                _mm512_storeu_ps(at.add(N), pair[1]);
            }
        }
    }
}

/// [`weigh_in_place`] for all columns, `P` times 32 at a time.
#[inline(always)]
unsafe fn weigh_columns<const M: usize, const P: usize>(
    weights: *const u32,
    keys: usize,
    values: *const bf16,
    stride: isize,
    width: usize,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
    ahead: &Ahead,
) {
    // Of its own, to live in registers.
    let ahead = &mut { *ahead };
    // SAFETY: the caller promises `keys` rows of `width` values, `M` rows of as many sums rounded up to 32, and the
    // instruction set.
    unsafe {
        // A few keys at a time for all columns: memory is read from front to back.
        for k in (0..keys).step_by(16) {
            let keys = (keys - k).min(16);
            let (weights, values) = (weights.add(k / 2), values.offset(k as isize * stride));
            let shrink = if k == 0 { shrink } else { std::ptr::null() };
            let mut c = 0;
            while c + 2 * N * P <= width {
                weigh_in_place::<M, P>(weights, keys, values.add(c), stride, acc.add(c), ld, shrink, ahead);
                c += 2 * N * P;
            }
            while c + 2 * N <= width {
                weigh_in_place::<M, 1>(weights, keys, values.add(c), stride, acc.add(c), ld, shrink, ahead);
                c += 2 * N;
            }
        }
        let c = width / (2 * N) * 2 * N;
        if c < width {
            let mut tail = [0u32; BLOCK / 2 * 2 * N];
            pack_values::<2>(values.add(c), stride, keys, width - c, tail.as_mut_ptr(), ahead);
            weigh::<M>(weights, keys, tail.as_ptr(), acc.add(c), ld, shrink);
        }
    }
}

/// Elements `d` to `d + 32` of a row of `dim` floats that hold bfloat16, and zeros from its end on.
#[inline(always)]
pub(super) unsafe fn words(row: *const f32, d: usize, dim: usize) -> __m512i {
    // SAFETY: the caller promises both, and the instruction set.
    unsafe {
        let mask = u32::MAX >> 32usize.saturating_sub(dim - d);
        let low = _mm512_maskz_loadu_ps(mask as u16, row.add(d));
        let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, row.wrapping_add(d + N));
        // Exact: they were bfloat16.
        std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// Calls a function for a number of rows.
macro_rules! with_rows {
    ($rows:expr, $name:ident $args:tt) => {
        with_rows!(@ $rows, $name $args, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $rows:expr, $name:ident $args:tt, $($m:literal)*) => {
        match $rows {
            $($m => $name::<$m> $args,)*
            _ => unreachable!(),
        }
    };
}

/// [`enabled`] with this module's instruction set.
macro_rules! pairs {
    ($($body:tt)*) => {
        enabled!([#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,f16c,bmi2")]] $($body)*);
    };
}

impl Kernels for Pairs {
    type Plain = Avx512;
    const N: usize = N;
    const ROWS: usize = 12;
    const TOGETHER: usize = 2;
    const PACKED: usize = 2;

    pairs! { place_rows(from: *const f32, dim: usize, to: *mut f32, rows: usize) {
        let starts = chains(dim);
        for d0 in (0..dim).step_by(2 * N) {
            let mut all = [_mm512_setzero_si512(); N];
            for r in 0..rows {
                all[r] = words(from.add(r * dim), d0, dim);
            }
            let columns = transpose_words(all);
            for c in 0..N.min((dim - d0) / 2) {
                let at = to.add(place(&starts, d0 + 2 * c) / 2 * rows);
                _mm512_mask_storeu_epi32(at.cast(), (1 << rows) - 1, columns[c]);
            }
        }
    } }

    pairs! { pack_keys<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        dim: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    ) {
        let starts = chains(dim);
        pack_keys(from.cast(), stride, keys, dim, to.cast(), |d| place(&starts, d));
        ahead.used::<Avx512>(keys * dim * size_of::<bf16>())
    } }

    pairs! { dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scale: f32, scores: *mut f32) {
        with_rows!(rows, dot(q.cast(), panel.cast(), dim, scale, scores))
    } }

    fn spread_len<T: Elem>(dim: usize) -> usize {
        dim.div_ceil(32) * 64
    }

    // For each 32 elements four vectors, of the pairs 0, 1, 2, 3 of each of the four chains; each four times.
    pairs! { spread(q: *const f32, dim: usize, to: *mut f32) {
        let first = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        for d0 in (0..dim).step_by(32) {
            let words = words(q, d0, dim);
            for i in 0..4 {
                let index = _mm512_add_epi32(first, _mm512_set1_epi32(i));
                _mm512_storeu_si512(to.add(2 * d0 + i as usize * N).cast(), _mm512_permutexvar_epi32(index, words));
            }
        }
    } }

    pairs! { dot_in_place<T: Elem>(
        rows: usize,
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
        for key in (0..keys).step_by(8) {
            let eight = std::array::from_fn(|k| from.cast::<bf16>().offset((key + k).min(keys - 1) as isize * stride));
            with_rows!(rows, eight_keys(q.cast(), eight, dim, scale, scores.add(key), &mut ahead))
        }
    } }

    pairs! { pack_values<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        width: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    ) {
        pack_values::<2>(from.cast(), stride, keys, width, to.cast(), &mut { *ahead })
    } }

    pairs! { softmax(s: &Softmax, ahead: &mut Ahead) {
        kernels::softmax::<Avx512, Rounded>(s, ahead)
    } }

    pairs! { weigh(
        rows: usize,
        weights: *const f32,
        keys: usize,
        values: *const f32,
        acc: *mut f32,
        ld: usize,
        shrink: *const f32,
    ) {
        with_rows!(rows, weigh(weights.cast(), keys, values.cast(), acc, ld, shrink))
    } }

    pairs! { weigh_in_place<T: Elem>(
        rows: usize,
        weights: *const f32,
        keys: usize,
        values: *const T,
        stride: isize,
        width: usize,
        acc: *mut f32,
        ld: usize,
        shrink: *const f32,
        ahead: &Ahead,
    ) {
        macro_rules! columns {
            ($($m:literal: $p:literal),*) => {
                match rows {
                    $($m => weigh_columns::<$m, $p>(
                        weights.cast(), keys, values.cast(), stride, width, acc, ld, shrink, ahead),)*
                    _ => unreachable!(),
                }
            };
        }
        // As many columns as there are registers for sums.
        columns!(1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1)
    } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn exps(x: [f32; N]) -> [f32; N] {
        let mut y = [0.0; N];
        // SAFETY: the caller promises the instruction set.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), exp(_mm512_loadu_ps(x.as_ptr()))) };
        y
    }

    #[test]
    fn weights_are_near_enough_to_be_rounded() {
        if !is_x86_feature_detected!("avx512dq") {
            eprintln!("no AVX-512: nothing to compare");
            return;
        }
        let mut at = 0.0f32;
        while at > -16.0 {
            let x = std::array::from_fn(|i| at - i as f32 * 7e-5);
            // SAFETY: the machine has it.
            for (x, y) in x.into_iter().zip(unsafe { exps(x) }) {
                let want = f64::from(x).exp();
                assert!((f64::from(y) - want).abs() <= 4e-6 * want, "e^{x}: {y} in place of {want}");
            }
            at -= N as f32 * 7e-5;
        }
        let ends = [0.0, f32::NEG_INFINITY, -1e30, -200.0, f32::NAN];
        // SAFETY: as above.
        let y = unsafe { exps(std::array::from_fn(|i| ends[i.min(4)])) };
        assert!(y[..4] == [1.0, 0.0, 0.0, 0.0] && y[4..].iter().all(|y| y.is_nan()), "{y:?}");
    }
}
