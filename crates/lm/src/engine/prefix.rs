//! What was read before: sequences by their tokens, for prompts that begin alike.
//!
//! A prompt takes over the longest beginning that somebody has read. Blocks of keys are shared, not copied; where layers
//! cannot forget tokens one by one (recurrences, windows), places along the prompt are kept as entries of their own.
//! Where room is short, replies go first, then what was asked, and what a system was told last.

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
    /// Where the part ends that every turn begins with, 0 if there is none, and where the prompt does.
    marks: [usize; 2],
    /// When it was last of use.
    used: u64,
}

impl Entry {
    /// What goes first: a reply, a prompt, the beginning of all prompts.
    fn class(&self) -> usize {
        let [system, prompt] = self.marks;
        usize::from(self.tokens.len() <= prompt) + usize::from(self.tokens.len() <= system)
    }

    /// The same without its reply, or without all but the beginning of all prompts; `None` where nothing would be left.
    fn cut(mut self) -> Option<Entry> {
        let keep = self.marks.into_iter().rev().find(|&mark| 0 < mark && mark < self.tokens.len())?;
        self.tokens.truncate(keep);
        self.sequence.truncate(keep).then_some(self)
    }

    /// Whether it serves all that beginnings of `tokens` do.
    fn serves(&self, tokens: &[u32], salt: u64) -> bool {
        self.salt == salt && common(&self.tokens, tokens) == tokens.len() && self.sequence.can_truncate(tokens.len())
    }
}

/// Arrays of entries, each counted once.
#[derive(Default)]
struct Held {
    holders: HashMap<(u64, u32), usize>,
    bytes: usize,
}

impl Held {
    fn add(&mut self, sequence: &Sequence) {
        for array in sequence.arrays() {
            let holders = self.holders.entry(array.id()).or_default();
            self.bytes += if *holders == 0 { size(array) } else { 0 };
            *holders += 1;
        }
    }

    /// Bytes leave with the last entry that holds them.
    fn remove(&mut self, sequence: &Sequence) {
        for array in sequence.arrays() {
            if let Some(holders) = self.holders.get_mut(&array.id()) {
                *holders -= 1;
                if *holders == 0 {
                    self.holders.remove(&array.id());
                    self.bytes -= size(array);
                }
            }
        }
    }
}

/// Sequences that were read, up to a limit of bytes.
pub struct Prefixes {
    entries: Vec<Entry>,
    limit: usize,
    /// Entries at most.
    pub most: usize,
    /// Entries that were cut or let go for room.
    pub evicted: u64,
    clock: u64,
}

impl Prefixes {
    /// Room for `limit` bytes; what entries share counts once.
    pub fn new(limit: usize) -> Prefixes {
        Prefixes { entries: Vec::new(), limit, most: usize::MAX, evicted: 0, clock: 0 }
    }

    /// From now on there is room for so many bytes.
    pub fn set_limit(&mut self, limit: usize) {
        let less = limit < self.limit;
        self.limit = limit;
        if less {
            self.shrink();
        }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is remembered.
    pub(super) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.entries.iter().map(|e| &e.sequence)
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

    /// Keeps what `sequence` remembers of `tokens`, unless an entry does already. `marks` are where the part of it ends that
    /// every turn begins with, 0 if there is none, and where the prompt does.
    pub fn insert(&mut self, tokens: &[u32], salt: u64, marks: [usize; 2], sequence: Sequence) {
        let tokens = &tokens[..sequence.len().min(tokens.len())];
        self.clock += 1;
        if let Some(entry) = self.entries.iter_mut().find(|e| e.serves(tokens, salt)) {
            entry.used = self.clock;
            return;
        }
        let served = |e: &Entry| {
            e.salt == salt && common(&e.tokens, tokens) == e.tokens.len() && sequence.can_truncate(e.tokens.len())
        };
        self.entries.retain(|e| !served(e));
        self.entries.push(Entry { tokens: tokens.to_vec(), salt, sequence, marks, used: self.clock });
        self.shrink();
    }

    /// Lets entries go until the rest is within the limits.
    fn shrink(&mut self) {
        while self.entries.len() > self.most
            && let Some(oldest) = (0..self.entries.len()).min_by_key(|&i| self.entries[i].used)
        {
            self.entries.swap_remove(oldest);
            self.evicted += 1;
        }
        let mut held = Held::default();
        self.entries.iter().for_each(|e| held.add(&e.sequence));
        while held.bytes > self.limit {
            // The latest is what the next turn goes on with.
            let latest = self.entries.iter().map(|e| e.used).max();
            let alone = self.entries.len() == 1;
            let may_go = |&i: &usize| alone || Some(self.entries[i].used) != latest;
            let first = |&i: &usize| (self.entries[i].class(), self.entries[i].used);
            let Some(at) = (0..self.entries.len()).filter(may_go).min_by_key(first) else { return };
            let entry = self.entries.swap_remove(at);
            held.remove(&entry.sequence);
            self.evicted += 1;
            if let Some(rest) = entry.cut()
                && !self.entries.iter().any(|e| e.serves(&rest.tokens, rest.salt))
            {
                held.add(&rest.sequence);
                self.entries.push(rest);
            }
        }
    }
}

fn size(a: &Array) -> usize {
    a.size() * a.itemsize()
}
