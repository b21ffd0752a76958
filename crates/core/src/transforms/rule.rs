//! What an op says about its derivative and about a mapped axis.

use crate::array::Array;
use crate::error::Result;
use crate::ops::{self, Rule};
use crate::shape::Shape;
use smallvec::SmallVec;

/// One gradient an input; `None` for zero.
pub type Grads = SmallVec<[Option<Array>; 2]>;

/// The rules of an op under transforms. There are no default bodies: what has no derivative says so with `None`.
///
/// There is no rule for forward mode: [`jvp`](super::jvp) transposes the vjp, which is linear in its cotangents. What
/// the transposition does not need is never computed, so this costs graph nodes, not arithmetic.
pub trait Transform: Rule {
    /// The gradients of the inputs, linear in the cotangents and made of differentiable ops. A gradient has its input's
    /// shape and dtype; complex derivatives are conjugated.
    ///
    /// # Errors
    /// Where no derivative exists, naming the op and why.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads>;

    /// All outputs with an axis of `size` in front, for inputs of which at least one has it.
    ///
    /// # Errors
    /// Where the op cannot be mapped, naming the op and why.
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>>;
}

/// A node in the backward pass.
pub struct Site<'a> {
    /// What the node took.
    pub inputs: &'a [Array],
    /// What it gave.
    pub outputs: &'a [Array],
    /// Derivatives of the result by the outputs; `None` for zero, at least one is not.
    pub cotangents: &'a [Option<Array>],
    /// Which inputs' gradients are asked for; others may be computed, and are thrown away.
    pub wanted: &'a [bool],
    /// Whether this is for [`jvp`](super::jvp), which transposes what comes out: functions of the user have a rule of
    /// their own for that.
    pub forward: bool,
}

impl Site<'_> {
    /// The cotangent of output `i`, zeros where there is none.
    ///
    /// # Errors
    /// None for valid graphs.
    pub fn cotangent(&self, i: usize) -> Result<Array> {
        match &self.cotangents[i] {
            Some(g) => Ok(g.clone()),
            None => ops::zeros_like(&self.outputs[i], None),
        }
    }

    /// No gradient for any input.
    pub fn none(&self) -> Grads {
        SmallVec::from_elem(None, self.inputs.len())
    }

    /// A gradient for the first input alone.
    pub fn first(&self, g: Array) -> Grads {
        let mut grads = self.none();
        grads[0] = Some(g);
        grads
    }
}

/// An input under `vmap`.
#[derive(Clone)]
pub struct Lane {
    /// The values.
    pub array: Array,
    /// Whether axis 0 is the mapped one; otherwise all lanes share the array.
    pub mapped: bool,
}

impl Lane {
    /// The shape that one lane sees.
    pub fn shape(&self) -> &[usize] {
        &self.array.shape()[usize::from(self.mapped)..]
    }

    /// The values with the mapped axis in front, repeated where they are shared.
    ///
    /// # Errors
    /// None for valid lanes.
    pub fn spread(&self, size: usize) -> Result<Array> {
        if self.mapped {
            return Ok(self.array.clone());
        }
        let mut shape: Shape = SmallVec::from_buf([size; 4]);
        shape.truncate(1);
        shape.extend_from_slice(self.array.shape());
        ops::broadcast_to(&ops::expand_dims(&self.array, 0)?, &shape)
    }
}

/// `shape` with `size` in front.
pub(crate) fn behind(size: usize, shape: &[usize]) -> Shape {
    std::iter::once(size).chain(shape.iter().copied()).collect()
}

/// Numbers of axes as they stand behind the mapped one.
pub(crate) fn moved(axes: &[usize]) -> SmallVec<[usize; 4]> {
    axes.iter().map(|&i| i + 1).collect()
}
