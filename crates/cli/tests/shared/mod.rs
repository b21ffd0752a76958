//! The program as people call it: what tests of the command line share, of which each uses a part.
#![allow(dead_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The folder of the demo model.
pub(crate) const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");

/// Its files that make a model.
pub(crate) const FILES: [&str; 4] = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// The program with nothing to read.
pub(crate) fn lapis(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapis")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The program with `input` to read; it may end before it has read all.
pub(crate) fn fed(arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapis"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take().unwrap().write_all(input.as_ref()));
    child.wait_with_output().unwrap()
}

/// Standard output.
pub(crate) fn out(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

/// Standard error.
pub(crate) fn err(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).unwrap()
}

/// Standard output of what ended well and warned of nothing.
pub(crate) fn good(o: Output) -> String {
    assert!(o.status.success() && err(&o).is_empty(), "{}", err(&o));
    out(&o)
}

/// A folder of one test's own, gone at its end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// A new and empty one.
    pub(crate) fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("lapis-cli-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    /// The path of a file in it.
    pub(crate) fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes a file in it.
    pub(crate) fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(file), content).unwrap();
    }

    /// The words of a line to the program, in this folder; `+` stands for a space within a word.
    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// The same, not yet started.
    pub(crate) fn command(&self, line: &str) -> Command {
        let arguments = line.split(' ').map(|a| a.replace('+', " "));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
        command.args(arguments).current_dir(&self.0).stdin(Stdio::null());
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
