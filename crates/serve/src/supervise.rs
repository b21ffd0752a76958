//! The server as a process of its own, started again when it breaks down or stands still.

use crate::watchdog::SUPERVISED;
use lapis::{Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// So many ends within [`WHILE`] are a fault that starting again does not mend.
const ENDS: usize = 5;
const WHILE: Duration = Duration::from_secs(60);

fn fail(e: impl std::fmt::Display) -> Error {
    Error::io(format!("--supervise: {e}"))
}

/// Whether this process is one that is to start the server, not the server itself.
pub fn is_supervisor() -> bool {
    std::env::var_os(SUPERVISED).is_none()
}

/// This program once more, with the same arguments.
fn start() -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    let mut arguments = std::env::args_os();
    // Links to the program are commands of their own.
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).env(SUPERVISED, "1");
    // A terminal's Ctrl-C comes to this process alone, which hands it on.
    command.process_group(0).spawn().map_err(fail)
}

/// Runs the server until it ends by itself or is asked to by a signal; gives its exit code.
///
/// # Errors
/// A server that cannot be started; one that ends again and again.
pub fn supervise() -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
        let mut ends: Vec<Instant> = Vec::new();
        let mut asked = false;
        loop {
            let mut child = start()?;
            let id = child.id();
            let (end, mut ended) = oneshot::channel();
            std::thread::spawn(move || drop(end.send(child.wait())));
            let status: ExitStatus = loop {
                // The server drains on the first signal and ends on the second.
                let signal = tokio::select! {
                    status = &mut ended => break status.map_err(fail)?.map_err(fail)?,
                    _ = interrupt.recv() => Signal::INT,
                    _ = terminate.recv() => Signal::TERM,
                };
                asked = true;
                if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                    // It may have ended by itself.
                    let _ = kill_process(pid, signal);
                }
            };
            // What a user got wrong stays wrong: the server ends with 1 or 2 then.
            if asked || matches!(status.code(), Some(0..=2)) {
                return Ok(status.code().map_or(1, |code| code as u8));
            }
            ends.retain(|end| end.elapsed() < WHILE);
            ends.push(Instant::now());
            if ends.len() >= ENDS {
                return Err(fail(format_args!("the server ended {ENDS} times within a minute ({status})")));
            }
            crate::log::line(&format!("the server ended ({status}); it is started again"));
            tokio::time::sleep(Duration::from_millis(250 << ends.len())).await;
        }
    })
}
