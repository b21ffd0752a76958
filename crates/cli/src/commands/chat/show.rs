//! What is shown: text as it comes, thinking as one line that counts, or all of it as events in JSON.

use super::statistics;
use crate::commands::explain;
use crate::say;
use lapis::Error;
use lapis_lm::{Finish, Part, Response};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};

pub(super) struct Show {
    json: bool,
    /// Show thinking while it goes on.
    think: bool,
    raw: bool,
    /// Lines can be written again, and dimmed.
    styled: bool,
    /// What the model thought before its last reply.
    thoughts: String,
    /// Pieces of thinking that are not closed by a line.
    open: usize,
}

impl Show {
    pub(super) fn new(json: bool, think: bool, raw: bool) -> Show {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let styled = std::io::stdout().is_terminal() && std::io::stderr().is_terminal() && !plain;
        Show { json, think, raw, styled, thoughts: String::new(), open: 0 }
    }

    fn event(&self, event: &Value) {
        println!("{event}");
        drop(std::io::stdout().flush());
    }

    fn print(&self, text: &str) {
        if self.raw {
            print!("{text}")
        } else {
            print!("{}", say::safe(text))
        }
        drop(std::io::stdout().flush());
    }

    /// What the program says.
    pub(super) fn say(&self, text: &str) {
        match self.json {
            true => self.event(&json!({"event": "note", "text": text})),
            false => println!("{text}"),
        }
    }

    pub(super) fn fail(&self, error: &Error) {
        match self.json {
            true => {
                let code = explain::code(error.kind());
                self.event(&json!({"event": "error", "code": code, "message": error.message()}));
            }
            false => say::error(error),
        }
    }

    pub(super) fn think(&mut self, on: bool) {
        self.think = on;
    }

    /// Shows what was thought.
    pub(super) fn thoughts(&self) {
        match self.thoughts.trim() {
            "" => self.say("the last reply came without thinking"),
            text => self.say(&say::safe(text)),
        }
    }

    /// A reply begins.
    pub(super) fn begin(&mut self) {
        self.thoughts.clear();
        self.open = 0;
    }

    pub(super) fn part(&mut self, part: &Part) {
        if let Part::Reasoning(text) = part {
            self.thoughts.push_str(text);
        }
        if self.json {
            return self.event(&match part {
                Part::Reasoning(text) => json!({"event": "reasoning", "text": text}),
                Part::Text(text) => json!({"event": "text", "text": text}),
                Part::Call { index, name, .. } => json!({"event": "call", "index": index, "name": name}),
                Part::Arguments { index, json } => json!({"event": "arguments", "index": index, "json": json}),
            });
        }
        match part {
            Part::Reasoning(text) => self.reasoning(text),
            Part::Text(text) => {
                self.fold();
                self.print(text);
            }
            Part::Call { name, .. } => {
                self.fold();
                self.print(&format!("\n{name} "));
            }
            Part::Arguments { json, .. } => self.print(json),
        }
    }

    fn reasoning(&mut self, text: &str) {
        self.open += 1;
        if self.think {
            let text = if self.raw { text.to_string() } else { say::safe(text) };
            if self.styled {
                print!("\x1b[2m{text}\x1b[0m")
            } else {
                print!("{text}")
            }
            drop(std::io::stdout().flush());
        } else if self.styled {
            eprint!("\r\x1b[K\x1b[2mthinking, {} words\x1b[0m", self.words());
        }
    }

    fn words(&self) -> usize {
        self.thoughts.split_whitespace().count()
    }

    /// Closes thinking: one line stands for it.
    fn fold(&mut self) {
        if std::mem::take(&mut self.open) == 0 {
            return;
        }
        if self.think {
            println!("\n");
            return;
        }
        let line = format!("thought in {} words (/think shows them)", self.words());
        match self.styled {
            true => eprintln!("\r\x1b[K\x1b[2m{line}\x1b[0m"),
            false => say::note(&line),
        }
    }

    /// The reply is over.
    pub(super) fn end(&mut self, last: Option<&Response>) {
        if self.json {
            let Some(r) = last else { return };
            let reason = match r.finish_reason {
                Some(Finish::Stop) => "stop",
                Some(Finish::Length) => "length",
                None => "interrupt",
            };
            return self.event(&json!({
                "event": "end", "finish_reason": reason, "prompt_tokens": r.prompt_tokens,
                "cached_tokens": r.cached_tokens, "generation_tokens": r.generation_tokens, "prompt_tps": r.prompt_tps,
                "generation_tps": r.generation_tps, "peak_memory": r.peak_memory,
            }));
        }
        self.fold();
        println!();
        if let Some(r) = last.filter(|_| std::io::stderr().is_terminal()) {
            if self.styled { eprintln!("\x1b[2m{}\x1b[0m", statistics(r)) } else { say::note(&statistics(r)) }
        }
    }
}
