//! A node of the graph: one op, its inferred outputs, its inputs until it is claimed, its results once it is ready.
//!
//! Life of a node: *lazy* (holds its inputs), *claimed* (one evaluation took the inputs and will finish it), *ready*
//! (holds tensors) or *failed* (holds the error that its dependents report). While a transform traces, nodes keep
//! their inputs when they are claimed.

use crate::array::Array;
use crate::buffer::Tensor;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::shape::Shape;
use crate::stream::Stream;
use crate::transforms::trace;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};

/// Shape and dtype of an array: all that is known before evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aval {
    /// Sizes of the axes.
    pub shape: Shape,
    /// Element type.
    pub dtype: Dtype,
}

impl Aval {
    /// An abstract value.
    pub fn new(shape: impl Into<Shape>, dtype: Dtype) -> Aval {
        Aval { shape: shape.into(), dtype }
    }
}

/// The outputs of an op.
pub type Avals = SmallVec<[Aval; 1]>;
/// The inputs of an op.
pub type Inputs = SmallVec<[Array; 2]>;
/// The results of an op.
pub(crate) type Tensors = SmallVec<[Tensor; 1]>;

struct Links {
    claimed: bool,
    /// `Some` while lazy, or kept.
    inputs: Option<Inputs>,
}

pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) stream: Stream,
    pub(crate) outs: Avals,
    links: Mutex<Links>,
    ready: OnceLock<Result<Tensors>>,
    /// Position in the evaluation that is being collected: epoch in the high half, index in the low half.
    pub(crate) mark: AtomicU64,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static WAITERS: AtomicUsize = AtomicUsize::new(0);
static PUBLISHED: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

impl Node {
    pub(crate) fn lazy(op: Op, stream: Stream, outs: Avals, inputs: Inputs) -> Node {
        Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            op,
            stream,
            outs,
            links: Mutex::new(Links { claimed: false, inputs: Some(inputs) }),
            ready: OnceLock::new(),
            mark: AtomicU64::new(0),
        }
    }

    pub(crate) fn ready(op: Op, tensor: Tensor) -> Node {
        let outs = SmallVec::from_buf([Aval { shape: tensor.shape.clone(), dtype: tensor.dtype }]);
        Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            op,
            stream: Stream::of(crate::stream::Device::CPU),
            outs,
            links: Mutex::new(Links { claimed: true, inputs: None }),
            ready: OnceLock::from(Ok(SmallVec::from_buf([tensor]))),
            mark: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes the inputs of a lazy node and so makes the caller responsible for finishing it.
    pub(crate) fn claim(self: &Arc<Self>) -> Option<Inputs> {
        let mut links = self.lock();
        if std::mem::replace(&mut links.claimed, true) {
            return None;
        }
        if trace::keeps(self.id) {
            trace::kept(self);
            return links.inputs.clone();
        }
        links.inputs.take()
    }

    /// Lets go of inputs that were kept when the node was claimed.
    pub(crate) fn release(&self) {
        let inputs = self.lock().inputs.take();
        drop(inputs);
    }

    /// The inputs, as long as they are known.
    pub(crate) fn inputs(&self) -> Option<Inputs> {
        self.lock().inputs.clone()
    }

    /// The results, if the node is done.
    pub(crate) fn done(&self) -> Option<&Result<Tensors>> {
        self.ready.get()
    }

    /// The results of a node nobody else holds.
    pub(crate) fn into_tensors(mut self) -> Option<Tensors> {
        self.ready.take().and_then(|r| r.ok())
    }

    /// Ends a claim: everyone who waits for this node goes on.
    pub(crate) fn publish(&self, result: Result<Tensors>) {
        let _ = self.ready.set(result);
        if WAITERS.load(Ordering::SeqCst) > 0 {
            drop(PUBLISHED.0.lock());
            PUBLISHED.1.notify_all();
        }
    }

    /// Waits until a claimed node is done.
    pub(crate) fn wait(&self) -> &Result<Tensors> {
        for _ in 0..100 {
            if let Some(r) = self.ready.get() {
                return r;
            }
            std::hint::spin_loop();
        }
        WAITERS.fetch_add(1, Ordering::SeqCst);
        let mut guard = PUBLISHED.0.lock().unwrap_or_else(|e| e.into_inner());
        let done = loop {
            if let Some(r) = self.ready.get() {
                break r;
            }
            guard = PUBLISHED.1.wait(guard).unwrap_or_else(|e| e.into_inner());
        };
        drop(guard);
        WAITERS.fetch_sub(1, Ordering::SeqCst);
        done
    }

    /// The tensor of output `index` of a node that was evaluated.
    pub(crate) fn tensor(&self, index: usize) -> Result<&Tensor> {
        match self.wait() {
            Ok(tensors) => Ok(&tensors[index]),
            Err(e) => Err(Error::clone(e)),
        }
    }
}

impl Drop for Node {
    /// Releases a whole graph without recursion: a chain of a million nodes must not overflow the stack.
    fn drop(&mut self) {
        let Some(inputs) = self.links.get_mut().unwrap_or_else(|e| e.into_inner()).inputs.take() else { return };
        let mut stack: Vec<Array> = inputs.into_vec();
        while let Some(array) = stack.pop() {
            if let Some(node) = Arc::into_inner(array.node)
                && let Some(inputs) = node.lock().inputs.take()
            {
                stack.extend(inputs);
            }
        }
    }
}

/// An id above those of all nodes that exist.
pub(crate) fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::SeqCst)
}
