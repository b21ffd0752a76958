//! Gradients of losses by the parameters of a module.

use crate::{Leaf, Module, Params};
use lapis::transforms::{self, Outcome, Tree};
use lapis::{Array, Dtype, Error, Result, eval, ops};

/// The value of `f` and the gradient of its first array, a scalar loss, by every trainable parameter of `model`
/// (`nn.value_and_grad`).
///
/// `f` is given a copy of the model; what its forward pass writes to buffers (running statistics) is written to `model`
/// too. Whether loss and gradients are finite is for the caller to see: [`check_finite`].
///
/// ```
/// use lapis_nn::{Layer, Linear, losses, value_and_grad};
///
/// let model = Linear::new(3, 1, true)?;
/// let (x, y) = (lapis::ops::ones::<f32>(&[8, 3])?, lapis::ops::zeros::<f32>(&[8, 1])?);
/// let (loss, grads) =
///     value_and_grad(&model, |m| losses::mse_loss(&m.forward(&x)?, &y, losses::Reduction::Mean))?;
/// assert_eq!(loss.ndim(), 0);
/// assert_eq!(grads["weight"].shape(), [1, 3]);
/// # Ok::<(), lapis::Error>(())
/// ```
///
/// # Errors
/// What `f` returns; a loss that is not a scalar; ops without a derivative.
pub fn value_and_grad<M: Module + Clone, F: Outcome>(model: &M, f: impl Fn(&M) -> F) -> Result<(F::Tree, Params)> {
    let run = transforms::value_and_grad(|params: &Params| {
        let mut copy = model.clone();
        copy.update(params, true)?;
        let value = f(&copy).outcome()?;
        copy_buffers(&copy, model);
        Ok::<_, Error>(value)
    });
    run(&model.trainable_parameters())
}

/// [`value_and_grad`], evaluated; a loss that is no number stops the training instead of spoiling the parameters.
///
/// # Errors
/// As there; an eval error with the value of a loss that is infinite or not a number, and with the names of the gradients
/// that are. Running statistics of `model` are as they were then.
pub fn finite_value_and_grad<M: Module + Clone, F: Outcome>(
    model: &M,
    f: impl Fn(&M) -> F,
) -> Result<(F::Tree, Params)> {
    let tried = model.clone();
    let (value, grads) = value_and_grad(&tried, f)?;
    eval(value.leaves().iter().chain(grads.values()))?;
    let loss = value.leaves().swap_remove(0).astype(Dtype::Float64).item::<f64>()?;
    let wrong = check_finite(&grads).err();
    if !loss.is_finite() || wrong.is_some() {
        let rest = wrong.map_or_else(String::new, |e| format!("; {e}"));
        return Err(Error::eval(format!("[value_and_grad] the loss is {loss}{rest}")));
    }
    copy_buffers(&tried, model);
    Ok((value, grads))
}

/// Gives the buffers of `to` the values of those of `from`, a copy of it.
pub(crate) fn copy_buffers<M: Module>(from: &M, to: &M) {
    let mut values = Vec::new();
    from.visit(&mut |_, leaf| {
        if let Leaf::Buffer(b) = leaf {
            values.push(b.get());
        }
    });
    let mut values = values.into_iter();
    to.visit(&mut |_, leaf| {
        if let Leaf::Buffer(b) = leaf
            && let Some(value) = values.next()
        {
            b.set(value);
        }
    });
}

/// `f(module, x)` with the values inside computed again for gradients, in place of being kept (`nn.utils.checkpoint`).
///
/// # Errors
/// What `f` returns.
pub fn checkpoint<M: Module, P: Tree, F: Outcome>(module: &M, x: &P, f: impl Fn(&M, &P) -> F) -> Result<F::Tree> {
    transforms::checkpoint(|x: &P| f(module, x))(x)
}

/// An error that names the arrays with values that are infinite or not numbers. Evaluates them.
///
/// # Errors
/// An eval error with the names; faults of computing.
pub fn check_finite(arrays: &Params) -> Result<()> {
    let all = |a: &Array| ops::all(&ops::isfinite(a)?, (), false);
    let flags: Vec<Array> = arrays.values().map(all).collect::<Result<_>>()?;
    eval(&flags)?;
    let mut wrong = Vec::new();
    for (name, flag) in arrays.keys().zip(&flags) {
        if !flag.item::<bool>()? {
            wrong.push(name.as_str());
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::eval(format!("[check_finite] values that are infinite or not numbers in {}", wrong.join(", "))))
}
