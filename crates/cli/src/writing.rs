//! What people see while a model is written: stages, how far it is, that it was interrupted.

use crate::{interrupt, say};
use lapis_lm::partial::Listener;

/// Stages on standard output, progress on a terminal, Ctrl-C heard. Made where no work is done yet.
pub(crate) struct Writing(say::Progress);

impl Writing {
    pub(crate) fn new() -> Writing {
        interrupt::watch();
        Writing(say::Progress::new("weights", "MiB"))
    }
}

impl Listener for Writing {
    fn say(&mut self, text: &str) {
        say::told(text);
    }

    fn at(&mut self, done: u64, of: u64) {
        self.0.at((done >> 20) as usize, (of >> 20) as usize);
    }

    fn stop(&mut self) -> bool {
        interrupt::seen()
    }
}
