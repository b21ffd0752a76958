//! Byte-pair encoding that is ready soon after the file is read.
//!
//! A vocabulary of 128,000 tokens with 280,000 merges takes `tokenizers` most of a second to build, longer than a small
//! model takes to its first token. Here all texts lie in one buffer, and the tables are arrays: of texts by hash, of
//! pairs by hash. The ids are those of `tokenizers`' own model; rare options (dropout, subword prefixes) are left to it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

use serde::de::Error as _;
use tokenizers::{Result, Token};

/// The largest id that is taken.
const MAX_ID: u32 = 1 << 24;
/// An empty place in a table.
const NONE: u32 = u32::MAX;

/// Texts with their ids.
pub(super) struct Vocab {
    texts: String,
    /// Where each text begins and ends in `texts`, by its number in the file.
    spans: Vec<(u32, u32)>,
    ids: Vec<u32>,
    /// Numbers of texts by hash, with linear probing.
    table: Vec<u32>,
    /// Numbers of texts by id.
    by_id: Vec<u32>,
    /// Unknown to who writes a file, so that no file can make all texts collide.
    seed: u64,
}

impl Vocab {
    pub(super) fn with_capacity(texts: usize) -> Vocab {
        Vocab {
            texts: String::with_capacity(texts.saturating_mul(8)),
            spans: Vec::with_capacity(texts),
            ids: Vec::with_capacity(texts),
            table: vec![NONE; (texts * 2).next_power_of_two().max(1 << 16)],
            by_id: Vec::with_capacity(texts),
            seed: RandomState::new().hash_one(0u8) | 1,
        }
    }

    /// Adds a text. Its id must be free.
    pub(super) fn insert(&mut self, text: &str, id: u32) -> std::result::Result<(), String> {
        if id > MAX_ID {
            return Err(format!("the token {text:?} has the id {id}; ids up to {MAX_ID} are taken"));
        }
        if self.spans.len() * 2 >= self.table.len() {
            self.grow();
        }
        let place = match self.find(text) {
            Ok(_) => return Err(format!("the token {text:?} is there twice")),
            Err(place) => place,
        };
        let number = self.spans.len() as u32;
        if self.by_id.len() <= id as usize {
            self.by_id.resize(id as usize + 1, NONE);
        }
        if self.by_id[id as usize] != NONE {
            return Err(format!("the id {id} belongs to two tokens, one of them {text:?}"));
        }
        let begin = u32::try_from(self.texts.len()).map_err(|_| "the vocabulary has more than 4 GiB of text")?;
        self.texts.push_str(text);
        self.spans.push((begin, self.texts.len() as u32));
        self.ids.push(id);
        self.by_id[id as usize] = number;
        self.table[place] = number;
        Ok(())
    }

    fn grow(&mut self) {
        self.table = vec![NONE; self.table.len() * 2];
        for number in 0..self.spans.len() {
            if let Err(place) = self.find(self.text(number as u32)) {
                self.table[place] = number as u32;
            }
        }
    }

    fn text(&self, number: u32) -> &str {
        let (begin, end) = self.spans[number as usize];
        &self.texts[begin as usize..end as usize]
    }

    /// The number of a text, or the place in the table where it belongs.
    fn find(&self, text: &str) -> std::result::Result<u32, usize> {
        let mask = self.table.len() - 1;
        let mut place = hash(text.as_bytes(), self.seed) as usize & mask;
        loop {
            match self.table[place] {
                NONE => return Err(place),
                number if self.text(number) == text => return Ok(number),
                _ => place = (place + 1) & mask,
            }
        }
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.find(text).ok().map(|number| self.ids[number as usize])
    }

    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.by_id.get(id as usize).filter(|n| **n != NONE).map(|n| self.text(*n))
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// All texts with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.ids.len()).map(|number| (self.text(number as u32), self.ids[number]))
    }
}

/// A hash of a text: its words multiplied and folded one after another.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a ^ seed) * u128::from(b ^ 0x9e37_79b9_7f4a_7c15);
        product as u64 ^ (product >> 64) as u64
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(bytes.len() as u64, |state, word| fold(state, u64::from_le_bytes(*word)));
    let last = rest.iter().fold(0, |last, byte| last << 8 | u64::from(*byte));
    fold(fold(state, last), seed)
}

/// What a merge of two tokens gives, and how early it is done.
#[derive(Clone, Copy)]
struct Merge {
    pair: u64,
    rank: u32,
    id: u32,
}

const EMPTY: Merge = Merge { pair: u64::MAX, rank: NONE, id: NONE };

/// The options of a model, as its file has them.
#[derive(Default)]
pub(super) struct Options {
    pub(super) unknown: Option<String>,
    pub(super) fuse_unknown: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
}

/// A byte-pair model.
pub(super) struct Bpe {
    pub(super) vocab: Vocab,
    /// Merges by the hash of their pair, with linear probing.
    merges: Vec<Merge>,
    options: Options,
    unknown: Option<u32>,
    /// The ids of `<0x00>` to `<0xFF>`.
    bytes: Vec<Option<u32>>,
}

impl Bpe {
    /// The model of a vocabulary and its merges, in the order in which they are done.
    pub(super) fn new(
        vocab: Vocab,
        merges: &[(u32, u32)],
        options: Options,
    ) -> std::result::Result<Bpe, serde_json::Error> {
        let mut table = vec![EMPTY; (merges.len() * 2).next_power_of_two()];
        let mut joined = String::new();
        let mut last = 0;
        for (rank, &(a, b)) in merges.iter().enumerate() {
            joined.clear();
            joined.extend([vocab.token(a), vocab.token(b)].into_iter().flatten());
            // Most files have merges in the order of their tokens: looking at the next one spares a search.
            let near = [last + 1, last].into_iter().find(|id| vocab.token(*id) == Some(&joined));
            let id = near.or_else(|| vocab.id(&joined)).ok_or_else(|| {
                serde_json::Error::custom(format!("a merge gives {joined:?}, which is not in the vocabulary"))
            })?;
            last = id;
            let pair = pair(a, b);
            let place = place(&table, pair, vocab.seed);
            table[place] = Merge { pair, rank: rank as u32, id };
        }
        let unknown = options.unknown.as_ref().and_then(|text| vocab.id(text));
        let bytes = (0..256).map(|byte| vocab.id(&format!("<{byte:#04X}>"))).collect();
        Ok(Bpe { vocab, merges: table, options, unknown, bytes })
    }

    fn merge(&self, a: u32, b: u32) -> Option<Merge> {
        let found = self.merges[place(&self.merges, pair(a, b), self.vocab.seed)];
        (found.rank != NONE).then_some(found)
    }

    /// The tokens of a word.
    pub(super) fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        if word.is_empty() {
            return Ok(Vec::new());
        }
        if self.options.ignore_merges
            && let Some(id) = self.vocab.id(word)
        {
            return Ok(vec![Token::new(id, word.to_owned(), (0, word.len()))]);
        }
        let mut symbols = self.symbols(word)?;
        self.merge_all(&mut symbols);
        let mut begin = 0;
        let token = |symbol: &Symbol| {
            let offsets = (begin, begin + symbol.len);
            begin = offsets.1;
            Token::new(symbol.id, self.vocab.token(symbol.id).unwrap_or("").to_owned(), offsets)
        };
        Ok(symbols.iter().filter(|s| s.len > 0).map(token).collect())
    }

    /// A word's characters, or their bytes, or what stands for unknown ones.
    fn symbols(&self, word: &str) -> Result<Vec<Symbol>> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        let mut unknown: Option<Symbol> = None;
        for (at, c) in word.char_indices() {
            let text = &word[at..at + c.len_utf8()];
            if let Some(id) = self.vocab.id(text) {
                symbols.extend(unknown.take());
                symbols.push(Symbol::new(id, text.len()));
                continue;
            }
            let bytes = || text.bytes().map(|byte| self.bytes[byte as usize]).collect::<Option<Vec<u32>>>();
            if self.options.byte_fallback
                && let Some(bytes) = bytes()
            {
                symbols.extend(bytes.into_iter().map(|id| Symbol::new(id, 1)));
            } else if let Some(name) = &self.options.unknown {
                let id = self.unknown.ok_or_else(|| format!("the unknown token {name:?} is not in the vocabulary"))?;
                match &mut unknown {
                    Some(symbol) if self.options.fuse_unknown => symbol.len += text.len(),
                    _ => {
                        symbols.extend(unknown.take());
                        unknown = Some(Symbol::new(id, text.len()));
                    }
                }
            }
        }
        symbols.extend(unknown);
        let last = symbols.len().wrapping_sub(1);
        for (i, symbol) in symbols.iter_mut().enumerate() {
            symbol.before = i.checked_sub(1);
            symbol.after = (i != last).then_some(i + 1);
        }
        Ok(symbols)
    }

    /// Does the earliest merge, of several the leftmost, until there is none. A symbol that was merged into the one
    /// before it has length 0.
    fn merge_all(&self, symbols: &mut [Symbol]) {
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        let offer = |symbols: &[Symbol], queue: &mut BinaryHeap<_>, at: usize| {
            if let Some(next) = symbols[at].after
                && let Some(merge) = self.merge(symbols[at].id, symbols[next].id)
            {
                queue.push(Reverse((merge.rank, at, merge.id)));
            }
        };
        for at in 0..symbols.len() {
            offer(symbols, &mut queue, at);
        }
        while let Some(Reverse((rank, at, id))) = queue.pop() {
            let Some(next) = symbols[at].after.filter(|_| symbols[at].len > 0) else { continue };
            let current = self.merge(symbols[at].id, symbols[next].id);
            if current.is_none_or(|merge| (merge.rank, merge.id) != (rank, id)) {
                continue;
            }
            symbols[at].id = id;
            symbols[at].len += symbols[next].len;
            symbols[at].after = symbols[next].after;
            symbols[next].len = 0;
            if let Some(after) = symbols[at].after {
                symbols[after].before = Some(at);
            }
            if let Some(before) = symbols[at].before {
                offer(symbols, &mut queue, before);
            }
            offer(symbols, &mut queue, at);
        }
    }
}

/// A part of a word, in a list of parts.
struct Symbol {
    id: u32,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl Symbol {
    fn new(id: u32, len: usize) -> Symbol {
        Symbol { id, len, before: None, after: None }
    }
}

fn pair(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

/// Where a pair is in a table, or belongs.
fn place(table: &[Merge], pair: u64, seed: u64) -> usize {
    let mask = table.len() - 1;
    let product = u128::from(pair ^ seed) * u128::from(seed ^ 0x9e37_79b9_7f4a_7c15);
    let mut place = (product as u64 ^ (product >> 64) as u64) as usize & mask;
    while table[place].pair != pair && table[place].rank != NONE {
        place = (place + 1) & mask;
    }
    place
}
