//! What was read before: sequences by their tokens, for prompts that begin alike.
//!
//! A prompt takes over the longest beginning that somebody has read. Blocks of keys are shared, not copied; where layers
//! cannot forget tokens one by one (recurrences, windows), places along the prompt are kept as entries of their own.

use crate::batch::Sequence;
use lapis::Array;
use std::collections::{HashMap, HashSet};

/// How many of `a` and `b` are the same from the beginning.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How much of `sequence`, which has seen `tokens`, serves `prompt`: all but one token of it at most, for its logits.
pub(super) fn usable(tokens: &[u32], sequence: &Sequence, prompt: &[u32]) -> usize {
    let same = common(&tokens[..sequence.len().min(tokens.len())], &prompt[..prompt.len() - 1]);
    if sequence.can_truncate(same) { same } else { 0 }
}

struct Entry {
    tokens: Vec<u32>,
    salt: u64,
    sequence: Sequence,
    /// When it was last of use.
    used: u64,
}

/// Sequences that were read, up to a limit of bytes; those not used for longest go first.
pub struct Prefixes {
    entries: Vec<Entry>,
    limit: usize,
    /// Entries at most.
    pub most: usize,
    /// Entries that were let go for room.
    pub evicted: u64,
    clock: u64,
}

impl Prefixes {
    /// Room for `limit` bytes; what entries share counts once.
    pub fn new(limit: usize) -> Prefixes {
        Prefixes { entries: Vec::new(), limit, most: usize::MAX, evicted: 0, clock: 0 }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all entries; what they share counts once.
    pub fn bytes(&self) -> usize {
        let mut seen = HashSet::new();
        let arrays = self.entries.iter().flat_map(|e| e.sequence.arrays());
        arrays.filter(|a| seen.insert(a.id())).map(size).sum()
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// The entry of most use to `prompt` among those of the same `salt`, cut to what they share.
    pub fn find(&mut self, prompt: &[u32], salt: u64) -> Option<Sequence> {
        let shared = |e: &Entry| if e.salt == salt { usable(&e.tokens, &e.sequence, prompt) } else { 0 };
        let (best, entry) = self.entries.iter_mut().map(|e| (shared(e), e)).max_by_key(|(n, _)| *n)?;
        if best == 0 {
            return None;
        }
        self.clock += 1;
        entry.used = self.clock;
        let mut sequence = entry.sequence.clone();
        sequence.truncate(best).then_some(sequence)
    }

    /// Keeps what `sequence` remembers of `tokens`, unless an entry does already.
    pub fn insert(&mut self, tokens: &[u32], salt: u64, sequence: Sequence) {
        let tokens = &tokens[..sequence.len().min(tokens.len())];
        self.clock += 1;
        for entry in self.entries.iter_mut().filter(|e| e.salt == salt) {
            let same = common(&entry.tokens, tokens);
            if same == tokens.len() && entry.sequence.can_truncate(same) {
                entry.used = self.clock;
                return;
            }
        }
        let served = |e: &Entry| {
            e.salt == salt && common(&e.tokens, tokens) == e.tokens.len() && sequence.can_truncate(e.tokens.len())
        };
        self.entries.retain(|e| !served(e));
        self.entries.push(Entry { tokens: tokens.to_vec(), salt, sequence, used: self.clock });
        self.shrink();
    }

    /// Lets entries go until the rest is within the limits.
    fn shrink(&mut self) {
        // Bytes leave with the last entry that holds them.
        let mut holders: HashMap<(u64, u32), (usize, usize)> = HashMap::new();
        for array in self.entries.iter().flat_map(|e| e.sequence.arrays()) {
            holders.entry(array.id()).or_insert((0, size(array))).0 += 1;
        }
        let mut bytes: usize = holders.values().map(|h| h.1).sum();
        self.entries.sort_by_key(|e| std::cmp::Reverse(e.used));
        while (bytes > self.limit || self.entries.len() > self.most)
            && let Some(entry) = self.entries.pop()
        {
            self.evicted += 1;
            for array in entry.sequence.arrays() {
                if let Some((count, size)) = holders.get_mut(&array.id()) {
                    *count -= 1;
                    bytes -= if *count == 0 { *size } else { 0 };
                }
            }
        }
    }
}

fn size(a: &Array) -> usize {
    a.size() * a.itemsize()
}
