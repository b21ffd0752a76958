//! Services that follow runs: wandb, SwanLab and trackio, each by its own package in a process of Python, as mlx-lm calls them.
//!
//! Training does not hang on them: one that is not installed is told before the first step, one that breaks down later is left out.

use crate::Settings;
use crate::report::Record;
use lapis::{Error, Result};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Their packages.
pub(crate) const NAMES: [&str; 3] = ["wandb", "swanlab", "trackio"];

/// A service that hears of a run.
pub(crate) struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Begins to tell the service of that name of the run whose adapter lies in a directory.
    ///
    /// # Errors
    /// No Python, no such package, a service that refuses.
    pub(crate) fn begin(name: &str, dir: &Path, s: &Settings) -> Result<Service> {
        let wrong = |what: String| Error::io(format!("[lora] report_to {name}: {what}"));
        let start = |python: &str| {
            let mut command = Command::new(python);
            command.args(["-c", include_str!("services.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn()
        };
        let child = start("python3").or_else(|_| start("python"));
        let child = child.map_err(|e| wrong(format!("the service is told by Python, which does not run: {e}")))?;
        let mut this = Service { name: name.into(), child };
        let head = json!({
            "service": name, "project": s.project_name, "folder": dir.display().to_string(), "config": s.to_map(),
        });
        this.line(&head.to_string());
        let mut answer = String::new();
        if let Some(out) = this.child.stdout.take() {
            drop(BufReader::new(out).read_line(&mut answer));
        }
        match answer.trim() {
            "ready" => Ok(this),
            "missing" => Err(wrong(format!("Python has no package of that name: pip install {name}"))),
            _ => Err(wrong("it did not begin; what it says stands above".into())),
        }
    }

    /// Whether a line went out.
    fn line(&mut self, text: &str) -> bool {
        self.child.stdin.as_mut().is_some_and(|to| writeln!(to, "{text}").and_then(|()| to.flush()).is_ok())
    }

    /// Tells of a record; what went wrong, once.
    pub(crate) fn record(&mut self, record: &Record) -> Option<String> {
        self.child.stdin.as_ref()?;
        // Numbers only.
        let numbers = Record { texts: Vec::new(), ..record.clone() };
        if serde_json::to_string(&numbers).is_ok_and(|line| self.line(&line)) {
            return None;
        }
        self.child.stdin = None;
        Some(format!("{} has ended: nothing more of this run is told to it", self.name))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The end of what it reads is the end of the run; it sends what it still has.
        self.child.stdin = None;
        drop(self.child.wait());
    }
}
