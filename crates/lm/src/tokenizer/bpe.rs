//! Byte-pair encoding that is ready soon after the file is read.
//!
//! A vocabulary of 128,000 tokens with 280,000 merges takes `tokenizers` most of a second to build, longer than a small
//! model takes to its first token. Here all texts lie in one buffer, tables are arrays of numbers by hash, and many lookups
//! are made side by side: each would wait for memory three times. The ids are those of `tokenizers`' own model; rare
//! options (dropout, subword prefixes) are left to it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

use serde::de::Error as _;
use tokenizers::{Result, Token};

/// The largest id that is taken.
const MAX_ID: u32 = 1 << 24;
/// No number, no id.
const NONE: u32 = u32::MAX;

/// Numbers by hash, with linear probing: each place has the lower 24 bits of a number and the upper 8 of its hash.
struct Table {
    places: Vec<u32>,
}

impl Table {
    /// The most numbers there may be.
    const MOST: usize = (1 << 24) - 1;
    const TAG: u32 = 0xff << 24;

    /// A table that stays half empty with `count` numbers.
    fn new(count: usize) -> Table {
        Table { places: vec![NONE; (count * 2).next_power_of_two().max(2)] }
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    /// What is where a number with this hash would be, if nothing else were.
    fn first(&self, hash: u64) -> u32 {
        self.places[self.home(hash)]
    }

    /// The number in a place, if it may have this hash.
    fn number(place: u32, hash: u64) -> Option<u32> {
        let tag = (hash >> 56) as u32;
        (place != NONE && place >> 24 == tag).then_some(place & !Table::TAG)
    }

    /// The number with this hash that is the `same`, or the place where it belongs.
    fn find(&self, hash: u64, same: impl Fn(u32) -> bool) -> std::result::Result<u32, usize> {
        let mut at = self.home(hash);
        loop {
            match self.places[at] {
                NONE => return Err(at),
                place if let Some(number) = Table::number(place, hash).filter(|n| same(*n)) => return Ok(number),
                _ => at = (at + 1) & (self.places.len() - 1),
            }
        }
    }

    /// Puts `number` in the place of the one that is the `same`, or a free one. Says whether it was there.
    fn put(&mut self, hash: u64, number: u32, same: impl Fn(u32) -> bool) -> bool {
        let mut at = self.home(hash);
        loop {
            let place = self.places[at];
            let there = Table::number(place, hash).is_some_and(&same);
            if there || place == NONE {
                self.places[at] = (hash >> 56 << 24) as u32 | number;
                return there;
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }
}

/// A text in a buffer of texts, with its id.
#[derive(Clone, Copy, Default)]
struct Entry {
    begin: u32,
    end: u32,
    id: u32,
}

/// Texts with their ids, as they are read.
#[derive(Default)]
pub(super) struct Texts {
    all: String,
    /// In the order of the file.
    entries: Vec<Entry>,
    /// Numbers of entries by id.
    by_id: Vec<u32>,
}

impl Texts {
    pub(super) fn with_capacity(texts: usize) -> Texts {
        Texts {
            all: String::with_capacity(texts.saturating_mul(8)),
            entries: Vec::with_capacity(texts),
            by_id: Vec::with_capacity(texts),
        }
    }

    /// Adds a text. Its id must be free.
    pub(super) fn push(&mut self, text: &str, id: u32) -> std::result::Result<(), String> {
        if id > MAX_ID {
            return Err(format!("the token {text:?} has the id {id}; ids up to {MAX_ID} are taken"));
        }
        let number = self.entries.len() as u32;
        if number as usize >= Table::MOST {
            return Err(format!("the vocabulary has more than {} tokens", Table::MOST));
        }
        if self.by_id.len() <= id as usize {
            self.by_id.resize(id as usize + 1, NONE);
        }
        if self.by_id[id as usize] != NONE {
            return Err(format!("the id {id} belongs to two tokens, one of them {text:?}"));
        }
        let begin = u32::try_from(self.all.len()).map_err(|_| "the vocabulary has more than 4 GiB of text")?;
        self.all.push_str(text);
        self.entries.push(Entry { begin, end: self.all.len() as u32, id });
        self.by_id[id as usize] = number;
        Ok(())
    }

    fn text(&self, entry: Entry) -> &str {
        &self.all[entry.begin as usize..entry.end as usize]
    }
}

/// Texts with their ids.
pub(super) struct Vocab {
    texts: Texts,
    table: Table,
    /// Unknown to who writes a file, so that no file can make all texts collide.
    seed: u64,
}

impl Vocab {
    /// Those of a file, if no text is there twice.
    pub(super) fn new(texts: Texts) -> std::result::Result<Vocab, String> {
        let seed = RandomState::new().hash_one(0u8) | 1;
        let mut table = Table::new(texts.entries.len());
        for (number, entry) in texts.entries.iter().enumerate() {
            let text = texts.text(*entry);
            let same = |other: u32| texts.text(texts.entries[other as usize]) == text;
            if table.put(hash(text.as_bytes(), seed), number as u32, same) {
                return Err(format!("the token {text:?} is there twice"));
            }
        }
        Ok(Vocab { texts, table, seed })
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let entry = |number: u32| self.texts.entries[number as usize];
        let found = self.table.find(hash(text.as_bytes(), self.seed), |n| self.texts.text(entry(n)) == text);
        found.ok().map(|number| entry(number).id)
    }

    /// The ids of several texts, to the end of `ids`. Those that are found at once do not wait for each other.
    fn ids(&self, texts: &[&str], ids: &mut Vec<Option<u32>>) {
        const SIDE_BY_SIDE: usize = 64;
        for texts in texts.chunks(SIDE_BY_SIDE) {
            let mut found = [None; SIDE_BY_SIDE];
            for (text, found) in texts.iter().zip(&mut found) {
                let hash = hash(text.as_bytes(), self.seed);
                *found = Table::number(self.table.first(hash), hash);
            }
            let entries = found.map(|number| number.map(|number| self.texts.entries[number as usize]));
            ids.extend(texts.iter().zip(entries).map(|(text, entry)| match entry {
                Some(entry) if self.texts.text(entry) == *text => Some(entry.id),
                _ => self.id(text),
            }));
        }
    }

    pub(super) fn token(&self, id: u32) -> Option<&str> {
        let number = self.texts.by_id.get(id as usize).filter(|n| **n != NONE)?;
        Some(self.texts.text(self.texts.entries[*number as usize]))
    }

    pub(super) fn len(&self) -> usize {
        self.texts.entries.len()
    }

    /// All texts with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.texts.entries.iter().map(|entry| (self.texts.text(*entry), entry.id))
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

/// Pairs of texts, in the order in which they are merged.
#[derive(Default)]
pub(super) struct Pairs {
    all: String,
    /// Where each first text ends, and each second.
    ends: Vec<(u32, u32)>,
}

impl Pairs {
    pub(super) fn push(&mut self, first: &str, second: &str) -> std::result::Result<(), String> {
        let end = u32::try_from(self.all.len() + first.len() + second.len());
        let end = end.ok().filter(|_| self.ends.len() < Table::MOST);
        let end = end.ok_or_else(|| format!("there are more than {} merges, or 4 GiB of them", Table::MOST))?;
        self.all.extend([first, second]);
        self.ends.push((end - second.len() as u32, end));
        Ok(())
    }

    /// Both texts, and both as one.
    pub(super) fn iter(&self) -> impl Iterator<Item = [&str; 3]> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|&(_, end)| end as usize));
        begins.zip(&self.ends).map(|(begin, &(middle, end))| {
            let (middle, end) = (middle as usize, end as usize);
            [&self.all[begin..middle], &self.all[middle..end], &self.all[begin..end]]
        })
    }
}

/// What a merge of two tokens gives; merges with lower numbers are done earlier.
#[derive(Clone, Copy)]
struct Merge {
    pair: u64,
    id: u32,
}

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
    merges: Vec<Merge>,
    /// Numbers of merges by the hash of their pair.
    table: Table,
    options: Options,
    unknown: Option<u32>,
    /// The ids of `<0x00>` to `<0xFF>`.
    bytes: Vec<Option<u32>>,
}

impl Bpe {
    /// The model of a vocabulary and its merges.
    pub(super) fn new(vocab: Vocab, pairs: &Pairs, options: Options) -> std::result::Result<Bpe, serde_json::Error> {
        let mut merges = Vec::with_capacity(pairs.ends.len());
        let mut table = Table::new(pairs.ends.len());
        let texts: Vec<&str> = pairs.iter().flat_map(|[first, second, _]| [first, second]).collect();
        let mut ids = Vec::with_capacity(texts.len());
        vocab.ids(&texts, &mut ids);
        let unknown = |part: &str, text: &str| {
            serde_json::Error::custom(format!("a merge {part} {text:?}, which is not in the vocabulary"))
        };
        let mut last = 0;
        for ([first, second, both], ids) in pairs.iter().zip(ids.as_chunks::<2>().0) {
            let a = ids[0].ok_or_else(|| unknown("has the part", first))?;
            let b = ids[1].ok_or_else(|| unknown("has the part", second))?;
            // Most files have merges in the order of their tokens: looking at the next one spares a search.
            let near = [last + 1, last].into_iter().find(|id| vocab.token(*id) == Some(both));
            let id = near.or_else(|| vocab.id(both)).ok_or_else(|| unknown("gives", both))?;
            last = id;
            let pair = pair(a, b);
            let number = merges.len() as u32;
            table.put(mix(pair, vocab.seed), number, |other| {
                merges.get(other as usize).is_some_and(|m: &Merge| m.pair == pair)
            });
            merges.push(Merge { pair, id });
        }
        let unknown = options.unknown.as_ref().and_then(|text| vocab.id(text));
        let bytes = (0..256).map(|byte| vocab.id(&format!("<{byte:#04X}>"))).collect();
        Ok(Bpe { vocab, merges, table, options, unknown, bytes })
    }

    /// The number of the merge of two tokens, and what it gives.
    fn merge(&self, a: u32, b: u32) -> Option<(u32, u32)> {
        let pair = pair(a, b);
        let same = |number: u32| self.merges[number as usize].pair == pair;
        let number = self.table.find(mix(pair, self.vocab.seed), same).ok()?;
        Some((number, self.merges[number as usize].id))
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
                && let Some((rank, id)) = self.merge(symbols[at].id, symbols[next].id)
            {
                queue.push(Reverse((rank, at, id)));
            }
        };
        for at in 0..symbols.len() {
            offer(symbols, &mut queue, at);
        }
        while let Some(Reverse((rank, at, id))) = queue.pop() {
            let Some(next) = symbols[at].after.filter(|_| symbols[at].len > 0) else { continue };
            let current = self.merge(symbols[at].id, symbols[next].id);
            if current != Some((rank, id)) {
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

/// A hash of a pair.
fn mix(pair: u64, seed: u64) -> u64 {
    let product = u128::from(pair ^ seed) * u128::from(seed ^ 0x9e37_79b9_7f4a_7c15);
    product as u64 ^ (product >> 64) as u64
}
