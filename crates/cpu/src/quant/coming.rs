//! What the panel after the one in use is made of: while that one is multiplied, memory is asked for the next one's codes and scales, a
//! few lines at a time, as it does not answer many questions at once.
//!
//! Knows addresses only, and reads none of them.

use super::format::Format;
use super::panel::{COLUMNS, DEPTH, TILE_GROUPS};
use super::weights::Weights;
use crate::soon;
use smallvec::SmallVec;

const LINE: usize = 64;

/// Pieces of rows, and how far memory has been asked for them.
#[derive(Default)]
pub(super) struct Coming {
    pieces: SmallVec<[Pieces; 3]>,
    row: usize,
    at: usize,
}

/// `bytes` of each of `rows` rows.
struct Pieces {
    first: usize,
    stride: usize,
    rows: usize,
    bytes: usize,
}

impl Pieces {
    fn lines(&self) -> usize {
        self.rows * (self.bytes / LINE + 1)
    }
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
        Coming { pieces, row: 0, at: 0 }
    }

    /// Lines of the cache, roughly.
    pub(super) fn lines(&self) -> usize {
        self.pieces.iter().map(Pieces::lines).sum()
    }

    /// Asks for `lines` more.
    pub(super) fn ask(&mut self, lines: usize) {
        self.take(lines).for_each(soon::ask);
    }
}

/// Addresses of lines.
impl Iterator for Coming {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            let piece = self.pieces.first()?;
            let start = piece.first + self.row * piece.stride;
            let at = self.at.max(start / LINE * LINE);
            if self.row == piece.rows {
                self.pieces.remove(0);
                (self.row, self.at) = (0, 0);
            } else if at >= start + piece.bytes {
                (self.row, self.at) = (self.row + 1, 0);
            } else {
                self.at = at + LINE;
                return Some(at);
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
        let coming = Coming { pieces: pieces.into_iter().collect(), row: 0, at: 0 };
        assert!(coming.lines() <= 3 * 3 + 2);
        let lines: Vec<usize> = coming.collect();
        assert_eq!(lines, [64, 128, 192, 576, 640, 704, 1088, 1152, 1216, 4992, 5056]);
    }
}
