//! Where the values of a plan lie that is run again and again. What does not depend on where the inputs lie gets its place once,
//! so that most steps are nothing but a call of a kernel: no handle is made, no memory asked for, nothing let go of.
//!
//! Places are shared by values that do not live at the same time, the last one freed first: it is in a cache.

use super::plan::{Plan, Slot, Step, group};
use super::run::{self, Value, Work};
use crate::backend::Backend;
use crate::buffer::{Buffer, Tensor};
use crate::error::Result;
use crate::node::Avals;
use crate::ops::{Class, Op};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

/// How a step is done again.
pub(super) enum Again {
    /// It is: its outputs are what they were.
    Done,
    /// All of it lies where it did: inputs, constants, outputs.
    Fixed { inputs: Box<[Tensor]>, consts: Box<[u64]>, outputs: Box<[Tensor]> },
    /// Inputs or outputs lie elsewhere each time, but for outputs that have a place.
    Moving(Vec<Option<Tensor>>),
}

/// What each step of a plan does again, where inputs of it are in `values` if they are kept; their outputs join those. What is seen
/// through one of `results` gets no place.
pub(super) fn places(
    backend: &dyn Backend,
    plan: &Plan,
    works: &[(Op, Avals)],
    results: impl Iterator<Item = Slot>,
    values: &mut [Value],
) -> Result<Vec<Again>> {
    let work = |step: &Step| Work::again(works, step);
    let mut leaving: FxHashSet<Slot> = results.collect();
    for step in plan.steps.iter().rev() {
        if work(step).op.class() == Class::View && leaving.contains(&step.out) {
            leaving.insert(step.inputs[0]);
        }
    }
    let mut room = Room { buffers: Vec::new(), free: Vec::new(), of: vec![None; plan.slots] };
    let mut all = Vec::with_capacity(plan.steps.len());
    let mut rest = &plan.steps[..];
    while !rest.is_empty() {
        let (steps, after) = rest.split_at(group(rest));
        rest = after;
        for step in steps {
            all.push(room.step(backend, step, work(step), works, &leaving, values)?);
        }
        // Only now: steps that are computed together write while others read.
        steps.iter().flat_map(|step| &step.release).for_each(|&slot| room.release(slot));
    }
    Ok(all)
}

/// Buffers that values take turns in.
struct Room {
    /// Each with the number of slots that show it now.
    buffers: Vec<(Buffer, usize)>,
    /// Those that no slot shows, the last one freed at the end.
    free: Vec<usize>,
    /// The buffer that a slot shows.
    of: Vec<Option<usize>>,
}

impl Room {
    fn step(
        &mut self,
        backend: &dyn Backend,
        step: &Step,
        work: Work,
        works: &[(Op, Avals)],
        leaving: &FxHashSet<Slot>,
        values: &mut [Value],
    ) -> Result<Again> {
        let Work { op, outs } = work;
        let kept = |&slot: &Slot| match &values[slot as usize] {
            Value::Kept(tensor) => Some(tensor.clone()),
            _ => None,
        };
        let inputs: Option<SmallVec<[Tensor; 4]>> = step.inputs.iter().map(kept).collect();
        // Kernels get copies of what does not lie as they want it.
        let lies = |(i, t): (usize, &Tensor)| t.is_aligned() || op.reads_bytes(i);
        let inputs = inputs.filter(|all| op.class() == Class::View || all.iter().enumerate().all(lies));
        let mut found: SmallVec<[Option<Tensor>; 1]> = SmallVec::new();
        match (op.class(), &inputs) {
            (Class::View, Some(inputs)) => {
                if let Some(seen) = op.look(&inputs[0]) {
                    self.show(step.out, self.of[step.inputs[0] as usize]);
                    values[step.out as usize] = Value::Kept(seen);
                    return Ok(Again::Done);
                }
            }
            (Class::Full, _) => {
                values[step.out as usize] = Value::Kept(run::number(backend, work)?);
                return Ok(Again::Done);
            }
            (Class::Elementwise | Class::Reduce | Class::Kernel | Class::Update, _) => {
                for o in 0..outs.len() {
                    let slot = step.out + o as Slot;
                    let tensor = if op.updated(o).is_some() || leaving.contains(&slot) {
                        None
                    } else {
                        let (buffer, tensor) = self.take(backend, run::out_bytes(work, o)?)?;
                        self.show(slot, Some(buffer));
                        let mut tensor = Tensor::row_major(tensor, outs[o].shape.clone(), outs[o].dtype);
                        if let (Class::Elementwise, Some(inputs)) = (op.class(), &inputs) {
                            tensor.strides = run::elementwise_strides(inputs, &tensor.shape);
                        }
                        values[slot as usize] = Value::Kept(tensor.clone());
                        Some(tensor)
                    };
                    found.push(tensor);
                }
            }
            (Class::Host | Class::View | Class::Same, _) => {}
        }
        let outputs: Option<Box<[Tensor]>> = found.iter().cloned().collect();
        Ok(match (inputs, outputs.filter(|all| all.len() == outs.len())) {
            (Some(inputs), Some(outputs)) => {
                let consts = run::numbers(step, &|entry| &works[entry as usize].0);
                Again::Fixed { inputs: inputs.into_iter().collect(), consts: consts.into_iter().collect(), outputs }
            }
            _ => Again::Moving(found.into_vec()),
        })
    }

    /// A buffer of at least `bytes` that nobody shows, not much larger.
    fn take(&mut self, backend: &dyn Backend, bytes: usize) -> Result<(usize, Buffer)> {
        let fits = |&&i: &&usize| (bytes..=2 * bytes + 4096).contains(&self.buffers[i].0.len());
        let buffer = match self.free.iter().rposition(|i| fits(&i)) {
            Some(at) => self.free.remove(at),
            None => {
                self.buffers.push((backend.alloc(bytes)?, 0));
                self.buffers.len() - 1
            }
        };
        Ok((buffer, self.buffers[buffer].0.clone()))
    }

    fn show(&mut self, slot: Slot, buffer: Option<usize>) {
        self.of[slot as usize] = buffer;
        if let Some(buffer) = buffer {
            self.buffers[buffer].1 += 1;
        }
    }

    fn release(&mut self, slot: Slot) {
        if let Some(buffer) = self.of[slot as usize].take() {
            self.buffers[buffer].1 -= 1;
            if self.buffers[buffer].1 == 0 {
                self.free.push(buffer);
            }
        }
    }
}
