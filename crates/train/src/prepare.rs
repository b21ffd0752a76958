//! What is trained: changes of low rank on chosen layers, or the weights of the last blocks.

use crate::Settings;
use lapis::{Error, Result, random};
use lapis_lm::Model;
use lapis_lm::adapter::place;
use lapis_lm::convert::values;
use lapis_nn::{LowRank, Mode, Module, for_each_packable};
use std::collections::BTreeSet;

/// How much of a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trained {
    /// Blocks.
    pub blocks: usize,
    /// Blocks that the model has.
    pub depth: usize,
    /// Layers that were given a change; of whole weights, parameters.
    pub layers: usize,
    /// Numbers that are trained.
    pub numbers: usize,
    /// Numbers that the model's own weights stand for, packed ones unpacked.
    pub of: usize,
}

/// Freezes a model, and puts on it what is trained, as the settings say; the beginning follows from their seed.
///
/// # Errors
/// A key that names no layer, with those that there are; nothing to train.
pub fn prepare(model: &mut dyn Model, s: &Settings) -> Result<Trained> {
    let depth = model.depth();
    let blocks = usize::try_from(s.num_layers).ok().filter(|&n| n > 0).map_or(depth, |n| n.min(depth));
    let first = depth - blocks;
    // Before anything is put on it, as mlx-lm counts.
    let of = usize::try_from(values(model.module_mut())).unwrap_or(usize::MAX);
    model.module_mut().freeze();
    random::seed(s.seed);
    let layers = match s.fine_tune_type.as_str() {
        "full" => model.module_mut().unfreeze_where(&mut |name| place(name).is_some_and(|(block, _)| block >= first)),
        kind => adapt(model, s, first, kind == "dora")?,
    };
    let numbers = model.module().trainable_parameters().values().map(|a| a.size()).sum();
    if numbers == 0 {
        return Err(Error::value("[lora] nothing is trained: no layer of the chosen blocks can be changed"));
    }
    Ok(Trained { blocks, depth, layers, numbers, of })
}

fn adapt(model: &mut dyn Model, s: &Settings, first: usize, dora: bool) -> Result<usize> {
    let p = &s.lora_parameters;
    let (mut known, mut met) = (BTreeSet::new(), BTreeSet::new());
    let (mut layers, mut broken) = (0, None);
    for_each_packable(model.module_mut(), &mut |path, layer| {
        let Some(side) = layer.slot().map(|slot| slot.side) else { return };
        let inside = place(path);
        known.insert(inside.map_or(path, |(_, rest)| rest).to_string());
        let rest = inside.filter(|(block, _)| *block >= first).map(|(_, rest)| rest);
        let chosen = match &p.keys {
            None => rest.is_some(),
            Some(keys) => {
                let found = keys.iter().find(|key| *key == path || Some(key.as_str()) == rest);
                // A key of blocks that are not trained is one that the model has.
                met.extend(keys.iter().filter(|k| inside.is_some_and(|(_, r)| r == *k) || *k == path).cloned());
                found.is_some()
            }
        };
        if !chosen || broken.is_some() {
            return;
        }
        match LowRank::new(side, layer.matrix(), p.rank, p.scale, p.dropout, dora) {
            Ok(change) => {
                layers += 1;
                if let Some(slot) = layer.slot() {
                    *slot.change = Some(Box::new(change));
                }
            }
            Err(e) => broken = Some(Error::new(e.kind(), format!("{path}: {e}"))),
        }
    });
    if let Some(error) = broken {
        return Err(error);
    }
    let missing: Vec<&String> = p.keys.iter().flatten().filter(|key| !met.contains(*key)).collect();
    if !missing.is_empty() {
        let missing = missing.into_iter().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::value(format!(
            "[lora] lora_parameters.keys: the model has no layer {missing}; it has {known}"
        )));
    }
    Ok(layers)
}

/// Sets whether dropout is on. All else stays as it is in evaluation.
pub(crate) fn set_training(model: &mut dyn Model, training: bool) {
    for_each_packable(model.module_mut(), &mut |_, layer| {
        let Some(mut change) = layer.slot().and_then(|slot| slot.change.take()) else { return };
        change.dropout.train(training);
        // The lengths of DoRA's rows change with every step: nothing is kept of them.
        change.set_mode(Mode::Train, layer.matrix());
        if let Some(slot) = layer.slot() {
            *slot.change = Some(change);
        }
    });
}
