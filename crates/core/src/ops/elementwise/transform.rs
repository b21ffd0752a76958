//! Derivatives of the elementwise table: one arm a row, in terms of the table.
//!
//! A gradient is the cotangent times the conjugate of the derivative; conjugation is free for real numbers. Rows that
//! are constant almost everywhere give none.

use crate::array::Array;
use crate::dtype::{Dtype, c64};
use crate::error::Result;
use crate::ops::{self, Ew, elementwise::Elementwise};
use crate::transforms::{Grads, Lane, Site, Transform};
use smallvec::SmallVec;
use std::f64::consts::{LN_2, LN_10, PI};

impl Transform for Elementwise {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = at.cotangent(0)?;
        if self.op == Ew::Select {
            let zero = ops::zeros_like(&g, None)?;
            let (x, y) = (ops::select(&at.inputs[0], &g, &zero)?, ops::select(&at.inputs[0], &zero, &g)?);
            return Ok(SmallVec::from_iter([None, Some(x), Some(y)]));
        }
        if self.op.row().arity == 1 {
            return Ok(SmallVec::from_iter([unary(self.op, &g, &at.inputs[0], &at.outputs[0])?]));
        }
        let wanted = [at.wanted[0], at.wanted[1]];
        Ok(binary(self.op, &g, &at.inputs[0], &at.inputs[1], &at.outputs[0], wanted)?.into())
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let inputs = lanes.iter().map(|l| l.spread(size)).collect::<Result<_>>()?;
        Ok(vec![Array::apply1(self.clone(), inputs)?])
    }
}

/// The conjugate, which is free for real numbers.
pub(crate) fn conj(a: &Array) -> Result<Array> {
    if a.dtype().is_complex() { ops::conjugate(a) } else { Ok(a.clone()) }
}

fn unary(op: Ew, g: &Array, x: &Array, y: &Array) -> Result<Option<Array>> {
    use ops::{add, divide, exp, multiply, negative, reciprocal, rsqrt, square, subtract};
    let times = |derivative: Array| multiply(g, &conj(&derivative)?);
    let over = |denominator: Array| divide(g, &conj(&denominator)?);
    let one_plus = |a: Array| add(&a, 1);
    let one_minus = |a: Array| subtract(1, &a);
    Ok(Some(match op {
        Ew::Abs => multiply(g, &ops::sign(x)?)?,
        // Of complex numbers a direction, which turns: what of the change is across it, by the length.
        Ew::Sign if x.dtype().is_complex() => {
            let across = subtract(g, &multiply(y, &ops::real(&multiply(&conj(y)?, g)?)?)?)?;
            let zero = ops::equal(x, 0)?;
            let length = ops::select(&zero, 1, &ops::abs(x)?)?;
            ops::select(&zero, 0, &divide(&across, &length)?)?
        }
        Ew::Negative => negative(g)?,
        Ew::Square => times(multiply(x, 2)?)?,
        Ew::Conjugate => conj(g)?,
        Ew::Real => g.clone(),
        Ew::Imag if x.dtype().is_complex() => multiply(g, c64::new(0.0, 1.0))?,
        Ew::Exp => times(y.clone())?,
        Ew::Expm1 => times(one_plus(y.clone())?)?,
        Ew::Log | Ew::RandomLog => over(x.clone())?,
        Ew::Log2 => over(multiply(x, LN_2)?)?,
        Ew::Log10 => over(multiply(x, LN_10)?)?,
        Ew::Log1p => over(one_plus(x.clone())?)?,
        Ew::Sin => times(ops::cos(x)?)?,
        Ew::Cos => times(negative(&ops::sin(x)?)?)?,
        Ew::Tan => times(one_plus(square(y)?)?)?,
        Ew::Sinh => times(ops::cosh(x)?)?,
        Ew::Cosh => times(ops::sinh(x)?)?,
        Ew::Tanh => times(one_minus(square(y)?)?)?,
        Ew::ArcSin => times(rsqrt(&one_minus(square(x)?)?)?)?,
        Ew::ArcCos => times(negative(&rsqrt(&one_minus(square(x)?)?)?)?)?,
        Ew::ArcTan => over(one_plus(square(x)?)?)?,
        Ew::ArcSinh => times(rsqrt(&one_plus(square(x)?)?)?)?,
        Ew::ArcCosh => times(multiply(&rsqrt(&subtract(x, 1)?)?, &rsqrt(&add(x, 1)?)?)?)?,
        Ew::ArcTanh => over(one_minus(square(x)?)?)?,
        Ew::Sqrt => over(multiply(y, 2)?)?,
        Ew::Rsqrt => times(multiply(&divide(y, x)?, -0.5)?)?,
        Ew::Reciprocal => times(negative(&square(&reciprocal(x)?)?)?)?,
        Ew::Erf | Ew::RandomErf => times(multiply(&exp(&negative(&square(x)?)?)?, 2.0 / PI.sqrt())?)?,
        Ew::ErfInv | Ew::RandomErfInv => times(multiply(&exp(&square(y)?)?, PI.sqrt() / 2.0)?)?,
        Ew::Sigmoid => times(multiply(y, &one_minus(y.clone())?)?)?,
        Ew::AsType if y.dtype() != Dtype::Bool && x.dtype() != Dtype::Bool => ops::astype(g, x.dtype())?,
        _ => return Ok(None),
    }))
}

fn binary(op: Ew, g: &Array, a: &Array, b: &Array, y: &Array, wanted: [bool; 2]) -> Result<[Option<Array>; 2]> {
    use ops::{add, divide, multiply, negative, power, square, subtract};
    let (first, second): (&dyn Fn() -> Result<Array>, &dyn Fn() -> Result<Array>) = match op {
        Ew::Add => (&|| Ok(g.clone()), &|| Ok(g.clone())),
        Ew::Subtract => (&|| Ok(g.clone()), &|| negative(g)),
        Ew::Multiply => (&|| multiply(g, &conj(b)?), &|| multiply(g, &conj(a)?)),
        Ew::Divide => (&|| divide(g, &conj(b)?), &|| multiply(g, &negative(&divide(&conj(y)?, &conj(b)?)?)?)),
        Ew::Remainder => (&|| Ok(g.clone()), &|| multiply(g, &negative(&ops::floor_divide(a, b)?)?)),
        Ew::Power => (
            &|| {
                // 0 for an exponent of 0, whatever the base.
                let slope = multiply(b, &power(a, &subtract(b, 1)?)?)?;
                ops::select(&ops::equal(b, 0)?, 0, &multiply(g, &conj(&slope)?)?)
            },
            &|| ops::select(&ops::equal(a, 0)?, 0, &multiply(g, &conj(&multiply(&ops::log(a)?, y)?)?)?),
        ),
        Ew::Maximum => (&|| ops::select(&ops::greater(a, b)?, g, 0), &|| ops::select(&ops::greater(a, b)?, 0, g)),
        Ew::Minimum => (&|| ops::select(&ops::less(a, b)?, g, 0), &|| ops::select(&ops::less(a, b)?, 0, g)),
        Ew::LogAddExp if y.dtype().is_complex() => (&|| multiply(g, &conj(&ops::exp(&subtract(a, y)?)?)?), &|| {
            multiply(g, &conj(&ops::exp(&subtract(b, y)?)?)?)
        }),
        Ew::LogAddExp => {
            (&|| multiply(g, &ops::sigmoid(&subtract(a, b)?)?), &|| multiply(g, &ops::sigmoid(&subtract(b, a)?)?))
        }
        Ew::ArcTan2 => (&|| divide(&multiply(g, b)?, &add(&square(a)?, &square(b)?)?), &|| {
            divide(&multiply(g, &negative(a)?)?, &add(&square(a)?, &square(b)?)?)
        }),
        _ => return Ok([None, None]),
    };
    let [x, y] = wanted;
    Ok([x.then(first).transpose()?, y.then(second).transpose()?])
}
