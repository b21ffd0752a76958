//! What the processes of a group compute together. Kernels come from whoever started the group
//! ([`crate::distributed`]); every process has to evaluate the same ones in the same order.

use crate::array::Array;
use crate::distributed::Group;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::view::reshape_to;
use crate::ops::{Rule, expect, slice};
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use smallvec::smallvec;

/// What comes of the arrays of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Their sum, added in the order of ranks.
    Sum,
    /// The largest, element by element.
    Max,
    /// The smallest, element by element.
    Min,
    /// All of them along axis 0.
    Gather,
    /// The sum, of which each process keeps its part along axis 0.
    Scatter,
    /// That of this process, for all.
    Broadcast(usize),
    /// What was sent to this process.
    Send(usize),
    /// An array of this shape and dtype from that process.
    Receive(Shape, Dtype, usize),
}

/// One of them, over a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collective {
    /// What.
    pub kind: Kind,
    /// Among whom.
    pub group: Group,
}

impl Rule for Collective {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sum => "all_sum",
            Kind::Max => "all_max",
            Kind::Min => "all_min",
            Kind::Gather => "all_gather",
            Kind::Scatter => "sum_scatter",
            Kind::Broadcast(_) => "broadcast",
            Kind::Send(_) => "send",
            Kind::Receive(..) => "recv",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let (op, n) = (self.name(), self.group.size());
        if let Kind::Receive(shape, dtype, _) = &self.kind {
            expect::count(op, inputs, 0)?;
            shape::elements(op, shape)?;
            return Ok(smallvec![Aval::new(shape.clone(), *dtype)]);
        }
        let mut shape = expect::only(op, inputs)?;
        let dtype = inputs[0].dtype();
        if matches!(self.kind, Kind::Max | Kind::Min) {
            expect::dtype(op, &inputs[0], !dtype.is_complex())?;
        }
        match (&self.kind, shape.first_mut()) {
            (Kind::Gather, Some(rows)) => *rows = rows.saturating_mul(n),
            (Kind::Gather, None) => shape.push(n),
            (Kind::Scatter, Some(rows)) if rows.is_multiple_of(n) => *rows /= n,
            (Kind::Scatter, _) => {
                let what = format!("axis 0 of {} does not divide among {n} processes", show(&shape));
                return Err(Error::shape(format!("[{op}] {what}")));
            }
            _ => {}
        }
        shape::elements(op, &shape)?;
        Ok(smallvec![Aval::new(shape, dtype)])
    }
}

impl Transform for Collective {
    /// As MLX has it: what is the same on all processes is their own, so a gradient passes a sum as it is, and of what was
    /// gathered each takes its part.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        if at.forward {
            return Err(Error::unsupported(format!("[{}] there is no forward mode across processes", self.name())));
        }
        let g = at.cotangent(0)?;
        match &self.kind {
            Kind::Sum => Ok(at.first(g)),
            Kind::Gather => {
                let own = at.inputs[0].shape();
                let rows = own.first().map_or(1, |&n| n) as i64;
                let first = self.group.rank() as i64 * rows;
                let part = slice(&g, &[(Some(first), Some(first + rows), 1)])?;
                Ok(at.first(reshape_to(&part, own.into())?))
            }
            _ => Err(Error::unsupported(format!("[{}] has no gradient", self.name()))),
        }
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        match self.kind {
            Kind::Sum | Kind::Max | Kind::Min => {
                Ok(vec![Array::apply1(self.clone(), smallvec![lanes[0].array.clone()])?])
            }
            _ => Err(Error::unsupported(format!("[{}] cannot be mapped", self.name()))),
        }
    }
}
