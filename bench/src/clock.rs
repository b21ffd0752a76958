//! The clock all measurements read: wall time, or the processor time of this process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

static CPU_TIME: AtomicBool = AtomicBool::new(false);

/// From now on [`seconds`] counts processor time, which other programs on the machine do not add to. Only right for
/// work on one thread.
pub(crate) fn use_cpu_time() {
    CPU_TIME.store(true, Ordering::Relaxed);
}

/// Seconds since some fixed moment.
pub(crate) fn seconds() -> f64 {
    #[cfg(unix)]
    if CPU_TIME.load(Ordering::Relaxed) {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `t` is a valid place for the result, and the clock exists on every unix.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
        return t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9;
    }
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}
