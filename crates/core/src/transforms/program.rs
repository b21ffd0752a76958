//! A tape as plain data: ops and where their inputs come from, without the nodes they were traced on.

use super::trace::Tape;
use crate::array::Array;
use crate::error::Result;
use crate::node::{Avals, Inputs};
use crate::ops::Op;
use crate::stream::Stream;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::Arc;

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum From {
    /// An input of the program.
    Input(u32),
    /// An output of a step.
    Step(u32, u32),
}

/// An op of a program.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    /// Where it runs; `None` for wherever the caller's ops do.
    pub(crate) stream: Option<Stream>,
    pub(crate) outs: Avals,
    pub(crate) inputs: SmallVec<[From; 3]>,
    /// The op with numbers that follow from the sizes of the arguments; `None` when there are none.
    pub(crate) form: Option<Arc<str>>,
}

/// Steps in order of computation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: Vec<From>,
}

impl Program {
    /// What computes `outputs` from `tracers`, and the other arrays it reads: they are the inputs behind the tracers.
    pub(crate) fn new(outputs: &[Array], tracers: &[Array]) -> (Program, Vec<Array>) {
        Program::of(&Tape::new(outputs, tracers), outputs, tracers)
    }

    /// The same of what is on a tape.
    pub(crate) fn of(tape: &Tape, outputs: &[Array], tracers: &[Array]) -> (Program, Vec<Array>) {
        let mut known: FxHashMap<(u64, u32), From> = FxHashMap::default();
        for (i, t) in tracers.iter().enumerate() {
            known.insert((t.node.id, t.index), From::Input(i as u32));
        }
        let mut captured: Vec<Array> = Vec::new();
        let mut place = |known: &mut FxHashMap<(u64, u32), From>, a: &Array| {
            *known.entry((a.node.id, a.index)).or_insert_with(|| {
                captured.push(a.clone());
                From::Input((tracers.len() + captured.len() - 1) as u32)
            })
        };
        let mut steps = Vec::with_capacity(tape.steps.len());
        for (at, step) in tape.steps.iter().enumerate() {
            let inputs = step.inputs.iter().map(|a| place(&mut known, a)).collect();
            let node = &step.node;
            for index in 0..node.outs.len() as u32 {
                known.insert((node.id, index), From::Step(at as u32, index));
            }
            steps.push(Step {
                op: node.op.clone(),
                stream: Some(node.stream),
                outs: node.outs.clone(),
                inputs,
                form: None,
            });
        }
        let outputs = outputs.iter().map(|a| place(&mut known, a)).collect();
        (Program { steps, outputs }, captured)
    }

    /// The program of a whole tape without what depends on no argument: that is captured, but for fills and views,
    /// which are shorter said than stored. Without dead steps too.
    pub(crate) fn folded(&self, tape: &Tape, captured: &[Array], arguments: usize) -> (Program, Vec<Array>) {
        let mut depends = vec![false; self.steps.len()];
        for (s, step) in self.steps.iter().enumerate() {
            let grows = |f: &From| match *f {
                From::Input(i) => (i as usize) < arguments,
                From::Step(s, _) => depends[s as usize],
            };
            depends[s] = step.form.is_some() || step.inputs.iter().any(grows);
        }
        let short = |op: &Op| matches!(op, Op::Full(_) | Op::Arange(_) | Op::Broadcast(_) | Op::Transpose(_));
        let stays = |s: usize| depends[s] || short(&self.steps[s].op);
        let mut needed = vec![false; self.steps.len()];
        let need = |needed: &mut [bool], f: &From| {
            if let From::Step(s, _) = *f {
                needed[s as usize] = stays(s as usize);
            }
        };
        self.outputs.iter().for_each(|f| need(&mut needed, f));
        for s in (0..self.steps.len()).rev() {
            if needed[s] {
                self.steps[s].inputs.iter().for_each(|f| need(&mut needed, f));
            }
        }
        let (mut out, mut kept) = (Program::default(), Vec::new());
        let mut places: FxHashMap<From, From> =
            (0..arguments as u32).map(|i| (From::Input(i), From::Input(i))).collect();
        let mut place = |places: &mut FxHashMap<From, From>, f: From| {
            *places.entry(f).or_insert_with(|| {
                kept.push(match f {
                    From::Input(i) => captured[i as usize - arguments].clone(),
                    From::Step(s, index) => Array { node: tape.steps[s as usize].node.clone(), index },
                });
                From::Input((arguments + kept.len() - 1) as u32)
            })
        };
        for (s, step) in self.steps.iter().enumerate().filter(|&(s, _)| needed[s]) {
            let inputs = step.inputs.iter().map(|&f| place(&mut places, f)).collect();
            let now = out.steps.len() as u32;
            places.extend((0..step.outs.len() as u32).map(|i| (From::Step(s as u32, i), From::Step(now, i))));
            out.steps.push(Step { inputs, ..step.clone() });
        }
        out.outputs = self.outputs.iter().map(|&f| place(&mut places, f)).collect();
        (out, kept)
    }

    /// Nothing reads the outputs of checkpoints any more, but what they mark: computing that again is a matter of memory.
    /// Their steps stay, so that the others keep their numbers.
    pub(crate) fn pass_checkpoints(&mut self) {
        let mut marked: FxHashMap<From, From> = FxHashMap::default();
        for (s, step) in self.steps.iter_mut().enumerate() {
            step.inputs.iter_mut().for_each(|f| *f = marked.get(f).copied().unwrap_or(*f));
            if step.op.is_checkpoint() {
                let first = step.inputs.len() - step.outs.len();
                let outs = (0..step.outs.len()).map(|i| (From::Step(s as u32, i as u32), step.inputs[first + i]));
                marked.extend(outs);
            }
        }
        self.outputs.iter_mut().for_each(|f| *f = marked.get(f).copied().unwrap_or(*f));
    }

    /// Without the marks of finished transforms and without steps that repeat an earlier one.
    pub(crate) fn simplified(&self) -> Program {
        let mut out = Program::default();
        let mut seen: FxHashMap<(Op, Option<Arc<str>>, Option<Stream>, SmallVec<[From; 3]>), u32> =
            FxHashMap::default();
        // What each old step became.
        let mut became: Vec<SmallVec<[From; 1]>> = Vec::with_capacity(self.steps.len());
        let now = |became: &[SmallVec<[From; 1]>], from: From| match from {
            From::Step(s, i) => became[s as usize][i as usize],
            input => input,
        };
        for step in &self.steps {
            let inputs: SmallVec<[From; 3]> = step.inputs.iter().map(|&f| now(&became, f)).collect();
            if let Op::Tracer(_) = step.op {
                became.push(SmallVec::from_elem(inputs[0], 1));
                continue;
            }
            let next = out.steps.len() as u32;
            let at = *seen.entry((step.op.clone(), step.form.clone(), step.stream, inputs.clone())).or_insert(next);
            if at == next {
                out.steps.push(Step { inputs, ..step.clone() });
            }
            became.push((0..step.outs.len() as u32).map(|i| From::Step(at, i)).collect());
        }
        out.outputs = self.outputs.iter().map(|&f| now(&became, f)).collect();
        out
    }

    /// The outputs for other inputs, with `apply` in place of each op.
    pub(crate) fn replay<T: Clone>(
        &self,
        inputs: &[T],
        mut apply: impl FnMut(&Step, &[T]) -> Result<SmallVec<[T; 1]>>,
    ) -> Result<Vec<T>> {
        let mut values: Vec<SmallVec<[T; 1]>> = Vec::with_capacity(self.steps.len());
        let get = |values: &[SmallVec<[T; 1]>], from: From| match from {
            From::Input(i) => inputs[i as usize].clone(),
            From::Step(s, i) => values[s as usize][i as usize].clone(),
        };
        for step in &self.steps {
            let taken: SmallVec<[T; 3]> = step.inputs.iter().map(|&f| get(&values, f)).collect();
            let made = match step.stream {
                Some(stream) => stream.scope(|| apply(step, &taken)),
                None => apply(step, &taken),
            };
            values.push(made?);
        }
        Ok(self.outputs.iter().map(|&f| get(&values, f)).collect())
    }

    /// The same ops on inputs of the same shapes and dtypes.
    pub(crate) fn run(&self, inputs: &[Array]) -> Vec<Array> {
        let again = |step: &Step, taken: &[Array]| {
            let inputs: Inputs = taken.iter().cloned().collect();
            Ok(Array::outputs_of(step.op.clone(), inputs, step.outs.clone()))
        };
        // Nothing is checked again, so nothing fails.
        self.replay(inputs, again).unwrap_or_default()
    }
}
