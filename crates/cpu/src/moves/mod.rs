//! Moving elements between places: joining, padding, windows, gathers and scatters.
//!
//! Every kernel reads its values once and writes its results once, plus 8 bytes an index; nothing else is moved. Moves
//! know the size of an element and not its type; only combining updates does. What is cut among threads never shares
//! a destination, so that results do not depend on their number.

mod axis;
mod block;
mod combine;
mod gather;
mod places;
mod scatter;
mod window;

pub(crate) use block::copy;

use crate::memory;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::Op;

/// An empty vector with room for `n` elements.
///
/// # Errors
/// A memory error when there is none.
fn room<T>(n: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    let reserved = vec.try_reserve_exact(n);
    reserved.map(|()| vec).map_err(|_| Error::memory(format!("[eval] no memory for {n} offsets")))
}

/// A copy of a row-major tensor of halves as f32.
///
/// # Errors
/// As [`memory::allocate`].
fn widened(t: &Tensor) -> Result<Tensor> {
    let shape = t.shape.clone();
    let wide = Tensor::row_major(memory::allocate(t.size() * 4)?, shape, Dtype::Float32);
    combine::widen_all(t.dtype, t.ptr(), wide.ptr().cast(), t.size());
    Ok(wide)
}

/// Computes `out` from `inputs`; for updates `out` starts as the first input. `None` for an op that moves nothing.
///
/// # Errors
/// Indices and starts out of range; fewer rows than a mask selects.
pub(crate) fn run(op: &Op, inputs: &[Tensor], out: &mut Tensor) -> Option<Result<()>> {
    let out = &*out;
    Some(match op {
        Op::Concatenate(op) => {
            window::concatenate(op.axis, inputs, out);
            Ok(())
        }
        Op::Pad(op) => {
            window::pad(op, inputs, out);
            Ok(())
        }
        Op::SliceUpdate(op) => {
            window::update(op, &inputs[1], out);
            Ok(())
        }
        Op::DynamicSlice(op) => window::dynamic_slice(op, inputs, out),
        Op::DynamicSliceUpdate(op) => window::dynamic_update(op, inputs, out),
        Op::Gather(op) => gather::gather(op, inputs, out),
        Op::GatherAxis(op) => axis::gather(op, inputs, out),
        Op::Scatter(op) => scatter::scatter(op, inputs, out),
        Op::ScatterAxis(op) => axis::scatter(op, inputs, out),
        Op::MaskedScatter(op) => scatter::masked(op, inputs, out),
        _ => return None,
    })
}
