//! Codes and their bit strings: widths 1 to 8, E4M3, E2M1 and E8M0.
//!
//! A row of codes is a little-endian bit string: code `i` occupies bits `[i * bits, (i + 1) * bits)`, whatever the
//! width, so eight codes are always `bits` bytes. Knows nothing of scales.

versions! {
    /// Unpacks `codes.len()` codes (a multiple of 8) of `bits` bits from a packed row.
    pub fn unpack_row(bits: usize, packed: &[u8], codes: &mut [u8]) = unpack_any;
}

versions! {
    /// Packs codes (a multiple of 8, each below `2^bits`) into `codes.len() * bits / 8` bytes.
    pub fn pack_row(bits: usize, codes: &[u8], packed: &mut [u8]) = pack_any;
}

#[inline(always)]
pub(super) fn unpack_any(bits: usize, packed: &[u8], codes: &mut [u8]) {
    match bits {
        1 => unpack::<1>(packed, codes),
        2 => unpack::<2>(packed, codes),
        3 => unpack::<3>(packed, codes),
        4 => unpack::<4>(packed, codes),
        5 => unpack::<5>(packed, codes),
        6 => unpack::<6>(packed, codes),
        _ => codes.copy_from_slice(&packed[..codes.len()]),
    }
}

#[inline(always)]
fn unpack<const BITS: usize>(packed: &[u8], codes: &mut [u8]) {
    for (eight, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().zip(packed.as_chunks::<BITS>().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (j, code) in eight.iter_mut().enumerate() {
            *code = (word >> (BITS * j)) as u8 & ((1 << BITS) - 1);
        }
    }
}

#[inline(always)]
pub(super) fn pack_any(bits: usize, codes: &[u8], packed: &mut [u8]) {
    match bits {
        1 => pack::<1>(codes, packed),
        2 => pack::<2>(codes, packed),
        3 => pack::<3>(codes, packed),
        4 => pack::<4>(codes, packed),
        5 => pack::<5>(codes, packed),
        6 => pack::<6>(codes, packed),
        _ => packed[..codes.len()].copy_from_slice(codes),
    }
}

#[inline(always)]
fn pack<const BITS: usize>(codes: &[u8], packed: &mut [u8]) {
    for (eight, bytes) in codes.as_chunks::<8>().0.iter().zip(packed.as_chunks_mut::<BITS>().0) {
        let word = eight.iter().rev().fold(0u64, |word, &code| word << BITS | code as u64);
        bytes.copy_from_slice(&word.to_le_bytes()[..BITS]);
    }
}

/// The nearest E4M3 code, ties to even; magnitudes from 448 on, infinity and NaN become 448 with their sign.
#[inline(always)]
pub fn encode_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let bits = x.to_bits() & 0x7fff_ffff;
    // Adding 2^14 leaves the multiple of 2^-9 (the subnormal step) in the low bits, rounded by the adder.
    let subnormal = (f32::from_bits(bits) + 16384.0).to_bits() as u8;
    let rounded = bits.wrapping_add(0x7ffff + (bits >> 20 & 1)) >> 20;
    let normal = rounded.wrapping_sub((127 - 7) << 3) as u8;
    let code = if bits < 0x3c80_0000 { subnormal } else { normal };
    sign | if bits < 0x43e0_0000 { code } else { 0x7e }
}

/// The value of an E4M3 code; 0x7f and 0xff are NaN.
#[inline(always)]
pub fn decode_e4m3(code: u8) -> f32 {
    let sign = (code as u32 & 0x80) << 24;
    let magnitude = code as u32 & 0x7f;
    let normal = (magnitude << 20) + ((127 - 7) << 23);
    let subnormal = (magnitude as f32 * (1.0 / 512.0)).to_bits();
    let bits = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(sign | if magnitude == 0x7f { 0x7fc0_0000 } else { bits })
}

/// The nearest E2M1 code; on a tie the lower code, so ties go toward zero and tiny negatives become +0. NaN gives 0.
///
/// For `|x|` up to 2^20, where distances to the sixteen values are exact enough to differ.
#[inline(always)]
pub(super) fn encode_e2m1_moderate(x: f32) -> u8 {
    let a = x.abs();
    let mut code = 0;
    for threshold in [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
        code += (a > threshold) as u8;
    }
    code | if code != 0 && x < 0.0 { 8 } else { 0 }
}

/// The nearest E2M1 code for any `x`.
///
/// On a tie of the f32 distances the lowest code wins; infinities and NaN are equally far from everything: code 0.
pub fn encode_e2m1(x: f32) -> u8 {
    if x.abs() < 1048576.0 {
        return encode_e2m1_moderate(x);
    }
    let mut best = (f32::INFINITY, 0);
    for code in 0..16 {
        let distance = (x - decode_e2m1(code)).abs();
        if distance < best.0 {
            best = (distance, code);
        }
    }
    best.1
}

/// The value of an E2M1 code (the low four bits): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and, from 8 on, their negatives.
#[inline(always)]
pub fn decode_e2m1(code: u8) -> f32 {
    let magnitude = code as u32 & 7;
    // 0 and 0.5 are the subnormal step; from 1 on the three bits are the top of an f32 with exponent bias 1.
    let bits = if magnitude < 2 { magnitude * 0x3f00_0000 } else { (magnitude << 22) + (126 << 23) };
    f32::from_bits(bits | (code as u32 & 8) << 28)
}

/// The byte of the smallest power of two that is at least `x` (127 for 0), clamped to `2^-127 ..= 2^127`.
#[inline(always)]
pub fn encode_e8m0(x: f32) -> u8 {
    let bits = x.to_bits() & 0x7fff_ffff;
    let (exponent, mantissa) = (bits >> 23, bits & 0x7f_ffff);
    let byte = if exponent == 0 { (mantissa > 0x40_0000) as u32 } else { exponent + (mantissa != 0) as u32 };
    if bits == 0 { 127 } else { byte.min(254) as u8 }
}

/// `2^(byte - 127)`.
#[inline(always)]
pub fn decode_e8m0(byte: u8) -> f32 {
    f32::from_bits(((byte as u32) << 23).max(0x40_0000))
}
