//! Functions on trees of arrays (`mlx.utils`): tuples, vectors and maps of arrays, whatever is a [`Tree`]. Paths are
//! positions and keys joined by dots: names of parameters.

use crate::Params;
use lapis::transforms::Tree;
use lapis::{Array, Error, Result};

/// Path and array of every leaf, in order (`tree_flatten`).
pub fn tree_flatten<T: Tree>(tree: &T) -> Vec<(String, Array)> {
    let mut paths = Vec::new();
    tree.paths("", &mut |path| paths.push(path));
    paths.into_iter().zip(tree.leaves()).collect()
}

/// The tree of the structure of `like` with the arrays of `leaves`, by path (`tree_unflatten`).
///
/// # Errors
/// A value error that lists the paths that are missing and those that `like` does not have.
pub fn tree_unflatten<T: Tree>(like: &T, leaves: &Params) -> Result<T> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let own: Params = tree_flatten(like).into_iter().collect();
    like.paths("", &mut |path| match leaves.get(&path) {
        Some(a) => found.push(a.clone()),
        None => missing.push(path),
    });
    let extra: Vec<&str> = leaves.keys().filter(|k| !own.contains_key(*k)).map(String::as_str).collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(like.with_leaves(found));
    }
    let (missing, extra) = (missing.join(", "), extra.join(", "));
    Err(Error::value(format!("[tree_unflatten] missing: {missing}; not in the tree: {extra}")))
}

/// The same structure with `f` of every array (`tree_map`).
///
/// # Errors
/// What `f` returns.
pub fn tree_map<T: Tree>(tree: &T, mut f: impl FnMut(&Array) -> Result<Array>) -> Result<T> {
    tree_map_with_path(tree, |_, a| f(a))
}

/// The same structure with `f` of the path and the array of every leaf (`tree_map_with_path`).
///
/// # Errors
/// What `f` returns.
pub fn tree_map_with_path<T: Tree>(tree: &T, mut f: impl FnMut(&str, &Array) -> Result<Array>) -> Result<T> {
    let leaves = tree_flatten(tree).iter().map(|(path, a)| f(path, a)).collect::<Result<_>>()?;
    Ok(tree.with_leaves(leaves))
}

/// `f` of what was before and each array, in order, beginning with `first` (`tree_reduce`).
///
/// # Errors
/// What `f` returns.
pub fn tree_reduce<T: Tree, V>(tree: &T, first: V, f: impl FnMut(V, Array) -> Result<V>) -> Result<V> {
    tree.leaves().into_iter().try_fold(first, f)
}

/// The arrays of both; where both have one, `merge` of the two (`tree_merge`).
///
/// # Errors
/// What `merge` returns; without it, a value error that lists what both have.
pub fn tree_merge(a: &Params, b: &Params, merge: Option<&dyn Fn(&Array, &Array) -> Result<Array>>) -> Result<Params> {
    let mut all = a.clone();
    let both: Vec<&str> = b.keys().filter(|k| a.contains_key(*k)).map(String::as_str).collect();
    match merge {
        None if !both.is_empty() => {
            return Err(Error::value(format!("[tree_merge] both trees have {}", both.join(", "))));
        }
        _ => all.extend(b.clone()),
    }
    for name in both {
        if let Some(merge) = merge {
            all.insert(name.to_string(), merge(&a[name], &b[name])?);
        }
    }
    Ok(all)
}
