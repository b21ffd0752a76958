//! Integer products of one row of activations, where packed rows are read one after the other: for machines that read memory
//! fastest in the order of addresses. AVX-512 only.
//!
//! Sixteen packed rows are one stretch of memory, taken in lots of sixteen vectors. Words stay where they are: each is
//! multiplied by the activations that belong to it, and the lanes of a group are summed. Sums, scales and biases lie in the
//! same order, row by row, so that they meet without a shuffle; only what comes of it is turned, so that a lane is a column
//! of the result. The arithmetic is that of `dot`, so are the results, bit for bit.
//!
//! Bytes: the weights once. Operations for 64 bytes of them: 5 to unpack and multiply, 2.8 to sum, 1 to scale, 0.6 to turn.

use super::lone::{dot, even, odd};
use super::panel_avx512::{Controls, sixteen};
use super::thin::{Job, STRIP, units};
use super::weights::Block;
use crate::turn::transpose;
use std::arch::x86_64::*;

/// Vectors of a lot, and bytes of one.
pub(super) const LOT: usize = 16;
const VECTOR: usize = 64;
/// Groups of a vector at most.
pub(super) const MOST_GROUPS: usize = 4;

/// How far ahead memory is asked for, in bytes of weights.
const AHEAD: usize = 16 << 10;

/// Room that [`block`] needs for weights of `groups` groups a row: a strip's products, and what a load reads behind them.
pub(super) const fn room(groups: usize) -> usize {
    (groups + 1) * STRIP
}

/// Whether these weights are read so: rows are whole vectors, and vectors whole groups.
pub(super) fn fits(block: &Block, job: &Job) -> bool {
    let words = job.group * job.bits / 32;
    block.stride.is_multiple_of(VECTOR) && matches!(job.bits, 1 | 2 | 4 | 8) && matches!(words, 4 | 8 | 16)
}

/// The result of a block's columns, strip by strip, to `out`.
///
/// # Safety
/// The machine has AVX-512 with BW, VL, VNNI and VBMI; `block` [`fits`] and has a multiple of sixteen rows of `job.cols`
/// codes, with their scales; `out` has room for as many, `products` for [`room`]; `job.x` holds one row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) unsafe fn block(block: &Block, job: &Job, products: *mut f32, out: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        match (job.bits, job.fp4, job.group * job.bits / 32) {
            (4, true, _) => kernel::<4, true, 4>(block, job, products, out),
            (4, false, 4) => kernel::<4, false, 4>(block, job, products, out),
            (4, false, 8) => kernel::<4, false, 8>(block, job, products, out),
            (4, false, _) => kernel::<4, false, 16>(block, job, products, out),
            (8, _, 8) => kernel::<8, false, 8>(block, job, products, out),
            (8, ..) => kernel::<8, false, 16>(block, job, products, out),
            (2, _, 4) => kernel::<2, false, 4>(block, job, products, out),
            (2, ..) => kernel::<2, false, 8>(block, job, products, out),
            _ => kernel::<1, false, 4>(block, job, products, out),
        }
    }
}

/// `WORDS`: words of a group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn kernel<const BITS: usize, const FP4: bool, const WORDS: usize>(
    block: &Block,
    job: &Job,
    products: *mut f32,
    out: *mut f32,
) {
    let controls = Controls::new(job.bits);
    let (groups, codes) = (job.cols / job.group, VECTOR * units(BITS));
    // Vectors of a row, vectors of sums of a lot, and bytes of their scales.
    let (vectors, turns) = (block.stride / VECTOR, 16 / WORDS);
    let scale_bytes = 16 * turns * block.kind.size();
    let scale_ahead = AHEAD / (LOT * VECTOR) * scale_bytes;
    let factor = _mm512_set1_ps(if FP4 { 0.5 * block.factor } else { block.factor });
    for strip in 0..block.valid / STRIP {
        let mut packed = block.packed.as_ptr().wrapping_add(strip * STRIP * block.stride);
        let mut scales = block.scales.as_ptr().wrapping_add(strip * STRIP * block.scale_stride);
        let mut biases = block.biases.as_ptr().wrapping_add(strip * STRIP * block.scale_stride);
        let mut to = products;
        // Where the lot begins in its row of weights.
        let mut first = 0;
        for _ in 0..vectors {
            // SAFETY: sixteen rows are `vectors` lots; `x` and its sums go on behind their ends for a lot; a prefetch may name any
            // address.
            unsafe {
                let x = job.x.codes.as_ptr().add(first * codes);
                let x_sums = job.x.sums.as_ptr().add(first * turns);
                let mut d = [_mm512_setzero_si512(); LOT];
                for (i, d) in d.iter_mut().enumerate() {
                    _mm_prefetch::<_MM_HINT_T1>(packed.wrapping_add(AHEAD + VECTOR * i).cast());
                    let words = _mm512_loadu_si512(packed.add(VECTOR * i).cast());
                    *d = dot::<BITS, FP4>(*d, words, x.add(codes * i), &controls);
                }
                for line in (0..scale_bytes).step_by(VECTOR) {
                    _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(scale_ahead + line).cast());
                    if !FP4 {
                        _mm_prefetch::<_MM_HINT_T0>(biases.wrapping_add(scale_ahead + line).cast());
                    }
                }
                let sums = sums::<WORDS>(d);
                for turn in 0..turns {
                    let at = 16 * turn * block.kind.size();
                    let scale = sixteen(block.kind, scales.add(at), !0, factor);
                    let x_sum = _mm512_loadu_si512(x_sums.add(16 * turn).cast());
                    let product = if FP4 {
                        _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_add_epi32(sums[turn], x_sum)))
                    } else {
                        let bias = sixteen(block.kind, biases.add(at), !0, factor);
                        let x_sum = _mm512_castsi512_ps(x_sum);
                        _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[turn]), _mm512_mul_ps(bias, x_sum))
                    };
                    _mm512_storeu_ps(to.add(16 * turn), product);
                }
                packed = packed.add(LOT * VECTOR);
                scales = scales.add(scale_bytes);
                biases = biases.wrapping_add(scale_bytes);
                to = to.add(16 * turns);
            }
            first = (first + LOT) % vectors;
        }
        // SAFETY: rows of `groups` products, and room for a load that begins in the last; the row of `x` has a scale a group.
        unsafe {
            let mut acc = _mm512_setzero_ps();
            for group in (0..groups).step_by(16) {
                let mut rows = [_mm512_setzero_si512(); STRIP];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = _mm512_loadu_si512(products.add(i * groups + group).cast());
                }
                for (g, product) in transpose(rows).into_iter().take(groups - group).enumerate() {
                    let x_scale = _mm512_set1_ps(*job.x.scales.as_ptr().add(group + g));
                    acc = _mm512_fmadd_ps(x_scale, _mm512_castsi512_ps(product), acc);
                }
            }
            _mm512_storeu_ps(out.add(strip * STRIP), acc);
        }
    }
}

/// Sums of runs of `WORDS` lanes (4, 8 or 16) of sixteen vectors, one behind the other.
///
/// A transposition that adds the halves it would otherwise keep apart.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums<const WORDS: usize>(d: [__m512i; LOT]) -> [__m512i; MOST_GROUPS] {
    let mut h = [_mm512_setzero_si512(); 8];
    for i in 0..8 {
        h[i] = _mm512_add_epi32(even(d[2 * i], d[2 * i + 1]), odd(d[2 * i], d[2 * i + 1]));
    }
    // 128-bit lanes of `k[i]`: vectors 4i to 4i + 3, one sum of four words each.
    let mut k = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        k[i] = _mm512_add_epi32(even(h[2 * i], h[2 * i + 1]), odd(h[2 * i], h[2 * i + 1]));
    }
    if WORDS == 4 {
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for i in 0..4 {
            k[i] = _mm512_permutexvar_epi32(order, k[i]);
        }
        return k;
    }
    let add = |a, b| _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    let (a, b) = (add(k[0], k[1]), add(k[2], k[3]));
    if WORDS == 8 {
        // 128-bit lanes of `a`: first sums of vectors 0 to 3, their second ones, and so on.
        let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
        (k[0], k[1]) = (_mm512_permutexvar_epi32(order, a), _mm512_permutexvar_epi32(order, b));
    } else {
        k[0] = add(a, b);
    }
    k
}
