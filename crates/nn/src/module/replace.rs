//! Changing the modules of a tree: visiting each, and putting others in the place of some.

use super::{Module, join};
use lapis::{Error, Result};
use std::any::{Any, type_name};
use std::collections::BTreeMap;

/// Calls `f` with each module inside `module`, a module before what it holds.
pub(super) fn apply_inside(module: &mut dyn Module, path: &str, f: &mut dyn FnMut(&str, &mut dyn Module)) {
    module.fields_mut(&mut |name, field| {
        let path = join(path, name);
        if !field.kind().is_empty() {
            f(&path, field);
        }
        apply_inside(field, &path, f);
    });
}

/// Where a `T` can be put.
fn place<T: Module>(field: &mut dyn Module) -> Option<&mut T> {
    let field: &mut dyn Any = field;
    if field.is::<T>() { field.downcast_mut() } else { field.downcast_mut::<Option<T>>()?.as_mut() }
}

/// Calls `f` with every field, whatever it holds.
fn each_field(module: &mut dyn Module, path: &str, f: &mut dyn FnMut(&str, &mut dyn Module)) {
    module.fields_mut(&mut |name, field| {
        let path = join(path, name);
        f(&path, field);
        each_field(field, &path, f);
    });
}

pub(super) fn update_modules<T: Module>(
    module: &mut dyn Module,
    mut modules: BTreeMap<String, T>,
    strict: bool,
) -> Result<()> {
    if strict {
        let (mut unknown, mut other) = (modules.keys().cloned().collect::<Vec<_>>(), Vec::new());
        each_field(module, "", &mut |path, field| {
            if field.kind().is_empty() || !modules.contains_key(path) {
                return;
            }
            unknown.retain(|name| name != path);
            if place::<T>(field).is_none() {
                other.push(format!("{path} ({})", field.kind()));
            }
        });
        let mut wrong = Vec::new();
        if !unknown.is_empty() {
            wrong.push(format!("there is no module called {}", unknown.join(", ")));
        }
        if !other.is_empty() {
            wrong.push(format!("{} cannot be a {}", other.join(", "), type_name::<T>()));
        }
        if !wrong.is_empty() {
            return Err(Error::value(format!("[update_modules] {}", wrong.join("; "))));
        }
    }
    each_field(module, "", &mut |path, field| {
        if let Some(at) = place::<T>(field)
            && let Some(new) = modules.remove(path)
        {
            *at = new;
        }
    });
    Ok(())
}
