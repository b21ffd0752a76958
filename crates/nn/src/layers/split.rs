//! Blocks whose matrices lie on several processes (tensor parallelism): rows of those that lead into a block, columns of the one
//! that leads out, whose products are summed over the group. All else is the same on every process.

use super::{Linear, Weight};
use crate::{Module, Params};
use lapis::distributed::Group;
use lapis::{Array, Error, Result, eval, ops};

/// A block that can keep a part of itself. `#[module(split)]` on a type that derives [`Module`] makes [`split`] find it.
pub trait Split {
    /// Keeps this process's part, which gives what the whole would; false, with nothing changed, where it does not divide.
    ///
    /// # Errors
    /// A change of low rank on a matrix.
    fn split(&mut self, group: Group) -> Result<bool>;
}

/// Keeps this process's part of every block of a model that can be split, and all of the others. Says how many were split.
///
/// # Errors
/// What the blocks return, with their name; faults of computing.
pub fn split<M: Module + ?Sized>(model: &mut M, group: Group) -> Result<usize> {
    let (mut done, mut failed) = (0, None);
    if group.size() > 1 {
        walk(model, "", &mut |path, block| match block.split(group) {
            Ok(divides) => done += usize::from(divides),
            Err(e) => failed = failed.take().or(Some(Error::new(e.kind(), format!("{path}: {e}")))),
        });
    }
    match failed {
        Some(error) => Err(error),
        None => {
            // So that the whole matrices can go.
            eval(model.parameters().values())?;
            Ok(done)
        }
    }
}

fn walk<M: Module + ?Sized>(module: &mut M, path: &str, f: &mut dyn FnMut(&str, &mut dyn Split)) {
    if let Some(block) = module.as_split() {
        return f(path, block);
    }
    module.fields_mut(&mut |name, field| {
        let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        walk(field, &path, f);
    });
}

/// The part of process `group` of each of these runs along an axis.
fn part(a: &Array, runs: &[usize], axis: i32, group: Group) -> Result<Array> {
    let (n, rank) = (group.size(), group.rank());
    let mut first = 0;
    let mut parts = Vec::new();
    for &run in runs {
        let own = run / n;
        let places: Vec<i64> = [first + rank * own, first + (rank + 1) * own].map(|p| p as i64).into();
        parts.push(ops::split(a, places, axis)?.swap_remove(1));
        first += run;
    }
    ops::contiguous(&ops::concatenate(&parts, axis)?, false)
}

/// This process's part of an array with a row for each head, such as sinks.
///
/// # Errors
/// An array without axes.
pub fn part_of_rows(a: &Array, group: Group) -> Result<Array> {
    part(a, &[a.dim(0)], 0, group)
}

impl Linear {
    /// Whether its columns divide among so many processes, in whole groups where they are packed.
    pub fn columns_divide(&self, n: usize) -> bool {
        !matches!(self.weight, Weight::Rounding { .. })
            && self.weight.parameters().values().all(|a| a.dim(-1).is_multiple_of(n))
    }

    /// Keeps this process's part of each of these runs of rows, which have to divide: a part of the output.
    ///
    /// # Errors
    /// A change of low rank on the matrix.
    pub fn keep_rows(&mut self, runs: &[usize], group: Group) -> Result<()> {
        self.unchanged()?;
        let own = |(name, a): (String, Array)| {
            let axis = if crate::key(&name) == "bias" { 0 } else { a.ndim() as i32 - 2 };
            Ok((name, part(&a, runs, axis, group)?))
        };
        let parts: Params = self.parameters().into_iter().map(own).collect::<Result<_>>()?;
        self.update(&parts, true)
    }

    /// Keeps this process's columns, which have to divide: it takes a part of the input, and products are summed over the group.
    ///
    /// # Errors
    /// A change of low rank on the matrix.
    pub fn keep_columns(&mut self, group: Group) -> Result<()> {
        self.unchanged()?;
        let own = |(name, a): (String, Array)| Ok((name, part(&a, &[a.dim(-1)], -1, group)?));
        let parts: Params = self.weight.parameters().into_iter().map(own).collect::<Result<_>>()?;
        self.weight.update(&parts, true)?;
        self.summed = Some(group);
        Ok(())
    }

    fn unchanged(&self) -> Result<()> {
        match self.change {
            None => Ok(()),
            Some(_) => Err(Error::unsupported(
                "[split] an adapter cannot be split among processes; make it a part of the model with lapis fuse",
            )),
        }
    }
}
