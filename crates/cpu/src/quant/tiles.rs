//! Integer products of many rows on AMX, the matrix unit of Intel's servers: sixteen rows of activations with a group of
//! sixteen columns of a panel is one instruction. The arithmetic is that of `dot`, so are the results, bit for bit.
//!
//! A panel's units are a tile's rows as they are; rows of activations are a tile's rows where they lie one after the
//! other, and are copied where they do not. The unit gives integer sums, through memory; scaling them is the work of the
//! vector unit, 4 operations for 16 sums. Both take turns: of sixteen rows and half a panel's columns, all groups are multiplied and
//! then scaled, since beside products of tiles the vector unit runs at half its rate.
//!
//! A tile of 16 x 16 x 64 takes 80 cycles on a Xeon of 2024, 45 for the products and 35 for scaling them, where `dot` takes 200. For
//! fewer rows than a tile has `thin` is the better one.

use super::activations::Activations;
use super::dot::Step;
use super::panel::{COLUMNS, DEPTH};
use super::tasks::Pair;
use crate::amx::ROWS;
use std::arch::asm;
use std::arch::x86_64::*;

/// The smallest group: of fewer codes a tile is mostly empty.
pub(super) const SMALLEST_GROUP: usize = 32;
/// Groups in a panel at most.
const GROUPS: usize = DEPTH / SMALLEST_GROUP;
/// Vectors of sixteen columns in half a panel.
const VECTORS: usize = 2;
/// Bytes from one row of a tile to the next: of codes, and of a panel.
const STRIDE: usize = 256;
const _: () = assert!(STRIDE == DEPTH && STRIDE == 4 * COLUMNS);

/// Integer sums of sixteen rows and half a panel's columns: `[group][vector][row][16]`.
#[repr(align(64))]
struct Sums([[[i32; 16 * ROWS]; VECTORS]; GROUPS]);

/// Sixteen rows of activations, copied to one place.
#[repr(align(64))]
struct Copied {
    codes: [[i8; DEPTH]; ROWS],
    scales: [f32; ROWS * DEPTH / SMALLEST_GROUP],
    sums: [i32; ROWS * DEPTH / SMALLEST_GROUP],
}

/// What a thread needs beside the panel.
pub(super) struct Scratch {
    sums: Sums,
    copied: Copied,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            sums: Sums([[[0; 16 * ROWS]; VECTORS]; GROUPS]),
            copied: Copied { codes: [[0; DEPTH]; ROWS], scales: [0.0; _], sums: [0; _] },
        }
    }
}

/// Sixteen rows of activations in a slab: codes [`STRIDE`] apart, scales and sums `groups`.
#[derive(Clone, Copy)]
struct Left {
    codes: *const i8,
    scales: *const f32,
    sums: *const i32,
    groups: usize,
    /// Rows that are wanted.
    count: usize,
}

impl Left {
    /// The rows of `pairs` (one to sixteen), in place where they are sixteen neighbours.
    fn new(x: &Activations, slab: usize, pairs: &[Pair], copied: &mut Copied) -> Left {
        let (groups, count) = (x.groups, pairs.len());
        if count == ROWS && pairs.iter().enumerate().all(|(i, pair)| pair.x == pairs[0].x + i) {
            let first = slab * x.rows + pairs[0].x;
            let (scales, sums) = (x.scales[first * groups..].as_ptr(), x.sums[first * groups..].as_ptr());
            return Left { codes: x.codes[first * DEPTH..].as_ptr(), scales, sums, groups, count };
        }
        for (i, pair) in pairs.iter().enumerate() {
            let row = slab * x.rows + pair.x;
            copied.codes[i].copy_from_slice(&x.codes[row * DEPTH..][..DEPTH]);
            copied.scales[i * groups..][..groups].copy_from_slice(&x.scales[row * groups..][..groups]);
            copied.sums[i * groups..][..groups].copy_from_slice(&x.sums[row * groups..][..groups]);
        }
        let (scales, sums) = (copied.scales.as_ptr(), copied.sums.as_ptr());
        Left { codes: copied.codes.as_ptr().cast(), scales, sums, groups, count }
    }
}

/// Adds the products of the rows of `pairs` in a slab with a step to `acc`, `[row][64]`; rows of `acc` up to a multiple of
/// sixteen are overwritten.
///
/// # Safety
/// The step's pointers reach as far as its sizes say, `acc` as many rows, [`crate::amx::Shapes`] of the step's group are set (of at
/// least [`SMALLEST_GROUP`] codes), and the machine has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn rows(
    step: &Step,
    x: &Activations,
    slab: usize,
    pairs: &[Pair],
    acc: *mut f32,
    scratch: &mut Scratch,
) {
    assert!(4 * step.units * step.groups <= DEPTH && 4 * step.units >= SMALLEST_GROUP && x.groups <= GROUPS);
    let Scratch { sums, copied } = scratch;
    for (i, pairs) in pairs.chunks(ROWS).enumerate() {
        let left = Left::new(x, slab, pairs, copied);
        for half in 0..2 {
            // SAFETY: as the caller promises.
            unsafe {
                for g in 0..step.groups {
                    multiply(step, &left, half, g, sums);
                }
                let acc = acc.add(i * ROWS * COLUMNS);
                match step.biases.is_null() {
                    true => scale::<false>(step, &left, half, sums, acc),
                    false => scale::<true>(step, &left, half, sums, acc),
                }
            }
        }
    }
}

/// The products of a tile of `a` with two of `b`, and with what `more` adds to them, to `c`.
macro_rules! products {
    ($a:ident, $b:ident, $c:ident $(, $more:literal)* $(,)?) => {
        asm!(
            "tileloadd tmm0, [{a} + {stride}]",
            "tileloadd tmm2, [{b} + {stride}]",
            "tilezero tmm6",
            "tdpbsud tmm6, tmm0, tmm2",
            "tileloadd tmm3, [{b} + {stride} + 64]",
            "tilezero tmm7",
            "tdpbsud tmm7, tmm0, tmm3",
            $($more,)*
            "tilestored [{c} + {line}], tmm6",
            "tilestored [{c} + {line} + 1024], tmm7",
            a = in(reg) $a, b = in(reg) $b, c = in(reg) $c, stride = in(reg) STRIDE, line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags)
        )
    };
}

/// The sums of group `g` of sixteen rows and the columns from `32 * half` on.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn multiply(step: &Step, left: &Left, half: usize, g: usize, sums: &mut Sums) {
    // SAFETY: as the caller promises: sixteen rows of codes, the group's units of a panel, and room for two tiles of sums.
    unsafe {
        let a = left.codes.add(4 * g * step.units);
        let b = step.panel.add(g * step.units * STRIDE + half * 64 * VECTORS);
        let c = sums.0[g].as_mut_ptr();
        if step.units <= 16 {
            products!(a, b, c);
        } else {
            // Groups of 128: two tiles deep.
            products!(
                a,
                b,
                c,
                "tileloadd tmm1, [{a} + {stride} + 64]",
                "tileloadd tmm4, [{b} + {stride} + 4096]",
                "tdpbsud tmm6, tmm1, tmm4",
                "tileloadd tmm5, [{b} + {stride} + 4160]",
                "tdpbsud tmm7, tmm1, tmm5",
            );
        }
    }
}

/// Adds the sums of sixteen rows and the columns from `32 * half` on, scaled, to `acc`.
///
/// # Safety
/// As [`rows`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn scale<const BIAS: bool>(step: &Step, left: &Left, half: usize, sums: &Sums, acc: *mut f32) {
    // Eight rows of two vectors stay in registers for all groups.
    const SOME: usize = ROWS / 2;
    let columns = half * 16 * VECTORS;
    // SAFETY: as the caller promises.
    unsafe {
        for first in (0..left.count).step_by(SOME) {
            let acc = acc.add(first * COLUMNS + columns);
            let mut totals = [[_mm512_setzero_ps(); VECTORS]; SOME];
            for r in 0..SOME {
                for v in 0..VECTORS {
                    totals[r][v] = _mm512_loadu_ps(acc.add(r * COLUMNS + 16 * v));
                }
            }
            for g in 0..step.groups {
                let mut scales = [_mm512_setzero_ps(); VECTORS];
                let mut biases = [_mm512_setzero_ps(); VECTORS];
                for v in 0..VECTORS {
                    let at = g * COLUMNS + columns + 16 * v;
                    scales[v] = _mm512_loadu_ps(step.scales.add(at));
                    if BIAS {
                        biases[v] = _mm512_loadu_ps(step.biases.add(at));
                    }
                }
                let whole = sums.0[g].as_ptr().cast::<i32>().add(first * 16);
                for r in 0..SOME {
                    let row = (first + r) * left.groups + g;
                    let x_scale = _mm512_set1_ps(*left.scales.add(row));
                    let x_sum = _mm512_set1_epi32(*left.sums.add(row));
                    for v in 0..VECTORS {
                        let sum = _mm512_load_si512(whole.add((v * ROWS + r) * 16).cast());
                        let product = if BIAS {
                            let bias = _mm512_mul_ps(biases[v], _mm512_castsi512_ps(x_sum));
                            _mm512_fmadd_ps(scales[v], _mm512_cvtepi32_ps(sum), bias)
                        } else {
                            _mm512_mul_ps(scales[v], _mm512_cvtepi32_ps(_mm512_add_epi32(sum, x_sum)))
                        };
                        totals[r][v] = _mm512_fmadd_ps(x_scale, product, totals[r][v]);
                    }
                }
            }
            for r in 0..SOME {
                for v in 0..VECTORS {
                    _mm512_storeu_ps(acc.add(r * COLUMNS + 16 * v), totals[r][v]);
                }
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::amx::Shapes;
    use crate::amx::stand_in::can_run;
    use crate::isa::Isa;
    use crate::quant::dot;
    use crate::quant::qmm_tests::Random;

    #[test]
    fn sums_are_those_of_dot_products() {
        if !can_run() {
            return eprintln!("skipped: this machine has no AVX-512");
        }
        let mut random = Random(7);
        for (group, bias, count) in [(64, true, 37), (32, false, 16), (128, true, 20), (32, true, 5), (64, false, 512)]
        {
            let groups = DEPTH / group;
            let (slabs, rows) = (2, 530);
            let x = Activations {
                codes: (0..slabs * rows * DEPTH).map(|_| random.next() as i8).collect(),
                scales: (0..slabs * rows * groups).map(|_| random.bell()).collect(),
                sums: (0..slabs * rows * groups)
                    .map(|_| if bias { random.bell().to_bits() as i32 } else { random.next() as i32 >> 20 })
                    .collect(),
                rows,
                groups,
            };
            let panel: Vec<u8> = (0..COLUMNS * DEPTH).map(|_| random.next() as u8).collect();
            let scales: Vec<f32> = (0..2 * COLUMNS * groups).map(|_| random.bell()).collect();
            // The last slab of a row may hold less.
            for used in [groups, groups / 2] {
                let step = Step {
                    panel: panel.as_ptr(),
                    scales: scales.as_ptr(),
                    biases: if bias { scales[COLUMNS * groups..].as_ptr() } else { std::ptr::null() },
                    groups: used,
                    units: group / 4,
                    largest: 255,
                    fresh: false,
                };
                let apart = random.next() as usize % 2;
                let pairs: Vec<_> = (0..count).map(|i| Pair { x: (i + apart * (i / 3)) % rows, out: i }).collect();
                let start: Vec<f32> = (0..count.next_multiple_of(ROWS) * COLUMNS).map(|_| random.bell()).collect();
                let (mut one, mut other) = (start.clone(), start);
                // SAFETY: the machine has AMX and so AVX-512, and all buffers are as large as the sizes say.
                unsafe {
                    let _shapes = Shapes::new(group);
                    rows_of_pairs(&step, &x, &pairs, one.as_mut_ptr());
                    dot::rows(Isa::Avx512, &step, &dot::Left::new(&x, 1), &pairs, other.as_mut_ptr());
                }
                let bits = |all: &[f32]| all[..count * COLUMNS].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(&one) == bits(&other), "groups of {group}, {used} of them, biases: {bias}, {count} rows");
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn rows_of_pairs(step: &Step, x: &Activations, pairs: &[Pair], acc: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { rows(step, x, 1, pairs, acc, &mut Scratch::default()) }
    }
}
