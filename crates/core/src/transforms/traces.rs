//! One trace of a function with the arguments it is good for: of exactly these sizes, or of any.
//!
//! A trace for any size is found by trying. Sizes that are equal in the example are one size; each of them alone is
//! changed, and where the function still traces, it may vary. Then the function is traced at two more choices of
//! sizes: whatever differs between the programs follows from the sizes, or the trace is refused. So no size that was
//! read while tracing is used for another shape, wherever it was read.

use super::program::Program;
use super::sizes::{explained, filled};
use super::trace::{Placeholder, Tape};
use super::{Outcome, Tree};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::random;
use crate::shape::Shape;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A size of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Dim {
    /// This size only.
    Fixed(usize),
    /// The size of this number, whatever it is.
    Free {
        /// Its number.
        size: usize,
    },
}

/// An argument of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Input {
    /// Where it stands in the tree of the arguments.
    pub(crate) path: String,
    pub(crate) shape: SmallVec<[Dim; 4]>,
    pub(crate) dtype: Dtype,
}

impl Input {
    /// What a tree of arguments looks like, and its arrays.
    pub(crate) fn of<P: Tree>(tree: &P) -> (Vec<Input>, Vec<Array>) {
        let (mut inputs, leaves) = Input::unnamed(tree);
        let mut rest = inputs.iter_mut();
        tree.paths("", &mut |path| rest.by_ref().take(1).for_each(|i| i.path.clone_from(&path)));
        (inputs, leaves)
    }

    /// The same without paths, for whoever knows the structure of the tree.
    pub(crate) fn unnamed<P: Tree>(tree: &P) -> (Vec<Input>, Vec<Array>) {
        let leaves = tree.leaves();
        let input = |a: &Array| {
            let shape = a.shape().iter().map(|&d| Dim::Fixed(d)).collect();
            Input { path: String::new(), shape, dtype: a.dtype() }
        };
        (leaves.iter().map(input).collect(), leaves)
    }

    /// Its shape for these sizes; `None` for a size that is not among them.
    pub(crate) fn at(&self, sizes: &[usize]) -> Option<Shape> {
        let size = |d: &Dim| match *d {
            Dim::Fixed(d) => Some(d),
            Dim::Free { size } => sizes.get(size).copied(),
        };
        self.shape.iter().map(size).collect()
    }
}

/// The arguments of a call, as the error messages print them.
pub(crate) fn describe(inputs: &[Input]) -> String {
    let one = |i: &Input| {
        let dim = |d: &Dim| match d {
            Dim::Fixed(d) => d.to_string(),
            Dim::Free { size } => format!("n{size}"),
        };
        let dims: Vec<String> = i.shape.iter().map(dim).collect();
        let comma = if dims.len() == 1 { "," } else { "" };
        format!("{}: {} ({}{comma})", i.path, i.dtype, dims.join(","))
    };
    format!("({})", inputs.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// What a function does for some arguments.
#[derive(Clone)]
pub(crate) struct Trace {
    pub(crate) inputs: Vec<Input>,
    /// The sizes that may vary, as they were in the example.
    pub(crate) sizes: Vec<usize>,
    /// Its inputs are those of the trace, then the arrays that the function captured.
    pub(crate) program: Program,
}

impl Trace {
    /// The sizes that may vary, of these arguments; `None` when the trace is not for them.
    pub(crate) fn takes(&self, given: &[Input]) -> Option<Vec<usize>> {
        let mut sizes: Vec<Option<usize>> = vec![None; self.sizes.len()];
        let mut fits = |want: Dim, have: Dim| match (want, have) {
            (Dim::Free { size }, Dim::Fixed(d)) => sizes.get_mut(size).is_some_and(|s| *s.get_or_insert(d) == d),
            (want, have) => want == have,
        };
        let same = |(w, g): (&Input, &Input)| {
            let like = w.path == g.path && w.dtype == g.dtype && w.shape.len() == g.shape.len();
            like && w.shape.iter().zip(&g.shape).all(|(&w, &h)| fits(w, h))
        };
        let all = self.inputs.len() == given.len() && self.inputs.iter().zip(given).all(same);
        if all { sizes.into_iter().collect() } else { None }
    }

    /// The outputs for arguments of these sizes and the captured arrays.
    pub(crate) fn run(&self, values: &[Array], sizes: &[usize]) -> Result<Vec<Array>> {
        if self.sizes.is_empty() {
            return Ok(self.program.run(values));
        }
        self.program.replay(values, |step, taken| {
            let op = step.form.as_ref().map_or_else(|| Ok(step.op.clone()), |form| filled(form, sizes))?;
            Array::apply(op, taken.iter().cloned().collect())
        })
    }
}

/// A trace, the arrays it captured and the tree of its outputs.
pub(crate) struct Traced<T> {
    pub(crate) trace: Trace,
    pub(crate) captured: Vec<Array>,
    pub(crate) outputs: T,
}

/// Everything that led to the outputs, for arguments of these sizes.
struct Spelled<T> {
    tape: Tape,
    program: Program,
    captured: Vec<Array>,
    outputs: T,
}

fn spelled<P: Tree, F: Outcome>(
    name: &'static str,
    f: &dyn Fn(&P) -> F,
    example: &P,
    inputs: &[Input],
    sizes: &[usize],
) -> Result<Spelled<F::Tree>> {
    let placeholder = |i: &Input| {
        let shape = i.at(sizes).ok_or_else(|| Error::value(format!("[{name}] a size is missing")))?;
        Placeholder::array(name, &shape, i.dtype)
    };
    let traced = random::Traced::start();
    let inner: Vec<Array> = inputs.iter().map(placeholder).collect::<Result<_>>()?;
    let outputs = f(&example.with_leaves(inner.clone())).outcome()?;
    drop(traced);
    let leaves = outputs.leaves();
    let tape = Tape::whole(&leaves, &inner);
    let (mut program, captured) = Program::of(&tape, &leaves, &inner);
    program.pass_checkpoints();
    Ok(Spelled { tape, program, captured, outputs })
}

impl Trace {
    /// Traces `f` for arguments of the sizes of `example`.
    pub(crate) fn exact<P: Tree, F: Outcome>(
        name: &'static str,
        f: &dyn Fn(&P) -> F,
        example: &P,
    ) -> Result<Traced<F::Tree>> {
        let (inputs, _) = Input::of(example);
        let Spelled { tape, program, captured, outputs } = spelled(name, f, example, &inputs, &[])?;
        let (program, captured) = program.folded(&tape, &captured, inputs.len());
        Ok(Traced { trace: Trace { inputs, sizes: Vec::new(), program }, captured, outputs })
    }

    /// Traces `f` for arguments like `example`, of whatever size it can vary in.
    pub(crate) fn of_any_size<P: Tree, F: Outcome>(
        name: &'static str,
        f: &dyn Fn(&P) -> F,
        example: &P,
    ) -> Result<Traced<F::Tree>> {
        let (given, _) = Input::of(example);
        let mut all: Vec<usize> = Vec::new();
        for d in given.iter().flat_map(|i| &i.shape) {
            // An axis of size 1 is repeated where it meets another: it is not like others.
            if let Dim::Fixed(d) = *d
                && d > 1
                && !all.contains(&d)
            {
                all.push(d);
            }
        }
        let with = |free: &[usize]| -> Vec<Input> {
            let vary = |d: &Dim| match *d {
                Dim::Fixed(d) => free.iter().position(|&f| f == d).map_or(Dim::Fixed(d), |size| Dim::Free { size }),
                other => other,
            };
            given.iter().map(|i| Input { shape: i.shape.iter().map(vary).collect(), ..i.clone() }).collect()
        };
        let here = spelled(name, f, example, &given, &[])?;
        let varies = |&d: &usize| attempt(|| spelled(name, f, example, &with(&[d]), &[UNIT * OTHERS[0]])).is_ok();
        let sizes: Vec<usize> = all.into_iter().filter(varies).take(OTHERS.len() / 2).collect();
        if sizes.is_empty() {
            return Trace::exact(name, f, example);
        }
        let inputs = with(&sizes);
        let refused = |what: &str| Error::value(format!("[{name}] the function cannot be traced for any size: {what}"));
        let others = [0, 1]
            .map(|k| -> Vec<usize> { OTHERS.iter().map(|p| UNIT * p).skip(k).step_by(2).take(sizes.len()).collect() });
        let [a, b] = [0, 1].map(|k| attempt(|| spelled(name, f, example, &inputs, &others[k])));
        let together = |e: Error| refused(&format!("sizes that vary one by one do not together: {}", e.message()));
        let (a, b) = (a.map_err(together)?, b.map_err(together)?);
        let Spelled { tape, mut program, captured, outputs } = here;
        for other in [&a, &b] {
            let links = |p: &Program| p.steps.iter().map(|s| s.inputs.clone()).collect::<Vec<_>>();
            if links(&other.program) != links(&program) || other.program.outputs != program.outputs {
                return Err(refused(
                    "what it does depends on them, is drawn without a key, or the example's are special ones",
                ));
            }
            if !same_arrays(&other.captured, &captured)? {
                return Err(refused("an array that it makes depends on them, or is drawn without a key"));
            }
        }
        for (s, step) in program.steps.iter_mut().enumerate() {
            let (first, second) = (&a.program.steps[s].op, &b.program.steps[s].op);
            if (first == second && *first == step.op) || step.op.is_checkpoint() {
                continue;
            }
            if matches!(step.op, Op::Custom(_)) {
                return Err(refused("a custom_function with rules holds what it computed for one shape"));
            }
            let form = explained([first, second], [&others[0], &others[1]]);
            let form = form.filter(|form| filled(form, &sizes).is_ok_and(|op| op == step.op));
            step.form = Some(form.ok_or_else(|| {
                refused(&format!(
                    "{} has a number that follows from the sizes in a way lapis does not see",
                    step.op.name()
                ))
            })?);
        }
        let (program, captured) = program.folded(&tape, &captured, inputs.len());
        Ok(Traced { trace: Trace { inputs, sizes, program }, captured, outputs })
    }
}

/// Sizes to try are multiples of this, so that halves and thirds of them are sizes as well;
pub(super) const UNIT: usize = 24;
/// and of these primes, which tell a product's factors: by turns for one trace and the other.
pub(super) const OTHERS: [usize; 24] =
    [11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107];

/// Whether the arrays are the same, or hold the same bytes.
fn same_arrays(a: &[Array], b: &[Array]) -> Result<bool> {
    let same = |(a, b): (&Array, &Array)| -> Result<bool> {
        let like = || a.is_evaluated() && b.is_evaluated() && a.shape() == b.shape() && a.dtype() == b.dtype();
        Ok(a.is_same(b) || (like() && a.to_bytes()? == b.to_bytes()?))
    };
    if a.len() != b.len() {
        return Ok(false);
    }
    a.iter().zip(b).map(same).try_fold(true, |all, one| Ok(all && one?))
}

thread_local! {
    static TRYING: Cell<bool> = const { Cell::new(false) };
}

/// What `f` gives, a panic being an error: operators that find shapes that do not fit panic, silently in here.
fn attempt<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = TRYING.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    TRYING.set(before);
    outcome.unwrap_or_else(|panic| Err(panic.downcast().map_or_else(|_| Error::value("it panics"), |e| *e)))
}

/// Unwinds without a message where a failure is an answer.
pub(crate) fn unwind_if_trying(error: &Error) {
    if TRYING.get() {
        resume_unwind(Box::new(error.clone()));
    }
}
