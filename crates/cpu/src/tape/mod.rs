//! Fused elementwise groups: a tape runs over tiles that stay in the first-level cache.
//!
//! Moves each input and the output once; intermediate values live in registers of one tile. Half precision is held
//! as f32 in registers and rounded after every instruction, so that results do not depend on what was fused. Large
//! outputs are written past the cache.

mod cast;
mod complex;
mod copy;
mod float;
mod int;
mod program;
mod scratch;
mod step;

pub(crate) use program::{Bound, Program};
pub(crate) use scratch::with_scratch;

use crate::geometry::Loops;
use crate::moves::copy;
use crate::pool;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::schedule::tape::{Src, Tape};
use smallvec::SmallVec;
use std::ops::Deref;

/// Bytes of the output that a tile computes when it is written past the cache: small, because what is fetched for the
/// next tile should arrive before it is needed and not be driven out again (2 KiB: 89 % of a copy, 8 KiB: 70 %).
const STREAMED_TILE: usize = 2 << 10;
/// Elements a task of the pool computes: fewer where the output stays in the cache.
const GRAIN: usize = 8 << 10;
const STREAMED_GRAIN: usize = 32 << 10;
/// Outputs from this size on are written past the cache.
const STREAMING: usize = 4 << 20;

/// The dtype a value has in a register: halves are held as f32.
pub(crate) fn wide(dtype: Dtype) -> Dtype {
    if dtype.is_half() { Dtype::Float32 } else { dtype }
}

/// A tensor as it is, or a copy of it that lies as a kernel wants it. (A word or two: kernels that decode hand these on between
/// streams of weights that have driven the stack from the caches, so that tensors themselves are better left where they are.)
pub(crate) enum Dense<'a> {
    Here(&'a Tensor),
    Copied(Box<Tensor>),
}

impl Deref for Dense<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Dense::Here(t) => t,
            Dense::Copied(t) => t,
        }
    }
}

/// `t` itself when it is row-major, else a row-major copy.
pub(crate) fn contiguous(t: &Tensor) -> Result<Dense<'_>> {
    if t.is_row_contiguous() {
        return Ok(Dense::Here(t));
    }
    let out = Tensor::row_major(crate::memory::allocate(t.nbytes())?, t.shape.clone(), t.dtype);
    if t.size() > 0 {
        copy(&out, t);
    }
    Ok(Dense::Copied(Box::new(out)))
}

/// Runs `tape` into `output`; see `Backend::tape`.
pub(crate) fn run(tape: &Tape, inputs: &[Tensor], consts: &[u64], output: &mut Tensor) -> Result<()> {
    let len = output.size();
    if len == 0 {
        return Ok(());
    }
    if tape.instrs.is_empty() {
        if let (Src::Input(i), [..]) = (tape.result, inputs) {
            copy(output, &inputs[i as usize]);
        }
        return Ok(());
    }
    let mut operands: SmallVec<[&[isize]; 8]> = SmallVec::new();
    operands.push(&output.strides);
    operands.extend(inputs.iter().map(|t| &*t.strides));
    let loops = Loops::new(&output.shape, &operands);
    let program = Program::new(tape, inputs, &loops);
    let in_place = inputs.iter().any(|t| t.buffer.same(&output.buffer));
    let streaming = !in_place && output.nbytes() >= STREAMING;
    let half = output.dtype.is_half();
    let most = if streaming { STREAMED_TILE / output.dtype.size() } else { len.next_multiple_of(16) };
    let tile = program.tile().min(most);
    let (size, base) = (output.dtype.size(), output.ptr() as usize);
    let grain = if streaming { STREAMED_GRAIN } else { GRAIN };
    pool::for_each_chunk(len, grain, &|range| {
        with_scratch(program.scratch_bytes(tile), |scratch| {
            // SAFETY: the scratch is large enough, tiles stay inside the range, chunks of the output do not overlap.
            unsafe {
                let tiles = program.bind(scratch, tile, consts);
                let tiles = if half { tiles.unrounded() } else { tiles };
                let mut at = range.start;
                while at < range.end {
                    let n = tile.min(range.end - at);
                    let out = (base as *mut u8).add(at * size);
                    let next = streaming.then_some(at + n);
                    if half || streaming || in_place {
                        let result = tiles.run(at, n, None, next);
                        copy::store(result, output.dtype, out, n, streaming);
                    } else {
                        tiles.run(at, n, Some(out), next);
                    }
                    at += n;
                }
                if streaming {
                    copy::fence();
                }
            }
        });
    });
    Ok(())
}
