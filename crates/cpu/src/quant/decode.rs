//! Panels of decoded weights, `[k][64 columns]` of f32, for the products that are done in f32.
//!
//! From a byte panel where groups run along the reduction axis, or straight from packed rows where they run along the
//! columns. Decoding is `code * scale + bias` in f32, without the roundings to half precision that `dequantize` makes.

use super::codes::{decode_e4m3, unpack_any};
use super::format::Mode;
use super::panel::{COLUMNS, FP4_BYTES, FP4_OFFSET, PANEL, SCALE_TILE, TILE_GROUPS};
use super::weights::Block;
use crate::simd::{Float, Int, Kernel, LANES32, Simd, Vector};

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

/// Units of a byte panel that are decoded.
pub(super) struct FromPanel<'a> {
    pub(super) meaning: Meaning,
    /// The order of codes in a run of 32 bytes.
    pub(super) order: &'a [u8; 32],
    pub(super) panel: &'a [u8; PANEL],
    /// The first unit, and how many.
    pub(super) first: usize,
    pub(super) units: usize,
    /// Unit `u` belongs to group `group + u / per_group` of the scale tile.
    pub(super) per_group: usize,
    pub(super) group: usize,
    pub(super) scales: &'a [f32; SCALE_TILE],
    pub(super) biases: &'a [f32; SCALE_TILE],
    pub(super) out: &'a mut [f32; PANEL_F32],
}

impl Kernel for FromPanel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (out, panel) = (self.out.as_chunks_mut::<COLUMNS>().0, self.panel.as_chunks::<{ 4 * COLUMNS }>().0);
        let (scales, biases) = (self.scales.as_chunks::<COLUMNS>().0, self.biases.as_chunks::<COLUMNS>().0);
        for u in 0..self.units {
            let g = (self.group + (self.first + u) / self.per_group) % TILE_GROUPS;
            let unit = &panel[self.first + u];
            for byte in 0..4 {
                let position = 4 * u + byte;
                let k = position / 32 * 32 + self.order[position % 32] as usize;
                if self.meaning == Meaning::Fp8 {
                    (0..COLUMNS).for_each(|c| out[k][c] = decode_e4m3(unit[4 * c + byte]) * scales[g][c]);
                    continue;
                }
                for c in (0..COLUMNS).step_by(LANES32) {
                    // SAFETY: 16 of the 64 columns from `c` on, each of four bytes in `unit` and an element in the others.
                    unsafe {
                        let words = S::I32::load(s, unit.as_ptr().add(4 * c).cast());
                        let codes = words.shr(8 * byte as u32) & s.i32(0xff);
                        let scale = S::F32::load(s, scales[g].as_ptr().add(c));
                        let value = match self.meaning {
                            Meaning::Affine => {
                                S::F32::from_int(codes) * scale + S::F32::load(s, biases[g].as_ptr().add(c))
                            }
                            _ => S::F32::from_int(codes - s.i32(FP4_OFFSET)) * scale,
                        };
                        value.store(out[k].as_mut_ptr().add(c));
                    }
                }
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
