//! Requests that wait for what files know of their prompts, while others go on.

use super::{Engine, Running};
use crate::batch::Sequence;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Files that are being read for a request.
pub(super) struct Fetch {
    id: u64,
    answer: Receiver<Option<Sequence>>,
}

/// How long a step with nothing else to do waits for files.
const WAIT: Duration = Duration::from_millis(5);
/// How often files are read for one request: those that are damaged are gone the next time.
const TRIES: u8 = 3;

impl Engine {
    /// Puts a request aside if files know more of its prompt than memory does; else gives it back. One request's files
    /// are read at a time: those after it may want the same.
    pub(super) fn park(&mut self, mut new: Running) -> Option<Running> {
        let Some(disk) = self.disk.as_ref().filter(|_| new.tried < TRIES) else { return Some(new) };
        let Some(known) = disk.look(&new.request.prompt, new.request.salt, new.sequence.len()) else {
            return Some(new);
        };
        if self.fetch.is_none() {
            new.tried += 1;
            self.fetch = Some(Fetch { id: new.id, answer: disk.read(known) });
        }
        // What memory knows may be more by then.
        new.sequence = Sequence::new();
        self.parked.push_back(new);
        None
    }

    /// Once files are read, those who waited come first.
    pub(super) fn unpark(&mut self) {
        let Some(fetch) = &self.fetch else { return };
        let idle = self.running.is_empty() && self.waiting.is_empty() && !self.parked.is_empty();
        let got = match fetch.answer.recv_timeout(if idle { WAIT } else { Duration::ZERO }) {
            Ok(got) => got,
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => None,
        };
        let id = fetch.id;
        self.fetch = None;
        if let Some(sequence) = got
            && let Some(new) = self.parked.iter_mut().find(|r| r.id == id)
        {
            if let Some(prefixes) = &mut self.prefixes {
                prefixes.insert(&new.request.prompt, new.request.salt, new.marks(), sequence.clone());
            }
            new.sequence = sequence;
        }
        while let Some(new) = self.parked.pop_back() {
            self.waiting.push_front(new);
        }
    }
}
