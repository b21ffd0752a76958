//! The Walsh-Hadamard transform and its relatives of size m * 2^k.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::view::reshape_to;
use crate::ops::{Rule, astype, expect, eye, matmul};
use crate::scalar::Real;
use crate::shape::{Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// `scale * (H_m ⊗ S) x` along the last axis, with Sylvester's S of size 2^k.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hadamard {
    /// Factor of the result.
    pub scale: Real,
    /// Size of the first factor: 1, 12, 20 or 28.
    pub m: usize,
}

impl Rule for Hadamard {
    fn name(&self) -> &'static str {
        "hadamard_transform"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let shape = expect::only(self.name(), inputs)?;
        expect::dtype(self.name(), &inputs[0], inputs[0].dtype().is_floating())?;
        let (n, m) = (shape.last().copied().unwrap_or(1), self.m);
        let fits = [1, 12, 20, 28].contains(&m) && n.is_multiple_of(m) && (n / m).is_power_of_two();
        expect::fit(self.name(), fits, inputs)?;
        Ok(smallvec![Aval::new(shape, inputs[0].dtype())])
    }
}

/// Hadamard transform along the last axis, whose size is m * 2^k with m one of 1, 12, 20, 28
/// (`mx.hadamard_transform`); `scale` is 1/sqrt(size) unless given, which makes the transform orthogonal. Integers
/// become float32; half precision is computed in f32.
///
/// # Errors
/// Other sizes, empty arrays, complex numbers.
pub fn hadamard_transform(a: &Array, scale: Option<f64>) -> Result<Array> {
    let n = a.shape().last().copied().unwrap_or(1);
    let m = n >> n.trailing_zeros().min(63);
    let m = match m {
        1 => 1,
        3 | 5 | 7 if n.is_multiple_of(4 * m) => 4 * m,
        _ => {
            let text = "sizes are m * 2^k with m one of 1, 12, 20, 28";
            return Err(Error::shape(format!("[hadamard_transform] {text}; the shape is {}", show(a.shape()))));
        }
    };
    if a.dtype().is_complex() {
        return Err(Error::dtype("[hadamard_transform] complex64 is not a type it takes"));
    }
    let a = astype(a, if a.dtype().is_floating() { a.dtype() } else { Dtype::Float32 })?;
    let scale = Real(scale.unwrap_or(1.0 / (n as f64).sqrt()));
    Array::apply1(Hadamard { scale, m }, smallvec![a])
}

impl Transform for Hadamard {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = at.cotangent(0)?;
        let blocks = Hadamard { scale: self.scale, m: 1 };
        if self.m == 1 {
            return Ok(smallvec![Some(Array::apply1(blocks, smallvec![g])?)]);
        }
        // H_m is not symmetric: the rows of the identity become the rows of its transpose.
        let factor = Hadamard { scale: Real(1.0), m: self.m };
        let transposed = Array::apply1(factor, smallvec![eye(self.m, None, 0, Some(g.dtype()))?])?;
        let mut cut: Shape = g.shape().into();
        let last = cut.pop().unwrap_or(1);
        cut.extend([self.m, last / self.m]);
        let parts = Array::apply1(blocks, smallvec![reshape_to(&g, cut)?])?;
        Ok(smallvec![Some(reshape_to(&matmul(&transposed, &parts)?, g.shape().into())?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        Ok(vec![Array::apply1(self.clone(), smallvec![lanes[0].array.clone()])?])
    }
}
