//! Integer products of one row of activations: what decoding a single sequence is made of. AVX-512 only.
//!
//! Sixteen packed rows are read 64 bytes at a time. Words stay where they are: each is multiplied by the activations
//! that belong to it, and lanes are summed on the way to a vector of sixteen columns. That takes fewer shuffles than
//! turning the words around (`thin`). The arithmetic is that of `dot`, so are the results, bit for bit.
//!
//! Bytes: the weights once, 36 for 64 codes of 4 bits with bf16 scale and bias. Operations for those: 4 to unpack and
//! multiply, 1.3 to sum, 0.4 to scale, two a cycle; memory delivers 36 bytes in 6 cycles on the reference machine, of
//! which 85 to 90 % are reached.

use super::panel::TILE_GROUPS;
use super::panel_avx512::{Controls, Scales};
use super::thin::{AHEAD, Job, STRIP, Strip, units};
use super::weights::Block;
use crate::isa::features;
use crate::turn::{quarters, transpose};
use std::arch::x86_64::*;

/// The result of a block's columns, strip by strip, to `out`.
///
/// # Safety
/// The machine has AVX-512 with BW, VL, VNNI and VBMI; `block` has a multiple of sixteen rows of `job.cols` codes, with
/// their scales; `out` has room for as many; `job.x` holds one row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) unsafe fn block(block: &Block, job: &Job, out: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe { if features().in_order { formats::<true>(block, job, out) } else { formats::<false>(block, job, out) } }
}

/// `IN_ORDER`: how memory is asked for (see `Features`).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn formats<const IN_ORDER: bool>(block: &Block, job: &Job, out: *mut f32) {
    let words = job.group * job.bits / 32;
    // SAFETY: as the caller promises.
    unsafe {
        match (job.bits, job.fp4, words) {
            (4, true, 2) => kernel::<4, true, 2, IN_ORDER>(block, job, out),
            (4, true, _) => kernel::<4, true, 4, IN_ORDER>(block, job, out),
            (4, false, 4) => kernel::<4, false, 4, IN_ORDER>(block, job, out),
            (4, false, 8) => kernel::<4, false, 8, IN_ORDER>(block, job, out),
            (4, false, _) => kernel::<4, false, 16, IN_ORDER>(block, job, out),
            (8, _, 8) => kernel::<8, false, 8, IN_ORDER>(block, job, out),
            (8, _, 16) => kernel::<8, false, 16, IN_ORDER>(block, job, out),
            (8, ..) => kernel::<8, false, 32, IN_ORDER>(block, job, out),
            (2, _, 2) => kernel::<2, false, 2, IN_ORDER>(block, job, out),
            (2, _, 4) => kernel::<2, false, 4, IN_ORDER>(block, job, out),
            (2, ..) => kernel::<2, false, 8, IN_ORDER>(block, job, out),
            (1, _, 1) => kernel::<1, false, 1, IN_ORDER>(block, job, out),
            (1, _, 2) => kernel::<1, false, 2, IN_ORDER>(block, job, out),
            (1, ..) => kernel::<1, false, 4, IN_ORDER>(block, job, out),
            // Other widths are spread to bytes first: 4 codes a word.
            _ => match job.group {
                32 => kernel::<0, false, 8, IN_ORDER>(block, job, out),
                64 => kernel::<0, false, 16, IN_ORDER>(block, job, out),
                _ => kernel::<0, false, 32, IN_ORDER>(block, job, out),
            },
        }
    }
}

/// `WORDS`: words of a group (after spreading, where `BITS` is 0).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn kernel<const BITS: usize, const FP4: bool, const WORDS: usize, const IN_ORDER: bool>(
    block: &Block,
    job: &Job,
    out: *mut f32,
) {
    // Vectors of a row that go into one sum, and codes and bytes of one.
    let vectors = WORDS.div_ceil(16);
    let codes = 64 * units(BITS);
    let bytes = if BITS > 0 { codes * BITS / 8 } else { codes * job.bits / 8 };
    let controls = Controls::new(job.bits);
    let end = job.cols * job.bits / 8;
    let groups = job.cols / job.group;
    let mut scales = Scales::new(block, !FP4);
    // Memory for the next scales is asked for in step with the weights.
    let step = STRIP * block.scale_stride * bytes * vectors / block.stride;
    for nth in 0..block.valid / STRIP {
        let strip = Strip::of(block, nth);
        let packed = block.packed.as_ptr().wrapping_add(strip.first * block.stride);
        let (stride, beyond) = (strip.step * block.stride, strip.ahead(block));
        let next = strip.first * block.scale_stride + strip.scales_ahead(block);
        let (mut at, mut line, mut group) = (0, 0, 0usize);
        let mut x = job.x.codes.as_ptr();
        let mut acc = _mm512_setzero_ps();
        while at < end {
            if group.is_multiple_of(TILE_GROUPS) {
                // SAFETY: the group exists.
                unsafe { scales.load(block, strip, group, (groups - group).min(TILE_GROUPS), FP4) };
            }
            let lanes = |v: usize| {
                u64::MAX.checked_shr(64 - (end - at).saturating_sub(v * bytes).min(bytes) as u32).unwrap_or(0)
            };
            let lanes = [lanes(0), if vectors > 1 { lanes(1) } else { 0 }];
            // Where a step takes a line of every row, two steps share their pairs of lines: each fetches those of eight rows,
            // because memory answers pairs faster than lines of as many rows.
            let shared = bytes * vectors == 64;
            let odd = if shared { at / 64 % 2 } else { 0 };
            let from = at - 64 * odd;
            // Past the end of these rows, the next strip's.
            let ahead = if from + AHEAD < end { AHEAD } else { AHEAD + beyond };
            // SAFETY: masks keep loads within rows; `x` is padded to whole vectors; a prefetch may name any address.
            let sums = unsafe {
                let mut d = [_mm512_setzero_si512(); STRIP];
                let soon = if IN_ORDER { Strip::in_order(block) + STRIP * at } else { from + ahead + 8 * odd * stride };
                let (mut here, mut there) = (opaque(at), opaque(soon));
                for quad in 0..STRIP / 4 {
                    for i in 0..4 {
                        for v in 0..vectors {
                            if IN_ORDER {
                                let line = (i * vectors + v) * bytes;
                                _mm_prefetch::<_MM_HINT_T1>(packed.wrapping_add(there + line).cast());
                            } else {
                                let line = if shared { i / 2 * stride + i % 2 * 64 } else { i * stride + 64 * v };
                                _mm_prefetch::<_MM_HINT_T0>(packed.wrapping_add(there + line).cast());
                            }
                            let row = packed.wrapping_add(here + i * stride + v * bytes);
                            let words = _mm512_maskz_loadu_epi8(lanes[v], row.cast());
                            let sum = d[4 * quad + i];
                            d[4 * quad + i] = dot::<BITS, FP4>(sum, words, x.add(v * codes), &controls);
                        }
                    }
                    // Finished before the next rows are asked for: requests to memory spread over time do not wait for each
                    // other.
                    d[4 * quad + 3] = finished(d[4 * quad + 3]);
                    let rows = if shared { 2 } else { 4 };
                    let next = if IN_ORDER { 4 * vectors * bytes } else { rows * stride };
                    (here, there) = (opaque(here + 4 * stride), opaque(there + next));
                }
                for i in 0..step.div_ceil(64) {
                    let ahead = next + line + 64 * i;
                    _mm_prefetch::<_MM_HINT_T0>(block.scales.as_ptr().wrapping_add(ahead).cast());
                    if !FP4 {
                        _mm_prefetch::<_MM_HINT_T0>(block.biases.as_ptr().wrapping_add(ahead).cast());
                    }
                }
                x = x.add(vectors * codes);
                columns::<WORDS>(d)
            };
            line += step;
            at += vectors * bytes;
            for g in 0..(16 / WORDS).max(1) {
                if g > 0 && group == groups {
                    break;
                }
                // SAFETY: its scales were loaded; the row's scales and sums have one entry a group.
                let ((scale, bias), x_scale, x_sum) =
                    unsafe { (scales.get(group), *job.x.scales.as_ptr().add(group), *job.x.sums.as_ptr().add(group)) };
                let product = if FP4 {
                    _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_add_epi32(sums[g], _mm512_set1_epi32(x_sum))))
                } else {
                    let x_sum = _mm512_set1_ps(f32::from_bits(x_sum as u32));
                    _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[g]), _mm512_mul_ps(bias, x_sum))
                };
                acc = _mm512_fmadd_ps(_mm512_set1_ps(x_scale), product, acc);
                group += 1;
            }
        }
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(out.add(nth * STRIP), acc) }
    }
}

/// Hides a number from the compiler, so that it does not compute the addresses of sixteen rows ahead of a loop, which
/// would not fit the registers.
#[inline(always)]
fn opaque(mut n: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) n, options(nomem, nostack, preserves_flags)) }
    n
}

/// Keeps the compiler from moving the work on a vector past what follows.
#[target_feature(enable = "avx512f")]
#[inline]
fn finished(mut v: __m512i) -> __m512i {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(nomem, nostack, preserves_flags)) }
    v
}

/// Adds to each lane the products of the codes of a word with the activations at its place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
pub(super) unsafe fn dot<const BITS: usize, const FP4: bool>(
    mut sum: __m512i,
    words: __m512i,
    x: *const i8,
    controls: &Controls,
) -> __m512i {
    for h in 0..units(BITS) {
        let unit = match BITS {
            0 => controls.spread(words),
            8 => words,
            _ if h == 0 => _mm512_and_si512(words, controls.mask),
            _ => {
                let shift = _mm_cvtsi32_si128((BITS * h) as i32);
                _mm512_and_si512(_mm512_srl_epi16(words, shift), controls.mask)
            }
        };
        let unit = if FP4 { _mm512_shuffle_epi8(controls.fp4, unit) } else { unit };
        // SAFETY: the caller vouches for a vector of activations a unit.
        sum = _mm512_dpbusd_epi32(sum, unit, unsafe { _mm512_loadu_si512(x.add(64 * h).cast()) });
    }
    sum
}

/// Sums runs of `WORDS` lanes of sixteen rows, and turns them into a vector of sixteen rows a run.
///
/// A transposition in four steps, in which the first steps add the halves they would otherwise keep apart.
#[target_feature(enable = "avx512f")]
#[inline]
fn columns<const WORDS: usize>(d: [__m512i; 16]) -> [__m512i; 16] {
    if WORDS == 1 {
        return transpose(d);
    }
    let mut out = d;
    // 128-bit lanes of `h[i]`: rows 2i and 2i + 1, two sums of two words each.
    let mut h = [_mm512_setzero_si512(); 8];
    for i in 0..8 {
        h[i] = _mm512_add_epi32(even(d[2 * i], d[2 * i + 1]), odd(d[2 * i], d[2 * i + 1]));
    }
    if WORDS == 2 {
        for i in 0..4 {
            (out[i], out[4 + i]) = (even(h[2 * i], h[2 * i + 1]), odd(h[2 * i], h[2 * i + 1]));
        }
        let (a, b) = (quarters([out[0], out[1], out[2], out[3]]), quarters([out[4], out[5], out[6], out[7]]));
        for i in 0..4 {
            (out[2 * i], out[2 * i + 1]) = (a[i], b[i]);
        }
        return out;
    }
    // 128-bit lanes of `k[i]`: rows 4i to 4i + 3, one sum of four words each.
    let mut k = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        k[i] = _mm512_add_epi32(even(h[2 * i], h[2 * i + 1]), odd(h[2 * i], h[2 * i + 1]));
    }
    if WORDS == 4 {
        let k = quarters(k);
        out[..4].copy_from_slice(&k);
        return out;
    }
    let add = |a, b| _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    let (a, b) = (add(k[0], k[1]), add(k[2], k[3]));
    if WORDS == 8 {
        // Lanes of `a` and `b`: rows 0 to 3 twice, rows 4 to 7 twice, and so on.
        (out[0], out[1]) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    } else {
        out[0] = add(a, b);
    }
    out
}

/// In each 128-bit lane: words 0 and 2 of `a`, then of `b`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn even(a: __m512i, b: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)))
}

/// In each 128-bit lane: words 1 and 3 of `a`, then of `b`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn odd(a: __m512i, b: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_shuffle_ps::<0xdd>(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)))
}
