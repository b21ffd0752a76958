//! Integer products: rows of 8-bit activations with a panel of weights, one group after the other.
//!
//! Per output and group: `acc = fma(x_scale, fma(w_scale, sum, w_bias * x_sum), acc)` where `sum`, the dot product of
//! the codes, is an exact integer. So a result depends neither on how many rows there are nor on how they are tiled.
//!
//! With AVX-512 a tile is 3 rows x 64 columns: 12 integer accumulators and 12 sums of floats in registers, per unit 4 loads of weights
//! and 3 broadcasts of activations for 12 `vpdpbusd` of 128 operations. A group of 64 is scaled and added by three multiply-adds for
//! sixteen dot products, so 84 % of the 8-bit dot peak is the limit there.

use super::activations::Activations;
use super::panel::{COLUMNS, DEPTH};
use super::tasks::Pair;
use crate::isa::Isa;

/// As many rows as are handed over at a time: whole tiles, with memory asked for between them.
pub(super) const ROWS: usize = 12;

/// Consecutive groups of a panel with their scales.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// `[unit][64][4]` bytes.
    pub(super) panel: *const u8,
    /// `[group][64]`.
    pub(super) scales: *const f32,
    /// `[group][64]`; null where weights have none.
    pub(super) biases: *const f32,
    pub(super) groups: usize,
    /// Units of four codes in a group.
    pub(super) units: usize,
    /// The largest byte in the panel: it decides how many products fit a sum of 16 bits (AVX2).
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) largest: u8,
    /// Whether sums begin here: what lies in their place is not read.
    pub(super) fresh: bool,
}

/// Rows of activations in the step's slab: where those of row 0 begin.
#[derive(Clone, Copy)]
pub(super) struct Left {
    codes: *const i8,
    scales: *const f32,
    sums: *const i32,
    /// Groups from row to row.
    groups: usize,
}

impl Left {
    /// A slab of `x`.
    pub(super) fn new(x: &Activations, slab: usize) -> Left {
        let first = slab * x.rows;
        Left {
            codes: x.codes[first * DEPTH..].as_ptr(),
            scales: x.scales[first * x.groups..].as_ptr(),
            sums: x.sums[first * x.groups..].as_ptr(),
            groups: x.groups,
        }
    }

    /// # Safety
    /// The row exists.
    #[inline(always)]
    unsafe fn row(&self, pair: &Pair) -> Row {
        let at = pair.x * self.groups;
        // SAFETY: the caller's promise.
        unsafe { Row { codes: self.codes.add(pair.x * DEPTH), scales: self.scales.add(at), sums: self.sums.add(at) } }
    }
}

/// One row of activations: codes, scales and sums of the step's groups.
#[derive(Clone, Copy)]
struct Row {
    codes: *const i8,
    scales: *const f32,
    sums: *const i32,
}

/// Adds the products of the rows of `pairs` with a step to `acc`, `[row][64]` (or to zeros).
///
/// # Safety
/// The pointers reach as far as the sizes say, and the rows of `pairs` exist.
pub(super) unsafe fn rows(isa: Isa, step: &Step, left: &Left, pairs: &[Pair], acc: *mut f32) {
    // SAFETY: as the caller promises; the levels are present (they were passed).
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512 {
            return x86::avx512(step, left, pairs, acc);
        }
        if step.fresh {
            std::slice::from_raw_parts_mut(acc, pairs.len() * COLUMNS).fill(0.0);
        }
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx2 {
            return x86::avx2(step, left, pairs, acc);
        }
        let _ = isa;
        plain(step, left, pairs, acc)
    }
}

unsafe fn plain(step: &Step, left: &Left, pairs: &[Pair], acc: *mut f32) {
    for (r, pair) in pairs.iter().enumerate() {
        for g in 0..step.groups {
            // SAFETY: as the caller of `rows` promises; rows of sums are whole.
            unsafe {
                let row = left.row(pair);
                let sum = *row.sums.add(g);
                let mut total = [if step.biases.is_null() { sum } else { 0 }; COLUMNS];
                for u in g * step.units..(g + 1) * step.units {
                    let x = &*row.codes.add(4 * u).cast::<[i8; 4]>();
                    let w = &*step.panel.add(4 * COLUMNS * u).cast::<[[u8; 4]; COLUMNS]>();
                    for c in 0..COLUMNS {
                        for k in 0..4 {
                            total[c] += w[c][k] as i32 * x[k] as i32;
                        }
                    }
                }
                let acc = &mut *acc.add(r * COLUMNS).cast::<[f32; COLUMNS]>();
                let scales = &*step.scales.add(g * COLUMNS).cast::<[f32; COLUMNS]>();
                let x_scale = *row.scales.add(g);
                if step.biases.is_null() {
                    for c in 0..COLUMNS {
                        acc[c] += x_scale * (scales[c] * total[c] as f32);
                    }
                } else {
                    let biases = &*step.biases.add(g * COLUMNS).cast::<[f32; COLUMNS]>();
                    let x_sum = f32::from_bits(sum as u32);
                    for c in 0..COLUMNS {
                        acc[c] += x_scale * (scales[c] * total[c] as f32 + biases[c] * x_sum);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{COLUMNS, Left, Pair, Row, Step};
    use std::arch::x86_64::*;

    const VECTORS: usize = COLUMNS / 16;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn avx512(step: &Step, left: &Left, pairs: &[Pair], acc: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            for (i, pairs) in pairs.chunks(3).enumerate() {
                let acc = acc.add(3 * i * COLUMNS);
                match pairs {
                    [a] => tile512::<1, 2>(step, [left.row(a)], acc),
                    [a, b] => tile512::<2, 1>(step, [left.row(a), left.row(b)], acc),
                    [a, b, c] => tile512::<3, 1>(step, [left.row(a), left.row(b), left.row(c)], acc),
                    _ => {}
                }
            }
        }
    }

    /// `R` rows; `S` separate sums an output, so that one row does not wait for the adder.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn tile512<const R: usize, const S: usize>(step: &Step, rows: [Row; R], acc: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            if step.biases.is_null() {
                groups512::<R, S, false>(step, rows, acc)
            } else {
                groups512::<R, S, true>(step, rows, acc)
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn groups512<const R: usize, const S: usize, const BIAS: bool>(step: &Step, rows: [Row; R], acc: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut panel = step.panel;
            let mut codes = rows.map(|r| r.codes);
            let mut out = [[_mm512_setzero_ps(); VECTORS]; R];
            if !step.fresh {
                for r in 0..R {
                    for v in 0..VECTORS {
                        out[r][v] = _mm512_loadu_ps(acc.add(r * COLUMNS + 16 * v));
                    }
                }
            }
            for g in 0..step.groups {
                let mut sums = [[[_mm512_setzero_si512(); VECTORS]; S]; R];
                if !BIAS {
                    for r in 0..R {
                        sums[r][0] = [_mm512_set1_epi32(*rows[r].sums.add(g)); VECTORS];
                    }
                }
                for _ in 0..step.units / S {
                    for s in 0..S {
                        let mut w = [_mm512_setzero_si512(); VECTORS];
                        for v in 0..VECTORS {
                            w[v] = _mm512_loadu_si512(panel.add((s * VECTORS + v) * 64).cast());
                        }
                        for r in 0..R {
                            let x = _mm512_set1_epi32(codes[r].add(4 * s).cast::<i32>().read_unaligned());
                            for v in 0..VECTORS {
                                sums[r][s][v] = _mm512_dpbusd_epi32(sums[r][s][v], w[v], x);
                            }
                        }
                    }
                    panel = panel.add(4 * COLUMNS * S);
                    for r in 0..R {
                        codes[r] = codes[r].add(4 * S);
                    }
                }
                for v in 0..VECTORS {
                    let scale = _mm512_loadu_ps(step.scales.add(g * COLUMNS + 16 * v));
                    let bias =
                        if BIAS { _mm512_loadu_ps(step.biases.add(g * COLUMNS + 16 * v)) } else { _mm512_setzero_ps() };
                    for r in 0..R {
                        let mut sum = sums[r][0][v];
                        for s in 1..S {
                            sum = _mm512_add_epi32(sum, sums[r][s][v]);
                        }
                        let sum = _mm512_cvtepi32_ps(sum);
                        let product = if BIAS {
                            let x_sum = _mm512_set1_ps(f32::from_bits(*rows[r].sums.add(g) as u32));
                            _mm512_fmadd_ps(scale, sum, _mm512_mul_ps(bias, x_sum))
                        } else {
                            _mm512_mul_ps(scale, sum)
                        };
                        let x_scale = _mm512_set1_ps(*rows[r].scales.add(g));
                        out[r][v] = _mm512_fmadd_ps(x_scale, product, out[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..VECTORS {
                    _mm512_storeu_ps(acc.add(r * COLUMNS + 16 * v), out[r][v]);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(step: &Step, left: &Left, pairs: &[Pair], acc: *mut f32) {
        // Sums of two products of bytes stay within 16 bits for so many units.
        let run = match step.largest {
            0..=15 => 8,
            16..=31 => 4,
            32..=63 => 2,
            _ => 1,
        };
        // SAFETY: as the caller promises.
        unsafe {
            for (i, two) in pairs.chunks(2).enumerate() {
                let acc = acc.add(2 * i * COLUMNS);
                match (two, run) {
                    ([a, b], 1) => tile256::<2, true>(step, [left.row(a), left.row(b)], run, acc),
                    ([a, b], _) => tile256::<2, false>(step, [left.row(a), left.row(b)], run, acc),
                    ([a], 1) => tile256::<1, true>(step, [left.row(a)], run, acc),
                    ([a], _) => tile256::<1, false>(step, [left.row(a)], run, acc),
                    _ => {}
                }
            }
        }
    }

    /// `R` rows, sixteen columns at a time. `WIDE`: bytes use their top bit, which is multiplied apart.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile256<const R: usize, const WIDE: bool>(step: &Step, rows: [Row; R], run: usize, acc: *mut f32) {
        let ones = _mm256_set1_epi16(1);
        let top = _mm256_set1_epi8(-128);
        let run = run.min(step.units);
        // SAFETY: as the caller promises.
        unsafe {
            for g in 0..step.groups {
                for v in 0..COLUMNS / 16 {
                    let panel = step.panel.add(4 * (g * step.units * COLUMNS + 16 * v));
                    let mut sums = [[_mm256_setzero_si256(); 2]; R];
                    if step.biases.is_null() {
                        for r in 0..R {
                            sums[r] = [_mm256_set1_epi32(*rows[r].sums.add(g)); 2];
                        }
                    }
                    let mut unit = 0;
                    while unit < step.units {
                        let mut short = [[_mm256_setzero_si256(); 2]; R];
                        for u in unit..unit + run {
                            let w = panel.add(4 * COLUMNS * u);
                            let w = [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast())];
                            for r in 0..R {
                                let x = rows[r].codes.add(4 * (g * step.units + u)).cast::<i32>().read_unaligned();
                                let x = _mm256_set1_epi32(x);
                                for h in 0..2 {
                                    if WIDE {
                                        let low = _mm256_maddubs_epi16(_mm256_andnot_si256(top, w[h]), x);
                                        let high = _mm256_maddubs_epi16(_mm256_and_si256(top, w[h]), x);
                                        sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(high, ones));
                                        short[r][h] = low;
                                    } else {
                                        short[r][h] = _mm256_add_epi16(short[r][h], _mm256_maddubs_epi16(w[h], x));
                                    }
                                }
                            }
                        }
                        for r in 0..R {
                            for h in 0..2 {
                                sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(short[r][h], ones));
                            }
                        }
                        unit += run;
                    }
                    for r in 0..R {
                        let x_scale = _mm256_set1_ps(*rows[r].scales.add(g));
                        let x_sum = _mm256_set1_ps(f32::from_bits(*rows[r].sums.add(g) as u32));
                        for h in 0..2 {
                            let column = 16 * v + 8 * h;
                            let sum = _mm256_cvtepi32_ps(sums[r][h]);
                            let scale = _mm256_loadu_ps(step.scales.add(g * COLUMNS + column));
                            let product = if step.biases.is_null() {
                                _mm256_mul_ps(scale, sum)
                            } else {
                                let bias = _mm256_loadu_ps(step.biases.add(g * COLUMNS + column));
                                _mm256_fmadd_ps(scale, sum, _mm256_mul_ps(bias, x_sum))
                            };
                            let at = acc.add(r * COLUMNS + column);
                            _mm256_storeu_ps(at, _mm256_fmadd_ps(x_scale, product, _mm256_loadu_ps(at)));
                        }
                    }
                }
            }
        }
    }
}
