//! A model with several adapters at once, each for rows of its own: a step reads the weights that they share once.

use crate::batch::{Batch, Sequence};
use crate::models::Model;
use lapis::{Array, Result};
use lapis_nn::{Linear, LowRank, Mix, Owners, for_each_packable};
use std::any::Any;
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
    let mut all = BTreeMap::new();
    for (path, layer) in copy.module().named_modules() {
        let layer: &dyn Any = layer;
        if let Some(change) = layer.downcast_ref::<Linear>().and_then(|l| l.change.as_deref()) {
            all.insert(path, change.clone());
        }
    }
    let (own, given) = (base.module().parameters(), copy.module().parameters());
    let part = |name: &str| {
        name.rsplit_once('.')
            .is_some_and(|(layer, last)| matches!(last, "lora_a" | "lora_b" | "m") && all.contains_key(layer))
    };
    let same = |name: &str, value: &Array| own.get(name).is_some_and(|o| o.id() == value.id());
    given.iter().all(|(name, value)| same(name, value) || part(name)).then_some(all)
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
        left.iter().all(BTreeMap::is_empty).then_some(Mixed { model, owners, count: copies.len() })
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
