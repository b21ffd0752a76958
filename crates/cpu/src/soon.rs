//! What the next product reads: threads that wait ask memory for the beginning of their share of it, into the second-level
//! cache. While one thread computes a norm or chooses a token, memory would be idle otherwise.
//!
//! Knows addresses only, and reads none of them: a prefetch may name any.

use crate::isa::features;
use crate::pool;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Matrices that are read together; of more, the first.
const MOST: usize = 4;
/// Bytes that a thread fetches at most, which fit half of a second-level cache.
const MOST_BYTES: usize = 1 << 19;
/// Pages that are read in turn, a pair of lines each (where memory is not asked for in order), and bytes in a call.
const PAGES: usize = 4;
const CALL: usize = 8 * 128;
const PAGE: usize = 4096;

/// Addresses and bytes, how many threads share them, and how often they have changed. Each may be read while they change:
/// then a thread asks for lines that nobody needs.
struct Soon {
    weights: [(AtomicUsize, AtomicUsize); MOST],
    threads: AtomicUsize,
    turn: AtomicUsize,
}

static SOON: Soon = Soon {
    weights: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; MOST],
    threads: AtomicUsize::new(1),
    turn: AtomicUsize::new(0),
};

thread_local! {
    /// The turn of [`SOON`], what is fetched from where, and how far.
    static MINE: Cell<Mine> = const { Cell::new(Mine { turn: 0, first: 0, bytes: 0, done: 0 }) };
}

#[derive(Clone, Copy)]
struct Mine {
    turn: usize,
    first: usize,
    bytes: usize,
    done: usize,
}

/// Says which memory (addresses, bytes) is read next, in the order in which [`crate::stretch`] deals it out.
pub(crate) fn announce(weights: &[(usize, usize)]) {
    for (i, (first, bytes)) in SOON.weights.iter().enumerate() {
        let (a, n) = weights.get(i).copied().unwrap_or_default();
        first.store(a, Relaxed);
        bytes.store(n, Relaxed);
    }
    SOON.threads.store(pool::threads(), Relaxed);
    SOON.turn.fetch_add(1, Relaxed);
}

/// Asks for some more of what participant `index` reads first. False if there is no more.
#[inline]
pub(crate) fn fetch(index: usize) -> bool {
    let turn = SOON.turn.load(Relaxed);
    let mut mine = MINE.get();
    if mine.turn != turn {
        let weights = std::array::from_fn(|i| {
            let (first, bytes) = &SOON.weights[i];
            (first.load(Relaxed), bytes.load(Relaxed))
        });
        let (first, bytes) = share(weights, SOON.threads.load(Relaxed), index);
        mine = Mine { turn, first, bytes, done: 0 };
    }
    let more = mine.done < mine.bytes;
    if more {
        let in_order = features().in_order;
        for pair in (mine.done..mine.done + CALL).step_by(128) {
            let (lot, nth) = (pair / (PAGES * PAGE), pair / 128 % (PAGES * PAGE / 128));
            let turned = lot * PAGES * PAGE + nth % PAGES * PAGE + nth / PAGES * 128;
            let at = mine.first.wrapping_add(if in_order { pair } else { turned });
            ask(at);
            ask(at.wrapping_add(64));
        }
        mine.done += CALL;
    }
    MINE.set(mine);
    more
}

/// The first bytes of the share of participant `index` of `threads`, in lots of pages, and where they begin.
fn share(weights: [(usize, usize); MOST], threads: usize, index: usize) -> (usize, usize) {
    let threads = threads.max(1);
    let each = weights.iter().map(|&(_, bytes)| bytes).sum::<usize>() / threads;
    let mut from = each * index;
    for (first, bytes) in weights {
        if from < bytes && index < threads {
            let bytes = (bytes - from).min(each).min(MOST_BYTES);
            return (first + from, bytes / (PAGES * PAGE) * (PAGES * PAGE));
        }
        from -= bytes.min(from);
    }
    (0, 0)
}

/// Asks for what is read in a moment.
pub(crate) fn ask_for(first: *const u8, bytes: usize) {
    (0..bytes).step_by(64).for_each(|at| ask(first.addr().wrapping_add(at)));
}

/// Into the second-level cache.
#[inline(always)]
pub(crate) fn ask(at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and may name any address; SSE is part of x86_64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(at));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Into the first-level cache, to be written.
#[inline(always)]
pub(crate) fn ask_to_write(at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and may name any address; processors of x86_64 that do not know this one pass over it.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_begin_where_threads_do() {
        let (a, b, none) = ((1 << 20, 3 << 18), (7 << 20, 1 << 18), (0, 0));
        let all = [a, b, none, none];
        assert_eq!(share(all, 1, 0), (1 << 20, 1 << 19));
        assert_eq!(share(all, 2, 0), (1 << 20, 1 << 19));
        // What is left of the first matrix.
        assert_eq!(share(all, 2, 1), ((1 << 20) + (1 << 19), 1 << 18));
        assert_eq!(share(all, 4, 3), (7 << 20, 1 << 18));
        assert_eq!(share(all, 2, 2), (0, 0), "who takes no part");
        assert_eq!(share([none; 4], 2, 1), (0, 0));
    }

    #[test]
    fn fetching_ends() {
        announce(&[(0, 1 << 22)]);
        assert!((0..10_000).any(|_| !fetch(0)));
    }
}
