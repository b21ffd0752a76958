//! Which rows meet which matrices while a model runs: for those who measure layers from outside.

use crate::{Module, Weight, for_each_packable};
use lapis::{Array, Result};
use std::cell::RefCell;
use std::collections::HashMap;

/// A product that a layer computed while [`record`] looked.
#[derive(Clone, Debug)]
pub struct Product {
    /// Where the matrix lies, which tells it from others.
    at: usize,
    /// The rows that went in: last axis the columns of the matrix.
    pub input: Array,
    /// What came out, with its bias.
    pub output: Array,
    /// Of a stack of matrices: which one each row met.
    pub which: Option<Array>,
}

thread_local! {
    static PRODUCTS: RefCell<Option<Vec<Product>>> = const { RefCell::new(None) };
}

/// Runs `f` and gives what it gives, with the products of all [`Linear`](crate::Linear) layers and of stacks of them that `f`
/// ran on this thread, in their order. Nothing is evaluated.
///
/// # Errors
/// Those of `f`.
pub fn record<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Product>)> {
    let outer = PRODUCTS.replace(Some(Vec::new()));
    let done = f();
    let products = PRODUCTS.replace(outer).unwrap_or_default();
    Ok((done?, products))
}

/// Products with the dotted names of their layers in `model`, which has not moved since; others are left out.
pub fn by_path<M: Module + ?Sized>(model: &mut M, products: Vec<Product>) -> Vec<(String, Product)> {
    let mut paths = HashMap::new();
    for_each_packable(model, &mut |path, layer| {
        paths.insert(std::ptr::from_ref(layer.matrix()) as usize, path.to_string());
    });
    let named = |p: Product| paths.get(&p.at).map(|path| (path.clone(), p));
    products.into_iter().filter_map(named).collect()
}

/// Tells [`record`] of a product; layers that hold a [`Weight`] call it. `input` is asked for only if somebody looks.
///
/// # Errors
/// Those of `input`.
pub fn note(weight: &Weight, output: &Array, input: impl FnOnce() -> Result<(Array, Option<Array>)>) -> Result<()> {
    if PRODUCTS.with_borrow(Option::is_none) {
        return Ok(());
    }
    let (input, which) = input()?;
    let at = std::ptr::from_ref(weight) as usize;
    PRODUCTS.with_borrow_mut(|all| {
        if let Some(all) = all {
            all.push(Product { at, input, output: output.clone(), which });
        }
    });
    Ok(())
}
