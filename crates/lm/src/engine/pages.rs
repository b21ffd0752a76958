//! How many blocks of keys are held, by who runs and by what is remembered.

use super::{Engine, Prefixes};
use crate::batch::{Memory, Sequence};
use std::collections::HashSet;

/// Blocks of keys of a layer.
fn blocks(sequence: &Sequence, layer: usize) -> impl Iterator<Item = (u64, u32)> {
    let keys = sequence.layers().get(layer).and_then(|m| if let Memory::Keys(keys) = m { Some(keys) } else { None });
    keys.into_iter().flat_map(|keys| keys.block_ids())
}

impl Engine {
    /// Blocks of [`KEY_BLOCK`](lapis::ops::fast::KEY_BLOCK) positions that sequences hold, shared ones counted once: those
    /// of the layer that has most.
    pub fn pages(&self) -> usize {
        let kept = self.prefixes.iter().flat_map(Prefixes::sequences);
        let all: Vec<&Sequence> = self.running.iter().map(|r| &r.sequence).chain(kept).collect();
        let longest = all.iter().max_by_key(|s| s.len());
        let count = |&layer: &usize| longest.map_or(0, |s| blocks(s, layer).count());
        let layers = longest.map_or(0, |s| s.layers().len());
        let Some(layer) = (0..layers).max_by_key(count) else { return 0 };
        all.into_iter().flat_map(|s| blocks(s, layer)).collect::<HashSet<_>>().len()
    }
}
