//! Trees of arrays: what transformed functions take and give.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::shape::{Shape, show};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{Hash, Hasher};

/// Arrays in a fixed order inside some structure: one array, tuples, vectors, maps, modules.
pub trait Tree: Sized {
    /// Visits every array, in order.
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array));

    /// The same structure with every array replaced, in the order of [`Tree::visit`].
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self;

    /// Feeds what two trees of this type can differ in beside their arrays: lengths, keys, what is there at all.
    fn structure(&self, state: &mut dyn Hasher);

    /// The path of every array, in the order of [`Tree::visit`]: positions and keys, joined by dots behind `at`. The
    /// only array of a tree that is nothing else stands at 0.
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        (0..self.leaves().len()).for_each(|i| f(under(at, i)));
    }

    /// How many arrays are in each part: of a tuple, an array, a vector, a map; anything else is one part.
    fn parts(&self) -> Vec<usize> {
        vec![self.leaves().len()]
    }

    /// The arrays, in order.
    fn leaves(&self) -> Vec<Array> {
        let mut leaves = Vec::new();
        self.visit(&mut |a| leaves.push(a.clone()));
        leaves
    }

    /// The same structure with other arrays.
    ///
    /// # Panics
    /// When there are fewer arrays than leaves.
    fn with_leaves(&self, leaves: Vec<Array>) -> Self {
        let mut leaves = leaves.into_iter();
        self.map(&mut |_| leaves.next().expect("one array for every leaf"))
    }
}

/// The path of part `key` of what stands at `at`.
fn under(at: &str, key: impl Display) -> String {
    if at.is_empty() { key.to_string() } else { format!("{at}.{key}") }
}

impl Tree for Array {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
        f(self)
    }
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
        f(self)
    }
    fn structure(&self, _: &mut dyn Hasher) {}
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        f(if at.is_empty() { under(at, 0) } else { at.to_string() })
    }
}

impl<T: Tree> Tree for Vec<T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
        self.iter().for_each(|t| t.visit(f))
    }
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
        self.iter().map(|t| t.map(f)).collect()
    }
    fn structure(&self, state: &mut dyn Hasher) {
        state.write_usize(self.len());
        self.iter().for_each(|t| t.structure(state))
    }
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        self.iter().enumerate().for_each(|(i, t)| t.paths(&under(at, i), f));
    }
    fn parts(&self) -> Vec<usize> {
        self.iter().map(|t| t.leaves().len()).collect()
    }
}

impl<T: Tree, const N: usize> Tree for [T; N] {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
        self.iter().for_each(|t| t.visit(f))
    }
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
        std::array::from_fn(|i| self[i].map(f))
    }
    fn structure(&self, state: &mut dyn Hasher) {
        self.iter().for_each(|t| t.structure(state))
    }
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        self.iter().enumerate().for_each(|(i, t)| t.paths(&under(at, i), f));
    }
    fn parts(&self) -> Vec<usize> {
        self.iter().map(|t| t.leaves().len()).collect()
    }
}

impl<T: Tree> Tree for Option<T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
        self.iter().for_each(|t| t.visit(f))
    }
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
        self.as_ref().map(|t| t.map(f))
    }
    fn structure(&self, state: &mut dyn Hasher) {
        state.write_u8(u8::from(self.is_some()));
        self.iter().for_each(|t| t.structure(state))
    }
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        self.iter().for_each(|t| t.paths(at, f));
    }
}

impl<T: Tree> Tree for Box<T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
        (**self).visit(f)
    }
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
        Box::new((**self).map(f))
    }
    fn structure(&self, state: &mut dyn Hasher) {
        (**self).structure(state)
    }
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        (**self).paths(at, f);
    }
    fn parts(&self) -> Vec<usize> {
        (**self).parts()
    }
}

impl<K: Ord + Clone + Hash + Display, T: Tree> Tree for BTreeMap<K, T> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
        self.values().for_each(|t| t.visit(f))
    }
    fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
        self.iter().map(|(k, t)| (k.clone(), t.map(f))).collect()
    }
    fn structure(&self, mut state: &mut dyn Hasher) {
        state.write_usize(self.len());
        for (k, t) in self {
            k.hash(&mut state);
            t.structure(state);
        }
    }
    fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
        self.iter().for_each(|(k, t)| t.paths(&under(at, k), f));
    }
    fn parts(&self) -> Vec<usize> {
        self.values().map(|t| t.leaves().len()).collect()
    }
}

impl Tree for () {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Array)) {}
    fn map(&self, _: &mut dyn FnMut(&Array) -> Array) -> Self {}
    fn structure(&self, _: &mut dyn Hasher) {}
}

macro_rules! tuples {
    ($(($($name:ident $i:tt),*))*) => {$(
        impl<$($name: Tree),*> Tree for ($($name,)*) {
            fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Array)) {
                $(self.$i.visit(f);)*
            }
            fn map(&self, f: &mut dyn FnMut(&Array) -> Array) -> Self {
                ($(self.$i.map(f),)*)
            }
            fn structure(&self, state: &mut dyn Hasher) {
                $(self.$i.structure(state);)*
            }
            fn paths(&self, at: &str, f: &mut dyn FnMut(String)) {
                $(self.$i.paths(&under(at, $i), f);)*
            }
            fn parts(&self) -> Vec<usize> {
                vec![$(self.$i.leaves().len()),*]
            }
        }
    )*};
}
tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
}

/// What a transformed function may return: a tree of arrays, or a `Result` of one.
pub trait Outcome {
    /// The tree.
    type Tree: Tree;
    /// The tree, or the function's error.
    ///
    /// # Errors
    /// What the function returned.
    fn outcome(self) -> Result<Self::Tree>;
}

impl<T: Tree> Outcome for T {
    type Tree = T;
    fn outcome(self) -> Result<T> {
        Ok(self)
    }
}

impl<T: Tree> Outcome for Result<T> {
    type Tree = T;
    fn outcome(self) -> Result<T> {
        self
    }
}

/// An error unless both lists have the same shapes, position by position.
pub(crate) fn expect_like(op: &str, what: &str, given: &[Array], like: &[Array]) -> Result<()> {
    let shapes: Vec<Shape> = like.iter().map(|a| a.shape().into()).collect();
    expect_shapes(op, what, given, &shapes)
}

/// As [`expect_like`], of shapes.
pub(crate) fn expect_shapes(op: &str, what: &str, given: &[Array], shapes: &[Shape]) -> Result<()> {
    if given.len() != shapes.len() {
        let (n, m) = (given.len(), shapes.len());
        return Err(Error::value(format!("[{op}] needs one {what} for each array, {m} in all; got {n}")));
    }
    for (i, (g, shape)) in given.iter().zip(shapes).enumerate() {
        if g.shape() != shape.as_slice() {
            let (a, b) = (show(g.shape()), show(shape));
            return Err(Error::shape(format!("[{op}] {what} {i} has shape {a}, its array has shape {b}")));
        }
    }
    Ok(())
}
