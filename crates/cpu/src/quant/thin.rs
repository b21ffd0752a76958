//! Integer products of few rows with sixteen packed rows at a time, weights going from memory to the dot product
//! without a stop in the cache. AVX-512 only.
//!
//! Sixteen rows are read 64 bytes at a time, transposed in registers so that a lane is a column of the result, masked to
//! units, and multiplied by broadcast activations. The arithmetic is that of `dot`, so are the results, bit for bit.
//!
//! Bytes: the weights once. Operations for 64 codes of 4 bits: 2 shuffles, 1 to 1.5 masks, 1 dot product a row; on a
//! core that reads 6 bytes a cycle memory is the limit up to six rows.

// Conditions on constants of an unrolled loop: clippy sees one value of them at a time. The empty assembly touches no
// memory; it takes a pointer to keep it opaque.
#![allow(clippy::absurd_extreme_comparisons, clippy::manual_checked_ops, clippy::manual_is_multiple_of)]
#![allow(clippy::pointers_in_nomem_asm_block)]

use super::activations::Activations;
use super::panel::{DEPTH, FP4_BYTES, TILE_GROUPS};
use super::panel_avx512::{bf16_pairs, scale_strip, spread_controls, transpose};
use super::weights::{Block, ScaleKind};
use std::arch::x86_64::*;

/// Repeats a body for each word of a vector, its number a constant, so that arrays it indexes stay in registers.
macro_rules! unroll {
    ($w:ident $body:block) => {
        unroll!($w $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($w:ident $body:block $($n:literal)*) => {$({
        const $w: usize = $n;
        $body
    })*};
}

/// How far ahead of the reads memory is asked for, in bytes of each row.
const AHEAD: usize = 256;

/// Lanes: packed rows of a strip, columns of the result.
pub(super) const STRIP: usize = 16;

/// The largest number of rows in a call.
pub(super) const ROWS: usize = 8;

/// Rows of activations, one to eight, side by side: what stands at one place of each row is adjacent. Filled up to 1, 4
/// or 8 rows by repeating the last one.
#[derive(Default)]
pub(super) struct Few {
    rows: usize,
    width: usize,
    /// `[unit][width][4]`.
    codes: Vec<i8>,
    /// `[group][width]`, as are the sums.
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Few {
    /// Takes rows of `x` (one to [`ROWS`]), for weights of `cols` columns in groups of `group`.
    pub(super) fn gather(&mut self, x: &Activations, rows: &[usize], cols: usize, group: usize) {
        self.rows = rows.len();
        self.width = match rows.len() {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        self.codes.resize(cols * self.width, 0);
        self.scales.resize(cols / group * self.width, 0.0);
        self.sums.resize(cols / group * self.width, 0);
        for m in 0..self.width {
            let row = rows[m.min(rows.len() - 1)];
            let slabs = self.codes.chunks_mut(DEPTH * self.width);
            let scales = self.scales.chunks_mut(x.groups * self.width);
            let sums = self.sums.chunks_mut(x.groups * self.width);
            for (slab, ((codes, scales), sums)) in slabs.zip(scales).zip(sums).enumerate() {
                let at = slab * x.rows + row;
                if self.width == 1 {
                    codes.copy_from_slice(&x.codes[at * DEPTH..][..codes.len()]);
                    scales.copy_from_slice(&x.scales[at * x.groups..][..scales.len()]);
                    sums.copy_from_slice(&x.sums[at * x.groups..][..sums.len()]);
                    continue;
                }
                let units = codes.as_chunks_mut::<4>().0[m..].iter_mut().step_by(self.width);
                for (to, from) in units.zip(x.codes[at * DEPTH..].as_chunks::<4>().0) {
                    *to = *from;
                }
                let at = at * x.groups;
                scales[m..].iter_mut().step_by(self.width).zip(&x.scales[at..]).for_each(|(to, from)| *to = *from);
                sums[m..].iter_mut().step_by(self.width).zip(&x.sums[at..]).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// What the kernel needs beside the weights.
pub(super) struct Job<'a> {
    pub(super) x: &'a Few,
    /// Codes of a packed row.
    pub(super) cols: usize,
    pub(super) group: usize,
    pub(super) bits: usize,
    pub(super) fp4: bool,
}

/// The result of sixteen columns, row by row, to `out(row)`.
///
/// # Safety
/// The machine has AVX-512 with BW, VL, VNNI and VBMI; `block` has sixteen rows of `job.cols` codes, with their scales.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) unsafe fn strip(block: &Block, job: &Job, out: impl Fn(usize) -> *mut f32) {
    let words = job.group * job.bits / 32;
    // SAFETY: as the caller promises.
    unsafe {
        match (job.bits, job.fp4, words) {
            (4, true, 2) => rows::<4, true, 2>(block, job, out),
            (4, true, _) => rows::<4, true, 4>(block, job, out),
            (4, false, 4) => rows::<4, false, 4>(block, job, out),
            (4, false, 8) => rows::<4, false, 8>(block, job, out),
            (4, false, _) => rows::<4, false, 16>(block, job, out),
            (8, _, 8) => rows::<8, false, 8>(block, job, out),
            (8, _, 16) => rows::<8, false, 16>(block, job, out),
            (8, ..) => rows::<8, false, 32>(block, job, out),
            (2, _, 2) => rows::<2, false, 2>(block, job, out),
            (2, _, 4) => rows::<2, false, 4>(block, job, out),
            (2, ..) => rows::<2, false, 8>(block, job, out),
            (1, _, 1) => rows::<1, false, 1>(block, job, out),
            (1, _, 2) => rows::<1, false, 2>(block, job, out),
            (1, ..) => rows::<1, false, 4>(block, job, out),
            // Other widths are spread to bytes first: 4 codes a word.
            _ => match job.group {
                32 => rows::<0, false, 8>(block, job, out),
                64 => rows::<0, false, 16>(block, job, out),
                _ => rows::<0, false, 32>(block, job, out),
            },
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn rows<const BITS: usize, const FP4: bool, const WORDS: usize>(
    block: &Block,
    job: &Job,
    out: impl Fn(usize) -> *mut f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match job.x.width {
            1 => kernel::<BITS, FP4, WORDS, 1, 2>(block, job, out),
            4 => kernel::<BITS, FP4, WORDS, 4, 1>(block, job, out),
            _ => kernel::<BITS, FP4, WORDS, 8, 1>(block, job, out),
        }
    }
}

/// `WORDS`: words of a group (after spreading, where `BITS` is 0). `M` rows. `S` separate sums an output, so that one row does not wait for the adder.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn kernel<const BITS: usize, const FP4: bool, const WORDS: usize, const M: usize, const S: usize>(
    block: &Block,
    job: &Job,
    out: impl Fn(usize) -> *mut f32,
) {
    let (x, bits) = (job.x, job.bits);
    let (bias, per_word) = (!FP4, if BITS == 0 { 1 } else { 8 / BITS });
    // Units of a word in place, `2^(BITS * h)` times too large, each with its own sum, save the shifts.
    let in_place = !FP4 && M * per_word <= 8;
    let (packed, stride) = (block.packed.as_ptr(), block.stride);
    let mask = _mm512_set1_epi8(((1u16 << bits) - 1) as i8);
    let [runs, cuts] = spread_controls(bits);
    // Scale and bias of a group fit one lane as they are.
    let pairs = bias && block.kind == ScaleKind::Bf16;
    let high = _mm512_set1_epi32(0xffff << 16);
    let mut scales = [[_mm512_setzero_si512(); 2]; TILE_GROUPS];
    let mut sums = [[[_mm512_setzero_si512(); S]; 8]; M];
    let mut acc = [_mm512_setzero_ps(); M];
    let groups = job.cols / job.group;
    let mut group = 0;
    let (x_scales, x_sums) = (x.scales.as_ptr(), x.sums.as_ptr());
    // Memory for the next strip's scales is asked for in step with the weights.
    let next_scales = block.scales.as_ptr().wrapping_add(STRIP * block.scale_stride);
    let next_biases = block.biases.as_ptr().wrapping_add(STRIP * block.scale_stride);
    let step = STRIP * block.scale_stride * 64 / stride;
    // SAFETY: as the caller promises; masks keep loads within rows, and a prefetch may name any address.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(FP4_BYTES.as_ptr().cast()));
        for slab in 0..job.cols.div_ceil(DEPTH) {
            if group % TILE_GROUPS == 0 {
                let count = (groups - group).min(TILE_GROUPS);
                if pairs {
                    bf16_pairs(block, group, count, &mut scales);
                } else {
                    let factor = if FP4 { 0.5 * block.factor } else { block.factor };
                    let to = scales.as_mut_ptr().cast::<f32>();
                    scale_strip(block, block.scales, 0, group, count, factor, to, 2 * STRIP);
                    if bias {
                        scale_strip(block, block.biases, 0, group, count, 1.0, to.add(STRIP), 2 * STRIP);
                    }
                }
            }
            let codes = x.codes.as_ptr().add(slab * DEPTH * M);
            // In words of 32 bits, or of four codes where they are spread.
            let width = (job.cols - slab * DEPTH).min(DEPTH);
            let end = if BITS == 0 { width / 4 } else { width * bits / 32 };
            let mut first = 0;
            while first < end {
                let count = (end - first).min(16);
                let bytes = if BITS == 0 { count * bits / 2 } else { 4 * count };
                let at = slab * DEPTH * bits / 8 + if BITS == 0 { first * bits / 2 } else { 4 * first };
                // Past the end of these rows, the next strip's.
                let ahead = if at + AHEAD < stride { AHEAD } else { AHEAD + (STRIP - 1) * stride };
                let lanes = u64::MAX >> (64 - bytes);
                let mut r = [_mm512_setzero_si512(); STRIP];
                let mut p = opaque(packed.add(at));
                let mut q = opaque(p.wrapping_add(ahead));
                for quad in 0..STRIP / 4 {
                    for i in 0..4 {
                        r[4 * quad + i] = _mm512_maskz_loadu_epi8(lanes, p.wrapping_add(i * stride).cast());
                    }
                    p = opaque(p.wrapping_add(4 * stride));
                }
                if BITS == 0 {
                    for i in 0..STRIP {
                        let run = _mm512_permutexvar_epi8(runs, r[i]);
                        r[i] = _mm512_and_si512(_mm512_multishift_epi64_epi8(cuts, run), mask);
                    }
                }
                let line = at / 64 * step;
                for i in 0..step.div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(next_scales.wrapping_add(line + 64 * i).cast());
                    if bias {
                        _mm_prefetch::<_MM_HINT_T0>(next_biases.wrapping_add(line + 64 * i).cast());
                    }
                }
                let t = transpose(r);
                'words: {
                    unroll!(W {
                        _mm_prefetch::<_MM_HINT_T0>(q.cast());
                        q = opaque(q.wrapping_add(stride));
                        if BITS == 1 && W == 8 {
                            break 'words;
                        }
                        if W % WORDS == 0 && (WORDS <= 16 || first % WORDS == 0) {
                            if W > 0 && group == groups {
                                break 'words;
                            }
                            for m in 0..M {
                                let start = if bias { 0 } else { *x_sums.add(group * M + m) };
                                sums[m] = [[_mm512_setzero_si512(); S]; 8];
                                sums[m][0][0] = _mm512_set1_epi32(start);
                            }
                        }
                        for h in 0..per_word {
                            let shift = _mm_cvtsi32_si128((BITS * h) as i32);
                            let unit = match BITS {
                                0 | 8 => t[W],
                                _ if h == 0 => _mm512_and_si512(t[W], mask),
                                _ if in_place => _mm512_and_si512(t[W], _mm512_sll_epi32(mask, shift)),
                                _ => _mm512_and_si512(_mm512_srl_epi32(t[W], shift), mask),
                            };
                            let unit = if FP4 { _mm512_shuffle_epi8(table, unit) } else { unit };
                            let own = if in_place { h } else { 0 };
                            for m in 0..M {
                                let code = codes.add(4 * (((first + W) * per_word + h) * M + m)).cast::<i32>().read_unaligned();
                                let sum = &mut sums[m][own][W % S];
                                *sum = _mm512_dpbusd_epi32(*sum, unit, _mm512_set1_epi32(code));
                            }
                        }
                        if (W + 1) % WORDS == 0 || (WORDS > 16 && W == 15 && (first + 16) % WORDS == 0) {
                            let [mut scale, mut w_bias] = scales[group % TILE_GROUPS];
                            if pairs {
                                w_bias = _mm512_slli_epi32::<16>(scale);
                                scale = _mm512_and_si512(scale, high);
                            }
                            for m in 0..M {
                                let mut sum = _mm512_setzero_si512();
                                for h in 0..if in_place { per_word } else { 1 } {
                                    let mut part = sums[m][h][0];
                                    for s in 1..S {
                                        part = _mm512_add_epi32(part, sums[m][h][s]);
                                    }
                                    if h > 0 {
                                        part = _mm512_sra_epi32(part, _mm_cvtsi32_si128((BITS * h) as i32));
                                    }
                                    sum = if h == 0 { part } else { _mm512_add_epi32(sum, part) };
                                }
                                let sum = _mm512_cvtepi32_ps(sum);
                                let scale = _mm512_castsi512_ps(scale);
                                let product = if bias {
                                    let x_sum = _mm512_set1_ps(f32::from_bits(*x_sums.add(group * M + m) as u32));
                                    _mm512_fmadd_ps(scale, sum, _mm512_mul_ps(_mm512_castsi512_ps(w_bias), x_sum))
                                } else {
                                    _mm512_mul_ps(scale, sum)
                                };
                                acc[m] = _mm512_fmadd_ps(_mm512_set1_ps(*x_scales.add(group * M + m)), product, acc[m]);
                            }
                            group += 1;
                        }
                    });
                }
                first += 16;
            }
        }
        for m in 0..x.rows {
            _mm512_storeu_ps(out(m), acc[m]);
        }
    }
}

/// Keeps the compiler from computing sixteen addresses ahead of the loop, which would not fit the registers.
#[inline(always)]
fn opaque(mut p: *const u8) -> *const u8 {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) }
    p
}
