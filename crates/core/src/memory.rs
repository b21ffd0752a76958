//! Counters and limits of the memory that backends hand out.
//!
//! Backends call [`charge`] before they allocate and [`release`] when a buffer dies; they keep freed blocks in a
//! cache of their own, up to [`cache_limit`].

use crate::array::Array;
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CACHE: AtomicUsize = AtomicUsize::new(0);
static MAPPED: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static CACHE_LIMIT: AtomicUsize = AtomicUsize::new(256 << 20);
static TRIMMERS: Mutex<Vec<fn(usize)>> = Mutex::new(Vec::new());

/// Bytes held by live buffers.
pub fn active() -> usize {
    ACTIVE.load(Relaxed)
}

/// Largest [`active`] since the start or the last [`reset_peak`].
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Starts a new peak at the present level.
pub fn reset_peak() {
    PEAK.store(active(), Relaxed);
}

/// Bytes that are free and kept for reuse.
pub fn cached() -> usize {
    CACHE.load(Relaxed)
}

/// Bytes of files mapped into memory, or held whole as the demo model is. They are the system's to keep or drop, and count
/// neither as active nor against the limit.
pub fn mapped() -> usize {
    MAPPED.load(Relaxed)
}

/// The most bytes live buffers may hold together.
pub fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// Sets [`limit`] and returns the old one. Arrays that exist are not touched.
pub fn set_limit(bytes: usize) -> usize {
    LIMIT.swap(bytes, Relaxed)
}

/// The most bytes kept for reuse.
pub fn cache_limit() -> usize {
    CACHE_LIMIT.load(Relaxed)
}

/// Sets [`cache_limit`], gives back what is above it, and returns the old one.
pub fn set_cache_limit(bytes: usize) -> usize {
    let old = CACHE_LIMIT.swap(bytes, Relaxed);
    trim(bytes);
    old
}

/// The limit of memory that stays resident for a GPU (`mx.set_wired_limit`), and the old limit: always 0 and without
/// effect, as no linked backend pins memory.
pub fn set_wired_limit(_bytes: usize) -> usize {
    0
}

/// Gives all cached bytes back to the system.
pub fn clear_cache() {
    trim(0);
}

/// Bytes of the memory that evaluated arrays stand on: whole allocations, each counted once
/// (`mx.get_array_buffer_size`).
///
/// # Errors
/// A value error when an array is not evaluated.
pub fn array_buffer_size<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<usize> {
    let mut seen: Vec<Buffer> = Vec::new();
    for a in arrays {
        if !a.is_evaluated() {
            return Err(Error::value("[array_buffer_size] an array is not evaluated; call eval first"));
        }
        let buffer = &a.tensor()?.buffer;
        if !seen.iter().any(|b| b.same(buffer)) {
            seen.push(buffer.clone());
        }
    }
    Ok(seen.iter().map(Buffer::len).sum())
}

fn trim(to: usize) {
    let trimmers = TRIMMERS.lock().unwrap_or_else(|e| e.into_inner()).clone();
    trimmers.into_iter().for_each(|f| f(to));
}

/// For backends: `trim(bytes)` shrinks the backend's cache to at most `bytes`.
pub fn on_trim(trim: fn(usize)) {
    TRIMMERS.lock().unwrap_or_else(|e| e.into_inner()).push(trim);
}

/// For backends: counts a buffer of `bytes` as active.
///
/// # Errors
/// A memory error that names requested, active and limit when the limit would be passed.
pub fn charge(bytes: usize) -> Result<()> {
    let before = ACTIVE.fetch_add(bytes, Relaxed);
    let now = before.saturating_add(bytes);
    let limit = limit();
    if now > limit {
        ACTIVE.fetch_sub(bytes, Relaxed);
        return Err(Error::memory(format!(
            "[eval] memory limit reached: {bytes} bytes requested, {before} active, limit {limit}; \
             raise it with memory::set_limit or evaluate in smaller pieces"
        )));
    }
    PEAK.fetch_max(now, Relaxed);
    Ok(())
}

/// For backends: a buffer of `bytes` died.
pub fn release(bytes: usize) {
    ACTIVE.fetch_sub(bytes, Relaxed);
}

/// For readers of files: `bytes` were mapped (positive) or unmapped (negative).
pub fn mapped_changed(bytes: isize) {
    if bytes >= 0 {
        MAPPED.fetch_add(bytes as usize, Relaxed);
    } else {
        MAPPED.fetch_sub(bytes.unsigned_abs(), Relaxed);
    }
}

/// For backends: `bytes` went into (positive) or out of (negative) a cache.
pub fn cache_changed(bytes: isize) {
    if bytes >= 0 {
        CACHE.fetch_add(bytes as usize, Relaxed);
    } else {
        CACHE.fetch_sub(bytes.unsigned_abs(), Relaxed);
    }
}
