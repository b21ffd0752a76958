//! Moving elements between places: joining, padding, windows, gathers and scatters.
//!
//! Every kernel reads its values once and writes its results once, plus 8 bytes an index; nothing else is moved. Moves
//! know the size of an element and not its type; only combining updates does. What is cut among threads never shares
//! a destination, so that results do not depend on their number.

mod axis;
mod combine;
mod gather;
mod places;
mod scatter;
mod window;

use lapis_core::buffer::Tensor;
use lapis_core::error::Result;
use lapis_core::ops::Op;

/// Whether [`run`] knows `op`.
pub(crate) fn supports(op: &Op) -> bool {
    use Op::*;
    matches!(op, Concatenate(_) | Pad(_) | Gather(_) | GatherAxis(_) | DynamicSlice(_))
        || matches!(op, SliceUpdate(_) | DynamicSliceUpdate(_) | Scatter(_) | ScatterAxis(_) | MaskedScatter(_))
}

/// Computes `out` from `inputs`; for updates `out` starts as the first input.
///
/// # Errors
/// Indices and starts out of range; fewer rows than a mask selects.
pub(crate) fn run(op: &Op, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let out = &*out;
    match op {
        Op::Concatenate(op) => window::concatenate(op.axis, inputs, out),
        Op::Pad(op) => window::pad(op, inputs, out),
        Op::SliceUpdate(op) => window::update(op, &inputs[1], out),
        Op::DynamicSlice(op) => return window::dynamic_slice(op, inputs, out),
        Op::DynamicSliceUpdate(op) => return window::dynamic_update(op, inputs, out),
        Op::Gather(op) => return gather::gather(op, inputs, out),
        Op::GatherAxis(op) => return axis::gather(op, inputs, out),
        Op::Scatter(op) => return scatter::scatter(op, inputs, out),
        Op::ScatterAxis(op) => return axis::scatter(op, inputs, out),
        Op::MaskedScatter(op) => return scatter::masked(op, inputs, out),
        _ => {}
    }
    Ok(())
}
