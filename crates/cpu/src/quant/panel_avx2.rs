//! Panels with AVX2: eight rows are transposed as 32-bit words, so that shifts and masks of whole registers give units.
//! Widths that straddle bytes are first spread to bytes.

use super::codes::unpack_any;
use super::few_avx2::transpose;
use super::panel::{COLUMNS, Content, DEPTH, FP4_BYTES, PANEL};
use super::weights::Block;
use std::arch::x86_64::*;

/// Rows that are transposed together.
const ROWS: usize = 8;

/// As `panel::unpack`.
///
/// # Safety
/// `codes * bits / 8` bytes at `offset` in each of the block's rows are readable; `codes` is a multiple of 16, at most
/// [`DEPTH`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unpack(content: Content, block: &Block, offset: usize, codes: usize, panel: &mut [u8; PANEL]) {
    let bytes = codes * content.bits / 8;
    let mut natural = [[0u8; DEPTH]; ROWS];
    for column in (0..block.valid).step_by(ROWS) {
        // Rows that do not exist repeat the last one.
        let mut rows = [std::ptr::null(); ROWS];
        for i in 0..ROWS {
            let row = &block.packed[(column + i).min(block.valid - 1) * block.stride + offset..][..bytes];
            rows[i] = row.as_ptr();
            if matches!(content.bits, 3 | 5 | 6) {
                unpack_any(content.bits, row, &mut natural[i][..codes]);
                rows[i] = natural[i].as_ptr();
            }
        }
        // SAFETY: as the caller promises; eight columns from this one on are part of a panel's 64.
        unsafe {
            match content {
                Content { fp4: true, .. } => words::<4, true>(rows, codes, column, panel),
                Content { bits: 1, .. } => words::<1, false>(rows, codes, column, panel),
                Content { bits: 2, .. } => words::<2, false>(rows, codes, column, panel),
                Content { bits: 4, .. } => words::<4, false>(rows, codes, column, panel),
                _ => words::<8, false>(rows, codes, column, panel),
            }
        }
    }
}

/// # Safety
/// `codes * BITS / 8` bytes are readable at each of `rows`, and columns `column..column + 8` exist.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn words<const BITS: usize, const FP4: bool>(
    rows: [*const u8; ROWS],
    codes: usize,
    column: usize,
    panel: &mut [u8; PANEL],
) {
    let per_word = 8 / BITS;
    let mask = _mm256_set1_epi8(((1u16 << BITS) - 1) as i8);
    // SAFETY: a load of the array.
    let fp4 = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_BYTES.as_ptr().cast())) };
    // Sixteen codes of one bit are half a word.
    let words = (codes * BITS).div_ceil(32);
    for first in (0..words).step_by(ROWS) {
        let mut r = [_mm256_setzero_si256(); ROWS];
        let bytes = codes * BITS / 8 - 4 * first;
        for i in 0..ROWS {
            // SAFETY: within the row.
            r[i] = unsafe {
                let p = rows[i].add(4 * first);
                if bytes >= 32 {
                    _mm256_loadu_si256(p.cast())
                } else {
                    let mut last = [0u8; 32];
                    last.as_mut_ptr().copy_from_nonoverlapping(p, bytes);
                    _mm256_loadu_si256(last.as_ptr().cast())
                }
            };
        }
        let t = transpose(r);
        for w in 0..ROWS.min(words - first) {
            for h in 0..per_word {
                let mut unit = t[w];
                if BITS < 8 {
                    let shift = _mm_cvtsi32_si128((BITS * h) as i32);
                    let shifted = if h == 0 { unit } else { _mm256_srl_epi32(unit, shift) };
                    unit = _mm256_and_si256(shifted, mask);
                }
                if FP4 {
                    unit = _mm256_shuffle_epi8(fp4, unit);
                }
                let at = (((first + w) * per_word + h) * COLUMNS + column) * 4;
                debug_assert!(at + 32 <= PANEL);
                // SAFETY: 64 units of 64 columns fill a panel, and callers stay below 64 (at most 256 codes).
                unsafe { _mm256_storeu_si256(panel.as_mut_ptr().add(at).cast(), unit) }
            }
        }
    }
}
