//! Learned quantization: packing a model so that it still foresees what it did.
//!
//! [`Calibration`] is the text that methods look at; [`gptq`], [`awq`], [`mod@dwq`] and [`mod@dynamic`] are the methods; [`compare`] says what it was worth beside rounding to the
//! nearest code, on text that the method did not see. Methods save what they have done in a [`State`], so that a run that was
//! killed goes on. Knows no architecture and no terminal.

mod awq;
mod calibration;
mod codes;
pub mod dwq;
pub mod dynamic;
mod gptq;
mod layers;
mod report;
mod state;

pub use awq::{Awq, awq};
pub use calibration::Calibration;
pub use gptq::{Gptq, gptq};
pub use report::{Compared, Comparison, compare};
pub use state::State;

use lapis::ops::quantize::Format;
use lapis_lm::Formats;

/// Who hears of a run.
pub trait Listener {
    /// Something that people should know and that is no error.
    fn note(&mut self, _text: &str) {}
    /// So much of a stage is done.
    fn at(&mut self, _stage: &'static str, _done: usize, _of: usize) {}
    /// Whether the run should end now; its state is saved.
    fn stop(&mut self) -> bool {
        false
    }
}

/// Nobody.
impl Listener for () {}

/// Says which layers stay numbers because no group divides their rows.
fn note_plain(formats: &Formats, base: Format, listener: &mut dyn Listener) {
    let plain: Vec<&str> = formats.iter().filter(|(_, f)| f.is_none()).map(|(path, _)| path.as_str()).collect();
    if let Some(first) = plain.first() {
        listener.note(&format!(
            "{} layers stay numbers, {first} the first: their rows are no multiple of a group of {}, or the model's rules say so",
            plain.len(),
            base.group()
        ));
    }
}
