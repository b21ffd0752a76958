//! Runs a plan: loads leaves, calls the backend step by step, hands memory on, publishes results and errors.

use super::collect::{Entry, Graph};
use super::plan::{Plan, Slot, Step};
use super::tape::Tape;
use crate::backend::{self, Backend, Call};
use crate::buffer::Tensor;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Node, Tensors};
use crate::ops::{Class, Op};
use crate::shape::{self, Strides};
use smallvec::{SmallVec, smallvec};
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Claimed nodes and how to compute them.
pub(super) struct Job {
    pub(super) graph: Graph,
    pub(super) plan: Arc<Plan>,
}

pub(super) enum Value {
    Empty,
    Tensor(Tensor),
    /// Stays for the next run.
    Kept(Tensor),
    Failed(Error),
}

impl Value {
    /// Nobody needs it any more in this run.
    pub(super) fn release(&mut self) {
        if !matches!(self, Value::Kept(_)) {
            *self = Value::Empty;
        }
    }
}

/// What a step computes.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) op: &'a Op,
    pub(super) outs: &'a Avals,
}

impl<'a> Work<'a> {
    fn of(node: &'a Node) -> Work<'a> {
        Work { op: &node.op, outs: &node.outs }
    }
}

/// Runs a job to its end. Whatever happens, every node that others hold is published.
pub(super) fn run(job: Job) {
    let Job { graph, plan } = job;
    let Graph { stream, entries, leaves } = graph;
    let backend = backend::find(stream.device);
    let mut leaves: Vec<Option<Arc<Node>>> = leaves.into_iter().map(Some).collect();
    let mut values: Vec<Value> = Vec::with_capacity(plan.slots);
    values.resize_with(plan.slots, || Value::Empty);
    // Leaves may be gone when the last product asks for these.
    let first = lie(&plan, &plan.first_weights, &leaves, &values);
    let mut rest = &plan.steps[..];
    while !rest.is_empty() {
        let count = 1 + rest[1..].iter().take_while(|step| step.joined).count();
        let (steps, after) = rest.split_at(count);
        rest = after;
        if let ([Step { soon, .. }, ..], Ok(backend)) = (steps, &backend)
            && !soon.is_empty()
        {
            match *soon == plan.first_weights {
                true => backend.soon(&first),
                false => backend.soon(&lie(&plan, soon, &leaves, &values)),
            }
        }
        for &l in steps.iter().flat_map(|step| &step.leaves) {
            load(leaves[l as usize].take(), plan.leaf_slots[l as usize], &mut values);
        }
        let work = |step: &Step| Work::of(&entries[step.entry as usize].node);
        let constant = |entry: u32| &entries[entry as usize].node.op;
        let results = match &backend {
            Ok(backend) => compute(*backend, steps, &work, &constant, &mut values),
            Err(error) => Err(error.clone()),
        };
        let mut results = results.map(SmallVec::<[Tensors; 1]>::into_iter);
        for step in steps {
            let result = match &mut results {
                Ok(all) => Ok(all.next().unwrap_or_default()),
                Err(error) => Err(error.clone()),
            };
            step.release.iter().for_each(|&slot| values[slot as usize].release());
            let Entry { node, is_external, .. } = &entries[step.entry as usize];
            store(step, node, result, *is_external, &mut values);
        }
        // Large weights have driven what follows out of the caches.
        if steps.iter().any(|step| !step.soon.is_empty()) {
            touch(rest, &entries, &leaves);
        }
    }
}

/// Computes steps that belong together: the first, and those joined to it. `work` says what a step computes, and `constant` gives
/// the op of an entry that stands for a number.
pub(super) fn compute<'a>(
    backend: &dyn Backend,
    steps: &[Step],
    work: &dyn Fn(&Step) -> Work<'a>,
    constant: &dyn Fn(u32) -> &'a Op,
    values: &mut [Value],
) -> Result<SmallVec<[Tensors; 1]>> {
    if let Some(error) = steps.iter().find_map(|step| failed_input(step, values)) {
        return Err(error);
    }
    let compute = || match steps {
        [step] => {
            let number = |i: usize| match constant(step.consts[i]) {
                Op::Full(full) => full.value.to_bits(full.dtype),
                _ => 0,
            };
            Ok(smallvec![execute(backend, work(step), step, values, &number)?])
        }
        _ => together(backend, steps, work, values),
    };
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|panic| Err(bug(work(&steps[0]).op.name(), panic.as_ref())))
}

/// Looks at the nodes and leaves of steps up to the next that reads much, one after the other: memory gives what does not wait
/// for each other at once, where the steps themselves would ask for one thing at a time.
fn touch(steps: &[Step], entries: &[Entry], leaves: &[Option<Arc<Node>>]) {
    let mut reads_much = false;
    let upcoming = steps.iter().take_while(|step| {
        let more = !reads_much || step.joined;
        reads_much |= !step.soon.is_empty();
        more
    });
    for step in upcoming {
        let node = &entries[step.entry as usize].node;
        black_box((node.op.class(), node.outs.len()));
        for leaf in step.leaves.iter().filter_map(|&l| leaves[l as usize].as_ref()) {
            if let Some(Ok(tensors)) = leaf.done() {
                for tensor in tensors {
                    black_box(tensor.ptr());
                }
            }
        }
    }
}

/// Addresses and bytes of outputs of leaves, as far as they are known.
fn lie(
    plan: &Plan,
    places: &[(u32, u32)],
    leaves: &[Option<Arc<Node>>],
    values: &[Value],
) -> SmallVec<[(usize, usize); 4]> {
    let of = |&(l, o): &(u32, u32)| {
        let tensor = match (&leaves[l as usize], &values[(plan.leaf_slots[l as usize] + o) as usize]) {
            (Some(node), _) => node.done()?.as_ref().ok()?.get(o as usize)?,
            (None, Value::Tensor(tensor)) => tensor,
            _ => return None,
        };
        Some((tensor.ptr().addr(), tensor.nbytes()))
    };
    places.iter().filter_map(of).collect()
}

/// Steps that the backend may compute at once.
fn together<'a>(
    backend: &dyn Backend,
    steps: &[Step],
    work: &dyn Fn(&Step) -> Work<'a>,
    values: &mut [Value],
) -> Result<SmallVec<[Tensors; 1]>> {
    let mut calls: SmallVec<[Call; 4]> = SmallVec::new();
    for step in steps {
        let work = work(step);
        let outputs = (0..work.outs.len()).map(|o| fresh(backend, work, o)).collect::<Result<_>>()?;
        let mut inputs = take_inputs(step, values);
        align(backend, work.op, &mut inputs)?;
        calls.push(Call { op: work.op, inputs, outputs });
    }
    backend::together(backend, &mut calls)?;
    Ok(calls.into_iter().map(|call| call.outputs).collect())
}

/// Memory for an output that a kernel writes.
fn fresh(backend: &dyn Backend, work: Work, o: usize) -> Result<Tensor> {
    let Aval { shape, dtype } = &work.outs[o];
    Ok(Tensor::row_major(backend.alloc(out_bytes(work, o)?)?, shape.clone(), *dtype))
}

/// A panic of a kernel is a bug of lapis: this evaluation fails with it, nothing else does.
fn bug(op: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::eval(format!("[{op}] internal error, please report it: {text}"))
}

/// Puts the tensors of a leaf into their slots; takes them out of the node when nobody else holds it.
fn load(leaf: Option<Arc<Node>>, first: Slot, values: &mut [Value]) {
    let Some(leaf) = leaf else { return };
    let outs = leaf.outs.len();
    if let Err(error) = leaf.wait() {
        let error = error.clone();
        (0..outs).for_each(|o| values[first as usize + o] = Value::Failed(error.clone()));
        return;
    }
    let tensors = match Arc::try_unwrap(leaf) {
        Ok(node) => node.into_tensors(),
        Err(shared) => shared.wait().as_ref().ok().cloned(),
    };
    for (o, tensor) in tensors.into_iter().flatten().enumerate() {
        values[first as usize + o] = Value::Tensor(tensor);
    }
}

fn failed_input(step: &Step, values: &[Value]) -> Option<Error> {
    step.inputs.iter().find_map(|&slot| match &values[slot as usize] {
        Value::Failed(error) => Some(error.clone()),
        _ => None,
    })
}

/// Keeps outputs for later steps and for whoever holds the node.
fn store(step: &Step, node: &Node, result: Result<Tensors>, external: bool, values: &mut [Value]) {
    for o in 0..node.outs.len() {
        let slot = step.out + o as Slot;
        if !step.release.contains(&slot) {
            values[slot as usize] = match &result {
                Ok(tensors) => Value::Tensor(tensors[o].clone()),
                Err(error) => Value::Failed(error.clone()),
            };
        }
    }
    if external {
        node.publish(result);
    }
}

/// The inputs of a step. A slot that dies here gives its tensor away, so that sole ownership shows.
fn take_inputs(step: &Step, values: &mut [Value]) -> SmallVec<[Tensor; 4]> {
    let mut out = SmallVec::new();
    for (i, &slot) in step.inputs.iter().enumerate() {
        let value = &mut values[slot as usize];
        let last = step.release.contains(&slot) && !step.inputs[i + 1..].contains(&slot);
        let tensor = match value {
            Value::Tensor(_) if last => std::mem::replace(value, Value::Empty),
            Value::Tensor(t) | Value::Kept(t) => Value::Tensor(t.clone()),
            _ => Value::Empty,
        };
        if let Value::Tensor(t) = tensor {
            out.push(t);
        }
    }
    out
}

fn execute(
    backend: &dyn Backend,
    work: Work,
    step: &Step,
    values: &mut [Value],
    constant: &dyn Fn(usize) -> u64,
) -> Result<Tensors> {
    let mut inputs = take_inputs(step, values);
    let Work { op, outs } = work;
    let out = &outs[0];
    if !matches!(op.class(), Class::View | Class::Same) {
        align(backend, op, &mut inputs)?;
    }
    match op.class() {
        Class::View => match op.look(&inputs[0]) {
            Some(t) => Ok(smallvec![t]),
            None => {
                let copy = copy(backend, &inputs[0])?;
                let seen = op.look(&copy);
                Ok(smallvec![seen.ok_or_else(|| Error::eval(format!("[{}] no view", op.name())))?])
            }
        },
        Class::Same => match op {
            Op::Placeholder(placeholder) => Err(placeholder.error()),
            _ => Ok(inputs.drain(inputs.len() - outs.len()..).collect()),
        },
        Class::Full => {
            let Op::Full(full) = op else { return Err(Error::eval("[full] not a fill")) };
            let bits = full.value.to_bits(full.dtype).to_le_bytes();
            let buffer = backend.upload(&bits[..full.dtype.size()])?;
            let strides = SmallVec::from_elem(0, out.shape.len());
            Ok(smallvec![Tensor { buffer, offset: 0, shape: out.shape.clone(), strides, dtype: full.dtype }])
        }
        Class::Elementwise | Class::Reduce => {
            let Some(tape) = &step.tape else { return Err(Error::eval("[eval] a fused step without a tape")) };
            let consts: SmallVec<[u64; 8]> = (0..tape.consts.len()).map(constant).collect();
            if let Op::Reduce(reduce) = op {
                let buffer = backend.alloc(out_bytes(work, 0)?)?;
                let mut output = Tensor::row_major(buffer, out.shape.clone(), out.dtype);
                backend.reduce(tape, reduce, &inputs, &consts, &mut output)?;
                return Ok(smallvec![output]);
            }
            let strides = elementwise_strides(&inputs, &out.shape);
            let donor = inputs.iter().position(|t| {
                t.strides == strides
                    && t.dtype.size() == out.dtype.size()
                    && can_donate(t, out_bytes(work, 0).unwrap_or(0))
            });
            let (buffer, offset) = match donor {
                Some(i) => (inputs[i].buffer.clone(), inputs[i].offset),
                None => (backend.alloc(out_bytes(work, 0)?)?, 0),
            };
            let mut output = Tensor { buffer, offset, shape: out.shape.clone(), strides, dtype: out.dtype };
            backend.tape(tape, &inputs, &consts, &mut output)?;
            Ok(smallvec![output])
        }
        Class::Kernel | Class::Update => {
            let mut outputs: Tensors = SmallVec::new();
            for o in 0..outs.len() {
                let tensor = match op.updated(o) {
                    Some(input) => updated(backend, &mut inputs[input])?,
                    None => fresh(backend, work, o)?,
                };
                outputs.push(tensor);
            }
            backend::run(backend, op, &inputs, &mut outputs)?;
            Ok(outputs)
        }
    }
}

fn out_bytes(work: Work, o: usize) -> Result<usize> {
    let aval = &work.outs[o];
    Ok(shape::elements(work.op.name(), &aval.shape)? * aval.dtype.size())
}

/// Whether `t` is memory nobody else sees and not much larger than `bytes`.
fn can_donate(t: &Tensor, bytes: usize) -> bool {
    t.buffer.is_sole_and_reusable() && t.buffer.len() <= 2 * bytes + 4096 && t.is_dense()
}

/// The array an update starts from: the input itself when nobody else sees it, else a copy. A taken-over input is
/// replaced by an equal handle, so that the kernel finds its geometry.
fn updated(backend: &dyn Backend, input: &mut Tensor) -> Result<Tensor> {
    if input.buffer.is_sole_and_reusable() && input.is_row_contiguous() {
        return Ok(input.clone());
    }
    copy(backend, input)
}

/// Copies inputs whose elements lie where kernels cannot read them.
fn align(backend: &dyn Backend, op: &Op, inputs: &mut [Tensor]) -> Result<()> {
    for (i, input) in inputs.iter_mut().enumerate() {
        if !input.is_aligned() && !op.reads_bytes(i) {
            *input = aligned(backend, input)?;
        }
    }
    Ok(())
}

/// A row-major copy, byte by byte.
fn aligned(backend: &dyn Backend, from: &Tensor) -> Result<Tensor> {
    let mut to = Tensor::row_major(backend.alloc(from.nbytes())?, from.shape.clone(), from.dtype);
    let Some(bytes) = to.contiguous_bytes_mut() else { return Err(Error::eval("[eval] the host cannot write")) };
    if from.is_row_contiguous() {
        bytes.copy_from_slice(from.contiguous_bytes());
        return Ok(to);
    }
    let (size, all) = (from.dtype.size(), from.buffer.bytes());
    let mut index: SmallVec<[usize; 8]> = SmallVec::from_elem(0, from.shape.len());
    for element in bytes.chunks_exact_mut(size) {
        let steps = index.iter().zip(&from.strides).map(|(&i, &s)| i as isize * s).sum::<isize>();
        let at = from.offset.wrapping_add_signed(steps * size as isize);
        element.copy_from_slice(&all[at..at + size]);
        for (i, &n) in index.iter_mut().zip(&from.shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Ok(to)
}

/// A row-major copy.
pub(super) fn copy(backend: &dyn Backend, from: &Tensor) -> Result<Tensor> {
    if !from.is_aligned() {
        return aligned(backend, from);
    }
    let buffer = backend.alloc(from.nbytes())?;
    let mut to = Tensor::row_major(buffer, from.shape.clone(), from.dtype);
    backend.tape(&Tape::identity(from.dtype), std::slice::from_ref(from), &[], &mut to)?;
    Ok(to)
}

/// Row-major, unless every input that is not repeated lies in one other dense order: then that order is kept.
fn elementwise_strides(inputs: &[Tensor], shape: &[usize]) -> Strides {
    let mut order: Option<&Tensor> = None;
    for t in inputs {
        if t.strides.contains(&0) && !t.is_row_contiguous() {
            continue;
        }
        match order {
            None => order = Some(t),
            Some(o) if o.strides == t.strides => {}
            Some(_) => return shape::row_strides(shape),
        }
    }
    match order {
        Some(t) if !t.is_row_contiguous() && t.is_dense() => t.strides.clone(),
        _ => shape::row_strides(shape),
    }
}
