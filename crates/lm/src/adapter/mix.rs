//! A model with several adapters at once, each for rows of its own: a step reads the weights that they share once.

use crate::batch::{Batch, Sequence};
use crate::models::Model;
use lapis::{Array, Result};
use lapis_nn::{LowRank, Mix, Owners, for_each_packable};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A model whose rows are those of several fine-tuned copies of it, by number; 0 is the model as it is.
pub struct Mixed {
    model: Box<dyn Model>,
    owners: Arc<Owners>,
    /// Copies that there are.
    count: usize,
}

/// The changes of low rank by which a copy of a model differs from it; `None` where it differs in anything else, or in
/// layers whose rows are not those of a step (tables, stacks of experts).
fn changes(base: &dyn Model, copy: &dyn Model) -> Option<BTreeMap<String, LowRank>> {
    let (mut all, mut copy) = (BTreeMap::new(), copy.copied());
    for_each_packable(copy.module_mut(), &mut |path, layer| {
        if layer.mix().is_some()
            && let Some(change) = layer.slot().and_then(|slot| slot.change.take())
        {
            all.insert(path.to_string(), *change);
        }
    });
    let (own, left) = (base.module().parameters(), copy.module().parameters());
    let same = |(name, value): (&String, &Array)| own.get(name).is_some_and(|o| o.id() == value.id());
    (own.len() == left.len() && left.iter().all(same)).then_some(all)
}

impl Mixed {
    /// `base` with the changes of copies of it, which count from 1. `None` where one of them cannot share its steps.
    pub fn new(base: &dyn Model, copies: &[Option<&dyn Model>]) -> Option<Mixed> {
        let of = |copy: &Option<&dyn Model>| copy.map_or(Some(BTreeMap::new()), |copy| changes(base, copy));
        let mut left = copies.iter().map(of).collect::<Option<Vec<_>>>()?;
        let (mut model, owners) = (base.copied(), Arc::new(Owners::default()));
        for_each_packable(model.module_mut(), &mut |path, layer| {
            if let Some(mix) = layer.mix() {
                let changes: Vec<Option<LowRank>> = left.iter_mut().map(|all| all.remove(path)).collect();
                let any = changes.iter().any(Option::is_some);
                *mix = any.then(|| Arc::new(Mix { changes, owners: Arc::clone(&owners) }));
            }
        });
        let mixed = Mixed { model, owners, count: copies.len() };
        let first = copies.iter().position(Option::is_some).map_or(0, |at| at + 1);
        (left.iter().all(BTreeMap::is_empty) && mixed.goes(first)).then_some(mixed)
    }

    /// Whether rows of the model and of a copy go through one step, in which nothing is computed: not where a layer sees
    /// them along another axis.
    fn goes(&self, copy: usize) -> bool {
        let [mut one, mut other] = [Sequence::new(), Sequence::new()];
        let mut batch = self.batch([(3, &mut one, 0), (2, &mut other, copy)]);
        let hidden = self.model.hidden(&Array::from_vec(vec![0i32; 5], &[5]), &mut batch);
        hidden.and_then(|hidden| self.logits(&hidden, [(3, 0), (2, copy)])).is_ok()
    }

    /// Copies that there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The model, for rows of a batch of [`Mixed::batch`].
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Rows in order: for each sequence how many are its own, and the number of the copy that they go through.
    pub fn batch<'a>(&self, rows: impl IntoIterator<Item = (usize, &'a mut Sequence, usize)>) -> Batch<'a> {
        let mut owned = Vec::new();
        let rows = rows.into_iter().map(|(count, sequence, owner)| {
            owned.push(owner);
            (count, sequence)
        });
        let batch = Batch::new(rows.collect::<Vec<_>>());
        batch.owned(Arc::clone(&self.owners), owned)
    }

    /// Logits of rows of the last layer: how many are in order of which copy.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn logits(&self, hidden: &Array, rows: impl IntoIterator<Item = (usize, usize)>) -> Result<Array> {
        self.owners.set(rows);
        self.model.logits(hidden)
    }
}
