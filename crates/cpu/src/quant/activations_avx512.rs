//! Activations to 8 bits with AVX-512: a slab of a row stays in registers from its halves to its codes. The arithmetic is that of
//! `activations`, so are the results, bit for bit.

use super::activations::Sum;
use super::panel::DEPTH;
use lapis_core::dtype::Dtype;
use std::arch::x86_64::*;

/// Vectors of a slab.
const VECTORS: usize = DEPTH / 16;

/// Where the codes in `order` lie in four vectors of words that have been packed to bytes, quarter by quarter.
pub(super) fn places(order: &[u8; 32]) -> [u8; 64] {
    std::array::from_fn(|position| {
        let code = position / 32 * 32 + order[position % 32] as usize;
        let (vector, element) = (code / 16, code % 16);
        (element / 4 * 16 + vector * 4 + element % 4) as u8
    })
}

/// Whether rows of `dtype` in groups of `group` are quantized here.
pub(super) fn takes(dtype: Dtype, group: usize) -> bool {
    matches!(dtype, Dtype::Bfloat16 | Dtype::Float16) && matches!(group, 32 | 64 | 128)
}

/// Codes of a whole slab at their `places`, with scales and sums of its groups.
///
/// # Safety
/// The machine has AVX-512 with BW, VNNI and VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) unsafe fn quantize(
    dtype: Dtype,
    bytes: &[u8; 2 * DEPTH],
    group: usize,
    sum: Sum,
    places: &[u8; 64],
    codes: &mut [i8; DEPTH],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let halves = bytes.as_chunks::<32>().0;
    let mut values = [_mm512_setzero_ps(); VECTORS];
    for (value, half) in values.iter_mut().zip(halves) {
        // SAFETY: 32 bytes.
        let half = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
        *value = match dtype {
            Dtype::Float16 => _mm512_cvtph_ps(half),
            _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))),
        };
    }
    match group {
        32 => groups::<2>(&values, sum, places, codes, scales, sums),
        64 => groups::<4>(&values, sum, places, codes, scales, sums),
        _ => groups::<8>(&values, sum, places, codes, scales, sums),
    }
}

/// `N` vectors a group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
fn groups<const N: usize>(
    values: &[__m512; VECTORS],
    sum: Sum,
    places: &[u8; 64],
    codes: &mut [i8; DEPTH],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let mut words = [_mm512_setzero_si512(); VECTORS];
    let mut totals = [0; VECTORS];
    let (magnitude, low) = (_mm512_set1_epi32(0x7fff_ffff), _mm512_set1_epi32(0xff));
    for (g, scale) in scales[..VECTORS / N].iter_mut().enumerate() {
        // As bits, magnitudes order like integers, and NaN is above everything.
        let mut most = _mm512_setzero_si512();
        for i in 0..N {
            most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(values[g * N + i]), magnitude));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epu32(most));
        *scale = largest * (1.0 / 127.0);
        let inverse = _mm512_set1_ps(if *scale == 0.0 { 0.0 } else { 127.0 / largest });
        for i in 0..N {
            // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
            let rounded = _mm512_add_ps(_mm512_mul_ps(values[g * N + i], inverse), _mm512_set1_ps(12582912.0));
            words[g * N + i] = _mm512_and_si512(_mm512_castps_si512(rounded), low);
        }
    }
    // SAFETY: 64 bytes are read, and written.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    for (q, to) in codes.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let w = &words[4 * q..4 * q + 4];
        let bytes = _mm512_packus_epi16(_mm512_packus_epi32(w[0], w[1]), _mm512_packus_epi32(w[2], w[3]));
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutexvar_epi8(places, bytes)) };
        // A quarter has four codes of each vector, one behind the other.
        let fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
        if N == 2 {
            totals[2 * q] = _mm512_mask_reduce_add_epi32(0x3333, fours);
            totals[2 * q + 1] = _mm512_mask_reduce_add_epi32(0xcccc, fours);
        } else {
            totals[4 * q / N] += _mm512_reduce_add_epi32(fours);
        }
    }
    for (total, to) in totals.into_iter().zip(&mut sums[..VECTORS / N]) {
        *to = sum.of(total);
    }
}

/// Puts each run of 32 codes in `order`.
///
/// # Safety
/// The machine has AVX-512 with VBMI.
#[target_feature(enable = "avx512f,avx512vl,avx512vbmi")]
pub(super) unsafe fn permute(order: &[u8; 32], codes: &mut [i8; DEPTH]) {
    // SAFETY: 32 bytes are read from and written to arrays of 32.
    unsafe {
        let order = _mm256_loadu_si256(order.as_ptr().cast());
        for run in codes.as_chunks_mut::<32>().0 {
            let natural = _mm256_loadu_si256(run.as_ptr().cast());
            _mm256_storeu_si256(run.as_mut_ptr().cast(), _mm256_permutexvar_epi8(order, natural));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::activations;
    use super::super::panel::order;
    use super::*;
    use crate::isa::{self, Isa};
    use lapis_core::dtype::{bf16, f16};

    /// Bytes of a slab of halves: of all sizes, with groups of zeros, an infinity and a NaN.
    fn slab(dtype: Dtype, seed: u32) -> [u8; 2 * DEPTH] {
        let mut state = seed;
        let mut bytes = [0; 2 * DEPTH];
        for (i, to) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = match (seed, i) {
                (3, 128..) => 0.0,
                (4, 7) => f32::INFINITY,
                (5, 200) => f32::NAN,
                _ => (state as i32 as f32 / 2e9) * 10f32.powi(i as i32 % 5 - 2),
            };
            *to = if dtype == Dtype::Float16 {
                f16::from_f32(value).to_le_bytes()
            } else {
                bf16::from_f32(value).to_le_bytes()
            };
        }
        bytes
    }

    #[test]
    fn a_slab_is_quantized_as_by_the_generic_loops() {
        if !isa::available().contains(&Isa::Avx512) {
            eprintln!("no AVX-512: nothing to compare");
            return;
        }
        for dtype in [Dtype::Bfloat16, Dtype::Float16] {
            for (group, bits) in [(32, 4), (64, 4), (128, 4), (64, 8), (64, 2), (32, 1), (64, 3)] {
                for seed in 1..=8 {
                    let (bytes, order, n) = (slab(dtype, seed), order(bits), DEPTH / group);
                    for sum in [Sum::Bias, Sum::Offset(12)] {
                        let (mut a, mut b) = (([0; DEPTH], [0.0; 8], [0; 8]), ([0; DEPTH], [0.0; 8], [0; 8]));
                        let (scales, sums) = (&mut a.1[..n], &mut a.2[..n]);
                        activations::quantize(Isa::Scalar, dtype, &bytes, group, sum, &mut a.0, scales, sums);
                        activations::permute(Isa::Scalar, &order, &mut a.0);
                        let (scales, sums) = (&mut b.1[..n], &mut b.2[..n]);
                        // SAFETY: the machine has AVX-512.
                        unsafe { quantize(dtype, &bytes, group, sum, &places(&order), &mut b.0, scales, sums) };
                        let (a_bits, b_bits) = (a.1.map(f32::to_bits), b.1.map(f32::to_bits));
                        assert!((a.0, a_bits, a.2) == (b.0, b_bits, b.2), "{dtype}, {group}, {bits} bits, {seed}");
                    }
                }
            }
        }
    }
}
