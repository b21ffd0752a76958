//! Gradients of scalar functions.

use super::trace::{Keeping, tracers};
use super::vjp::{backward, filled};
use super::{Outcome, Tree};
use crate::error::{Error, Result};
use crate::ops;
use crate::shape::show;

/// The function that gives the value of `f` and its gradient by every array of the argument (`mx.value_and_grad`).
///
/// The first array that `f` returns is the loss, a scalar; others pass through. Gradients have the shapes and dtypes of
/// what they belong to. Values may be read inside `f`. Several arguments are a tuple:
/// `value_and_grad(|(w, b): &(Array, Array)| ...)`; what is captured is constant.
///
/// # Errors
/// The function returned gives errors: what `f` returns; a loss that is not a scalar; ops without a derivative.
pub fn value_and_grad<P: Tree, F: Outcome>(f: impl Fn(&P) -> F) -> impl Fn(&P) -> Result<(F::Tree, P)> {
    move |primals| {
        let keeping = Keeping::start();
        let inputs = primals.leaves();
        let tracers = tracers(&inputs)?;
        let value = f(&primals.with_leaves(tracers.clone())).outcome()?;
        let outputs = value.leaves();
        let Some(loss) = outputs.first() else {
            return Err(Error::value("[grad] the function returned no array; the first one is the loss"));
        };
        if loss.ndim() != 0 {
            let shape = show(loss.shape());
            return Err(Error::shape(format!(
                "[grad] the loss has shape {shape} and must be a scalar; reduce it with sum or mean, or use vjp"
            )));
        }
        let one = ops::ones_like(loss, None)?;
        let grads = backward(std::slice::from_ref(loss), vec![Some(one)], &tracers)?;
        drop(keeping);
        Ok((value, primals.with_leaves(filled(grads, &inputs)?)))
    }
}

/// The function that gives the gradient of `f` by every array of its argument (`mx.grad`); see [`value_and_grad`].
///
/// ```
/// use lapis_core::{array, transforms::grad, Array};
/// # fn main() -> lapis_core::Result<()> {
/// let slope = grad(|x: &Array| x.square().sum((), false));
/// assert_eq!(slope(&array([1.0f32, 2.0]))?.shape(), [2]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`value_and_grad`].
pub fn grad<P: Tree, F: Outcome>(f: impl Fn(&P) -> F) -> impl Fn(&P) -> Result<P> {
    let both = value_and_grad(f);
    move |primals| both(primals).map(|(_, grads)| grads)
}
