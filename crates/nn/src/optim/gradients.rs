//! What happens to gradients before an optimiser sees them: clipping, accumulation.

use super::rule::{demand, refuse};
use crate::Params;
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, array, ops};

/// float16 and bfloat16 as float32.
fn widened(a: &Array) -> Result<Array> {
    if matches!(a.dtype(), Dtype::Float16 | Dtype::Bfloat16) { ops::astype(a, Dtype::Float32) } else { Ok(a.clone()) }
}

/// The gradients times `min(max_norm / (norm + 1e-6), 1)`, each in its own dtype, and the norm of all of them together
/// before that (0-d; half precision is summed in float32). A norm that is NaN or infinite tells of a step to skip.
///
/// # Errors
/// A value error for a negative or NaN `max_norm`.
pub fn clip_grad_norm(grads: &Params, max_norm: f64) -> Result<(Params, Array)> {
    demand(max_norm >= 0.0, "clip_grad_norm", "max_norm must be at least 0", max_norm)?;
    let mut total = array(0.0f32);
    for g in grads.values() {
        total = ops::add(&total, &ops::sum(&ops::square(&widened(g)?)?, (), false)?)?;
    }
    let norm = ops::sqrt(&total)?;
    let scale = ops::minimum(&ops::divide(max_norm, &ops::add(&norm, 1e-6)?)?, 1.0)?;
    let clip = |(name, g): (&String, &Array)| Ok((name.clone(), ops::astype(&ops::multiply(g, &scale)?, g.dtype())?));
    Ok((grads.iter().map(clip).collect::<Result<Params>>()?, norm))
}

/// The average of gradients over several small batches, for one step with all of them.
///
/// ```
/// use lapis::array;
/// use lapis_nn::{Params, optim::Accumulator};
///
/// let mut accumulator = Accumulator::new(2)?;
/// let grads = |g: f32| Params::from([("w".to_string(), array([g]))]);
/// assert!(accumulator.add(grads(1.0))?.is_none());
/// let average = accumulator.add(grads(2.0))?.expect("two batches make a step");
/// assert_eq!(average["w"].to_vec::<f32>()?, [1.5]);
/// # Ok::<(), lapis::Error>(())
/// ```
pub struct Accumulator {
    every: usize,
    count: usize,
    /// Half precision as float32, so that the average is rounded once.
    sums: Params,
    dtypes: Vec<Dtype>,
}

impl Accumulator {
    /// For a step every `every` batches.
    ///
    /// # Errors
    /// A value error for 0.
    pub fn new(every: usize) -> Result<Accumulator> {
        demand(every > 0, "Accumulator", "a step needs at least 1 batch", every)?;
        Ok(Accumulator { every, count: 0, sums: Params::new(), dtypes: Vec::new() })
    }

    /// Adds the gradients of a batch; with the last batch of a step it gives the average and begins anew.
    /// Between batches evaluate [`pending`](Accumulator::pending), or the graphs of all batches live until the step.
    ///
    /// # Errors
    /// A shape error when names, shapes or dtypes differ from those of the first batch, all listed; nothing was added
    /// then.
    pub fn add(&mut self, grads: Params) -> Result<Option<Params>> {
        if self.count == 0 {
            self.dtypes = grads.values().map(Array::dtype).collect();
            self.sums = grads.iter().map(|(name, g)| Ok((name.clone(), widened(g)?))).collect::<Result<_>>()?;
        } else {
            self.check(&grads)?;
            let add = |((name, sum), g): ((&String, &Array), &Array)| Ok((name.clone(), ops::add(sum, &widened(g)?)?));
            self.sums = self.sums.iter().zip(grads.values()).map(add).collect::<Result<_>>()?;
        }
        self.count += 1;
        if self.count == self.every { self.finish() } else { Ok(None) }
    }

    /// The sums so far, to evaluate.
    pub fn pending(&self) -> impl Iterator<Item = &Array> {
        self.sums.values()
    }

    /// The average of the batches so far, fewer than a step has, at the end of the data; `None` after a whole step.
    ///
    /// # Errors
    /// None for valid arrays.
    pub fn finish(&mut self) -> Result<Option<Params>> {
        if self.count == 0 {
            return Ok(None);
        }
        let n = std::mem::take(&mut self.count) as f64;
        let average =
            |((name, sum), &dtype): ((String, Array), &Dtype)| Ok((name, ops::astype(&ops::divide(&sum, n)?, dtype)?));
        std::mem::take(&mut self.sums).into_iter().zip(&self.dtypes).map(average).collect::<Result<_>>().map(Some)
    }

    fn check(&self, grads: &Params) -> Result<()> {
        let mut faults = Vec::new();
        for ((name, sum), &dtype) in self.sums.iter().zip(&self.dtypes) {
            match grads.get(name) {
                None => faults.push(format!("the gradient {name} is missing")),
                Some(g) if g.shape() != sum.shape() || g.dtype() != dtype => faults.push(format!(
                    "the gradient {name} is {} {}, it was {dtype} {}",
                    g.dtype(),
                    show(g.shape()),
                    show(sum.shape())
                )),
                Some(_) => {}
            }
        }
        let new = grads.keys().filter(|name| !self.sums.contains_key(*name));
        faults.extend(new.map(|name| format!("the gradient {name} is new")));
        refuse("Accumulator", &faults).map_err(|e| Error::shape(e.message()))
    }
}
