//! Tracers, and the tape of what grew from them.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{self, Aval, Avals, Inputs, Node};
use crate::ops::{Op, Rule};
use crate::shape::Shape;
use crate::transforms::{Grads, Lane, Site, Transform};
use rustc_hash::FxHashSet;
use smallvec::smallvec;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

// ------------------------------------------------------------------ tracers

/// The input itself, as a node of its own: a derivative is taken by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tracer;

impl Rule for Tracer {
    fn name(&self) -> &'static str {
        "tracer"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
    }
}

/// An array that has a shape and a dtype and no values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Placeholder {
    /// Sizes of the axes.
    pub shape: Shape,
    /// Element type.
    pub dtype: Dtype,
    /// The transform it belongs to.
    pub transform: &'static str,
}

impl Rule for Placeholder {
    fn name(&self) -> &'static str {
        self.transform
    }
    fn infer(&self, _: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(self.shape.clone(), self.dtype)])
    }
}

impl Placeholder {
    /// What reading its value says.
    pub(crate) fn error(&self) -> Error {
        let name = self.transform;
        Error::value(format!(
            "[{name}] a value was asked for inside the function that {name} transforms; there arrays have shapes and \
             no values: move eval, item, to_vec and what counts elements (masks as indices, nonzero, unique) out of it, \
             and choose between values with ops::select"
        ))
    }

    pub(crate) fn array(transform: &'static str, shape: &[usize], dtype: Dtype) -> Result<Array> {
        Array::apply1(Placeholder { shape: shape.into(), dtype, transform }, Inputs::new())
    }
}

/// Whether an array grew from a placeholder that was made at `first` or later.
pub(crate) fn has_placeholder(a: &Array, first: u64) -> bool {
    let mut seen = FxHashSet::default();
    let mut stack = vec![a.node.clone()];
    while let Some(node) = stack.pop() {
        if node.id < first || !seen.insert(node.id) {
            continue;
        }
        if matches!(node.op, Op::Placeholder(_)) {
            return true;
        }
        stack.extend(node.inputs().unwrap_or_default().iter().map(|a| a.node.clone()));
    }
    false
}

/// Tracers of `arrays`: their values can be read, so a function may decide by them.
pub(crate) fn tracers(arrays: &[Array]) -> Result<Vec<Array>> {
    arrays.iter().map(|a| Array::apply1(Tracer, smallvec![a.clone()])).collect()
}

// ------------------------------------------------------------------ keeping

/// Ids from which on nodes keep their inputs when they are evaluated; `u64::MAX` when nobody traces.
static KEEP_FROM: AtomicU64 = AtomicU64::new(u64::MAX);
static ACTIVE: Mutex<Vec<u64>> = Mutex::new(Vec::new());
/// Nodes that kept their inputs: they let go of them when nobody traces any more.
static KEPT: Mutex<Vec<Weak<Node>>> = Mutex::new(Vec::new());

/// While it lives, nodes made after it keep their inputs when they are evaluated: values may be read inside a
/// function whose graph is still needed.
pub(crate) struct Keeping(u64);

impl Keeping {
    pub(crate) fn start() -> Keeping {
        let first = node::next_id();
        let mut active = ACTIVE.lock().unwrap_or_else(PoisonError::into_inner);
        active.push(first);
        KEEP_FROM.store(active.iter().copied().min().unwrap_or(u64::MAX), Ordering::SeqCst);
        Keeping(first)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let mut active = ACTIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = active.iter().position(|&id| id == self.0) {
            active.swap_remove(at);
        }
        KEEP_FROM.store(active.iter().copied().min().unwrap_or(u64::MAX), Ordering::SeqCst);
        if active.is_empty() {
            let kept = std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner));
            drop(active);
            kept.iter().filter_map(Weak::upgrade).for_each(|node| node.release());
        }
    }
}

/// Notes that a claimed node kept its inputs.
pub(crate) fn kept(node: &Arc<Node>) {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(node));
}

/// Whether node `id` keeps its inputs.
pub(crate) fn keeps(id: u64) -> bool {
    id >= KEEP_FROM.load(Ordering::SeqCst)
}

// ------------------------------------------------------------------ tape

/// A node of a tape.
pub(crate) struct Step {
    pub(crate) node: Arc<Node>,
    pub(crate) inputs: Inputs,
}

/// The nodes between tracers and outputs: everything that depends on a tracer, in the order in which it was built.
pub(crate) struct Tape {
    pub(crate) steps: Vec<Step>,
    live: FxHashSet<u64>,
}

impl Tape {
    /// What of the graph of `outputs` grew from `tracers`.
    pub(crate) fn new(outputs: &[Array], tracers: &[Array]) -> Tape {
        let first = tracers.iter().map(|t| t.node.id).min().unwrap_or(u64::MAX);
        let mut live: FxHashSet<u64> = tracers.iter().map(|t| t.node.id).collect();
        let mut seen = live.clone();
        let mut stack: Vec<Arc<Node>> = outputs.iter().map(|a| a.node.clone()).collect();
        let mut steps = Vec::new();
        while let Some(node) = stack.pop() {
            if node.id < first || !seen.insert(node.id) {
                continue;
            }
            // What was evaluated without being kept holds no tracer.
            let Some(inputs) = node.inputs() else { continue };
            stack.extend(inputs.iter().map(|a| a.node.clone()));
            steps.push(Step { node, inputs });
        }
        steps.sort_unstable_by_key(|s| s.node.id);
        steps.retain(|s| {
            let grew = s.inputs.iter().any(|a| live.contains(&a.node.id));
            if grew {
                live.insert(s.node.id);
            }
            grew
        });
        Tape { steps, live }
    }

    /// All of the graph of `outputs` that is not evaluated, up to the tracers.
    pub(crate) fn whole(outputs: &[Array], tracers: &[Array]) -> Tape {
        let mut seen: FxHashSet<u64> = tracers.iter().map(|t| t.node.id).collect();
        let mut stack: Vec<Arc<Node>> = outputs.iter().map(|a| a.node.clone()).collect();
        let mut steps = Vec::new();
        while let Some(node) = stack.pop() {
            if !seen.insert(node.id) {
                continue;
            }
            // A fill is shorter than its values.
            let inputs = match &node.op {
                Op::Full(_) | Op::Arange(_) => Some(Inputs::new()),
                _ => node.inputs(),
            };
            let Some(inputs) = inputs else { continue };
            stack.extend(inputs.iter().map(|a| a.node.clone()));
            steps.push(Step { node, inputs });
        }
        steps.sort_unstable_by_key(|s| s.node.id);
        Tape { steps, live: FxHashSet::default() }
    }

    /// Whether an array depends on a tracer.
    pub(crate) fn holds(&self, a: &Array) -> bool {
        self.live.contains(&a.node.id)
    }
}

// ------------------------------------------------------------------ under other transforms

impl Transform for Tracer {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(smallvec![Some(at.cotangent(0)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        Ok(vec![lanes[0].array.clone()])
    }
}

impl Transform for Placeholder {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.none())
    }
    fn vmap(&self, _: &[Lane], _: usize) -> Result<Vec<Array>> {
        Err(self.error())
    }
}
