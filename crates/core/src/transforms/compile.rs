//! Functions traced once and replayed: no checks, no inference, no repeated or dead steps on later calls.

use super::program::Program;
use super::trace::Placeholder;
use super::{Outcome, Tree};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::shape::Shape;
use crate::stream::Stream;
use std::hash::{DefaultHasher, Hasher};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What one trace is good for.
#[derive(PartialEq, Eq)]
struct Key {
    structure: u64,
    arrays: Vec<(Shape, Dtype)>,
    stream: Stream,
}

struct Traced<Q> {
    program: Program,
    captured: Vec<Array>,
    outputs: Q,
}

/// Traces that a compiled function keeps, the most recent ones.
const KEPT: usize = 32;

/// A compiled function. Owns its cache, which threads share.
pub struct Compiled<P, F: Outcome, G> {
    f: G,
    cache: Mutex<Vec<(Key, Arc<Traced<F::Tree>>)>>,
    argument: PhantomData<fn(&P)>,
}

/// `f`, traced at its first call for each structure, shapes and dtypes of its arguments, and replayed from then on
/// (`mx.compile`).
///
/// Inside `f` arrays have no values: eval, item and to_vec are errors there. Captured arrays, and random numbers drawn
/// without a key, are constants of the trace; state that changes is an argument and a result. Results are the same
/// bits as without `compile`.
pub fn compile<P: Tree, F: Outcome, G: Fn(&P) -> F>(f: G) -> Compiled<P, F, G> {
    Compiled { f, cache: Mutex::new(Vec::new()), argument: PhantomData }
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
        let inputs = primals.leaves();
        let traced = self.traced(primals, &inputs)?;
        let all: Vec<Array> = inputs.into_iter().chain(traced.captured.iter().cloned()).collect();
        Ok(traced.outputs.with_leaves(traced.program.run(&all)))
    }

    /// How many traces the cache holds.
    pub fn traces(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn traced(&self, primals: &P, inputs: &[Array]) -> Result<Arc<Traced<F::Tree>>> {
        let mut hasher = DefaultHasher::new();
        primals.structure(&mut hasher);
        let arrays = inputs.iter().map(|a| (a.shape().into(), a.dtype())).collect();
        let key = Key { structure: hasher.finish(), arrays, stream: Stream::current() };
        let find = |cache: &mut Vec<(Key, Arc<Traced<F::Tree>>)>| {
            let at = cache.iter().position(|(k, _)| *k == key)?;
            let entry = cache.remove(at);
            let traced = entry.1.clone();
            cache.push(entry);
            Some(traced)
        };
        if let Some(traced) = find(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(traced);
        }
        // Traced without the lock: `f` may call this function again.
        let inner = inputs.iter().map(|a| Placeholder::array("compile", a.shape(), a.dtype()));
        let inner: Vec<Array> = inner.collect::<Result<_>>()?;
        let outputs = (self.f)(&primals.with_leaves(inner.clone())).outcome()?;
        let (program, captured) = Program::new(&outputs.leaves(), &inner);
        // Of the outputs the structure is kept; their arrays hold the whole traced graph.
        let none = Placeholder::array("compile", &[0], Dtype::Bool)?;
        let outputs = outputs.with_leaves(vec![none; program.outputs.len()]);
        let traced = Arc::new(Traced { program: program.simplified(), captured, outputs });
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() == KEPT {
            cache.remove(0);
        }
        cache.push((key, traced.clone()));
        Ok(traced)
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

/// From now on compiled functions call their function each time (`mx.disable_compile`); so does the environment
/// variable `LAPIS_DISABLE_COMPILE`.
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
