//! Text that is being read: what was given out, what was read, how far a search has come.

use crate::engine::Finish;

/// Text read from its beginning on, as it comes.
#[derive(Default)]
pub(super) struct Input {
    text: String,
    /// What is before was given out, or is dropped.
    begin: usize,
    /// What is before was read.
    at: usize,
    /// No marker of the search begins before.
    seen: usize,
    /// The text ends here, and why.
    pub(super) last: Option<Finish>,
}

/// What a search found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// So many bytes on there is this marker.
    At(usize, usize),
    /// None; so many bytes cannot belong to one.
    None(usize),
}

/// Bytes that are done with are let go in such portions.
const PORTION: usize = 4096;

impl Input {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// What was not read.
    pub(super) fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    /// Whether no more text comes after [`Input::rest`].
    pub(super) fn ends(&self) -> bool {
        self.last.is_some()
    }

    /// Reads bytes, which end at a character.
    pub(super) fn read(&mut self, bytes: usize) {
        self.at += bytes;
        self.seen = self.seen.max(self.at);
    }

    /// What was read since the last commit.
    pub(super) fn pending(&self) -> &str {
        &self.text[self.begin..self.at]
    }

    /// A piece of what is pending and not read, from byte to byte of it.
    pub(super) fn piece(&self, from: usize, to: usize) -> &str {
        &self.text[self.begin + from..self.begin + to]
    }

    /// What was read is done with. A search begins anew.
    pub(super) fn commit(&mut self) {
        self.begin = self.at;
        self.seen = self.at;
        if self.begin > PORTION && self.begin > self.text.len() / 2 {
            self.text.drain(..self.begin);
            (self.begin, self.at, self.seen) = (0, 0, 0);
        }
    }

    /// What was read is done with; a search goes on.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.read(bytes);
        let ahead = self.seen - self.at;
        self.commit();
        self.seen = self.at + ahead;
    }

    /// Looks for the first of some markers: that which begins first, and of those that begin there the longest. It goes
    /// on where the last search ended, so between searches for other markers there must be a commit.
    pub(super) fn search<S: AsRef<str>>(&mut self, markers: &[S]) -> Found {
        let bytes = self.text.as_bytes();
        for i in self.seen..bytes.len() {
            let rest = &bytes[i..];
            let mut found: Option<(usize, usize)> = None;
            let mut partial = false;
            for (which, marker) in markers.iter().enumerate() {
                let marker = marker.as_ref().as_bytes();
                if marker.first() != Some(&rest[0]) {
                    continue;
                }
                if rest.starts_with(marker) {
                    found = found.max(Some((marker.len(), which)));
                }
                partial |= self.last.is_none() && rest.len() < marker.len() && marker.starts_with(rest);
            }
            if found.is_some() || partial {
                self.seen = i;
                return match found {
                    Some((_, which)) if !partial => Found::At(i - self.at, which),
                    _ => Found::None(i - self.at),
                };
            }
        }
        self.seen = bytes.len();
        Found::None(bytes.len() - self.at)
    }

    /// Whether the rest begins with one of some markers: which; [`Found::None`] says that it may yet (1) or does not (0).
    pub(super) fn begins<S: AsRef<str>>(&self, markers: &[S]) -> Found {
        let rest = self.rest();
        let long = |m: &S| m.as_ref().len();
        let partial = |m: &&S| rest.len() < long(m) && m.as_ref().starts_with(rest) && self.last.is_none();
        if markers.iter().any(|m| partial(&m)) {
            return Found::None(1);
        }
        let whole = markers.iter().enumerate().filter(|(_, m)| rest.starts_with(m.as_ref()));
        match whole.max_by_key(|(_, m)| long(m)) {
            Some((which, _)) => Found::At(0, which),
            None => Found::None(0),
        }
    }
}
