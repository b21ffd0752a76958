//! Responses that may be gone on with: as many as the operator allows, and no more bytes than a body may have twice over.

use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Bytes of all together at most.
const BYTES: usize = 64 << 20;

/// A response and what led to it.
struct Kept {
    id: String,
    owner: u64,
    /// A list of items, as text: it is small, and read once at most.
    items: String,
}

/// The latest responses.
pub(crate) struct Memory {
    most: usize,
    bytes: usize,
    all: Mutex<VecDeque<Kept>>,
}

impl Memory {
    /// Room for so many.
    pub(crate) fn new(most: usize) -> Memory {
        Memory { most, bytes: BYTES, all: Mutex::default() }
    }

    /// Whether anything is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.most > 0
    }

    /// Keeps the items that led to a response, and its own; the oldest go for it.
    pub(crate) fn keep(&self, id: &str, owner: u64, items: &[Value]) {
        let Ok(items) = serde_json::to_string(items) else { return };
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back(Kept { id: id.into(), owner, items });
        let mut bytes: usize = all.iter().map(|k| k.items.len()).sum();
        while all.len() > self.most || bytes > self.bytes {
            let Some(gone) = all.pop_front() else { return };
            bytes -= gone.items.len();
        }
    }

    /// The items of a response of the same owner.
    pub(crate) fn find(&self, id: &str, owner: u64) -> Option<Vec<Value>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.iter().find(|k| k.id == id && k.owner == owner)?;
        serde_json::from_str(&kept.items).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_for_those_who_asked_within_the_bytes() {
        let memory = Memory { bytes: 100, ..Memory::new(2) };
        for id in ["a", "b", "c"] {
            memory.keep(id, 1, &[id.into()]);
        }
        assert_eq!((memory.find("a", 1), memory.find("c", 1)), (None, Some(vec!["c".into()])));
        assert_eq!(memory.find("c", 2), None);
        memory.keep("d", 1, &["x".repeat(96).into()]);
        assert!(memory.find("c", 1).is_none() && memory.find("d", 1).is_some());
        memory.keep("e", 1, &["x".repeat(100).into()]);
        assert!(memory.find("e", 1).is_none() && memory.find("d", 1).is_none());
    }
}
