//! Ctrl-C and SIGTERM: the first is a wish that work ends at a good place, the second ends it at once.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

static SEEN: AtomicU32 = AtomicU32::new(0);
/// What the program ends with after the last one.
static CODE: AtomicU8 = AtomicU8::new(130);

/// From now on Ctrl-C is counted, and SIGTERM as well.
pub(crate) fn watch() {
    watch_keys();
    #[cfg(unix)]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(watch_requests);
    }
}

/// From now on Ctrl-C is counted; SIGTERM ends the program as ever.
pub(crate) fn watch_keys() {
    // A second handler cannot be set; the first one stays.
    drop(ctrlc::set_handler(|| came(130)));
}

/// Counts SIGTERM in a thread of its own. Where there can be none, the signal ends the program as ever.
#[cfg(unix)]
fn watch_requests() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let listened = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate())
    };
    let Ok(mut requests) = listened else { return };
    let hear = move || {
        runtime.block_on(async {
            while requests.recv().await.is_some() {
                came(143);
            }
        });
    };
    drop(std::thread::Builder::new().name("signals".into()).spawn(hear));
}

fn came(code: u8) {
    CODE.store(code, SeqCst);
    if SEEN.fetch_add(1, SeqCst) > 0 {
        std::process::exit(code.into());
    }
}

/// Whether there was one.
pub(crate) fn seen() -> bool {
    SEEN.load(SeqCst) > 0
}

/// What the program ends with after it.
pub(crate) fn code() -> u8 {
    CODE.load(SeqCst)
}

/// Forgets it: the wish was granted and work goes on.
pub(crate) fn forget() {
    SEEN.store(0, SeqCst);
}
