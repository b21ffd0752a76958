//! A computation that is run again with other values in a few of its inputs: no graph is built, none is collected, planned or
//! let go of, and what never changes lies where its steps look for it.

use super::collect::Graph;
use super::places::{Again, places};
use super::plan::{Plan, Slot, Step, group, plan};
use super::queue_of;
use super::run::{self, Value, Work};
use crate::array::Array;
use crate::backend::{self, Backend, Call};
use crate::buffer::Tensor;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Node, Tensors};
use crate::ops::{Class, Op};
use crate::shape::show;
use crate::stream::Stream;
use crate::transforms;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::sync::Arc;

/// An evaluation that can be repeated. What it reads beside its inputs is kept as long as it is, and so is memory for what it computes
/// on its way.
pub struct Replay {
    stream: Stream,
    plan: Arc<Plan>,
    /// What each entry of the plan computes.
    works: Vec<(Op, Avals)>,
    /// The entries whose outputs start from an input, which alone may change from run to run.
    updates: Vec<u32>,
    /// How each step is done again.
    steps: Vec<Again>,
    /// By slot: what always lies at the same place, and nothing else between two runs.
    values: Vec<Value>,
    /// Where inputs go, and what they are.
    inputs: Vec<Input>,
    /// The result that each slot is, if it is one, and of each root which result.
    results: FxHashMap<Slot, usize>,
    roots: Vec<usize>,
    /// Addresses and bytes of what the next product reads, by step.
    soon: Vec<SmallVec<[(usize, usize); 4]>>,
}

struct Input {
    slot: Slot,
    aval: Aval,
    /// Nothing but an op whose output starts from it reads it, so that the axis that op grows along may be longer: the last but one.
    grows: bool,
}

impl Input {
    fn takes(&self, a: &Array) -> bool {
        let (is, was) = (a.shape(), &*self.aval.shape);
        let axis = was.len().wrapping_sub(2);
        let same = |(i, (is, was)): (usize, (&usize, &usize))| is == was || self.grows && i == axis && is > was;
        a.dtype() == self.aval.dtype && is.len() == was.len() && is.iter().zip(was).enumerate().all(same)
    }
}

/// A place for a tensor as a leaf shows it.
type Leaf = (u64, u32);

/// Which steps of a plan read each slot, and as which of their inputs.
struct Readers<'a> {
    graph: &'a Graph,
    steps: &'a [Step],
    of: FxHashMap<Slot, SmallVec<[(u32, u32); 2]>>,
}

impl<'a> Readers<'a> {
    fn new(graph: &'a Graph, steps: &'a [Step]) -> Readers<'a> {
        let mut of = FxHashMap::<Slot, SmallVec<[(u32, u32); 2]>>::default();
        for (at, step) in (0u32..).zip(steps) {
            (0u32..).zip(&step.inputs).for_each(|(place, &slot)| of.entry(slot).or_default().push((at, place)));
        }
        Readers { graph, steps, of }
    }

    fn of(&self, slot: Slot) -> impl Iterator<Item = (&'a Step, &'a Node, usize)> {
        let all = self.of.get(&slot).into_iter().flatten();
        all.map(|&(at, place)| {
            let step = &self.steps[at as usize];
            (step, &*self.graph.entries[step.entry as usize].node, place as usize)
        })
    }

    /// Whether nothing but ops whose outputs start from it reads what is in `slot`, and nothing reads those.
    fn grows(&self, slot: Slot) -> bool {
        // A handle of its own to what is there is no reader.
        let ends = |(step, node, _): (&Step, &Node, usize)| {
            matches!(node.op, Op::Contiguous(_)) && self.of(step.out).next().is_none()
        };
        self.of(slot).all(|(step, node, place)| {
            let mut outs = (0..node.outs.len()).filter(|&o| node.op.updated(o) == Some(place)).peekable();
            outs.peek().is_some() && outs.all(|o| self.of(step.out + o as Slot).all(ends))
        })
    }
}

impl Replay {
    /// Evaluates `roots`, and says how to do so again with other arrays in place of `inputs`, which are named by their
    /// [ids](Array::id): all else that `roots` depend on must be what it is for as long as that is done. Nothing where a graph is more
    /// than that: parts of it are held by others or run elsewhere, it reads arrays that came to be after the last of `inputs`, and so
    /// perhaps from them, marks of transforms are in it, or there is no memory for what it would keep.
    ///
    /// # Errors
    /// As [`eval`](super::eval()).
    pub fn record(roots: &[&Array], inputs: &[(u64, u32)]) -> Result<Option<Replay>> {
        let mut found = None;
        super::submit(roots, true, &mut |graphs| {
            if let ([graph], true) = (graphs, transforms::is_compiling()) {
                found = Replay::of(graph, roots, inputs);
            }
        });
        super::result(roots)?;
        Ok(found.and_then(|replay| replay.placed().ok()))
    }

    /// With places for all that does not move.
    fn placed(mut self) -> Result<Replay> {
        let backend = backend::find(self.stream.device())?;
        let results = self.results.keys().copied();
        self.steps = places(backend, &self.plan, &self.works, results, &mut self.values)?;
        Ok(self)
    }

    /// Without places.
    fn of(graph: &Graph, roots: &[&Array], inputs: &[Leaf]) -> Option<Replay> {
        let newest = inputs.iter().map(|i| i.0).max()?;
        let plain = |op: &Op| op.class() != Class::Same && !matches!(op, Op::Collective(_));
        let wanted: FxHashSet<u64> = roots.iter().map(|root| root.node.id).collect();
        if !graph.entries.iter().all(|e| plain(&e.node.op) && (!e.is_external || wanted.contains(&e.node.id))) {
            return None;
        }
        let plan = plan(graph);
        let mut values: Vec<Value> = Vec::with_capacity(plan.slots);
        values.resize_with(plan.slots, || Value::Empty);
        let readers = Readers::new(graph, &plan.steps);
        let changing: FxHashSet<u64> = inputs.iter().map(|input| input.0).collect();
        let mut places: FxHashMap<Leaf, Input> = FxHashMap::default();
        for (leaf, &first) in graph.leaves.iter().zip(&plan.leaf_slots) {
            let tensors = leaf.done()?.as_ref().ok()?;
            if leaf.id > newest {
                return None;
            }
            for ((slot, output), tensor) in (first..).zip(0u32..).zip(tensors) {
                if changing.contains(&leaf.id) {
                    let aval = Aval { shape: tensor.shape.clone(), dtype: tensor.dtype };
                    places.insert((leaf.id, output), Input { slot, aval, grows: readers.grows(slot) });
                } else {
                    values[slot as usize] = Value::Kept(tensor.clone());
                }
            }
        }
        let inputs = inputs.iter().map(|input| places.remove(input)).collect::<Option<Vec<_>>>()?;
        // Of a leaf that changes nothing else is read.
        if places.values().any(|other| readers.of(other.slot).next().is_some()) {
            return None;
        }

        let first: FxHashMap<u64, Slot> =
            plan.steps.iter().map(|step| (graph.entries[step.entry as usize].node.id, step.out)).collect();
        let mut results: FxHashMap<Slot, usize> = FxHashMap::default();
        let result_of = |root: &&Array| {
            let (slot, next) = (first.get(&root.node.id)? + root.index, results.len());
            Some(*results.entry(slot).or_insert(next))
        };
        let roots = roots.iter().map(result_of).collect::<Option<Vec<_>>>()?;
        let lies = |&(leaf, output): &(u32, u32)| {
            let tensor = graph.leaves[leaf as usize].done()?.as_ref().ok()?.get(output as usize)?;
            Some((tensor.ptr().addr(), tensor.nbytes()))
        };
        let soon = plan.steps.iter().map(|step| step.soon.iter().filter_map(lies).collect()).collect();
        let works: Vec<(Op, Avals)> = graph.entries.iter().map(|e| (e.node.op.clone(), e.node.outs.clone())).collect();
        let updates =
            (0u32..).zip(&works).filter(|(_, work)| work.0.class() == Class::Update).map(|(i, _)| i).collect();
        let steps = Vec::new();
        Some(Replay { stream: graph.stream, plan, works, updates, steps, values, inputs, results, roots, soon })
    }

    /// The values of the roots for other inputs, of the same shapes and dtypes, in the order in which they were named; one that is
    /// nothing but what an output starts from may be longer along its last axis but one. An input that nobody else holds may
    /// become an output. `change` is called with each op whose outputs start from an input: numbers in it may be others, as long
    /// as its inputs and outputs stay what they are.
    ///
    /// # Errors
    /// Inputs that are not as they were: nothing has changed then. What kernels find: the inputs are gone, and what `change` did
    /// is done.
    pub fn run(&mut self, inputs: Vec<Array>, mut change: impl FnMut(&mut Op)) -> Result<Vec<Array>> {
        let strange = inputs.iter().zip(&self.inputs).position(|(a, input)| !input.takes(a));
        if inputs.len() != self.inputs.len() || strange.is_some() {
            let (given, known) = (inputs.len(), self.inputs.len());
            let text = strange.map_or(format!("{given} inputs in place of {known}"), |i| {
                let (a, is) = (&inputs[i], &self.inputs[i].aval);
                let [now, then] = [a.shape(), &is.shape].map(show);
                format!("input {i} of shape {now} and {} in place of {then} and {}", a.dtype(), is.dtype)
            });
            return Err(Error::value(format!("[replay] {text}")));
        }
        self.updates.iter().for_each(|&i| change(&mut self.works[i as usize].0));
        let backend = backend::find(self.stream.device())?;
        super::eval(inputs.iter().filter(|a| !a.is_evaluated()))?;
        let computed = self.fill(inputs).and_then(|()| {
            let queue = queue_of(self.stream);
            queue.begin();
            let computed = self.compute(backend);
            queue.end();
            computed
        });
        if computed.is_err() {
            self.values.iter_mut().for_each(Value::release);
        }
        let results: Vec<Array> = computed?.into_iter().flatten().map(Array::ready).collect();
        match self.roots.iter().map(|&i| results.get(i).cloned()).collect() {
            Some(roots) => Ok(roots),
            None => Err(Error::eval("[replay] a step gave nothing")),
        }
    }

    /// Puts inputs into their slots; out of nodes that nobody else holds they are taken.
    fn fill(&mut self, inputs: Vec<Array>) -> Result<()> {
        let mut rest = inputs.into_iter().zip(&self.inputs).peekable();
        while let Some((Array { node, index }, &Input { slot, .. })) = rest.next() {
            // Outputs of one node come one after the other.
            let mut places: SmallVec<[(u32, Slot); 2]> = SmallVec::from_slice(&[(index, slot)]);
            while let Some((a, &Input { slot, .. })) = rest.next_if(|(a, _)| Arc::ptr_eq(&a.node, &node)) {
                places.push((a.index, slot));
            }
            let tensors = match Arc::try_unwrap(node) {
                Ok(node) => node.into_tensors(),
                Err(shared) => shared.wait().as_ref().ok().cloned(),
            };
            let tensors = tensors.ok_or_else(|| Error::eval("[replay] an input without a value"))?;
            for (index, slot) in places {
                self.values[slot as usize] = Value::Tensor(tensors[index as usize].clone());
            }
        }
        Ok(())
    }

    fn compute(&mut self, backend: &dyn Backend) -> Result<Vec<Option<Tensor>>> {
        let Replay { plan, works, steps: again, values, results, soon, .. } = self;
        let mut found: Vec<Option<Tensor>> = vec![None; results.len()];
        let (mut rest, mut again, mut soon) = (&plan.steps[..], &mut again[..], &soon[..]);
        while !rest.is_empty() {
            let (steps, after) = rest.split_at(group(rest));
            let (how, more) = again.split_at_mut(steps.len());
            if !soon[0].is_empty() {
                backend.soon(&soon[0]);
            }
            (rest, again, soon) = (after, more, &soon[steps.len()..]);
            if fixed(backend, works, steps, how)? {
                continue;
            }
            let work = |step: &Step| Work::again(works, step);
            let place = |step: &Step, o: usize| match &how[steps.iter().position(|s| s.out == step.out)?] {
                Again::Fixed { outputs, .. } => outputs.get(o).cloned(),
                Again::Moving(outputs) => outputs.get(o).cloned().flatten(),
                Again::Done => None,
            };
            let made: SmallVec<[Tensors; 1]> =
                run::compute(backend, steps, &work, &|entry| &works[entry as usize].0, &place, values)?;
            for (step, tensors) in steps.iter().zip(made) {
                step.release.iter().for_each(|&slot| values[slot as usize].release());
                for (slot, tensor) in (step.out..).zip(tensors) {
                    if let Some(&i) = results.get(&slot) {
                        found[i] = Some(tensor.clone());
                    }
                    let value = &mut values[slot as usize];
                    if !matches!(value, Value::Kept(_)) && !step.release.contains(&slot) {
                        *value = Value::Tensor(tensor);
                    }
                }
            }
        }
        for (&slot, &i) in &*results {
            if let Value::Kept(tensor) = &values[slot as usize] {
                found[i] = Some(tensor.clone());
            }
        }
        Ok(found)
    }
}

/// Computes steps that belong together where all of them have their places; false, with nothing done, where they do not.
fn fixed(backend: &dyn Backend, works: &[(Op, Avals)], steps: &[Step], how: &mut [Again]) -> Result<bool> {
    let op = |step: &Step| &works[step.entry as usize].0;
    match (steps, how) {
        (_, [Again::Done]) => Ok(true),
        ([step], [Again::Fixed { inputs, consts, outputs }]) => {
            run::guarded(op(step), || run::kernel(backend, op(step), step, inputs, consts, outputs))?;
            Ok(true)
        }
        (_, how) => {
            let mut calls: SmallVec<[Call; 4]> = SmallVec::new();
            let mut tail = None;
            for (step, how) in steps.iter().zip(how) {
                let Again::Fixed { inputs, consts, outputs } = how else { return Ok(false) };
                match step.is_tail() {
                    true => tail = Some((step, inputs, consts, outputs)),
                    false => calls.push(Call { op: op(step), inputs, outputs }),
                }
            }
            run::guarded(op(&steps[0]), || {
                backend::together(backend, &mut calls)?;
                tail.map_or(Ok(()), |(step, inputs, consts, outputs)| {
                    run::kernel(backend, op(step), step, inputs, consts, outputs)
                })
            })?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::collect::collect;
    use crate::{array, ops};

    #[test]
    fn what_is_more_than_a_graph_is_not_kept() {
        // Runs are tested beside kernels, which are not linked here.
        let (x, w) = (array([1.0f32, 2.0]), array([3.0f32, 4.0]));
        let kept = |y: Array, inputs: &[&Array]| {
            let ids: Vec<Leaf> = inputs.iter().map(|a| a.id()).collect();
            let graph = collect([&y].into_iter()).pop().unwrap();
            Replay::of(&graph, &[&y], &ids).is_some()
        };
        let y = || ops::multiply(&x, &w).unwrap();
        assert!(!kept(y(), &[]), "nothing changes");
        assert!(kept(y(), &[&w]) && kept(y(), &[&x, &w]));
        assert!(!kept(y(), &[&x]), "w came after x, perhaps from it");
        let part = y();
        assert!(!kept(ops::add(&part, &w).unwrap(), &[&w]), "somebody holds a part");
    }
}
