//! The line that says how far training is: redrawn on a terminal, elsewhere a new one every half minute.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Steps done and the time they took.
pub(crate) struct Progress {
    steps: usize,
    tokens: usize,
    first: usize,
    began: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// A run of `steps` steps with so many tokens each, of which `first` are done.
    pub(crate) fn new(steps: usize, tokens: usize, first: usize) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress { steps, tokens, first, began: Instant::now(), shown: None, terminal }
    }

    /// Shows the last step, when it is time to.
    pub(crate) fn show(&mut self, losses: &[f32]) {
        let (now, done) = (Instant::now(), losses.len());
        let pause = if self.terminal { Duration::from_millis(200) } else { Duration::from_secs(30) };
        if done < self.steps && self.shown.is_some_and(|at| now - at < pause) {
            return;
        }
        self.shown = Some(now);
        let seconds = (now - self.began).as_secs_f64().max(1e-9);
        let rate = (done - self.first) as f64 / seconds;
        let left = (self.steps - done) as f64 / rate;
        let recent = &losses[done.saturating_sub(20)..];
        let loss = recent.iter().sum::<f32>() / recent.len() as f32;
        let line = format!(
            "step {done} of {}  loss {loss:.3}  {:.0} tokens/s  {} left",
            self.steps,
            rate * self.tokens as f64,
            clock(left)
        );
        let mut out = std::io::stderr().lock();
        let end = if done == self.steps || !self.terminal { "\n" } else { "" };
        // A progress line that cannot be written is no reason to stop training.
        let _ = if self.terminal { write!(out, "\r\x1b[2K{line}{end}") } else { write!(out, "{line}{end}") };
        let _ = out.flush();
    }
}

/// `1:02:03`, or `2:03`.
fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s < 3600 {
        format!("{}:{:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}
