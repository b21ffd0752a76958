//! Functions traced once and replayed: no checks, no inference, no repeated or dead steps on later calls.

use super::program::Program;
use super::trace::Placeholder;
use super::traces::{Input, Trace, Traced};
use super::{Outcome, Tree};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::random;
use crate::stream::Stream;
use std::hash::{DefaultHasher, Hasher};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What traces of one kind are good for, beside their arguments.
#[derive(PartialEq, Eq)]
struct Key {
    structure: u64,
    stream: Stream,
}

/// Traces that a compiled function keeps, the most recent ones.
const KEPT: usize = 32;

/// A compiled function. Owns its cache, which threads share.
pub struct Compiled<P, F: Outcome, G> {
    f: G,
    shapeless: bool,
    cache: Mutex<Vec<(Key, Arc<Traced<F::Tree>>)>>,
    argument: PhantomData<fn(&P)>,
}

/// `f`, traced at its first call for each structure, shapes and dtypes of its arguments, and replayed from then on
/// (`mx.compile`).
///
/// Inside `f` arrays have no values: eval, item and to_vec are errors there. Captured arrays, and random numbers drawn
/// without a key, are constants of the trace; state that changes is an argument and a result ([`compile_with_state`]).
/// Results are the same bits as without `compile`.
pub fn compile<P: Tree, F: Outcome, G: Fn(&P) -> F>(f: G) -> Compiled<P, F, G> {
    Compiled { f, shapeless: false, cache: Mutex::new(Vec::new()), argument: PhantomData }
}

/// As [`compile`], but one trace serves arguments of other sizes as well (`mx.compile` with `shapeless`).
///
/// Which sizes may vary is found when `f` is traced, by trying others: `f` runs a few times, on arrays without values.
/// Sizes above 1 that are equal in the first call count as one size and must stay equal; sizes that `f` insists on, as a
/// weight does, stay as they are. Numbers in `f` that follow from sizes (of a mean, a mask, a reshape, or read by `f`
/// itself) are found in the same way and follow the sizes of each call; a function of which that cannot be said is
/// refused, never answered with the numbers of another shape. What no trace takes is traced again.
pub fn compile_shapeless<P: Tree, F: Outcome, G: Fn(&P) -> F>(f: G) -> Compiled<P, F, G> {
    Compiled { shapeless: true, ..compile(f) }
}

/// [`compile`] of a step that changes a state: `f` puts new arrays into its first argument, and each call leaves them
/// there (`inputs` and `outputs` of `mx.compile`). A call that fails leaves the state as it was.
///
/// The state is all that changes from call to call: parameters, what an optimiser remembers, the key of random numbers.
///
/// ```
/// use lapis_core::{Array, Dtype, array, ops, random, transforms::compile_with_state};
/// # fn main() -> lapis_core::Result<()> {
/// let step = compile_with_state(|(total, key): &mut (Array, Array), x: &Array| {
///     random::set_state(key.clone());
///     *total = ops::add(&*total, x)?;
///     let noise = random::normal(&[], Dtype::Float32, None, None, None)?;
///     *key = random::state();
///     ops::add(&*total, noise)
/// });
/// let mut state = (array(0.0f32), random::key(7));
/// let first = step(&mut state, &array(1.0f32))?;
/// let second = step(&mut state, &array(1.0f32))?;
/// assert_eq!(second.shape(), first.shape());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The function returned gives errors: as [`Compiled::call`].
pub fn compile_with_state<S: Tree, P: Tree, F: Outcome>(
    f: impl Fn(&mut S, &P) -> F,
) -> impl Fn(&mut S, &P) -> Result<F::Tree> {
    let step = compile(move |(state, primals): &(S, P)| -> Result<(S, F::Tree)> {
        let mut state = handles(state);
        let value = f(&mut state, primals).outcome()?;
        Ok((state, value))
    });
    move |state, primals| {
        let (next, value) = step.call(&(handles(state), handles(primals)))?;
        *state = next;
        Ok(value)
    }
}

/// The same tree once more; arrays are shared.
fn handles<T: Tree>(tree: &T) -> T {
    tree.map(&mut Array::clone)
}

impl<P: Tree, F: Outcome, G: Fn(&P) -> F> Compiled<P, F, G> {
    /// Calls the function.
    ///
    /// # Errors
    /// What `f` returns while it is traced; a value asked for inside `f`.
    pub fn call(&self, primals: &P) -> Result<F::Tree> {
        if switch().load(Ordering::Relaxed) {
            return (self.f)(primals).outcome();
        }
        let (inputs, mut values) = Input::unnamed(primals);
        let (traced, sizes) = self.traced(primals, &inputs)?;
        values.extend(traced.captured.iter().cloned());
        Ok(traced.outputs.with_leaves(traced.trace.run(&values, &sizes)?))
    }

    /// How many traces the cache holds.
    pub fn traces(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// A trace for these arguments, and their sizes that may vary.
    fn traced(&self, primals: &P, inputs: &[Input]) -> Result<(Arc<Traced<F::Tree>>, Vec<usize>)> {
        let mut hasher = DefaultHasher::new();
        primals.structure(&mut hasher);
        let key = Key { structure: hasher.finish(), stream: Stream::current() };
        let find = |cache: &mut Vec<(Key, Arc<Traced<F::Tree>>)>| {
            let takes =
                |(i, (k, t)): (usize, &(Key, Arc<Traced<_>>))| Some((i, (*k == key).then(|| t.trace.takes(inputs))??));
            let (at, sizes) = cache.iter().enumerate().find_map(takes)?;
            let entry = cache.remove(at);
            let traced = entry.1.clone();
            cache.push(entry);
            Some((traced, sizes))
        };
        if let Some(found) = find(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        // Traced without the lock: `f` may call this function again.
        let mut traced = match self.shapeless {
            true => Trace::of_any_size("compile", &self.f, primals)?,
            false => self.exact(primals, inputs)?,
        };
        traced.trace.inputs.iter_mut().for_each(|i| i.path.clear());
        traced.trace.program = traced.trace.program.simplified();
        // Of the outputs the structure is kept; their arrays hold the whole traced graph.
        let none = Placeholder::array("compile", &[0], Dtype::Bool)?;
        traced.outputs = traced.outputs.with_leaves(vec![none; traced.trace.program.outputs.len()]);
        let traced = Arc::new(traced);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() == KEPT {
            cache.remove(0);
        }
        cache.push((key, traced.clone()));
        let sizes = traced.trace.sizes.clone();
        Ok((traced, sizes))
    }

    fn exact(&self, primals: &P, inputs: &[Input]) -> Result<Traced<F::Tree>> {
        let leaves = primals.leaves();
        let traced = random::Traced::start();
        let inner = leaves.iter().map(|a| Placeholder::array("compile", a.shape(), a.dtype()));
        let inner: Vec<Array> = inner.collect::<Result<_>>()?;
        let outputs = (self.f)(&primals.with_leaves(inner.clone())).outcome()?;
        drop(traced);
        let (program, captured) = Program::new(&outputs.leaves(), &inner);
        Ok(Traced { trace: Trace { inputs: inputs.to_vec(), sizes: Vec::new(), program }, captured, outputs })
    }
}

/// Whether compiled functions just call their function.
fn switch() -> &'static AtomicBool {
    static OFF: OnceLock<AtomicBool> = OnceLock::new();
    OFF.get_or_init(|| {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
        AtomicBool::new(set("LAPIS_DISABLE_COMPILE") || set("MLX_DISABLE_COMPILE"))
    })
}

/// Whether functions are replayed where they can be.
pub(crate) fn is_compiling() -> bool {
    !switch().load(Ordering::Relaxed)
}

/// From now on compiled functions call their function each time (`mx.disable_compile`), and nothing is recorded
/// ([`Replay`](crate::Replay)); so does the environment variable `LAPIS_DISABLE_COMPILE`.
pub fn disable_compile() {
    switch().store(true, Ordering::Relaxed);
}

/// Ends [`disable_compile`].
pub fn enable_compile() {
    switch().store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traced_graph_is_not_kept() -> Result<()> {
        let f = compile(|x: &Array| vec![x + 1, x * 2]);
        f.call(&crate::array([1, 2]))?;
        let cache = f.cache.lock().unwrap();
        for leaf in cache[0].1.outputs.leaves() {
            assert!(leaf.node.inputs().unwrap_or_default().is_empty());
        }
        Ok(())
    }
}
