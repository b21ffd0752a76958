//! Memory for arrays: 64-byte aligned blocks in size classes, kept for reuse up to a limit.
//!
//! Four classes an octave, so at most a quarter of a block is lost.

use crate::pages;
use lapis_core::buffer::{Buffer, Memory};
use lapis_core::error::{Error, Result};
use lapis_core::memory;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ALIGN: usize = 64;

/// A block of exactly `size` bytes, one of the classes. Goes back to the cache when dropped.
struct Block {
    ptr: *mut u8,
    /// Bytes asked for.
    len: usize,
    /// Bytes of the class.
    size: usize,
}

// SAFETY: a block owns its memory; the scheduler orders writes before reads (see `Memory`).
unsafe impl Send for Block {}
// SAFETY: as above: shared blocks are only read.
unsafe impl Sync for Block {}

impl Memory for Block {
    fn ptr(&self) -> *mut u8 {
        self.ptr
    }
    fn len(&self) -> usize {
        self.len
    }
    fn bytes(&self) -> &[u8] {
        // SAFETY: the block is `len` bytes long and was zeroed or written; published blocks are not written to.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: as `bytes`; the exclusive borrow says that nobody else looks.
        Some(unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) })
    }
    fn reusable(&self) -> bool {
        true
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        memory::release(self.size);
        let limit = memory::cache_limit();
        if self.size <= limit {
            let mut cache = lock();
            cache.shrink(limit - self.size);
            cache.put(self.size, self.ptr);
            return;
        }
        // SAFETY: the block is of this size and dropped only once.
        unsafe { pages::give(self.ptr, self.size) };
    }
}

struct Free {
    ptr: *mut u8,
    /// When it came, counted in blocks.
    since: u64,
}
// SAFETY: a free block belongs to the cache alone.
unsafe impl Send for Free {}

/// Free blocks by size, those of one size in the order in which they came. What came last is used first, while its
/// lines and pages are warm; what came first is given back first, so that sizes no longer in use do not stay.
#[derive(Default)]
struct Cache {
    free: BTreeMap<usize, VecDeque<Free>>,
    bytes: usize,
    count: u64,
}

impl Cache {
    fn put(&mut self, size: usize, ptr: *mut u8) {
        self.count += 1;
        self.bytes += size;
        memory::cache_changed(size as isize);
        self.free.entry(size).or_default().push_back(Free { ptr, since: self.count });
    }

    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let block = self.free.get_mut(&size)?.pop_back()?;
        self.bytes -= size;
        memory::cache_changed(-(size as isize));
        Some(block.ptr)
    }

    /// Gives blocks back to the system, the oldest first, until at most `limit` bytes are kept.
    fn shrink(&mut self, limit: usize) {
        while self.bytes > limit {
            let oldest = self.free.iter().filter_map(|(&size, list)| Some((list.front()?.since, size))).min();
            let Some((_, size)) = oldest else { break };
            let Some(list) = self.free.get_mut(&size) else { break };
            let Some(block) = list.pop_front() else { break };
            if list.is_empty() {
                self.free.remove(&size);
            }
            self.bytes -= size;
            memory::cache_changed(-(size as isize));
            // SAFETY: the block is of this size and no longer listed.
            unsafe { pages::give(block.ptr, size) };
        }
    }
}

static CACHE: Mutex<Cache> = Mutex::new(Cache { free: BTreeMap::new(), bytes: 0, count: 0 });

fn lock() -> MutexGuard<'static, Cache> {
    CACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The class that holds `bytes`.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 8).max(ALIGN);
    bytes.next_multiple_of(step)
}

/// Joins the counters of core, and sets the limit to 95 % of what this machine (or its control group) has, so that
/// running out is an error and not the end of the process.
pub(crate) fn start() {
    memory::on_trim(trim);
    if memory::limit() == usize::MAX
        && let Some(bytes) = machine_bytes()
    {
        memory::set_limit(bytes / 20 * 19);
    }
}

/// Bytes of main memory that this process may use.
fn machine_bytes() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kib| kib << 10)
    });
    let group = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<usize>().ok());
    total.into_iter().chain(group).min()
}

/// Uninitialised memory for `bytes` bytes.
///
/// # Errors
/// A memory error at the limit, or when the system has no more.
pub(crate) fn allocate(bytes: usize) -> Result<Buffer> {
    if bytes > isize::MAX as usize / 2 {
        return Err(Error::overflow(format!("[alloc] {bytes} bytes are more than a machine addresses")));
    }
    let size = class(bytes);
    memory::charge(size)?;
    if let Some(ptr) = lock().take(size) {
        return Ok(Buffer::new(Block { ptr, len: bytes, size }));
    }
    let ptr = pages::take(size).or_else(|| {
        trim(0);
        pages::take(size)
    });
    match ptr {
        Some(ptr) => Ok(Buffer::new(Block { ptr, len: bytes, size })),
        None => {
            memory::release(size);
            Err(Error::memory(format!(
                "[alloc] the system has no {bytes} bytes; {} are active, the limit is {}",
                memory::active(),
                memory::limit()
            )))
        }
    }
}

/// Memory with a copy of `bytes`.
///
/// # Errors
/// As [`allocate`].
pub(crate) fn upload(bytes: &[u8]) -> Result<Buffer> {
    let buffer = allocate(bytes.len())?;
    // SAFETY: the new block is as long as `bytes` and nobody else has it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.ptr(), bytes.len()) };
    Ok(buffer)
}

/// Gives cached blocks back to the system until at most `limit` bytes are kept, the oldest first.
pub(crate) fn trim(limit: usize) {
    lock().shrink(limit);
}
