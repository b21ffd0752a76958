//! Memory that outlives a product: each thread keeps its packing buffers, so that pages are touched once.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;

/// A buffer that only grows, aligned to a cache line (to a huge page once it holds one).
#[derive(Default)]
pub(super) struct Buffer {
    ptr: usize,
    bytes: usize,
}

const HUGE: usize = 2 << 20;

impl Buffer {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, if bytes >= HUGE { HUGE } else { 64 })
            .expect("a buffer within the address space")
    }

    /// Room for `len` values; what they hold is unspecified, and the next call may move them.
    pub(super) fn room<T: Copy>(&mut self, len: usize) -> *mut T {
        let need = (len * size_of::<T>()).max(64);
        if need > self.bytes {
            self.free();
            let bytes = if need >= HUGE { need.next_multiple_of(HUGE) } else { need.next_power_of_two() };
            let layout = Buffer::layout(bytes);
            // SAFETY: the size is not zero.
            let ptr = unsafe { alloc(layout) };
            if ptr.is_null() {
                handle_alloc_error(layout);
            }
            (self.ptr, self.bytes) = (ptr as usize, bytes);
            advise_huge_pages(ptr, bytes);
        }
        self.ptr as *mut T
    }

    fn free(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated in `room` with this layout.
            unsafe { dealloc(self.ptr as *mut u8, Buffer::layout(self.bytes)) };
            (self.ptr, self.bytes) = (0, 0);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.free();
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(ptr: *mut u8, bytes: usize) {
    unsafe extern "C" {
        fn madvise(addr: *mut std::ffi::c_void, length: usize, advice: i32) -> i32;
    }
    const MADV_HUGEPAGE: i32 = 14;
    if bytes >= HUGE {
        // SAFETY: a hint about memory that this buffer owns; failure changes nothing.
        unsafe { madvise(ptr.cast(), bytes, MADV_HUGEPAGE) };
    }
}
#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: *mut u8, _: usize) {}

/// What one task needs: sums of its tile, a packed stretch of either side.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) sums: Buffer,
    pub(super) lhs: Buffer,
    pub(super) rhs: Buffer,
}

thread_local! {
    static TASK: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
    static CALL: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

fn with<R>(slot: &'static std::thread::LocalKey<Cell<Option<Box<Scratch>>>>, f: impl FnOnce(&mut Scratch) -> R) -> R {
    // Taken out while in use: a nested user finds nothing and makes its own.
    let mut scratch = slot.take().unwrap_or_default();
    let result = f(&mut scratch);
    slot.set(Some(scratch));
    result
}

/// The scratch of the task that runs on this thread.
pub(super) fn for_task<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    with(&TASK, f)
}

/// The scratch of the product that this thread has asked for, shared with the tasks of its regions.
pub(super) fn for_call<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    with(&CALL, f)
}
