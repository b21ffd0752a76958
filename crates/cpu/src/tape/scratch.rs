//! Per-thread working memory, aligned to cache lines.

use std::cell::RefCell;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with at least `bytes` bytes of this thread's scratch, aligned to 64. Nested calls get memory of their
/// own.
pub(crate) fn with_scratch<T>(bytes: usize, f: impl FnOnce(*mut u8) -> T) -> T {
    let lines = bytes.div_ceil(64);
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => {
            if scratch.len() < lines {
                scratch.resize(lines, Line([0; 64]));
            }
            f(scratch.as_mut_ptr().cast())
        }
        Err(_) => f(vec![Line([0; 64]); lines].as_mut_ptr().cast()),
    })
}
