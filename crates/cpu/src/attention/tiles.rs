//! Attention of bfloat16 on AMX, Intel's matrix unit: sixteen rows with sixteen keys over 32 elements of the head width, or with
//! sixteen columns of values over 32 keys, is one instruction.
//!
//! The order of work is that of `kernels`, weights are those of `pairs`. The unit sums first and second numbers of pairs apart. Steps
//! begin at multiples of 32 elements or keys, and what is missing
//! there is zero. Rows that a set lacks are multiplied as they lie in the buffers, and not looked at.
//!
//! Few rows take keys where they lie, as the left side of a product, and values where they lie by multiply-adds in the unit's
//! order, as packing would take longer than memory does. The unit takes numbers below the least normal one for zero, which
//! multiply-adds do not: a sum would have to be as small to show it, and all there is with it.

use super::dispatch::{Kernels, enabled};
use super::kernels::{self, Ahead, BLOCK, Softmax};
use super::lanes::avx512::Avx512;
use super::lanes::{Elem, Lanes};
use super::pairs::{Rounded, pack_keys, pack_values, words};
use crate::amx::{ROWS, Shapes};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// AMX and AVX-512, for operands of bfloat16 whose head width is a multiple of eight.
pub(super) struct Tiles;

const N: usize = 16;
/// Most rows whose values stay where they are.
const IN_PLACE: usize = 4;
/// Elements of bfloat16 in a row of a tile.
const DEEP: usize = 32;
/// Columns of values, or keys, of a panel.
const WIDE: usize = 2 * N;
/// Bytes from one row of a panel to the next.
const PANEL: usize = WIDE * 4;

/// `c = a b`, or with `MORE` `c += a b`: sixteen rows, or with `TWICE` 32, by 32 columns over `steps` times 32 elements. `a` is rows
/// of bfloat16, `b` `[16 steps][32]` words, `c` rows of floats; strides are bytes.
///
/// With 32 rows there are four sums in the making: of two each step waits for the one before.
///
/// # Safety
/// The operands are as large, [`Shapes`] of 64 bytes are set.
#[inline(always)]
unsafe fn multiply<const MORE: bool, const TWICE: bool>(
    a: *const u8,
    a_stride: usize,
    b: *const u8,
    steps: usize,
    c: *mut f32,
    c_stride: usize,
) {
    macro_rules! product {
        ([$($first:literal),*] [$($more:literal),*] [$($last:literal),*] $($operands:tt)*) => {
            asm!(
                $($first,)*
                "2:",
                "tileloadd tmm0, [{a} + {a_stride}]",
                "tileloadd tmm2, [{b} + {panel}]",
                "tdpbf16ps tmm6, tmm0, tmm2",
                "tileloadd tmm3, [{b} + {panel} + 64]",
                "tdpbf16ps tmm7, tmm0, tmm3",
                $($more,)*
                "add {a}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {c_stride}], tmm6",
                "tilestored [{c} + {c_stride} + 64], tmm7",
                $($last,)*
                a = inout(reg) a => _, b = inout(reg) b => _, steps = inout(reg) steps => _,
                c = in(reg) c, a_stride = in(reg) a_stride, c_stride = in(reg) c_stride, panel = in(reg) PANEL,
                $($operands)*
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        };
    }
    const { assert!(N * PANEL == 2048) };
    // SAFETY: as the caller promises; `steps` is at least one.
    unsafe {
        macro_rules! rows {
            ([$($one:literal),*] [$($two:literal),*]) => {
                if TWICE {
                    product!([$($one,)* $($two),*] [
                        "lea {a2}, [{a} + {a_rows}]",
                        "tileloadd tmm1, [{a2} + {a_stride}]",
                        "tdpbf16ps tmm4, tmm1, tmm2",
                        "tdpbf16ps tmm5, tmm1, tmm3"
                    ] [
                        "tilestored [{c2} + {c_stride}], tmm4",
                        "tilestored [{c2} + {c_stride} + 64], tmm5"
                    ]
                        a2 = out(reg) _, a_rows = in(reg) N * a_stride, c2 = in(reg) c.byte_add(N * c_stride),)
                } else {
                    product!([$($one),*] [] [])
                }
            };
        }
        if MORE {
            rows!(["tileloadd tmm6, [{c} + {c_stride}]", "tileloadd tmm7, [{c} + {c_stride} + 64]"]
                ["tileloadd tmm4, [{c2} + {c_stride}]", "tileloadd tmm5, [{c2} + {c_stride} + 64]"])
        } else {
            rows!(["tilezero tmm6", "tilezero tmm7"] ["tilezero tmm4", "tilezero tmm5"])
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

/// What [`multiply`] adds to the sums of `M` rows and 32 `P` columns in a step: `values` are those of 32 keys or, at the end,
/// of fewer.
#[inline(always)]
unsafe fn step_in_place<const M: usize, const P: usize>(
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
        // Of even and odd columns; each of even and odd keys.
        let mut sums = [[[[_mm512_setzero_ps(); 2]; 2]; P]; M];
        for k in (0..keys).step_by(2) {
            // As much as is used, spread over time: memory answers few questions at once.
            ahead.fetch::<Avx512, P>();
            for p in 0..P {
                for odd in 0..2 {
                    if k + odd == keys {
                        break;
                    }
                    let v = bf16::load2::<Avx512>(values.offset((k + odd) as isize * stride).add(p * WIDE));
                    for m in 0..M {
                        let w = _mm512_set1_ps(*weights[m].as_ptr().add(k + odd));
                        for j in 0..2 {
                            let sum = &mut sums[m][p][j][odd];
                            *sum = _mm512_fmadd_ps(w, v[j], *sum);
                        }
                    }
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                let [[a, b], [c, d]] = sums[m][p];
                let new = Avx512::from_even_odd([_mm512_add_ps(a, b), _mm512_add_ps(c, d)]);
                for j in 0..2 {
                    let at = acc.add(m * ld + p * WIDE + j * N);
                    let mut old = _mm512_loadu_ps(at);
                    if !shrink.is_null() {
                        old = _mm512_mul_ps(old, _mm512_set1_ps(*shrink.add(m)));
                    }
                    _mm512_storeu_ps(at, _mm512_add_ps(old, new[j]));
                }
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
    const ROWS: usize = 2 * ROWS;
    const TOGETHER: usize = DEEP;
    const PACKED: usize = 2;
    const SPREAD: usize = ROWS;
    const IN_PLACE: usize = IN_PLACE;

    fn prepared<R>(f: impl FnOnce() -> R) -> R {
        // SAFETY: who uses these kernels has seen that AMX is there.
        let _shapes = unsafe { Shapes::new(2 * DEEP) };
        f()
    }

    /// Sets of rows of bfloat16, filled up to whole steps.
    fn queries_len(rows: usize, dim: usize) -> usize {
        rows.next_multiple_of(Self::ROWS) * dim.next_multiple_of(DEEP) / 2
    }

    // Rows as they are, filled up to whole steps.
    tiles! { place_rows(from: *const f32, dim: usize, to: *mut f32, rows: usize) {
        let whole = dim.next_multiple_of(DEEP);
        for r in 0..rows {
            for d in (0..dim).step_by(DEEP) {
                _mm512_storeu_si512(to.add((r * whole + d) / 2).cast(), words(from.add(r * dim), d, dim));
            }
        }
    } }

    /// From one row to the next: they are columns of words, `[dim / 2][16]`.
    fn spread_len<T: Elem>(dim: usize) -> usize {
        (dim <= WIDEST) as usize
    }

    tiles! { spread(q: *const f32, dim: usize, to: *mut f32) {
        for d in (0..dim).step_by(DEEP) {
            let mut column = [0f32; N];
            _mm512_storeu_si512(column.as_mut_ptr().cast(), words(q, d, dim));
            for (i, word) in column.into_iter().enumerate() {
                *to.add((d / 2 + i) * N) = word;
            }
        }
    } }

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
        pack_values::<DEEP>(from.cast(), stride, keys, width, to.cast(), &mut { *ahead })
    } }

    tiles! { dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scale: f32, scores: *mut f32) {
        let steps = dim.div_ceil(DEEP);
        let width = 2 * DEEP * steps;
        match rows > ROWS {
            true => multiply::<false, true>(q.cast(), width, panel.cast(), steps, scores, 4 * BLOCK),
            false => multiply::<false, false>(q.cast(), width, panel.cast(), steps, scores, 4 * BLOCK),
        }
        for row in 0..rows {
            for j in 0..2 {
                let at = scores.add(row * BLOCK + j * N);
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(scale)));
            }
        }
    } }

    tiles! { softmax(s: &Softmax, ahead: &mut Ahead) {
        kernels::softmax::<Avx512, Rounded>(s, ahead)
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
        for first in (0..rows).step_by(N) {
            // Most factors are one, as a row's largest score changes seldom.
            let wanted = u16::MAX >> N.saturating_sub(rows - first);
            let factors = _mm512_maskz_loadu_ps(wanted, shrink.add(first));
            let mut others = _mm512_mask_cmp_ps_mask::<_CMP_NEQ_UQ>(wanted, factors, _mm512_set1_ps(1.0));
            while others != 0 {
                let row = first + others.trailing_zeros() as usize;
                others &= others - 1;
                for j in 0..2 {
                    let at = acc.add(row * ld + j * N);
                    _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(*shrink.add(row))));
                }
            }
        }
        let (weights, values, steps) = (weights.cast(), values.cast(), keys.div_ceil(DEEP));
        match rows > ROWS {
            true => multiply::<true, true>(weights, 4 * BLOCK, values, steps, acc, 4 * ld),
            false => multiply::<true, false>(weights, 4 * BLOCK, values, steps, acc, 4 * ld),
        }
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
        let mut ahead = *ahead;
        let mut tail = [[bf16::ZERO; WIDE]; DEEP];
        for first in (0..keys).step_by(DEEP) {
            let mut floats = [[0.0; DEEP]; IN_PLACE];
            for (m, floats) in floats.iter_mut().enumerate().take(rows) {
                let halves = weights.add(m * BLOCK).cast::<bf16>().add(first);
                for j in [0, N] {
                    _mm512_storeu_ps(floats.as_mut_ptr().add(j), Avx512::load_bf16(halves.add(j)));
                }
            }
            let (weights, keys) = (&floats, (keys - first).min(DEEP));
            let values = values.cast::<bf16>().offset(first as isize * stride);
            let shrink = if first == 0 { shrink } else { std::ptr::null() };
            let mut c = 0;
            while c < width {
                let (mut from, mut apart, acc) = (values.add(c), stride, acc.add(c));
                if c + WIDE > width {
                    for (k, row) in tail.iter_mut().enumerate().take(keys) {
                        std::ptr::copy_nonoverlapping(from.offset(k as isize * stride), row.as_mut_ptr(), width - c);
                    }
                    (from, apart) = (tail.as_ptr().cast(), WIDE as isize);
                }
                macro_rules! step {
                    ($m:literal, $p:literal) => {{
                        step_in_place::<$m, $p>(weights, keys, from, apart, acc, ld, shrink, &mut ahead);
                        $p
                    }};
                }
                // As many columns as there are registers for sums.
                c += WIDE * match (rows, c + 2 * WIDE <= width) {
                    (1, true) => step!(1, 2),
                    (1, false) => step!(1, 1),
                    (2, true) => step!(2, 2),
                    (2, false) => step!(2, 1),
                    (3, _) => step!(3, 1),
                    (4, _) => step!(4, 1),
                    _ => unreachable!(),
                };
            }
        }
    } }
}
