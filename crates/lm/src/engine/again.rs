//! Requests that read again what they had: after a step that broke down, and when there was no room for all of them.
//!
//! Tokens say all that a model remembers, so that what is lost comes back with the same bits, however far a reply was.

use super::{Engine, Event, Running, draft};
use crate::batch::Sequence;
use lapis::Error;

/// So often a request is given another chance.
const CHANCES: u8 = 3;

impl Running {
    /// Lets go of all that is remembered of it.
    fn forget(&mut self) {
        self.sequence = Sequence::with(self.sequence.options());
        self.guesses = draft::Memory::default();
    }
}

impl Engine {
    /// After a fault in a step, such as a panic that somebody caught: what the requests of the step remember is read
    /// again, for each by itself until it has written its next token. One that has a fault by itself ends with `error`, and
    /// no other does; the events say so.
    pub fn recover(&mut self, error: &Error) -> Vec<Event> {
        let fault = |running: Running| Event::Failed { id: running.id, error: error.clone() };
        let on_trial = self.trial();
        self.steady.forget();
        if on_trial.is_some() || self.running.iter().filter(|r| !r.paused).count() < 2 {
            let culprit = on_trial.or_else(|| self.running.iter().position(|r| !r.paused));
            return culprit.map(|i| fault(self.running.remove(i))).into_iter().collect();
        }
        let mut events = Vec::new();
        for i in (0..self.running.len()).rev() {
            let running = &mut self.running[i];
            if running.paused {
                continue;
            }
            running.chances += 1;
            if running.chances > CHANCES {
                events.push(fault(self.running.remove(i)));
                continue;
            }
            running.forget();
            running.suspect = Some(running.tokens.len());
        }
        events
    }

    /// The request that is being tried by itself, if any is.
    pub(super) fn trial(&self) -> Option<usize> {
        self.running.iter().position(|r| r.suspect.is_some() && !r.paused)
    }

    /// Those that have written since they were suspected are not any more.
    pub(super) fn acquit(&mut self) {
        for running in &mut self.running {
            if running.suspect.is_some_and(|at| running.tokens.len() > at) {
                running.suspect = None;
            }
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Running> {
        self.running.iter_mut().chain(&mut self.waiting).chain(&mut self.parked)
    }

    /// Puts a request aside, and lets go of what is remembered of it; [`Engine::resume`] has it go on.
    pub fn pause(&mut self, id: u64) {
        self.steady.forget();
        for running in self.each().filter(|r| r.id == id) {
            running.forget();
            running.paused = true;
        }
    }

    /// Has a request go on that was put aside.
    pub fn resume(&mut self, id: u64) {
        self.each().filter(|r| r.id == id).for_each(|r| r.paused = false);
    }
}
