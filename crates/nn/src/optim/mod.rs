//! Optimisers, learning rate schedules, clipping and accumulation of gradients (`mlx.optimizers`).
//!
//! Everything here works on [`Params`], arrays by dotted name, and only builds lazy graphs: evaluate the new parameters
//! together with the optimiser's [`state`](Optimizer::state). Drop gradients and old parameters before: a handle that
//! lives through the evaluation keeps its memory from being used again.
//!
//! ```
//! use lapis::{array, eval};
//! use lapis_nn::{Params, optim::{Adam, Optimizer}};
//!
//! let mut params = Params::from([("w".to_string(), array([3.0f32, -2.0]))]);
//! let mut adam = Adam::new(0.1);
//! for _ in 0..50 {
//!     let grads = Params::from([("w".to_string(), &params["w"] * 2)]); // of the sum of squares
//!     params = adam.apply(&grads, &params)?;
//!     drop(grads);
//!     eval(params.values().chain(adam.state().values()))?;
//! }
//! assert!(params["w"].abs().max((), false).item::<f32>()? < 1.0);
//! # Ok::<(), lapis::Error>(())
//! ```
//!
//! **NaN and infinity** in gradients are not looked for: they flow into parameters and state as in any arithmetic. Who
//! wants to skip such steps reads the norm that [`clip_grad_norm`] returns, and calls `apply` when it is finite.
//!
//! An optimiser of one's own is a struct with a [`Base`] and an implementation of [`Rule`], about 20 lines.

mod adafactor;
mod adam;
mod descent;
mod gradients;
mod multi;
mod muon;
mod rule;
mod schedule;

pub use adafactor::Adafactor;
pub use adam::{Adam, AdamW, Adamax};
pub use descent::{AdaDelta, Adagrad, Lion, RmsProp, Sgd};
pub use gradients::{Accumulator, clip_grad_norm};
pub use multi::{Filter, MultiOptimizer};
pub use muon::Muon;
pub use rule::{At, Base, Rule, Shapes, Slots};
pub use schedule::{Rate, Schedule, cosine_decay, exponential_decay, join_schedules, linear_schedule, step_decay};

use crate::{Module, Params};
use lapis::{Array, Result, io};
use std::path::Path;

/// What one step of an optimiser would give.
pub struct Proposal {
    /// The new parameters, one for each gradient.
    pub params: Params,
    /// The entries of the optimiser's state that change.
    pub state: Params,
}

/// Turns gradients into new parameters.
///
/// State begins as zeros of the parameter's dtype. Results have the dtype that parameter, gradient and state promote to,
/// the learning rate is cast to the gradient's: all the same dtype stays that dtype.
///
/// The state is a flat tree with MLX's names: `step` (uint64), `learning_rate`, and for each parameter its slots, such
/// as `layers.0.weight.m`. It is exact: an optimiser that takes up the state of another goes on bit by bit like it.
pub trait Optimizer: Send {
    /// Makes room for the state of `params`; what is there already stays. Not needed: parameters get their state when
    /// their first gradient comes. Called before [`set_state`](Optimizer::set_state), it makes that compare all names.
    ///
    /// # Errors
    /// Options out of range; state that is there with other shapes; parameters that are not real or complex floats.
    fn init(&mut self, params: &Params) -> Result<()>;

    /// What one step would give; changes nothing. `params` may hold more than `grads` does.
    ///
    /// # Errors
    /// Options out of range; gradients without a parameter, with another shape or that are not floats; state with
    /// other shapes. All names are listed.
    fn propose(&self, grads: &Params, params: &Params) -> Result<Proposal>;

    /// Takes over the state of a proposal and returns its parameters.
    fn accept(&mut self, proposal: Proposal) -> Params;

    /// One step: the new values of the parameters that have gradients, lazily.
    ///
    /// # Errors
    /// As [`propose`](Optimizer::propose); nothing has changed then.
    fn apply(&mut self, grads: &Params, params: &Params) -> Result<Params> {
        let proposal = self.propose(grads, params)?;
        Ok(self.accept(proposal))
    }

    /// One step of a model (`Optimizer.update`): the parameters that have gradients get their new values, lazily. The
    /// old values are free once nobody else holds them.
    ///
    /// # Errors
    /// As [`propose`](Optimizer::propose); model and state have not changed then.
    fn update(&mut self, model: &mut dyn Module, grads: &Params) -> Result<()> {
        let proposal = self.propose(grads, &model.parameters())?;
        model.update(&proposal.params, true)?;
        self.accept(proposal);
        Ok(())
    }

    /// The state, to evaluate and to save.
    fn state(&self) -> Params;

    /// Whether `state` fits this optimiser.
    ///
    /// # Errors
    /// Names that are missing or unknown, other shapes or dtypes, all listed.
    fn check_state(&self, state: &Params) -> Result<()>;

    /// Takes up a state that [`state`](Optimizer::state) gave, here or in another process, also MLX's.
    ///
    /// # Errors
    /// As [`check_state`](Optimizer::check_state); nothing has changed then.
    fn set_state(&mut self, state: &Params) -> Result<()>;

    /// The learning rate (float32, 0-d) of the last step; before the first step that of the first. `None` where none
    /// was given.
    fn learning_rate(&self) -> Option<Array>;

    /// Another learning rate or schedule from the next step on.
    fn set_learning_rate(&mut self, rate: Rate);

    /// Writes the state to a safetensors file.
    ///
    /// # Errors
    /// Faults of the evaluation or of the file.
    fn save(&self, path: &Path) -> Result<()> {
        io::save_safetensors(path, &self.state(), &io::Metadata::default())
    }

    /// Takes up the state in a safetensors file.
    ///
    /// # Errors
    /// As [`set_state`](Optimizer::set_state), and faults of the file.
    fn load(&mut self, path: &Path) -> Result<()> {
        self.set_state(&io::load_safetensors(path)?.0.into_iter().collect())
    }
}
