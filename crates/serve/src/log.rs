//! Lines of the log, on standard error, written by a thread of their own: a log that nobody reads holds nobody up.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may wait to be written; what comes beyond them is lost, and said to be.
const WAITING: usize = 4096;

/// Lines that wait.
static LEFT: AtomicUsize = AtomicUsize::new(0);
/// Lines that were lost.
static LOST: AtomicUsize = AtomicUsize::new(0);

fn writer() -> Option<&'static SyncSender<String>> {
    static WRITER: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
    let start = || {
        let (lines, inbox) = sync_channel::<String>(WAITING);
        let write = move || {
            for line in inbox {
                let lost = LOST.swap(0, Relaxed);
                let lost =
                    if lost > 0 { format!("{lost} lines were lost: nobody read the log\n") } else { String::new() };
                drop(writeln!(std::io::stderr(), "{lost}{line}"));
                LEFT.fetch_sub(1, Relaxed);
            }
        };
        std::thread::Builder::new().name("log".into()).spawn(write).ok().map(|_| lines)
    };
    WRITER.get_or_init(start).as_ref()
}

/// Writes a line, soon.
pub(crate) fn line(text: &str) {
    LEFT.fetch_add(1, Relaxed);
    if writer().is_none_or(|lines| lines.try_send(text.to_string()).is_err()) {
        LEFT.fetch_sub(1, Relaxed);
        LOST.fetch_add(1, Relaxed);
    }
}

/// Texts that [`once`] keeps at most.
const KEPT: usize = 256;

/// Writes a line, unless it has been written before.
pub(crate) fn once(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.len() < KEPT && said.insert(text.to_string()) {
        line(text);
    }
}

/// Waits until the lines are written, but not for a reader that does not read.
pub(crate) fn flush() {
    let end = Instant::now() + Duration::from_millis(200);
    while LEFT.load(Relaxed) > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
}
