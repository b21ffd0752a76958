//! Which beginnings there are, by chained digests of blocks of tokens. Knows no file but its name.

use crate::engine::common;
use lapis::ops::fast::KEY_BLOCK;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A digest of all tokens before a place, of the salt, and of the model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Chain([u8; 16]);

impl Chain {
    /// Before the first token.
    pub(super) fn root(model: &str, salt: u64) -> Chain {
        Chain::digest(&[model.as_bytes(), &salt.to_le_bytes()])
    }

    fn digest(parts: &[&[u8]]) -> Chain {
        let mut digest = Context::new(&SHA256);
        parts.iter().for_each(|p| digest.update(p));
        let mut short = [0; 16];
        short.copy_from_slice(&digest.finish().as_ref()[..16]);
        Chain(short)
    }

    /// After further tokens.
    pub(super) fn after(self, tokens: &[u32]) -> Chain {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        Chain::digest(&[&self.0, &bytes])
    }

    pub(super) fn to_text(self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    pub(super) fn from_text(text: &str) -> Option<Chain> {
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Chain(bytes))
    }
}

/// Where a sequence can go on from what a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Ends {
    /// After any of its tokens.
    Anywhere,
    /// After the last one.
    Last,
    /// Nowhere: it leads to another file.
    Nowhere,
}

/// A file: tokens from a border of blocks on.
#[derive(Debug)]
pub(super) struct Entry {
    /// The position of the first token.
    pub(super) from: usize,
    pub(super) tokens: Vec<u32>,
    /// The digest before each block, and after the last token.
    pub(super) chain: Vec<Chain>,
    pub(super) ends: Ends,
    /// Bytes.
    pub(super) size: u64,
}

impl Entry {
    /// None where there is no such file.
    pub(super) fn new(parent: Chain, from: usize, tokens: Vec<u32>, ends: Ends, size: u64) -> Option<Entry> {
        if tokens.is_empty() || !from.is_multiple_of(KEY_BLOCK) || from.checked_add(tokens.len()).is_none() {
            return None;
        }
        let mut chain = vec![parent];
        let mut at = parent;
        for block in tokens.chunks(KEY_BLOCK) {
            at = at.after(block);
            chain.push(at);
        }
        Some(Entry { from, tokens, chain, ends, size })
    }

    /// The name of the file.
    pub(super) fn name(&self) -> String {
        let end = self.chain.last().map_or(String::new(), |c| c.to_text());
        format!("{end}-{:x}.kv", self.from)
    }

    fn block(&self, i: usize) -> &[u32] {
        self.tokens.chunks(KEY_BLOCK).nth(i).unwrap_or_default()
    }

    fn last_block(&self) -> usize {
        self.chain.len() - 2
    }
}

/// What is there of some tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// How many of the tokens.
    pub(super) len: usize,
    /// Blocks of files, counted in each from its first, that hold them.
    pub(super) parts: Vec<(Arc<Entry>, Range<usize>)>,
    /// Whole blocks that are there, wherever one can go on.
    pub(super) blocks: usize,
}

/// The files of one folder.
#[derive(Debug, Default)]
pub(super) struct Index {
    files: HashMap<String, Arc<Entry>>,
    /// Files with a block after a digest, and which block it is.
    starts: HashMap<Chain, Vec<(Arc<Entry>, usize)>>,
}

impl Index {
    pub(super) fn add(&mut self, entry: Arc<Entry>) {
        self.remove(&entry.name());
        for (i, at) in entry.chain[..=entry.last_block()].iter().enumerate() {
            self.starts.entry(*at).or_default().push((Arc::clone(&entry), i));
        }
        self.files.insert(entry.name(), entry);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(entry) = self.files.remove(name) else { return };
        for at in &entry.chain[..=entry.last_block()] {
            if let Some(all) = self.starts.get_mut(at) {
                all.retain(|(e, _)| !Arc::ptr_eq(e, &entry));
                if all.is_empty() {
                    self.starts.remove(at);
                }
            }
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }

    /// The longest beginning of `tokens` that one can go on from.
    pub(super) fn find(&self, root: Chain, tokens: &[u32]) -> Found {
        let (mut at, mut here) = (0, root);
        let (mut parts, mut best) = (Vec::<(Arc<Entry>, Range<usize>)>::new(), Found::default());
        let mut blocks = 0;
        while at < tokens.len()
            && let Some(all) = self.starts.get(&here)
        {
            let mut longest: Option<(usize, &Arc<Entry>, usize)> = None;
            for (entry, i) in all {
                let own = entry.block(*i);
                let same = common(own, &tokens[at..]);
                let is_end = *i == entry.last_block() && same == own.len();
                let stops = match entry.ends {
                    Ends::Anywhere => same > 0,
                    Ends::Last => is_end,
                    Ends::Nowhere => false,
                };
                if stops && at + same > best.len {
                    // All blocks of the file that has the last one: fewer files are read.
                    let mut path = parts.clone();
                    cut(&mut path, entry.from / KEY_BLOCK);
                    path.push((Arc::clone(entry), 0..i + 1));
                    best = Found { len: at + same, parts: path, blocks: 0 };
                }
                let goes_on = parts.last().is_some_and(|(last, r)| Arc::ptr_eq(last, entry) && r.end == *i);
                if longest.is_none_or(|(n, ..)| same > n || same == n && goes_on) {
                    longest = Some((same, entry, *i));
                }
            }
            let Some((same, entry, i)) = longest.filter(|l| l.0 == KEY_BLOCK) else { break };
            extend(&mut parts, entry, i);
            here = entry.chain[i + 1];
            at += same;
            blocks += 1;
        }
        Found { blocks, ..best }
    }

    /// Files that `entry` makes superfluous: they begin where it does, and it goes on from their end.
    pub(super) fn covered(&self, entry: &Entry) -> Vec<(String, u64)> {
        let Some(all) = self.starts.get(&entry.chain[0]).filter(|_| entry.ends == Ends::Anywhere) else {
            return Vec::new();
        };
        let within = |e: &Entry| e.tokens.len() < entry.tokens.len() && entry.tokens.starts_with(&e.tokens);
        all.iter().filter(|(e, i)| *i == 0 && within(e)).map(|(e, _)| (e.name(), e.size)).collect()
    }
}

/// One more block at the end.
fn extend(parts: &mut Vec<(Arc<Entry>, Range<usize>)>, entry: &Arc<Entry>, block: usize) {
    match parts.last_mut() {
        Some((last, range)) if Arc::ptr_eq(last, entry) && range.end == block => range.end += 1,
        _ => parts.push((Arc::clone(entry), block..block + 1)),
    }
}

/// Only the first `blocks` of all.
fn cut(parts: &mut Vec<(Arc<Entry>, Range<usize>)>, mut blocks: usize) {
    parts.retain_mut(|(_, range)| {
        let n = range.len().min(blocks);
        range.end = range.start + n;
        blocks -= n;
        n > 0
    });
}
