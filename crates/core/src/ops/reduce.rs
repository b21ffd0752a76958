//! Reductions: many elements to one along axes. Elementwise work before a reduction joins its pass.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::view::{layout_last, permute, reshape_to};
use crate::ops::{Rule, astype, broadcast_to, cumprod, divide, equal, expect, multiply};
use crate::shape::{self, Axes, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform, behind};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// What a reduction keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ReduceKind {
    /// The sum; half precision adds in f32.
    Sum,
    /// The product; half precision multiplies in f32.
    Prod,
    /// The largest; NaN when any is NaN.
    Max,
    /// The smallest; NaN when any is NaN.
    Min,
    /// Whether all are nonzero.
    All,
    /// Whether any is nonzero.
    Any,
}

/// A reduction over some axes, which stay with size 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reduce {
    /// What is kept.
    pub kind: ReduceKind,
    /// Reduced axes, ascending.
    pub axes: SmallVec<[usize; 4]>,
    /// Shape before the reduction.
    pub from: Shape,
}

impl Rule for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            ReduceKind::Sum => "sum",
            ReduceKind::Prod => "prod",
            ReduceKind::Max => "max",
            ReduceKind::Min => "min",
            ReduceKind::All => "all",
            ReduceKind::Any => "any",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let mut shape = expect::only(self.name(), inputs)?;
        let a = &inputs[0];
        expect::distinct(self.name(), &self.axes, a.ndim())?;
        expect::fit(self.name(), self.axes.is_sorted() && self.from.as_slice() == a.shape(), inputs)?;
        let fits = match self.kind {
            ReduceKind::Sum | ReduceKind::Prod => accumulates_in(a.dtype()) == a.dtype(),
            ReduceKind::All | ReduceKind::Any => a.dtype() == Dtype::Bool,
            ReduceKind::Max | ReduceKind::Min => true,
        };
        expect::dtype(self.name(), a, fits)?;
        for &axis in &self.axes {
            shape[axis] = 1;
        }
        if matches!(self.kind, ReduceKind::Max | ReduceKind::Min) && a.size() == 0 && !shape.contains(&0) {
            return Err(Error::value(format!("[{}] the array of shape {} is empty", self.name(), show(a.shape()))));
        }
        let dtype = if matches!(self.kind, ReduceKind::All | ReduceKind::Any) { Dtype::Bool } else { a.dtype() };
        Ok(smallvec![Aval::new(shape, dtype)])
    }
}

/// The dtype sums and products are taken in: small integers widen.
fn accumulates_in(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::Bool | Dtype::Int8 | Dtype::Int16 => Dtype::Int32,
        Dtype::Uint8 | Dtype::Uint16 => Dtype::Uint32,
        other => other,
    }
}

pub(crate) fn reduce(kind: ReduceKind, a: &Array, axes: Axes, keepdims: bool) -> Result<Array> {
    let op = Reduce { kind, axes: SmallVec::new(), from: a.shape().into() };
    let axes = shape::axes(op.name(), &axes, a.ndim())?;
    let a = match kind {
        ReduceKind::Sum | ReduceKind::Prod => astype(a, accumulates_in(a.dtype()))?,
        ReduceKind::All | ReduceKind::Any => astype(a, Dtype::Bool)?,
        _ => a.clone(),
    };
    let kept = if axes.is_empty() { a } else { Array::apply1(Reduce { axes: axes.clone(), ..op }, smallvec![a])? };
    if keepdims { Ok(kept) } else { super::view::drop_axes(&kept, &axes) }
}

macro_rules! reductions {
    ($($doc:literal $name:ident $kind:ident;)*) => {$(
        #[doc = $doc]
        ///
        /// `axes`: one axis, a list, or `()` for all; reduced axes stay with size 1 under `keepdims`.
        ///
        /// # Errors
        /// Axes out of range or named twice; `max` and `min` of nothing.
        pub fn $name(a: &Array, axes: impl Into<Axes>, keepdims: bool) -> Result<Array> {
            reduce(ReduceKind::$kind, a, axes.into(), keepdims)
        }
        impl Array {
            #[doc = $doc]
            ///
            /// `axes`: one axis, a list, or `()` for all; see the function of the same name.
            ///
            /// # Panics
            /// On its errors.
            #[track_caller]
            pub fn $name(&self, axes: impl Into<Axes>, keepdims: bool) -> Array {
                crate::or_panic($name(self, axes, keepdims))
            }
        }
    )*};
}

reductions! {
    "Sum; bool, int8, int16 give int32, uint8, uint16 uint32. Of nothing: 0." sum Sum;
    "Product, with the dtypes of the sum. Of nothing: 1." prod Prod;
    "Largest value; NaN when any is NaN." max Max;
    "Smallest value; NaN when any is NaN." min Min;
    "Whether all are nonzero; true of nothing." all All;
    "Whether any is nonzero; false of nothing." any Any;
}

impl Transform for Reduce {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, x, y) = (at.cotangent(0)?, &at.inputs[0], &at.outputs[0]);
        let spread = |a: &Array| broadcast_to(a, x.shape());
        Ok(smallvec![match self.kind {
            ReduceKind::Sum => Some(spread(&g)?),
            ReduceKind::Prod => Some(multiply(&spread(&g)?, &others(x, &self.axes)?)?),
            // Ties share.
            ReduceKind::Max | ReduceKind::Min => {
                let hit = astype(&equal(x, &spread(y)?)?, x.dtype())?;
                let axes: Vec<i32> = self.axes.iter().map(|&i| i as i32).collect();
                let share = astype(&divide(&g, &sum(&hit, axes, true)?)?, x.dtype())?;
                Some(multiply(&hit, &spread(&share)?)?)
            }
            ReduceKind::All | ReduceKind::Any => None,
        }])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let axes = self.axes.iter().map(|&i| i + 1).collect();
        let op = Reduce { kind: self.kind, axes, from: behind(size, &self.from) };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].array.clone()])?])
    }
}

/// For each element the product of the others along `axes`: right where elements are zero.
pub(crate) fn others(x: &Array, axes: &[usize]) -> Result<Array> {
    let flat = layout_last("prod", x, axes)?;
    let before = cumprod(&flat, Some(-1), false, false, None)?;
    let after = cumprod(&flat, Some(-1), true, false, None)?;
    let kept = (0..x.ndim()).filter(|i| !axes.contains(i));
    let order: SmallVec<[usize; 4]> = kept.chain(axes.iter().copied()).collect();
    let mut back: SmallVec<[usize; 4]> = SmallVec::from_elem(0, order.len());
    order.iter().enumerate().for_each(|(i, &o)| back[o] = i);
    let shape = order.iter().map(|&i| x.shape()[i]).collect();
    permute(&reshape_to(&multiply(&before, &after)?, shape)?, back)
}
