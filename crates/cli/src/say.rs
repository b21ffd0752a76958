//! What people see: errors, progress, text from a model.

use crate::commands::explain;
use lapis::Error;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// From now on a reader that has gone and a disk that is full are no faults, and another fault of the program is said to be one.
pub(crate) fn watch() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().map_or("", String::as_str);
        if let Some(what) = text.strip_prefix("failed printing to ") {
            if text.contains("Broken pipe") {
                std::process::exit(0);
            }
            // Where standard error itself takes nothing, nobody can be told.
            drop(writeln!(std::io::stderr(), "error[E0401]: {what}"));
            std::process::exit(4);
        }
        usual(info);
        let (version, home) = (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_REPOSITORY"));
        let line =
            format!("this is a fault of lapis {version}: please report it at {home}/issues with the lines above");
        drop(writeln!(std::io::stderr(), "{line}"));
    }));
}

/// Whether only errors are said.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on only errors are said.
pub(crate) fn quiet() {
    QUIET.store(true, Relaxed);
}

/// Whether this is so.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Relaxed)
}

/// A line on standard output that tells of work and is no data.
pub(crate) fn told(text: &str) {
    if !is_quiet() {
        println!("{text}");
    }
}

/// Says something that is neither data nor an error.
pub(crate) fn note(text: &str) {
    if !QUIET.load(Relaxed) {
        eprintln!("{}", safe(text));
    }
}

/// Says what is odd.
pub(crate) fn warning(text: &str) {
    note(&format!("warning: {text}"));
}

/// Writes an error as at most six lines.
pub(crate) fn error(error: &Error) {
    let text = error.message();
    let text = text.split_once("] ").filter(|(op, _)| op.starts_with('[')).map_or(text, |(_, rest)| rest);
    let shown: Vec<&str> = text.lines().take(6).collect();
    eprintln!("error[{}]: {}", explain::code(error.kind()), safe(&shown.join("\n")));
}

/// The exit code of an error.
pub(crate) fn code(error: &Error) -> u8 {
    explain::exit(error.kind())
}

/// Text from a model with control characters shown and not obeyed; tab and newline pass.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// A line on a terminal that says how far something is, from a second on.
pub(crate) struct Progress {
    what: &'static str,
    unit: &'static str,
    began: Instant,
    shown: Option<Instant>,
    on: bool,
}

impl Progress {
    pub(crate) fn new(what: &'static str, unit: &'static str) -> Progress {
        let on = std::io::stderr().is_terminal() && !QUIET.load(Relaxed);
        Progress { what, unit, began: Instant::now(), shown: None, on }
    }

    pub(crate) fn at(&mut self, done: usize, total: usize) {
        let soon = self.shown.is_some_and(|t| t.elapsed().as_millis() < 100);
        if !self.on || soon || self.began.elapsed().as_millis() < 1000 {
            return;
        }
        self.shown = Some(Instant::now());
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        let left = (total.saturating_sub(done)) as f64 / rate.max(1e-9);
        let percent = 100 * done / total.max(1);
        eprint!("\r\x1b[K{} {done}/{total} · {percent} % · {rate:.0} {}/s · ETA {left:.0} s", self.what, self.unit);
        drop(std::io::stderr().flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
