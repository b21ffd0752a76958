//! What a sequence remembers, in parts that lie elsewhere for a while: the blocks of layers that can forget tokens one by
//! one, and all of the other layers as they are at one place. Put together again they are the same bits.

use super::{Keys, KvOptions, Memory, Sequence};
use lapis::Array;
use std::ops::Range;

/// A part of what one layer remembers.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// Nothing, or nothing of it.
    None,
    /// Some blocks of keys, and values where they are not `latent` columns of the keys.
    Blocks { latent: Option<usize>, blocks: Vec<Vec<Array>> },
    /// Keys that cannot be cut anywhere: all of them.
    Keys { numbers: Vec<u64>, arrays: Vec<Array> },
    /// The state of a recurrence.
    State(Vec<Array>),
}

impl Piece {
    pub(crate) fn arrays(&self) -> Box<dyn Iterator<Item = &Array> + '_> {
        match self {
            Piece::None => Box::new(std::iter::empty()),
            Piece::Blocks { blocks, .. } => Box::new(blocks.iter().flatten()),
            Piece::Keys { arrays, .. } | Piece::State(arrays) => Box::new(arrays.iter()),
        }
    }
}

fn is_cut(memory: &Memory) -> bool {
    matches!(memory, Memory::Keys(k) if k.is_free())
}

impl Sequence {
    /// Whether any layer is kept in blocks.
    pub(crate) fn has_blocks(&self) -> bool {
        self.layers.iter().any(is_cut)
    }

    /// Some blocks of each layer, and with `rest` all of those that have none.
    pub(crate) fn pieces(&self, range: Range<usize>, rest: bool) -> Vec<Piece> {
        let piece = |m: &Memory| match m {
            Memory::Keys(k) if k.is_free() => Piece::Blocks { latent: k.latent(), blocks: k.blocks(range.clone()) },
            Memory::Keys(k) if rest => {
                let (numbers, arrays) = k.take_apart();
                Piece::Keys { numbers, arrays }
            }
            Memory::State(all) if rest => Piece::State(all.clone()),
            _ => Piece::None,
        };
        self.layers.iter().map(piece).collect()
    }

    /// A sequence of `seen` tokens of pieces: blocks of all of them in their order, and the rest of the last one. None
    /// where they do not fit each other.
    pub(crate) fn of_pieces(mut pieces: Vec<Vec<Piece>>, seen: usize, kv: KvOptions) -> Option<Sequence> {
        let last = pieces.last()?.clone();
        let mut layers = Vec::with_capacity(last.len());
        for (l, piece) in last.into_iter().enumerate() {
            layers.push(match piece {
                Piece::None => Memory::Empty,
                Piece::State(all) => Memory::State(all),
                Piece::Keys { numbers, arrays } => {
                    let keys = Keys::put_together(&numbers, &arrays, kv)?;
                    (keys.end() == seen).then_some(Memory::Keys(keys))?
                }
                Piece::Blocks { latent, .. } => {
                    let mut all = Vec::new();
                    for piece in &mut pieces {
                        match piece.get_mut(l)? {
                            Piece::Blocks { blocks, .. } => all.append(blocks),
                            _ => return None,
                        }
                    }
                    Memory::Keys(Keys::of_blocks(latent, kv, all, seen)?)
                }
            });
        }
        Some(Sequence { layers, seen, kv, whole: false })
    }
}
