//! Runs a plan: loads leaves, calls the backend step by step, hands memory on, publishes results and errors.

use super::collect::{Entry, Graph};
use super::plan::{Plan, Slot, Step, group};
use super::tape::Tape;
use crate::backend::{self, Argument, Backend, Call};
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

    /// Of what is computed again: ops and outputs by entry.
    pub(super) fn again(works: &'a [(Op, Avals)], step: &Step) -> Work<'a> {
        let (op, outs) = &works[step.entry as usize];
        Work { op, outs }
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
        let (steps, after) = rest.split_at(group(rest));
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
            Ok(backend) => compute(*backend, steps, &work, &constant, &|_, _| None, &mut values),
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

/// Computes steps that belong together: the first, and those joined to it. `work` says what a step computes, `constant` gives
/// the op of an entry that stands for a number, and `place` where an output of a step goes, if it has a place already.
pub(super) fn compute<'a>(
    backend: &dyn Backend,
    steps: &[Step],
    work: &dyn Fn(&Step) -> Work<'a>,
    constant: &dyn Fn(u32) -> &'a Op,
    place: Place,
    values: &mut [Value],
) -> Result<SmallVec<[Tensors; 1]>> {
    if let Some(error) = steps.iter().find_map(|step| failed_input(step, values)) {
        return Err(error);
    }
    guarded(work(&steps[0]).op, || match steps {
        [step] => Ok(smallvec![execute(backend, work(step), step, values, &numbers(step, constant), place)?]),
        [products @ .., tail] if tail.is_tail() => {
            let consts = numbers(tail, constant);
            let mut results = SmallVec::from_elem(Tensors::new(), products.len());
            results.push(through(backend, products, tail, work, &consts, place, values)?);
            Ok(results)
        }
        _ => together(backend, steps, work, place, values),
    })
}

/// Where output `o` of a step goes, if it has a place.
pub(super) type Place<'a> = &'a dyn Fn(&Step, usize) -> Option<Tensor>;

/// The bits of a tape's constants.
pub(super) fn numbers<'a>(step: &Step, constant: &dyn Fn(u32) -> &'a Op) -> SmallVec<[u64; 4]> {
    let bits = |&entry: &u32| match constant(entry) {
        Op::Full(full) => full.value.to_bits(full.dtype),
        _ => 0,
    };
    step.consts.iter().map(bits).collect()
}

/// Runs `f`, a panic of which is an error of `op`.
pub(super) fn guarded<R>(op: &Op, f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(bug(op.name(), panic.as_ref())))
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
    place: Place,
    values: &mut [Value],
) -> Result<SmallVec<[Tensors; 1]>> {
    let inputs = steps.iter().map(|step| aligned_inputs(backend, step, work(step), values));
    let inputs = inputs.collect::<Result<SmallVec<[_; 4]>>>()?;
    outputs_of(backend, steps, &inputs, work, place)
}

/// The inputs of a step where a kernel can read them.
fn aligned_inputs(
    backend: &dyn Backend,
    step: &Step,
    work: Work,
    values: &mut [Value],
) -> Result<SmallVec<[Tensor; 4]>> {
    let mut inputs = take_inputs(step, values);
    align(backend, work.op, &mut inputs)?;
    Ok(inputs)
}

/// What steps that belong together make of these inputs.
fn outputs_of<'a>(
    backend: &dyn Backend,
    steps: &[Step],
    inputs: &[SmallVec<[Tensor; 4]>],
    work: &dyn Fn(&Step) -> Work<'a>,
    place: Place,
) -> Result<SmallVec<[Tensors; 1]>> {
    let mut outputs: SmallVec<[Tensors; 1]> = SmallVec::new();
    for step in steps {
        let work = work(step);
        let output = |o| place(step, o).map_or_else(|| fresh(backend, work, o), Ok);
        outputs.push((0..work.outs.len()).map(output).collect::<Result<_>>()?);
    }
    let calls = steps.iter().zip(inputs).zip(&mut outputs);
    let calls = calls.map(|((step, inputs), outputs)| Call { op: work(step).op, inputs, outputs });
    backend::together(backend, &mut calls.collect::<SmallVec<[Call; 4]>>())?;
    Ok(outputs)
}

/// The result of the fused step behind products, whose own results nobody else wants: they are no tensors where the backend
/// can do without.
fn through<'a>(
    backend: &dyn Backend,
    products: &[Step],
    tail: &Step,
    work: &dyn Fn(&Step) -> Work<'a>,
    consts: &[u64],
    place: Place,
    values: &mut [Value],
) -> Result<Tensors> {
    let inputs = products.iter().map(|step| aligned_inputs(backend, step, work(step), values));
    let inputs = inputs.collect::<Result<SmallVec<[_; 4]>>>()?;
    let calls = products.iter().zip(&inputs);
    let calls: SmallVec<[Call; 4]> =
        calls.map(|(step, inputs)| Call { op: work(step).op, inputs, outputs: &mut [] }).collect();
    let argument = |slot: &Slot| match products.iter().position(|step| step.out == *slot) {
        Some(i) => Some(Argument::Call(i)),
        None => match &values[*slot as usize] {
            Value::Tensor(t) | Value::Kept(t) => Some(Argument::Tensor(t)),
            Value::Empty | Value::Failed(_) => None,
        },
    };
    if let (Some(tape), Some(arguments)) =
        (&tail.tape, tail.inputs.iter().map(argument).collect::<Option<SmallVec<[Argument; 4]>>>())
    {
        let mut output = place(tail, 0).map_or_else(|| fresh(backend, work(tail), 0), Ok)?;
        if let Some(done) = backend.through(&calls, tape, &arguments, consts, &mut output) {
            return done.map(|()| smallvec![output]);
        }
    }
    drop(calls);
    for (step, tensors) in products.iter().zip(outputs_of(backend, products, &inputs, work, place)?) {
        for (value, tensor) in values[step.out as usize..].iter_mut().zip(tensors) {
            if !matches!(value, Value::Kept(_)) {
                *value = Value::Tensor(tensor);
            }
        }
    }
    drop(inputs);
    execute(backend, work(tail), tail, values, consts, place)
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
                // What only a step behind this one wanted has been used already.
                Ok(tensors) => tensors.get(o).map_or(Value::Empty, |t| Value::Tensor(t.clone())),
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
    consts: &[u64],
    place: Place,
) -> Result<Tensors> {
    let mut inputs = take_inputs(step, values);
    let Work { op, outs } = work;
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
        Class::Full => Ok(smallvec![number(backend, work)?]),
        Class::Elementwise | Class::Reduce | Class::Kernel | Class::Host | Class::Update => {
            let mut outputs: Tensors = SmallVec::new();
            for o in 0..outs.len() {
                outputs.push(match (place(step, o), op.updated(o)) {
                    (Some(known), _) => known,
                    (None, Some(input)) => updated(backend, &mut inputs[input])?,
                    (None, None) if op.class() == Class::Elementwise => donated(backend, work, &inputs)?,
                    (None, None) => fresh(backend, work, o)?,
                });
            }
            kernel(backend, op, step, &inputs, consts, &mut outputs)?;
            Ok(outputs)
        }
    }
}

/// Computes what is no view: `inputs` lie as kernels read them, `outputs` where they shall be.
pub(super) fn kernel(
    backend: &dyn Backend,
    op: &Op,
    step: &Step,
    inputs: &[Tensor],
    consts: &[u64],
    outputs: &mut [Tensor],
) -> Result<()> {
    match (op.class(), &step.tape) {
        (Class::Elementwise, Some(tape)) => backend.tape(tape, inputs, consts, &mut outputs[0]),
        (Class::Reduce, Some(tape)) => match op {
            Op::Reduce(reduce) => backend.reduce(tape, reduce, inputs, consts, &mut outputs[0]),
            _ => Err(Error::eval("[eval] a reduction that is none")),
        },
        (Class::Elementwise | Class::Reduce, None) => Err(Error::eval("[eval] a fused step without a tape")),
        _ => backend::run(backend, op, inputs, outputs),
    }
}

/// One number, repeated.
pub(super) fn number(backend: &dyn Backend, work: Work) -> Result<Tensor> {
    let Op::Full(full) = work.op else { return Err(Error::eval("[full] not a fill")) };
    let bits = full.value.to_bits(full.dtype).to_le_bytes();
    let buffer = backend.upload(&bits[..full.dtype.size()])?;
    let shape = &work.outs[0].shape;
    let strides = SmallVec::from_elem(0, shape.len());
    Ok(Tensor { buffer, offset: 0, shape: shape.clone(), strides, dtype: full.dtype })
}

/// The output of a fused group: memory of an input that nobody else sees, or new.
fn donated(backend: &dyn Backend, work: Work, inputs: &[Tensor]) -> Result<Tensor> {
    let Aval { shape, dtype } = &work.outs[0];
    let (strides, bytes) = (elementwise_strides(inputs, shape), out_bytes(work, 0)?);
    let fits = |t: &&Tensor| t.strides == strides && t.dtype.size() == dtype.size() && can_donate(t, bytes);
    let (buffer, offset) = match inputs.iter().find(fits) {
        Some(t) => (t.buffer.clone(), t.offset),
        None => (backend.alloc(bytes)?, 0),
    };
    Ok(Tensor { buffer, offset, shape: shape.clone(), strides, dtype: *dtype })
}

pub(super) fn out_bytes(work: Work, o: usize) -> Result<usize> {
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
pub(super) fn elementwise_strides(inputs: &[Tensor], shape: &[usize]) -> Strides {
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
