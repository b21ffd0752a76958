//! Rows of several fine-tuned models in one product: the matrix that they share sees them all, and the change of low
//! rank of each sees its own. A row's result has the bits that it has alone. Knows no adapter's name and no file.

use super::{LowRank, Weight};
use lapis::{Array, Error, Result, ops};
use std::sync::{Arc, Mutex, PoisonError};

/// Which rows are whose, of whatever runs now: how many, and the number of their owner, in order. Owner 0 is the model as
/// it is.
#[derive(Debug, Default)]
pub struct Owners(Mutex<Arc<[(usize, usize)]>>);

impl Owners {
    /// From now on rows are whose this says: neighbours of one owner count as one lot.
    pub fn set(&self, rows: impl IntoIterator<Item = (usize, usize)>) {
        let mut lots: Vec<(usize, usize)> = Vec::new();
        for (count, owner) in rows {
            match lots.last_mut() {
                Some(last) if last.1 == owner => last.0 += count,
                _ => lots.push((count, owner)),
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lots.into();
    }

    fn now(&self) -> Arc<[(usize, usize)]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The changes of one layer, by the numbers of their owners.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Of owner 1, 2, ...: `None` where one leaves this layer as it is.
    pub changes: Vec<Option<LowRank>>,
    /// Whose rows they are.
    pub owners: Arc<Owners>,
}

impl Mix {
    fn of(&self, owner: usize) -> Option<&LowRank> {
        self.changes.get(owner.checked_sub(1)?)?.as_ref()
    }

    /// `x @ w.T` and the change of each row's owner; `bias` is added. Rows are the first axis of `x`, or the second after a
    /// first of 1.
    pub(super) fn project(&self, x: &Array, weight: &Weight, bias: Option<&Array>) -> Result<Array> {
        let lots = self.owners.now();
        let whole = |owner: usize| match self.of(owner) {
            None => weight.project(x, bias),
            Some(change) => change.project(x, weight, bias),
        };
        if lots.iter().all(|&(_, owner)| self.of(owner).is_none()) {
            return weight.project(x, bias);
        }
        if let [(_, owner)] = *lots {
            return whole(owner);
        }
        let rows: usize = lots.iter().map(|lot| lot.0).sum();
        let axis = match x.shape() {
            [n, _, ..] if *n == rows => 0,
            [1, n, _, ..] if *n == rows => 1,
            shape => {
                let shape = lapis::shape::show(shape);
                return Err(Error::shape(format!("[lora] {rows} rows of several owners are not an axis of {shape}")));
            }
        };
        let all = weight.project(x, bias)?;
        let (mut at, mut parts) = (0, Vec::with_capacity(lots.len()));
        for &(count, owner) in lots.iter() {
            let mut cut = vec![(None, None, 1); axis];
            cut.push((Some(at as i64), Some((at + count) as i64), 1));
            let y = ops::slice(&all, &cut)?;
            parts.push(match self.of(owner) {
                None => y,
                Some(change) => change.project_onto(y, &ops::slice(x, &cut)?, weight, bias)?,
            });
            at += count;
        }
        ops::concatenate(&parts, axis as i32)
    }
}
