//! What the panel after the one in use is made of: while that one is multiplied, memory is asked for the next one's codes and scales, a
//! few rows at a time, as it does not answer many questions at once.
//!
//! Knows addresses only, and reads none of them.

use super::format::Format;
use super::panel::{COLUMNS, DEPTH, TILE_GROUPS};
use super::weights::Weights;
use crate::soon;
use smallvec::SmallVec;

pub(super) const LINE: usize = 64;

/// Pieces of rows, and how far memory has been asked for them.
#[derive(Default)]
pub(super) struct Coming {
    pieces: SmallVec<[Pieces; 3]>,
    /// Rows that were asked for, of the first piece that is not done.
    row: usize,
}

/// `bytes` of each of `rows` rows.
struct Pieces {
    first: usize,
    stride: usize,
    rows: usize,
    bytes: usize,
}

impl Coming {
    /// The slab that begins with code `first`, of the block of columns from `column` on, with the scales that are laid out with it.
    pub(super) fn new(w: &Weights, matrix: usize, column: usize, first: usize) -> Coming {
        let (block, format): (_, Format) = (w.block(matrix, column, COLUMNS), w.format);
        let part = |of: &[u8], stride: usize, from: usize, bytes: usize| Pieces {
            first: of.as_ptr().addr() + from,
            stride,
            rows: block.valid,
            bytes,
        };
        let mut pieces = SmallVec::new();
        pieces.push(part(
            block.packed,
            block.stride,
            format.row_bytes(first),
            format.row_bytes((w.cols - first).min(DEPTH)),
        ));
        let group = first / format.group();
        if group.is_multiple_of(TILE_GROUPS) {
            let (size, count) = (block.kind.size(), (w.groups() - group).min(TILE_GROUPS));
            for of in [block.scales, block.biases].into_iter().filter(|of| !of.is_empty()) {
                pieces.push(part(of, block.scale_stride, group * size, count * size));
            }
        }
        Coming { pieces, row: 0 }
    }

    /// Rows of all pieces.
    pub(super) fn rows(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rows).sum()
    }

    /// Asks for `rows` more.
    pub(super) fn ask(&mut self, rows: usize) {
        self.each(rows, soon::ask)
    }

    /// Calls `f` with the address of every line of `rows` more.
    #[inline(always)]
    fn each(&mut self, mut rows: usize, mut f: impl FnMut(usize)) {
        while rows > 0
            && let Some(piece) = self.pieces.first()
        {
            let end = self.row.saturating_add(rows).min(piece.rows);
            for row in self.row..end {
                let start = piece.first + row * piece.stride;
                for at in (start / LINE * LINE..start + piece.bytes).step_by(LINE) {
                    f(at);
                }
            }
            rows -= end - self.row;
            self.row = end;
            if end == piece.rows {
                self.pieces.remove(0);
                self.row = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_every_piece_is_named() {
        let pieces = [(100, 512, 3, 128), (5000, 64, 2, 16)];
        let pieces = pieces.map(|(first, stride, rows, bytes)| Pieces { first, stride, rows, bytes });
        let mut coming = Coming { pieces: pieces.into_iter().collect(), row: 0 };
        assert_eq!(coming.rows(), 5);
        let mut lines = vec![];
        for rows in [1, 3, usize::MAX, 1] {
            coming.each(rows, |at| lines.push(at));
        }
        assert_eq!(lines, [64, 128, 192, 576, 640, 704, 1088, 1152, 1216, 4992, 5056]);
    }
}
