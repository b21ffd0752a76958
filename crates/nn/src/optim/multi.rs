//! Several optimisers, each for the parameters that a filter gives it.

use super::rule::refuse;
use super::{Optimizer, Proposal, Rate};
use crate::Params;
use lapis::{Array, Error, Result};

/// Whether a parameter belongs to an optimiser, by its name and its gradient (in `init`: its value).
pub type Filter = Box<dyn Fn(&str, &Array) -> bool + Send>;

/// Gives each parameter to the first optimiser whose filter takes it; the last optimiser takes the rest.
///
/// Its state holds theirs under `states.0.`, `states.1.` and so on.
pub struct MultiOptimizer {
    optimizers: Vec<Box<dyn Optimizer>>,
    filters: Vec<Filter>,
}

impl MultiOptimizer {
    /// `filters[i]` belongs to `optimizers[i]`.
    ///
    /// # Errors
    /// A value error unless there is one optimiser more than filters.
    pub fn new(optimizers: Vec<Box<dyn Optimizer>>, filters: Vec<Filter>) -> Result<MultiOptimizer> {
        if optimizers.len() != filters.len() + 1 {
            return Err(Error::value(format!(
                "[MultiOptimizer] {} optimizers need {} filters; {} were given",
                optimizers.len(),
                optimizers.len().saturating_sub(1),
                filters.len()
            )));
        }
        Ok(MultiOptimizer { optimizers, filters })
    }

    fn split(&self, params: &Params) -> Vec<Params> {
        let mut parts = vec![Params::new(); self.optimizers.len()];
        for (name, a) in params {
            let i = self.filters.iter().position(|takes| takes(name, a)).unwrap_or(self.filters.len());
            parts[i].insert(name.clone(), a.clone());
        }
        parts
    }

    /// The state of each optimiser, and what belongs to none.
    fn split_state(&self, state: &Params) -> (Vec<Params>, Vec<String>) {
        let mut parts = vec![Params::new(); self.optimizers.len()];
        let mut unknown = Vec::new();
        for (key, a) in state {
            let place = key.strip_prefix("states.").and_then(|key| key.split_once('.'));
            match place.and_then(|(i, key)| Some((parts.get_mut(i.parse::<usize>().ok()?)?, key))) {
                Some((part, key)) => {
                    part.insert(key.to_string(), a.clone());
                }
                None => unknown.push(format!("{key} is unknown")),
            }
        }
        (parts, unknown)
    }
}

fn prefixed(i: usize, state: Params) -> impl Iterator<Item = (String, Array)> {
    state.into_iter().map(move |(key, a)| (format!("states.{i}.{key}"), a))
}

/// Every optimiser's part; the faults of all in one error, each with its place.
fn each<T>(results: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for (i, result) in results.enumerate() {
        match result {
            Ok(value) => values.push(value),
            Err(error) => faults.push(format!("optimizer {i}: {error}")),
        }
    }
    refuse("MultiOptimizer", &faults)?;
    Ok(values)
}

impl Optimizer for MultiOptimizer {
    fn init(&mut self, params: &Params) -> Result<()> {
        let parts = self.split(params);
        each(self.optimizers.iter_mut().zip(&parts).map(|(o, part)| o.init(part))).map(|_| ())
    }

    fn propose(&self, grads: &Params, params: &Params) -> Result<Proposal> {
        let parts = self.split(grads);
        let proposals = each(self.optimizers.iter().zip(&parts).map(|(o, part)| o.propose(part, params)))?;
        let mut whole = Proposal { params: Params::new(), state: Params::new() };
        for (i, proposal) in proposals.into_iter().enumerate() {
            whole.params.extend(proposal.params);
            whole.state.extend(prefixed(i, proposal.state));
        }
        Ok(whole)
    }

    fn accept(&mut self, proposal: Proposal) -> Params {
        let (states, _) = self.split_state(&proposal.state);
        for (optimizer, state) in self.optimizers.iter_mut().zip(states) {
            optimizer.accept(Proposal { params: Params::new(), state });
        }
        proposal.params
    }

    fn state(&self) -> Params {
        self.optimizers.iter().enumerate().flat_map(|(i, o)| prefixed(i, o.state())).collect()
    }

    fn check_state(&self, state: &Params) -> Result<()> {
        let (parts, unknown) = self.split_state(state);
        refuse("MultiOptimizer", &unknown)?;
        each(self.optimizers.iter().zip(&parts).map(|(o, part)| o.check_state(part))).map(|_| ())
    }

    fn set_state(&mut self, state: &Params) -> Result<()> {
        self.check_state(state)?;
        let (parts, _) = self.split_state(state);
        self.optimizers.iter_mut().zip(&parts).try_for_each(|(o, part)| o.set_state(part))
    }

    /// That of the first optimiser.
    fn learning_rate(&self) -> Option<Array> {
        self.optimizers[0].learning_rate()
    }

    /// For all optimisers.
    fn set_learning_rate(&mut self, rate: Rate) {
        self.optimizers.iter_mut().for_each(|o| o.set_learning_rate(rate.clone()));
    }
}
