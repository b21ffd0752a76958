//! A panel: 256 codes of each of 64 packed rows, as bytes, in the order that integer dot products eat; and the scales
//! that go with it as f32.
//!
//! A panel is `[unit][64 rows][4 codes]`: a unit is four codes of the reduction axis, so one 64-byte vector holds a unit
//! of sixteen rows, each a 32-bit lane. Which four codes follows from what a shift and a mask give ([`order`]): of 4-bit
//! codes the even ones of a word, then the odd ones. Activations are put in the same order once a call.
//!
//! Work for 64 x 256 codes of 4 bits: 8 KiB read, 16 KiB written to the first-level cache, 128 shuffles of 64 bytes.

use super::codes::unpack_any;
use super::format::{Format, Mode};
use super::weights::Block;
use crate::isa::Isa;

/// Packed rows in a panel; they are columns of the result.
pub(super) const COLUMNS: usize = 64;
/// Codes of the reduction axis in a panel. A multiple of every group; sixteen of the smallest.
pub(super) const DEPTH: usize = 256;
/// Bytes of a panel.
pub(super) const PANEL: usize = COLUMNS * DEPTH;
/// Groups whose scales are laid out at a time.
pub(super) const TILE_GROUPS: usize = 16;
/// Scales (and biases) of a tile, `[group][64 rows]`.
pub(super) const SCALE_TILE: usize = TILE_GROUPS * COLUMNS;

/// What is added to twice an E2M1 value to make it an unsigned byte.
pub(super) const FP4_OFFSET: i32 = 12;
/// Twice the E2M1 values plus [`FP4_OFFSET`], by code.
pub(super) const FP4_BYTES: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// What a panel's bytes are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) bits: usize,
    /// Bytes are [`FP4_BYTES`] of the codes, not the codes.
    pub(super) fp4: bool,
}

impl Content {
    pub(super) fn of(format: Format) -> Content {
        Content { bits: format.bits(), fp4: matches!(format.mode(), Mode::Mxfp4 | Mode::Nvfp4) }
    }
}

/// For each position in a run of 32 bytes of a panel row, the code that stands there.
pub(super) const fn order(bits: usize) -> [u8; 32] {
    let mut order = [0; 32];
    let mut position = 0;
    while position < 32 {
        order[position] = match bits {
            // A word holds `32 / bits` codes; unit `h` of a word has the codes `b * 8 / bits + h`.
            1 | 2 | 4 => {
                let per_byte = 8 / bits;
                let (word, unit, byte) = (position / (4 * per_byte), position / 4 % per_byte, position % 4);
                word * 4 * per_byte + byte * per_byte + unit
            }
            _ => position,
        } as u8;
        position += 1;
    }
    order
}

/// Writes the panel of `codes` codes (a multiple of the group, at most 256) that start `offset` bytes into each row.
pub(super) fn unpack(isa: Isa, content: Content, block: &Block, offset: usize, codes: usize, panel: &mut [u8; PANEL]) {
    assert!(codes <= DEPTH && codes.is_multiple_of(16));
    assert!((block.valid - 1) * block.stride + offset + codes * content.bits / 8 <= block.packed.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the level is present (it was passed), and the reads are within the rows (asserted).
    unsafe {
        match isa {
            Isa::Avx512 => return super::panel_avx512::unpack(content, block, offset, codes, panel),
            Isa::Avx2 => return super::panel_avx2::unpack(content, block, offset, codes, panel),
            _ => {}
        }
    }
    let _ = isa;
    unpack_plain(content, block, offset, codes, panel);
}

fn unpack_plain(content: Content, block: &Block, offset: usize, codes: usize, panel: &mut [u8; PANEL]) {
    let units = panel.as_chunks_mut::<{ 4 * COLUMNS }>().0;
    for column in 0..block.valid {
        let row = &block.packed[column * block.stride + offset..][..codes * content.bits / 8];
        match content {
            Content { fp4: true, .. } => {
                words::<4>(row, column, units, |lanes| lanes.map(|c| FP4_BYTES[c as usize & 15]))
            }
            Content { bits: 1, .. } => words::<1>(row, column, units, |lanes| lanes),
            Content { bits: 2, .. } => words::<2>(row, column, units, |lanes| lanes),
            Content { bits: 4, .. } => words::<4>(row, column, units, |lanes| lanes),
            Content { bits, .. } => {
                let mut natural = [0; DEPTH];
                unpack_any(bits, row, &mut natural[..codes]);
                for (unit, four) in units.iter_mut().zip(natural[..codes].as_chunks::<4>().0) {
                    unit.as_chunks_mut::<4>().0[column] = *four;
                }
            }
        }
    }
}

/// Widths that divide a byte: every shift of a word gives a unit.
#[inline(always)]
fn words<const BITS: usize>(
    row: &[u8],
    column: usize,
    units: &mut [[u8; 4 * COLUMNS]],
    map: impl Fn([u8; 4]) -> [u8; 4],
) {
    let mask = u32::from_ne_bytes([(1u16 << BITS) as u8 - 1; 4]);
    for (units, word) in units.chunks_mut(8 / BITS).zip(row.as_chunks::<4>().0) {
        let word = u32::from_le_bytes(*word);
        for (h, unit) in units.iter_mut().enumerate() {
            let lanes = map((word >> (BITS * h) & mask).to_le_bytes());
            unit.as_chunks_mut::<4>().0[column] = lanes;
        }
    }
}

/// Scales and biases of groups `first..first + count` (at most 16) of a block, as f32, `[group][64]`.
///
/// With E2M1 panels the scales are halved, since the bytes are doubled. `biases` is left alone where there are none.
pub(super) fn scales(
    isa: Isa,
    block: &Block,
    content: Content,
    first: usize,
    count: usize,
    scales: &mut [f32; SCALE_TILE],
    biases: &mut [f32; SCALE_TILE],
) {
    let factor = if content.fp4 { 0.5 * block.factor } else { block.factor };
    tile(isa, block, block.scales, first, count, factor, scales);
    if !block.biases.is_empty() {
        tile(isa, block, block.biases, first, count, 1.0, biases);
    }
}

fn tile(isa: Isa, block: &Block, from: &[u8], first: usize, count: usize, factor: f32, out: &mut [f32; SCALE_TILE]) {
    let size = block.kind.size();
    assert!(count <= TILE_GROUPS && (block.valid - 1) * block.scale_stride + (first + count) * size <= from.len());
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the level is present (it was passed), and the reads are within the rows (asserted).
        return unsafe { super::panel_avx512::tile(block, from, first, count, factor, out) };
    }
    let _ = isa;
    for column in 0..block.valid {
        let row = &from[column * block.scale_stride + first * size..];
        for group in 0..count {
            out[group * COLUMNS + column] = block.kind.decode(&row[group * size..]) * factor;
        }
    }
}
