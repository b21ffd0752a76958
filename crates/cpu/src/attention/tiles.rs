//! Attention of bfloat16 on AMX, Intel's matrix unit: sixteen rows with sixteen keys over 32 elements of the head width, or with
//! sixteen columns of values over sixteen keys, is one instruction.
//!
//! The order of work is that of `kernels`. Weights are two numbers of bfloat16, what rounding leaves of the first being the
//! second: together they have 16 bits. A step of the unit takes both, of sixteen keys, and meets the values of those keys twice. It
//! sums even and odd elements apart, so steps begin at multiples of 32 elements or 16 keys, and what is missing there is zero. Rows
//! that a set of sixteen lacks are multiplied as they lie in the buffers, and not looked at.
//!
//! Few rows take keys where they lie, as the left side of a product, and values where they lie by multiply-adds in the unit's
//! order, as packing would take longer than memory does. The unit takes numbers below the least normal one for zero, which
//! multiply-adds do not: a sum would have to be as small to show it, and all there is with it.

use super::dispatch::{Kernels, enabled};
use super::kernels::{self, Ahead, BLOCK, Softmax, Weights};
use super::lanes::avx512::Avx512;
use super::lanes::{Elem, Lanes};
use super::pairs::{pack_keys, word};
use crate::amx::{ROWS, Shapes};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// AMX and AVX-512 with BF16, for operands of bfloat16 whose head width is a multiple of eight.
pub(super) struct Tiles;

const N: usize = 16;
/// Most rows whose values stay where they are.
const IN_PLACE: usize = 4;
/// Elements of bfloat16 in a row of a tile.
const DEEP: usize = 32;
/// Bytes from one row of a panel of keys or values to the next.
const PANEL: usize = 2 * N * 4;

/// `c = a b`, or with `MORE` `c += a b`: sixteen rows by 32 columns over `steps` times 32 elements. `a` is rows of bfloat16, `b`
/// `[16 steps][32]` words, `c` rows of floats; strides are bytes.
///
/// # Safety
/// The operands are as large, [`Shapes`] of 64 bytes are set.
#[inline(always)]
unsafe fn multiply<const MORE: bool>(
    a: *const u8,
    a_stride: usize,
    b: *const u8,
    steps: usize,
    c: *mut f32,
    c_stride: usize,
) {
    macro_rules! product {
        ($($first:literal),*) => {
            asm!(
                $($first,)*
                "2:",
                "tileloadd tmm0, [{a} + {a_stride}]",
                "tileloadd tmm2, [{b} + {panel}]",
                "tdpbf16ps tmm6, tmm0, tmm2",
                "tileloadd tmm3, [{b} + {panel} + 64]",
                "tdpbf16ps tmm7, tmm0, tmm3",
                "add {a}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {c_stride}], tmm6",
                "tilestored [{c} + {c_stride} + 64], tmm7",
                a = inout(reg) a => _, b = inout(reg) b => _, steps = inout(reg) steps => _,
                c = in(reg) c, a_stride = in(reg) a_stride, c_stride = in(reg) c_stride, panel = in(reg) PANEL,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        };
    }
    const { assert!(N * PANEL == 2048) };
    // SAFETY: as the caller promises; `steps` is at least one.
    unsafe {
        if MORE {
            product!("tileloadd tmm6, [{c} + {c_stride}]", "tileloadd tmm7, [{c} + {c_stride} + 64]")
        } else {
            product!("tilezero tmm6", "tilezero tmm7")
        }
    }
}

/// The widest heads whose keys are used in place.
const WIDEST: usize = 256;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Copied([u16; WIDEST]);

/// Sums of sixteen keys with sixteen rows.
#[repr(align(64))]
struct Turned([f32; N * N]);

/// `sums = keys rows`: sixteen keys `apart` bytes from each other with sixteen rows of queries as words `[16 steps][16]`, over
/// `steps` times 32 elements. What comes next is fetched meanwhile. The bits are those of [`multiply`], which has the sides the
/// other way round.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn keys_by_rows(
    keys: *const u8,
    apart: isize,
    rows: *const u8,
    steps: usize,
    sums: &mut Turned,
    ahead: &mut Ahead,
) {
    // SAFETY: as the caller promises. Nobody else uses tiles between these instructions.
    unsafe {
        asm!("tilezero tmm6", out("tmm6") _, options(nostack, preserves_flags, nomem));
        for step in 0..steps {
            asm!(
                "tileloadd tmm0, [{a} + {apart}]",
                a = in(reg) keys.add(64 * step), apart = in(reg) apart,
                out("tmm0") _, options(nostack, preserves_flags, readonly)
            );
            ahead.fetch::<Avx512, 4>();
            asm!(
                "tileloadd tmm2, [{b} + {line}]",
                "tdpbf16ps tmm6, tmm0, tmm2",
                b = in(reg) rows.add(1024 * step), line = in(reg) 64usize,
                out("tmm2") _, out("tmm6") _,
                options(nostack, preserves_flags, readonly)
            );
            ahead.fetch::<Avx512, 4>();
        }
        asm!("tilestored [{c} + {line}], tmm6", c = in(reg) sums.0.as_mut_ptr(), line = in(reg) 64usize,
            options(nostack, preserves_flags));
    }
}

/// Weights in two halves, where their scores were: sixteen of the first, then sixteen of the second.
struct Halved;

impl Weights<Avx512> for Halved {
    #[inline(always)]
    unsafe fn put(row: *mut f32, i: usize, w: __m512) -> __m512 {
        // SAFETY: the caller promises AVX-512 with BF16 and the row; any bits are sixteen bfloat16.
        unsafe {
            let first: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(w));
            let wide = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(first)));
            let second: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(_mm512_sub_ps(w, wide)));
            _mm256_storeu_si256(row.add(i).cast(), first);
            _mm256_storeu_si256(row.add(i + N / 2).cast(), second);
        }
        w
    }
}

/// Values `[keys][width]` to panels `[width / 32][keys][32]` of words with a value of each of two keys: the eight pairs of sixteen
/// keys, then these once more. Zeros fill up. What comes next is fetched meanwhile.
#[inline(always)]
unsafe fn pack_values(from: *const bf16, stride: isize, keys: usize, width: usize, to: *mut u32, ahead: &mut Ahead) {
    const WIDE: usize = 2 * N;
    let all = keys.next_multiple_of(N);
    // SAFETY: the caller promises `keys` rows of `width` values, room for the panels, and the instruction set.
    unsafe {
        let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        for k in (0..all).step_by(2) {
            let row = from.wrapping_offset(k as isize * stride);
            ahead.used::<Avx512>(2 * width * size_of::<bf16>());
            for c in (0..width).step_by(WIDE) {
                let columns = u32::MAX >> WIDE.saturating_sub(width - c);
                let mask = |key: usize| if key < keys { columns } else { 0 };
                let a = _mm512_maskz_loadu_epi16(mask(k), row.wrapping_add(c).cast());
                let b = _mm512_maskz_loadu_epi16(mask(k + 1), row.wrapping_offset(stride).wrapping_add(c).cast());
                let (low, high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
                let at = to.add(c * all + (k / N * N + k % N / 2) * WIDE);
                for at in [at, at.add(N / 2 * WIDE)] {
                    _mm512_storeu_si512(at.cast(), _mm512_permutex2var_epi64(low, first, high));
                    _mm512_storeu_si512(at.add(N).cast(), _mm512_permutex2var_epi64(low, second, high));
                }
            }
        }
    }
}

/// What [`multiply`] adds to the sums of `M` rows and 32 columns in a step: `values` are those of sixteen keys or, at the end, of
/// fewer, `weights` both halves of each row.
#[inline(always)]
unsafe fn step_in_place<const M: usize>(
    weights: &[[f32; DEEP]; IN_PLACE],
    keys: usize,
    values: *const bf16,
    stride: isize,
    acc: *mut f32,
    ld: usize,
    shrink: *const f32,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller promises the keys, `M` rows of weights and sums, and the instruction set.
    unsafe {
        // Of even and odd keys; each of even and odd columns.
        let mut sums = [[[_mm512_setzero_ps(); 2]; M]; 2];
        for half in 0..2 {
            for k in 0..keys {
                // As much as is used, spread over time: memory answers few questions at once.
                if k % 4 == 0 {
                    ahead.fetch::<Avx512, 1>();
                }
                let v = bf16::load2::<Avx512>(values.offset(k as isize * stride));
                for m in 0..M {
                    let w = _mm512_set1_ps(*weights[m].as_ptr().add(half * N + k));
                    for j in 0..2 {
                        let sum = &mut sums[k % 2][m][j];
                        *sum = _mm512_fmadd_ps(w, v[j], *sum);
                    }
                }
            }
        }
        for m in 0..M {
            let [a, b] = std::array::from_fn(|j| _mm512_add_ps(sums[0][m][j], sums[1][m][j]));
            for (j, sum) in Avx512::from_even_odd([a, b]).into_iter().enumerate() {
                let at = acc.add(m * ld + j * N);
                let mut old = _mm512_loadu_ps(at);
                if !shrink.is_null() {
                    old = _mm512_mul_ps(old, _mm512_set1_ps(*shrink.add(m)));
                }
                _mm512_storeu_ps(at, _mm512_add_ps(old, sum));
            }
        }
    }
}

/// [`enabled`] with this module's instruction set.
macro_rules! tiles {
    ($($body:tt)*) => {
        enabled!([#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,f16c,bmi2")]] $($body)*);
    };
}

impl Kernels for Tiles {
    type Plain = Avx512;
    const N: usize = N;
    const ROWS: usize = ROWS;
    const TOGETHER: usize = N;
    const IN_PLACE: usize = IN_PLACE;

    fn prepared<R>(f: impl FnOnce() -> R) -> R {
        // SAFETY: who uses these kernels has seen that AMX is there.
        let _shapes = unsafe { Shapes::new(2 * DEEP) };
        f()
    }

    /// Sets of sixteen rows of bfloat16, filled up to whole steps.
    fn queries_len(rows: usize, dim: usize) -> usize {
        rows.next_multiple_of(ROWS) * dim.next_multiple_of(DEEP) / 2
    }

    unsafe fn place_row(row: *const f32, dim: usize, to: *mut f32, r: usize, _rows: usize) {
        let words = dim.next_multiple_of(DEEP) / 2;
        for d in (0..2 * words).step_by(2) {
            // SAFETY: the same contract.
            unsafe { *to.cast::<u32>().add(r * words + d / 2) = if d < dim { word(row, d) } else { 0 } }
        }
    }

    /// From one row to the next: they are columns of words, `[dim / 2][16]`.
    fn spread_len<T: Elem>(dim: usize) -> usize {
        (dim <= WIDEST) as usize
    }

    unsafe fn spread(q: *const f32, dim: usize, to: *mut f32) {
        for d in (0..dim.next_multiple_of(DEEP)).step_by(2) {
            // SAFETY: the same contract.
            unsafe { *to.cast::<u32>().add(d / 2 * N) = if d < dim { word(q, d) } else { 0 } }
        }
    }

    tiles! { dot_in_place<T: Elem>(
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
        let mut ahead = *ahead;
        let mut copied = [Copied([0; WIDEST]); N];
        let mut turned = Turned([0.0; N * N]);
        let column = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            _mm512_set1_epi32(N as i32),
        );
        for key in (0..keys).step_by(N) {
            let (mut at, mut apart) = (from.cast::<u16>().offset(key as isize * stride), 2 * stride);
            // What is not sixteen whole rows is copied: a tile reads all of itself.
            if keys - key < N || !dim.is_multiple_of(DEEP) {
                for (k, row) in copied.iter_mut().enumerate().take(keys - key) {
                    std::ptr::copy_nonoverlapping(at.offset(k as isize * stride), row.0.as_mut_ptr(), dim);
                }
                (at, apart) = (copied.as_ptr().cast(), 2 * WIDEST as isize);
            }
            keys_by_rows(at.cast(), apart, q.cast(), dim.div_ceil(DEEP), &mut turned, &mut ahead);
            for row in 0..rows {
                let sums = _mm512_i32gather_ps::<4>(column, turned.0.as_ptr().add(row));
                _mm512_storeu_ps(scores.add(row * BLOCK + key), _mm512_mul_ps(sums, _mm512_set1_ps(scale)));
            }
        }
    } }

    tiles! { pack_keys<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        dim: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    ) {
        pack_keys(from.cast(), stride, keys, dim, to.cast(), |d| d);
        to.add(dim * N).write_bytes(0, (dim.next_multiple_of(DEEP) - dim) * N);
        ahead.used::<Avx512>(keys * dim * size_of::<bf16>())
    } }

    tiles! { pack_values<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        width: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    ) {
        pack_values(from.cast(), stride, keys, width, to.cast(), &mut { *ahead });
    } }

    tiles! { dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scale: f32, scores: *mut f32) {
        let steps = dim.div_ceil(DEEP);
        multiply::<false>(q.cast(), 2 * DEEP * steps, panel.cast(), steps, scores, 4 * BLOCK);
        for row in 0..rows {
            for j in 0..2 {
                let at = scores.add(row * BLOCK + j * N);
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(scale)));
            }
        }
    } }

    tiles! { softmax(s: &Softmax, ahead: &mut Ahead) {
        kernels::softmax::<Avx512, Halved>(s, ahead)
    } }

    tiles! { weigh(
        rows: usize,
        weights: *const f32,
        keys: usize,
        values: *const f32,
        acc: *mut f32,
        ld: usize,
        shrink: *const f32,
    ) {
        for row in 0..rows {
            for j in 0..2 {
                let at = acc.add(row * ld + j * N);
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(*shrink.add(row))));
            }
        }
        multiply::<true>(weights.cast(), 4 * BLOCK, values.cast(), keys.div_ceil(N), acc, 4 * ld);
    } }

    tiles! { weigh_in_place<T: Elem>(
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
        const WIDE: usize = 2 * N;
        let mut ahead = *ahead;
        let mut tail = [[bf16::ZERO; WIDE]; N];
        for first in (0..keys).step_by(N) {
            let mut spread = [[0.0; DEEP]; IN_PLACE];
            for (m, spread) in spread.iter_mut().enumerate().take(rows) {
                let halves = weights.add(m * BLOCK + first).cast::<bf16>();
                for half in [0, N] {
                    _mm512_storeu_ps(spread.as_mut_ptr().add(half), bf16::load::<Avx512>(halves.add(half)));
                }
            }
            let (weights, keys) = (&spread, (keys - first).min(N));
            let values = values.cast::<bf16>().offset(first as isize * stride);
            let shrink = if first == 0 { shrink } else { std::ptr::null() };
            for c in (0..width).step_by(WIDE) {
                let (mut from, mut apart, acc) = (values.add(c), stride, acc.add(c));
                if c + WIDE > width {
                    for (k, row) in tail.iter_mut().enumerate().take(keys) {
                        std::ptr::copy_nonoverlapping(from.offset(k as isize * stride), row.as_mut_ptr(), width - c);
                    }
                    (from, apart) = (tail.as_ptr().cast(), WIDE as isize);
                }
                match rows {
                    1 => step_in_place::<1>(weights, keys, from, apart, acc, ld, shrink, &mut ahead),
                    2 => step_in_place::<2>(weights, keys, from, apart, acc, ld, shrink, &mut ahead),
                    3 => step_in_place::<3>(weights, keys, from, apart, acc, ld, shrink, &mut ahead),
                    4 => step_in_place::<4>(weights, keys, from, apart, acc, ld, shrink, &mut ahead),
                    _ => unreachable!(),
                }
            }
        }
    } }
}
