//! Registers of AVX-512 as matrices of words, turned.

use std::arch::x86_64::*;

/// Transposes 16 x 16 lanes of 32 bits.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let (mut a, mut out) = (r, r);
    for i in 0..4 {
        a[4 * i..4 * i + 4].copy_from_slice(&fours([r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]]));
    }
    for j in 0..4 {
        [out[j], out[4 + j], out[8 + j], out[12 + j]] = quarters([a[j], a[4 + j], a[8 + j], a[12 + j]]);
    }
    out
}

/// Transposes 4 x 4 lanes of 32 bits in each run of 128 bits: such a run `l` of vector `j` holds column `4 * l + j` of the four.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn fours(r: [__m512i; 4]) -> [__m512i; 4] {
    let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
    let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
    [_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)]
}

/// Transposes 4 x 4 lanes of 128 bits.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn quarters(k: [__m512i; 4]) -> [__m512i; 4] {
    let (a, b) = (_mm512_shuffle_i32x4::<0x44>(k[0], k[1]), _mm512_shuffle_i32x4::<0xee>(k[0], k[1]));
    let (c, d) = (_mm512_shuffle_i32x4::<0x44>(k[2], k[3]), _mm512_shuffle_i32x4::<0xee>(k[2], k[3]));
    [
        _mm512_shuffle_i32x4::<0x88>(a, c),
        _mm512_shuffle_i32x4::<0xdd>(a, c),
        _mm512_shuffle_i32x4::<0x88>(b, d),
        _mm512_shuffle_i32x4::<0xdd>(b, d),
    ]
}
