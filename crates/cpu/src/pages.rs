//! Blocks from the system, in huge pages where they are large: attention over keys in pages of 4 KiB reads a tenth slower.
//!
//! Blocks of 2 MiB and more are mappings of their own, because what malloc gives may have been touched in small pages
//! before. Blocks of 256 KiB and more share a huge page with others of their size. Smaller ones are malloc's.
//!
//! Knows nothing of classes, of counting and of what is kept for reuse.

use std::alloc::{Layout, alloc, dealloc};

const ALIGN: usize = 64;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<u64>())
}

/// Uninitialised memory for `size` bytes, a multiple of 64.
pub(crate) fn take(size: usize) -> Option<*mut u8> {
    #[cfg(target_os = "linux")]
    if huge::holds(size) {
        return huge::take(size);
    }
    // SAFETY: classes have at least 64 bytes.
    let ptr = unsafe { alloc(layout(size)) };
    (!ptr.is_null()).then_some(ptr)
}

/// Gives a block back.
///
/// # Safety
/// It came from [`take`] with this size, and nobody uses it any more.
pub(crate) unsafe fn give(ptr: *mut u8, size: usize) {
    #[cfg(target_os = "linux")]
    if huge::holds(size) {
        // SAFETY: the caller's promise.
        unsafe { huge::give(ptr, size) };
        return;
    }
    // SAFETY: the block came from `alloc` with this layout.
    unsafe { dealloc(ptr, layout(size)) };
}

#[cfg(target_os = "linux")]
mod huge {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const PAGE: usize = 2 << 20;
    /// The smallest part of a shared page.
    const PART: usize = 256 << 10;

    /// Whether blocks of this size are made here: those that leave no more than an eighth of a page unused.
    pub(super) fn holds(size: usize) -> bool {
        size >= PAGE || (size >= PART && PAGE % size <= PAGE / 8)
    }

    pub(super) fn take(size: usize) -> Option<*mut u8> {
        if size >= PAGE { map(size) } else { shared().take(size) }
    }

    /// # Safety
    /// As [`super::give`].
    pub(super) unsafe fn give(ptr: *mut u8, size: usize) {
        if size >= PAGE {
            // SAFETY: the mapping is the block's own.
            unsafe { libc::munmap(ptr.cast(), size) };
        } else {
            // SAFETY: the caller's promise.
            unsafe { shared().give(ptr, size) };
        }
    }

    /// Pages that hold several blocks of one size, by size and address, with a bit for each part that is free.
    #[derive(Default)]
    struct Shared {
        pages: BTreeMap<(usize, usize), u8>,
        /// Those of them with a free part.
        open: BTreeMap<usize, Vec<usize>>,
    }

    static SHARED: Mutex<Shared> = Mutex::new(Shared { pages: BTreeMap::new(), open: BTreeMap::new() });

    fn shared() -> MutexGuard<'static, Shared> {
        SHARED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Shared {
        fn take(&mut self, size: usize) -> Option<*mut u8> {
            let all = u8::MAX >> (8 - PAGE / size);
            let open = self.open.entry(size).or_default();
            let page = match open.last() {
                Some(&page) => page,
                None => {
                    // Addresses as numbers: the page is reached through what the system said was there.
                    let page = map(PAGE)?.expose_provenance();
                    self.pages.insert((size, page), all);
                    open.push(page);
                    page
                }
            };
            let free = self.pages.get_mut(&(size, page))?;
            let part = free.trailing_zeros() as usize;
            *free &= *free - 1;
            if *free == 0 {
                open.pop();
            }
            Some(std::ptr::with_exposed_provenance_mut(page + part * size))
        }

        /// # Safety
        /// As [`super::give`].
        unsafe fn give(&mut self, ptr: *mut u8, size: usize) {
            let (page, part) = (ptr.addr() & !(PAGE - 1), ptr.addr() % PAGE / size);
            let Some(free) = self.pages.get_mut(&(size, page)) else { return };
            let open = self.open.entry(size).or_default();
            if *free == 0 {
                open.push(page);
            }
            *free |= 1 << part;
            if free.count_ones() as usize == PAGE / size {
                self.pages.remove(&(size, page));
                open.retain(|&p| p != page);
                // SAFETY: no part of the page is in use.
                unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(page), PAGE) };
            } else {
                // SAFETY: the part is free, whole pages, and its content is not needed.
                unsafe { libc::madvise(ptr.cast(), size, libc::MADV_DONTNEED) };
            }
        }
    }

    /// Fresh pages from a multiple of 2 MiB on, huge ones where the system has them.
    fn map(size: usize) -> Option<*mut u8> {
        let reserved = size.checked_add(PAGE)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), reserved, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = start.cast::<u8>();
        let before = start.align_offset(PAGE);
        let ptr = start.wrapping_add(before);
        // SAFETY: both ends lie in the new mapping and outside of the block; the advice changes no content.
        unsafe {
            if before > 0 {
                libc::munmap(start.cast(), before);
            }
            libc::munmap(ptr.wrapping_add(size).cast(), PAGE - before);
            libc::madvise(ptr.cast(), size, libc::MADV_HUGEPAGE);
        }
        Some(ptr)
    }

    #[cfg(test)]
    mod tests {
        use super::{PAGE, holds};
        use crate::pages::{give, take};

        /// Bytes of this process's memory around `ptr` that the system says are there.
        fn resident(ptr: *mut u8, size: usize) -> usize {
            let mut seen = vec![0u8; size / 4096];
            // SAFETY: asks about pages; `seen` has a byte for each.
            let result = unsafe { libc::mincore(ptr.cast(), size, seen.as_mut_ptr()) };
            if result == 0 { seen.iter().filter(|&&s| s & 1 == 1).count() * 4096 } else { 0 }
        }

        #[test]
        fn parts_of_a_page_are_apart_and_go_back() {
            // A size that no other test uses meanwhile.
            let size = 448 << 10;
            let blocks: Vec<*mut u8> = (0..9).map(|_| take(size).unwrap()).collect();
            for (i, &ptr) in blocks.iter().enumerate() {
                assert_eq!(ptr.addr() % 64, 0);
                // SAFETY: the block is ours.
                unsafe { ptr.write_bytes(i as u8 + 1, size) };
            }
            for (i, &ptr) in blocks.iter().enumerate() {
                // SAFETY: as above, and written.
                let bytes = unsafe { std::slice::from_raw_parts(ptr, size) };
                assert!(bytes.iter().all(|&b| b == i as u8 + 1), "block {i} was written through another");
                assert_eq!(resident(ptr, size), size);
            }
            // SAFETY: the blocks are not used again.
            unsafe { give(blocks[0], size) };
            assert_eq!(resident(blocks[0], size), 0, "what was given back is the system's");
            assert_eq!(resident(blocks[1], size), size);
            for &ptr in &blocks[1..] {
                // SAFETY: as above.
                unsafe { give(ptr, size) };
            }
        }

        #[test]
        fn large_blocks_begin_at_huge_pages() {
            for size in [PAGE, 5 << 20, (1 << 28) + (32 << 20)] {
                let ptr = take(size).unwrap();
                assert_eq!(ptr.addr() % PAGE, 0);
                // SAFETY: the block is ours, and not used after it was given back.
                unsafe {
                    ptr.write(1);
                    ptr.add(size - 1).write(2);
                    give(ptr, size);
                }
            }
            assert!(take(1 << 62).is_none());
        }

        #[test]
        fn what_wastes_much_of_a_page_is_not_held() {
            let classes = [256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048].map(|k| k << 10);
            let held: Vec<usize> = classes.into_iter().filter(|&c| holds(c)).map(|c| c >> 10).collect();
            assert_eq!(held, [256, 320, 384, 448, 512, 640, 896, 1024, 1792, 2048]);
        }
    }
}
