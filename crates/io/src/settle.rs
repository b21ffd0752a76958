//! Weights in large pages: what is mapped from a file moves, while it is used, to memory of lapis's own that the processor
//! finds by fewer entries of its tables. A language model that writes reads all its weights for every token, and files lie
//! in pages of 4 KiB unless the file system can do better and whoever wrote them wrote large pieces.
//!
//! Addresses and bytes stay what they are: a piece is read from the file into a large page, and the kernel puts that page in
//! the place of the small ones. Whoever reads there meanwhile waits. The file can shrink afterwards and nobody minds.
//! It costs as much memory as the weights take, which the file's pages give back when there is need. Linux only.
//!
//! `LAPIS_LARGE_PAGES=0` leaves weights where they are.

use crate::source::Source;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Files that are mapped and have not been looked at.
static WAITING: Mutex<Vec<Weak<Source>>> = Mutex::new(Vec::new());

/// Bytes of a file below which it stays where it is.
const LEAST: usize = 32 << 20;

/// Notes a file that has been mapped.
pub(crate) fn mapped(source: &Arc<Source>) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.retain(|w| w.strong_count() > 0);
    waiting.push(Arc::downgrade(source));
}

/// Begins to move the large files that are mapped now, one second from now and at a quarter of a core's time, where they
/// take no more than `most()` bytes together. Says whether it has begun.
pub fn settle(most: impl FnOnce() -> u64) -> bool {
    let sources = large(most);
    #[cfg(target_os = "linux")]
    let begun = !sources.is_empty()
        && std::thread::Builder::new().name("lapis-settle".to_string()).spawn(|| linux::gently(sources)).is_ok();
    #[cfg(not(target_os = "linux"))]
    let begun = false;
    begun
}

/// As [`settle`], at once and with all of this thread's time: for who measures what comes after the first seconds.
pub fn settle_now(most: impl FnOnce() -> u64) {
    let sources = large(most);
    #[cfg(target_os = "linux")]
    linux::all(sources, |_| {});
    #[cfg(not(target_os = "linux"))]
    drop(sources);
}

/// The large files that wait; none where they take more than `most()` bytes together, or nobody wants them moved.
fn large(most: impl FnOnce() -> u64) -> Vec<Weak<Source>> {
    let mut sources = std::mem::take(&mut *WAITING.lock().unwrap_or_else(PoisonError::into_inner));
    let len = |w: &Weak<Source>| w.upgrade().and_then(|s| s.map().map(|(map, _)| map.len())).unwrap_or(0);
    sources.retain(|w| len(w) >= LEAST);
    let bytes: usize = sources.iter().map(len).sum();
    let wanted = std::env::var("LAPIS_LARGE_PAGES").map_or(true, |v| v.trim() != "0");
    if bytes == 0 || !wanted || bytes as u64 > most() {
        sources.clear();
    }
    sources
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::cell::Cell;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    /// Bytes of a large page.
    const PAGE: usize = 2 << 20;
    /// After which those who only want a few words are gone.
    const AFTER: Duration = Duration::from_secs(1);

    pub(super) fn gently(sources: Vec<Weak<Source>>) {
        std::thread::sleep(AFTER);
        all(sources, |took| std::thread::sleep(3 * took));
    }

    /// Moves page after page, and tells `moved` how long each took.
    pub(super) fn all(sources: Vec<Weak<Source>>, moved: impl Fn(Duration)) {
        for source in sources {
            let Some(room) = source.upgrade().and_then(|s| Room::of(&s)) else { continue };
            for index in 0..room.pages {
                let began = Instant::now();
                // Nobody may need the weights any more.
                let Some(source) = source.upgrade() else { break };
                if !room.fill(&source, index) || (index == 0 && !room.is_large()) || !room.put(&source, index) {
                    break;
                }
                drop(source);
                moved(began.elapsed());
            }
        }
    }

    /// Fresh memory for all whole large pages that a map spans, from which they are moved one by one.
    pub(super) struct Room {
        /// Where the map's first large page begins, and its place in the file.
        target: usize,
        offset: usize,
        pub(super) pages: usize,
        /// What was reserved, the first large page in it, and how many have been moved.
        reserved: (*mut libc::c_void, usize),
        first: *mut u8,
        moved: Cell<usize>,
    }

    impl Room {
        /// None where there is not a single large page, or no room.
        pub(super) fn of(source: &Source) -> Option<Room> {
            let (map, _) = source.map()?;
            let start = map.as_ptr().addr();
            let target = start.next_multiple_of(PAGE);
            let pages = (start + map.len()).saturating_sub(target) / PAGE;
            let bytes = (pages + 1).checked_mul(PAGE)?;
            if pages == 0 {
                return None;
            }
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: fresh memory wherever the kernel likes.
            let all =
                unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            if all == libc::MAP_FAILED {
                return None;
            }
            let first = all.cast::<u8>().map_addr(|a| a.next_multiple_of(PAGE));
            // SAFETY: a wish about memory that was just reserved.
            unsafe { libc::madvise(first.cast(), pages * PAGE, libc::MADV_HUGEPAGE) };
            Some(Room { target, offset: target - start, pages, reserved: (all, bytes), first, moved: Cell::new(0) })
        }

        fn page(&self, index: usize) -> *mut u8 {
            self.first.wrapping_add(index * PAGE)
        }

        /// Reads page `index` from the file.
        pub(super) fn fill(&self, source: &Source, index: usize) -> bool {
            let Some((_, file)) = source.map() else { return false };
            // SAFETY: the page was reserved, nobody else knows of it, and it has not been moved.
            let bytes = unsafe { std::slice::from_raw_parts_mut(self.page(index), PAGE) };
            file.read_exact_at(bytes, (self.offset + index * PAGE) as u64).is_ok()
        }

        /// Whether the first page, which has been written, is a large one.
        fn is_large(&self) -> bool {
            let Ok(text) = std::fs::read_to_string("/proc/self/smaps") else { return false };
            let mut lines = text.lines();
            let here = |line: &str| {
                let (from, rest) = line.split_once('-')?;
                let to = usize::from_str_radix(rest.split(' ').next()?, 16).ok()?;
                Some((usize::from_str_radix(from, 16).ok()?..to).contains(&self.first.addr()))
            };
            lines.any(|line| here(line) == Some(true))
                && lines
                    .find_map(|line| line.strip_prefix("AnonHugePages:"))
                    .is_some_and(|kilobytes| !kilobytes.trim().starts_with("0 "))
        }

        /// Puts page `index`, the next one, in the place of the file's pages.
        pub(super) fn put(&self, source: &Source, index: usize) -> bool {
            let Some((_, file)) = source.map() else { return false };
            let (from, offset) = (self.page(index).cast::<libc::c_void>(), self.offset + index * PAGE);
            let to = std::ptr::without_provenance_mut::<libc::c_void>(self.target + index * PAGE);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: a whole page inside the map, which holds the same bytes and is not writable either, takes its place in one
            // step as far as any thread can see. The map's owner unmaps addresses, whatever lies there. Where the kernel has no memory
            // for its own tables, the place may be empty: then it is the file's again.
            let put = unsafe {
                if libc::mprotect(from, PAGE, libc::PROT_READ) != 0 {
                    return false;
                }
                let put = libc::mremap(from, PAGE, PAGE, flags, to) != libc::MAP_FAILED;
                if !put {
                    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                    libc::mmap(to, PAGE, libc::PROT_READ, flags, file.as_raw_fd(), offset as libc::off_t);
                }
                put
            };
            self.moved.set(index + usize::from(put));
            put
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let (start, bytes) = self.reserved;
            let left = self.page(self.moved.get());
            // SAFETY: what was reserved and has not been moved: others may lie where pages were moved away.
            unsafe {
                libc::munmap(start, self.first.addr() - start.addr());
                libc::munmap(left.cast(), start.addr() + bytes - left.addr());
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::source::ReadMode;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    #[test]
    fn bytes_stay_what_and_where_they_are() {
        let path = std::env::temp_dir().join(format!("lapis-io-settle-{}", std::process::id()));
        let bytes: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        std::fs::write(&path, &bytes).expect("a writable temporary directory");
        let source = Source::open(&path, ReadMode::Map).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (seen, done) = (source.in_place(0..source.len()).unwrap().unwrap(), AtomicBool::new(false));
        std::thread::scope(|all| {
            all.spawn(|| {
                while !done.load(Relaxed) {
                    assert!(seen == bytes, "bytes changed while they moved");
                }
            });
            let room = linux::Room::of(&source).unwrap();
            assert!(room.pages >= 3);
            assert!((0..room.pages).all(|i| room.fill(&source, i) && room.put(&source, i)));
            // What others put where the pages came from is theirs.
            let theirs: Vec<Vec<u8>> = (0..64).map(|i| vec![i; 1 << 20]).collect();
            drop(room);
            assert!(theirs.iter().zip(0..).all(|(bytes, i)| bytes.iter().all(|&b| b == i)));
            done.store(true, Relaxed);
        });
        assert!(seen == bytes, "bytes changed");
    }

    #[test]
    fn what_takes_too_much_memory_stays() {
        let path = std::env::temp_dir().join(format!("lapis-io-settle-large-{}", std::process::id()));
        let file = std::fs::File::create(&path).expect("a writable temporary directory");
        file.set_len(LEAST as u64).unwrap();
        let open = || Source::open(&path, ReadMode::Map).unwrap();
        let small = open();
        assert!(!settle(|| LEAST as u64 - 1));
        assert!(!settle(|| panic!("nothing waits any more")));
        let fits = open();
        assert!(settle(|| LEAST as u64));
        let moved = open();
        settle_now(|| LEAST as u64);
        assert!(moved.in_place(0..moved.len()).unwrap().unwrap().iter().all(|byte| *byte == 0));
        std::fs::remove_file(&path).unwrap();
        drop((small, fits));
    }
}
