//! What is typed: lines with editing and history on a terminal, or from a pipe.

use lapis::{Error, Result};
use rustyline::error::ReadlineError;
use rustyline::{Cmd, DefaultEditor, KeyCode, KeyEvent, Modifiers};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

/// Lines from a terminal with editing and history, or from a pipe.
pub(super) enum Lines {
    Terminal(Box<DefaultEditor>, Option<PathBuf>),
    Pipe,
}

impl Lines {
    pub(super) fn new(history: bool) -> Result<Lines> {
        if !std::io::stdin().is_terminal() {
            return Ok(Lines::Pipe);
        }
        let mut editor = DefaultEditor::new().map_err(|e| Error::io(format!("terminal: {e}")))?;
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state")));
        let file = state.filter(|_| history).map(|s| s.join("lapis").join("history"));
        if let Some(file) = &file {
            // No history yet is none.
            drop(editor.load_history(file));
        }
        Ok(Lines::Terminal(Box::new(editor), file))
    }

    pub(super) fn on_terminal(&self) -> bool {
        matches!(self, Lines::Terminal(..))
    }

    /// The next message: lines that end in a backslash go on, and Alt-Enter begins one. `None` at the end. Ctrl-C drops what was typed, and
    /// ends when it comes twice.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        let (mut message, mut dropped) = (String::new(), false);
        loop {
            let line = match self {
                Lines::Terminal(editor, _) => match editor.readline(if message.is_empty() { ">> " } else { ".. " }) {
                    Ok(line) => line,
                    Err(ReadlineError::Interrupted) if dropped => return Ok(None),
                    Err(ReadlineError::Interrupted) => {
                        eprintln!("Ctrl-C again, Ctrl-D or /quit leaves");
                        message.clear();
                        dropped = true;
                        continue;
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(e) => return Err(Error::io(format!("terminal: {e}"))),
                },
                Lines::Pipe => {
                    let mut line = Vec::new();
                    let read = std::io::stdin().lock().read_until(b'\n', &mut line);
                    if read.map_err(|e| Error::io(format!("standard input: {e}")))? == 0 {
                        return Ok((!message.is_empty()).then_some(message));
                    }
                    // What is no text is shown as such to the model, and the conversation goes on.
                    String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_string()
                }
            };
            dropped = false;
            if let Some(part) = line.strip_suffix('\\') {
                message.push_str(part);
                message.push('\n');
                continue;
            }
            message.push_str(&line);
            if let Lines::Terminal(editor, _) = self {
                drop(editor.add_history_entry(&message));
            }
            return Ok(Some(message));
        }
    }

    pub(super) fn save(&mut self) {
        if let Lines::Terminal(editor, Some(file)) = self {
            // A history that cannot be kept is no fault of the conversation.
            if let Some(dir) = file.parent() {
                drop(std::fs::create_dir_all(dir));
            }
            drop(editor.save_history(file));
        }
    }
}
