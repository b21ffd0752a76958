//! A conversation on a terminal of its own: what Ctrl-C does there.
#![cfg(target_os = "linux")]

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The program on a pseudo-terminal, the person's end of it, and what it showed since that was last looked at.
struct Terminal {
    program: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn new(arguments: &[&str]) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs =
            || File::options().read(true).write(true).open(std::ffi::OsStr::from_bytes(name.as_bytes())).unwrap();
        // Which makes the terminal the one whose Ctrl-C the program gets.
        let program = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_lapis")])
            .args(arguments)
            .env("TERM", "xterm")
            .stdin(theirs())
            .stdout(theirs())
            .stderr(theirs())
            .spawn()
            .unwrap();
        let keys = File::from(ours);
        let mut screen = keys.try_clone().unwrap();
        let (send, shown) = channel();
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut some) {
                if send.send(some[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { program, keys, shown, text: String::new() }
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `what` is shown, and forgets all up to there.
    fn shows(&mut self, what: &str) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(at) = self.text.find(what) {
                self.text.drain(..at + what.len());
                return;
            }
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(some) => self.text += &String::from_utf8_lossy(&some),
                Err(_) => panic!("{what:?} was not shown, but: {:?}", self.text),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.program.kill());
    }
}

const CTRL_C: &str = "\x03";

#[test]
fn ctrl_c_stops_a_reply_and_drops_a_line_and_the_conversation_goes_on() {
    let mut t = Terminal::new(&["chat", "--json", "--no-history"]);
    t.shows(">> ");
    t.types("Tell me a story about a fox\r");
    t.shows(r#""event":"text""#);
    t.types(CTRL_C);
    t.shows(r#""finish_reason":"interrupt""#);
    t.shows(">> ");
    t.types("half a li");
    t.shows("half a li");
    t.types(CTRL_C);
    t.shows("Ctrl-C again");
    t.shows(">> ");
    // Not the second one: something was said between.
    t.types("/tokens\r");
    t.shows("of the context are used");
    t.shows(">> ");
    t.types(CTRL_C);
    t.shows("Ctrl-C again");
    t.shows(">> ");
    t.types(CTRL_C);
    assert!(t.program.wait().unwrap().success());
}

#[test]
fn what_is_typed_ahead_is_read() {
    let mut t = Terminal::new(&["chat", "--no-history", "-m", "2"]);
    t.shows(">> ");
    t.types("/tokens\rone\r/tokens\r/quit\r");
    t.shows("of the context are used");
    t.shows("of the context are used");
    assert!(t.program.wait().unwrap().success());
}

#[test]
fn alt_enter_begins_a_line() {
    let file = std::env::temp_dir().join(format!("lapis-lines-{}.json", std::process::id()));
    let mut t = Terminal::new(&["chat", "--no-history", "-m", "2"]);
    t.shows(">> ");
    t.types("one\x1b\rtwo\r");
    t.shows(">> ");
    t.types(&format!("/save {}\r", file.display()));
    t.shows("/save");
    t.shows(">> ");
    t.types("/quit\r");
    assert!(t.program.wait().unwrap().success());
    let saved = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(saved.contains(r#""one\ntwo""#), "{saved}");
}
