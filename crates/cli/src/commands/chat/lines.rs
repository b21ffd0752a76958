//! What is typed: lines with editing and history on a terminal, or from a pipe.

use lapis::{Error, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
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

    /// The next message: lines that end in a backslash go on. `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        let mut message = String::new();
        loop {
            let line = match self {
                Lines::Terminal(editor, _) => match editor.readline(if message.is_empty() { ">> " } else { ".. " }) {
                    Ok(line) => line,
                    Err(ReadlineError::Interrupted) if message.is_empty() => return Ok(None),
                    Err(ReadlineError::Interrupted) => {
                        message.clear();
                        continue;
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(e) => return Err(Error::io(format!("terminal: {e}"))),
                },
                Lines::Pipe => {
                    let mut line = String::new();
                    let read = std::io::stdin().lock().read_line(&mut line);
                    if read.map_err(|e| Error::io(format!("standard input: {e}")))? == 0 {
                        return Ok((!message.is_empty()).then_some(message));
                    }
                    line.trim_end_matches(['\n', '\r']).to_string()
                }
            };
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
