//! The thread pool.
use std::sync::OnceLock;

/// Threads that take part in a parallel region, the caller included.
pub fn threads() -> usize {
    static N: OnceLock<usize> = OnceLock::new();
    *N.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Runs `f(0)`, ..., `f(tasks - 1)`, each exactly once, on the pool's threads, and returns when all are done.
///
/// Tasks are claimed one by one in ascending order. A nested call runs on the calling thread.
pub fn run(tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    for i in 0..tasks {
        f(i);
    }
}
