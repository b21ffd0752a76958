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
    pub(super) fn ask(&mut self, mut lines: usize) {
        while let Some(piece) = self.pieces.first() {
            while self.row < piece.rows {
                let start = piece.first + self.row * piece.stride;
                let end = start + piece.bytes;
                let mut at = self.at.max(start / LINE * LINE);
                while at < end {
                    if lines == 0 {
                        self.at = at;
                        return;
                    }
                    soon::ask(at);
                    at += LINE;
                    lines -= 1;
                }
                self.row += 1;
                self.at = 0;
            }
            self.row = 0;
            self.pieces.remove(0);
        }
    }
}
