//! Tasks that lie one behind the other in memory: every thread goes along a stretch of its own, so that what the last task
//! fetched ahead is what the next one reads, and takes half of what is left of another's when it has none left.
//!
//! Knows the pool, not the tasks. Which thread runs a task changes no result.

use crate::pool;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is left of a stretch: the first task in the lower half, the end in the upper.
#[repr(align(128))]
struct Stretch(AtomicU64);

impl Stretch {
    fn new(first: usize, end: usize) -> Stretch {
        Stretch(AtomicU64::new((end as u64) << 32 | first as u64))
    }

    /// The first task that is left.
    fn take(&self) -> Option<usize> {
        let rest = |state| {
            let (start, end) = Stretch::split(state);
            (start < end).then(|| state + 1)
        };
        Some(Stretch::split(self.0.fetch_update(Relaxed, Relaxed, rest).ok()?).0)
    }

    /// The half of what is left that comes last, for somebody else.
    fn half(&self) -> Option<Stretch> {
        let rest = |state| {
            let (start, end) = Stretch::split(state);
            (start < end).then(|| Stretch::new(start, start + (end - start) / 2).0.into_inner())
        };
        let (start, end) = Stretch::split(self.0.fetch_update(Relaxed, Relaxed, rest).ok()?);
        Some(Stretch::new(start + (end - start) / 2, end))
    }

    fn split(state: u64) -> (usize, usize) {
        (state as u32 as usize, (state >> 32) as usize)
    }
}

/// [`pool::run`] for tasks that are neighbours in memory (fewer than 2^32). They should be small: a thread waits for the
/// others' last one.
pub(crate) fn run(tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    let parts = pool::threads().min(tasks);
    if parts <= 1 || tasks > u32::MAX as usize {
        return pool::run(tasks, f);
    }
    let cut = |part| tasks * part / parts;
    let stretches: SmallVec<[Stretch; 4]> = (0..parts).map(|part| Stretch::new(cut(part), cut(part + 1))).collect();
    pool::run(parts, &|part| {
        let mine = &stretches[part];
        loop {
            while let Some(task) = mine.take() {
                f(task);
            }
            // Nobody but its owner fills a stretch that is empty.
            let others = (1..parts).map(|turn| &stretches[(part + turn) % parts]);
            match others.filter_map(Stretch::half).next() {
                Some(theirs) => mine.0.store(theirs.0.into_inner(), Relaxed),
                None => return,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            pool::with_threads(threads, || {
                for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    run(tasks, &|i| {
                        counts[i].fetch_add(1, Relaxed);
                    });
                    assert!(counts.into_iter().all(|n| n.into_inner() == 1), "{tasks} tasks, {threads} threads");
                }
            });
        }
    }

    #[test]
    fn a_slow_task_does_not_hold_up_its_neighbours() {
        pool::with_threads(2, || {
            let done = AtomicUsize::new(0);
            run(64, &|i| {
                if i == 0 {
                    let start = std::time::Instant::now();
                    // The others are taken over: 63 ends come while this one lasts, or its thread is the only one.
                    while done.load(Relaxed) < 63 && start.elapsed().as_millis() < 50 {
                        std::thread::yield_now();
                    }
                }
                done.fetch_add(1, Relaxed);
            });
            assert_eq!(done.into_inner(), 64);
        });
    }
}
