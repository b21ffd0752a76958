//! Parameters of a tree by name: all of them, some, other values in their place.

use super::{Leaf, LeafMut, Module};
use crate::Params;
use lapis::{Array, Dtype, Error, Result};

pub(super) fn filter_and_map(
    module: &dyn Module,
    keep: &mut dyn FnMut(&str, &Leaf<'_>) -> bool,
    map: &mut dyn FnMut(&Array) -> Result<Array>,
) -> Result<Params> {
    let mut found = Params::new();
    module.visit(&mut |path, leaf| {
        if keep(path, &leaf) {
            found.extend(leaf.value().map(|value| (path.to_string(), value)));
        }
    });
    found.into_iter().map(|(path, value)| Ok((path, map(&value)?))).collect()
}

pub(super) fn all(module: &dyn Module) -> Params {
    let mut found = Params::new();
    module.visit(&mut |path, leaf| {
        found.extend(leaf.value().map(|value| (path.to_string(), value)));
    });
    found
}

pub(super) fn trainable(module: &dyn Module) -> Params {
    let mut found = Params::new();
    module.visit(&mut |path, leaf| {
        if let Leaf::Param(p) = leaf
            && !p.is_frozen()
        {
            found.insert(path.to_string(), p.value().clone());
        }
    });
    found
}

pub(super) fn count(module: &dyn Module) -> usize {
    let mut n = 0;
    module.visit(&mut |_, leaf| n += leaf.value().map_or(0, |a| a.size()));
    n
}

pub(super) fn update(module: &mut dyn Module, params: &Params, strict: bool) -> Result<()> {
    if strict {
        let own = all(module);
        let extra: Vec<&str> = params.keys().filter(|k| !own.contains_key(*k)).map(String::as_str).collect();
        if !extra.is_empty() {
            let names = extra.join(", ");
            return Err(Error::value(format!("[update] the module has no parameter called {names}")));
        }
    }
    module.visit_mut(&mut |path, leaf| {
        let Some(value) = params.get(path) else { return };
        match leaf {
            LeafMut::Param(p) => p.set(value.clone()),
            LeafMut::Buffer(b) => b.set(value.clone()),
            LeafMut::Mode(_) => {}
        }
    });
    Ok(())
}

pub(super) fn apply(module: &mut dyn Module, f: &mut dyn FnMut(&str, &Array) -> Result<Array>) -> Result<()> {
    let mut changed = Params::new();
    for (path, value) in all(module) {
        let value = f(&path, &value)?;
        changed.insert(path, value);
    }
    update(module, &changed, true)
}

pub(super) fn cast(module: &mut dyn Module, dtype: Dtype, choose: &mut dyn FnMut(Dtype) -> bool) -> Result<()> {
    apply(module, &mut |_, value| {
        if choose(value.dtype()) { lapis::ops::astype(value, dtype) } else { Ok(value.clone()) }
    })
}

pub(super) fn set_frozen(module: &mut dyn Module, frozen: bool, choose: &mut dyn FnMut(&str) -> bool) -> usize {
    let mut n = 0;
    module.visit_mut(&mut |path, leaf| {
        if let LeafMut::Param(p) = leaf
            && choose(path)
        {
            n += 1;
            if frozen { p.freeze() } else { p.unfreeze() }
        }
    });
    n
}
