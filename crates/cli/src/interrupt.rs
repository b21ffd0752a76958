//! Ctrl-C: the first is a wish that work ends at a good place, the second ends it at once.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

static SEEN: AtomicU32 = AtomicU32::new(0);

/// From now on Ctrl-C is counted.
pub(crate) fn watch() {
    // A second handler cannot be set; the first one stays.
    drop(ctrlc::set_handler(|| {
        if SEEN.fetch_add(1, SeqCst) > 0 {
            std::process::exit(130);
        }
    }));
}

/// Whether there was one.
pub(crate) fn seen() -> bool {
    SEEN.load(SeqCst) > 0
}

/// Forgets it: the wish was granted and work goes on.
pub(crate) fn forget() {
    SEEN.store(0, SeqCst);
}
