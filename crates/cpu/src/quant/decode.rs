//! Panels of decoded weights, `[k][64 columns]` of f32, for the products that are done in f32.
//!
//! From a byte panel where groups run along the reduction axis, or straight from packed rows where they run along the
//! columns. Decoding is `code * scale + bias` in f32, without the roundings to half precision that `dequantize` makes.

use super::codes::{decode_e4m3, unpack_any};
use super::format::Mode;
use super::panel::{COLUMNS, FP4_BYTES, FP4_OFFSET, PANEL, SCALE_TILE, TILE_GROUPS};
use super::weights::Block;

/// Reduction steps of an f32 panel: 16 KiB, a third of the first-level cache.
pub(super) const DEPTH: usize = 64;
/// Elements of an f32 panel.
pub(super) const PANEL_F32: usize = COLUMNS * DEPTH;

/// What the bytes of a panel stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Codes, with scale and bias.
    Affine,
    /// Twice an E2M1 value, plus an offset, with a halved scale.
    Fp4,
    /// E4M3.
    Fp8,
}

impl Meaning {
    pub(super) fn of(mode: Mode) -> Meaning {
        match mode {
            Mode::Affine => Meaning::Affine,
            Mode::Mxfp4 | Mode::Nvfp4 => Meaning::Fp4,
            Mode::Mxfp8 => Meaning::Fp8,
        }
    }
}

versions! {
    /// Decodes units `first..first + units` of a byte panel. Unit `u` belongs to group `group + u / per_group` of the
    /// scale tile; `order` is the order of codes in a run of 32 bytes.
    pub(super) fn from_panel(
        meaning: Meaning,
        order: &[u8; 32],
        panel: &[u8; PANEL],
        first: usize,
        units: usize,
        per_group: usize,
        group: usize,
        scales: &[f32; SCALE_TILE],
        biases: &[f32; SCALE_TILE],
        out: &mut [f32; PANEL_F32],
    ) = from_panel_body;
}

#[inline(always)]
fn from_panel_body(
    meaning: Meaning,
    order: &[u8; 32],
    panel: &[u8; PANEL],
    first: usize,
    units: usize,
    per_group: usize,
    group: usize,
    scales: &[f32; SCALE_TILE],
    biases: &[f32; SCALE_TILE],
    out: &mut [f32; PANEL_F32],
) {
    let (out, panel) = (out.as_chunks_mut::<COLUMNS>().0, panel.as_chunks::<{ 4 * COLUMNS }>().0);
    let (scales, biases) = (scales.as_chunks::<COLUMNS>().0, biases.as_chunks::<COLUMNS>().0);
    for u in 0..units {
        let g = (group + (first + u) / per_group) % TILE_GROUPS;
        let (scales, biases) = (&scales[g], &biases[g]);
        let mut words = [0u32; COLUMNS];
        for (word, bytes) in words.iter_mut().zip(panel[first + u].as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        for byte in 0..4 {
            let position = 4 * u + byte;
            let k = position / 32 * 32 + order[position % 32] as usize;
            let out = &mut out[k];
            let code = |c: usize| (words[c] >> (8 * byte)) & 0xff;
            match meaning {
                Meaning::Affine => (0..COLUMNS).for_each(|c| out[c] = code(c) as f32 * scales[c] + biases[c]),
                Meaning::Fp4 => (0..COLUMNS).for_each(|c| out[c] = (code(c) as i32 - FP4_OFFSET) as f32 * scales[c]),
                Meaning::Fp8 => (0..COLUMNS).for_each(|c| out[c] = decode_e4m3(code(c) as u8) * scales[c]),
            }
        }
    }
}

versions! {
    /// Decodes columns `column..column + width` (multiples of 16, at most 64) of the packed rows of a block, which are
    /// the `k` of this product. Columns from `width` on are left alone.
    pub(super) fn from_rows(
        meaning: Meaning,
        bits: usize,
        group: usize,
        block: &Block,
        column: usize,
        width: usize,
        out: &mut [f32; PANEL_F32],
    ) = from_rows_body;
}

#[inline(always)]
fn from_rows_body(
    meaning: Meaning,
    bits: usize,
    group: usize,
    block: &Block,
    column: usize,
    width: usize,
    out: &mut [f32; PANEL_F32],
) {
    let mut codes = [0; COLUMNS];
    let size = block.kind.size();
    for (k, out) in out.as_chunks_mut::<COLUMNS>().0[..block.valid].iter_mut().enumerate() {
        let row = &block.packed[k * block.stride + column * bits / 8..];
        unpack_any(bits, &row[..width * bits / 8], &mut codes[..width]);
        for (part, (out, codes)) in out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            if 16 * part == width {
                break;
            }
            let at = k * block.scale_stride + (column + 16 * part) / group * size;
            let scale = block.kind.decode(&block.scales[at..]) * block.factor;
            match meaning {
                Meaning::Affine => {
                    let bias = block.kind.decode(&block.biases[at..]);
                    (0..16).for_each(|c| out[c] = codes[c] as f32 * scale + bias);
                }
                Meaning::Fp4 => (0..16).for_each(|c| {
                    out[c] = (FP4_BYTES[codes[c] as usize & 15] as i32 - FP4_OFFSET) as f32 * (0.5 * scale)
                }),
                Meaning::Fp8 => (0..16).for_each(|c| out[c] = decode_e4m3(codes[c]) * scale),
            }
        }
    }
}
