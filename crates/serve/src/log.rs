//! Lines of the log, on standard error.

use std::io::Write;

/// Writes a line; a log that nobody reads is no fault.
pub(crate) fn line(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
