//! Functions as data: traced, kept with the arrays they captured, called by what their arguments look like. Files are
//! made of [`Listing`]s by those who know files.

use super::program::{From, Program, Step};
use super::trace::Placeholder;
use super::{Outcome, Tree};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::Aval;
use crate::ops::Op;
use crate::shape::{self, Shape, show};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// An argument of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Where it stands in the tree of the arguments.
    path: String,
    shape: Shape,
    dtype: Dtype,
}

/// The arguments of a call, as the error messages print them.
fn describe(inputs: &[Input]) -> String {
    let one = |i: &Input| format!("{}: {} {}", i.path, i.dtype, show(&i.shape));
    format!("({})", inputs.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[derive(Clone)]
struct Trace {
    inputs: Vec<Input>,
    /// Its inputs are those of the trace, then the constants of the function.
    program: Program,
}

/// A function as data: traces of closures, one for each kind of arguments, and the arrays that they captured.
///
/// ```
/// use lapis_core::{array, transforms::Function, Array};
/// # fn main() -> lapis_core::Result<()> {
/// let mut f = Function::new();
/// f.trace(|x: &Array| x + 1, &array([1, 2]))?;
/// f.trace(|(x, y): &(Array, Array)| x + y, &(array([1, 2]), array([1, 2])))?;
/// assert_eq!(f.call(&array([5, 6]))?[0].shape(), [2]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Function {
    /// Text for whoever reads the file; lapis does not look at it.
    pub metadata: String,
    constants: Vec<Array>,
    traces: Vec<Trace>,
}

impl Function {
    /// A function without traces.
    pub fn new() -> Function {
        Function::default()
    }

    /// Adds what `f` does for arguments like `example`: of its structure, shapes and dtypes.
    ///
    /// Inside `f` arrays have no values: eval, item and to_vec are errors there. Captured arrays, and random numbers
    /// drawn without a key, are evaluated and become constants. Streams are not kept: calls run on the caller's.
    ///
    /// # Errors
    /// What `f` returns; arguments that were traced already; a function with rules of the user's own
    /// ([`custom_function`](super::custom_function())), which are code and no data.
    pub fn trace<P: Tree, F: Outcome>(&mut self, f: impl FnOnce(&P) -> F, example: &P) -> Result<()> {
        let (inputs, leaves) = arguments(example);
        if self.find(&inputs).is_some() {
            let given = describe(&inputs);
            return Err(Error::value(format!("[export_function] the arguments {given} were traced already")));
        }
        let inner = leaves.iter().map(|a| Placeholder::array("export_function", a.shape(), a.dtype()));
        let inner: Vec<Array> = inner.collect::<Result<_>>()?;
        let outputs = f(&example.with_leaves(inner.clone())).outcome()?.leaves();
        let (program, captured) = Program::new(&outputs, &inner);
        let program = self.closed(&program, &captured, inner.len())?.simplified();
        self.traces.push(Trace { inputs, program });
        Ok(())
    }

    /// The outputs of the trace for arguments like these, as a list in the order of the tree that was returned.
    ///
    /// # Errors
    /// A value error that lists the traces when none fits.
    pub fn call<P: Tree>(&self, primals: &P) -> Result<Vec<Array>> {
        let (inputs, mut values) = arguments(primals);
        let Some(trace) = self.find(&inputs) else {
            let known: Vec<String> = self.traces.iter().map(|t| describe(&t.inputs)).collect();
            let (given, known) = (describe(&inputs), known.join("\n  "));
            return Err(Error::value(format!("[call] no trace takes {given}; the function has\n  {known}")));
        };
        values.extend(self.constants.iter().cloned());
        Ok(trace.program.run(&values))
    }

    /// The arrays that the traces captured, evaluated.
    pub fn constants(&self) -> &[Array] {
        &self.constants
    }

    fn find(&self, inputs: &[Input]) -> Option<&Trace> {
        self.traces.iter().find(|t| t.inputs == inputs)
    }

    /// The program with its captured arrays said as steps, where that is shorter than their values, or as constants.
    fn closed(&mut self, program: &Program, captured: &[Array], arguments: usize) -> Result<Program> {
        let mut constants = self.constants.clone();
        let place = |a: &Array| (a.node.id, a.index);
        let mut places: FxHashMap<(u64, u32), usize> =
            constants.iter().enumerate().map(|(i, a)| (place(a), i)).collect();
        let mut out = Program::default();
        let mut push = |op: &Op, outs, inputs| {
            out.steps.push(Step { op: op.clone(), stream: None, outs, inputs });
            out.steps.len() as u32 - 1
        };
        let mut said = Vec::with_capacity(captured.len());
        for a in captured {
            let (mut base, mut views) = (a.clone(), Vec::new());
            while let (Op::Broadcast(_) | Op::Transpose(_), Some(inputs)) = (&base.node.op, base.node.inputs()) {
                views.push(base.node.clone());
                base = inputs[0].clone();
            }
            let mut from = match &base.node.op {
                op @ (Op::Full(_) | Op::Arange(_)) => From::Step(push(op, base.node.outs.clone(), smallvec![]), 0),
                _ => {
                    let at = *places.entry(place(&base)).or_insert(constants.len());
                    if at == constants.len() {
                        constants.push(base);
                    }
                    From::Input((arguments + at) as u32)
                }
            };
            for view in views.iter().rev() {
                from = From::Step(push(&view.op, view.outs.clone(), smallvec![from]), 0);
            }
            said.push(from);
        }
        let mut became: Vec<SmallVec<[From; 1]>> = Vec::with_capacity(program.steps.len());
        let now = |became: &[SmallVec<[From; 1]>], from: From| match from {
            From::Step(s, i) => became[s as usize][i as usize],
            From::Input(i) if (i as usize) < arguments => from,
            From::Input(i) => said[i as usize - arguments],
        };
        for step in &program.steps {
            let inputs: SmallVec<[From; 3]> = step.inputs.iter().map(|&f| now(&became, f)).collect();
            let count = step.outs.len();
            became.push(match &step.op {
                Op::Custom(custom) if custom.has_rules() => {
                    return Err(Error::unsupported(
                        "[export_function] a custom_function has rules that are code; a file cannot hold them",
                    ));
                }
                // Its outputs again: what is computed anew for a gradient is a matter of memory, not of values.
                Op::Custom(_) => inputs[inputs.len() - count..].into(),
                op => {
                    let at = push(op, step.outs.clone(), inputs);
                    (0..count as u32).map(|i| From::Step(at, i)).collect()
                }
            });
        }
        out.outputs = program.outputs.iter().map(|&f| now(&became, f)).collect();
        crate::eval(&constants)?;
        self.constants = constants;
        Ok(out)
    }
}

/// What a tree of arguments looks like, and its arrays.
fn arguments<P: Tree>(tree: &P) -> (Vec<Input>, Vec<Array>) {
    let leaves = tree.leaves();
    let mut paths = Vec::with_capacity(leaves.len());
    tree.paths("", &mut |path| paths.push(path));
    let input = |(path, a): (String, &Array)| Input { path, shape: a.shape().into(), dtype: a.dtype() };
    (paths.into_iter().zip(&leaves).map(input).collect(), leaves)
}

// ------------------------------------------------------------------ as a listing

/// A [`Function`] without the values of its constants: what a file says about it.
///
/// In each trace values are numbered: the constants, then the inputs, then the outputs of the steps, one after the
/// other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    metadata: String,
    constants: Vec<Aval>,
    traces: Vec<ListedTrace>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedTrace {
    inputs: Vec<Input>,
    steps: Vec<ListedStep>,
    /// Numbers of values.
    outputs: Vec<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedStep {
    op: Op,
    /// Numbers of values.
    inputs: Vec<usize>,
}

impl Function {
    /// The function as a listing of its traces; the values of the constants are to be stored beside it.
    pub fn listing(&self) -> Listing {
        let constants = self.constants.len();
        let listed = |trace: &Trace| {
            let arguments = trace.inputs.len();
            let mut first = Vec::with_capacity(trace.program.steps.len());
            let mut next = constants + arguments;
            for step in &trace.program.steps {
                first.push(next);
                next += step.outs.len();
            }
            let number = |from: &From| match *from {
                From::Input(i) if (i as usize) < arguments => constants + i as usize,
                From::Input(i) => i as usize - arguments,
                From::Step(s, i) => first[s as usize] + i as usize,
            };
            let step = |s: &Step| ListedStep { op: s.op.clone(), inputs: s.inputs.iter().map(number).collect() };
            ListedTrace {
                inputs: trace.inputs.clone(),
                steps: trace.program.steps.iter().map(step).collect(),
                outputs: trace.program.outputs.iter().map(number).collect(),
            }
        };
        Listing {
            metadata: self.metadata.clone(),
            constants: self.constants.iter().map(|a| Aval::new(a.shape(), a.dtype())).collect(),
            traces: self.traces.iter().map(listed).collect(),
        }
    }

    /// The function of a listing. It may come from anyone: every trace is run on arrays without values, so that each op
    /// is checked as if it were built now.
    ///
    /// # Errors
    /// What does not fit, naming trace and step.
    pub fn from_listing(listing: Listing, constants: Vec<Array>) -> Result<Function> {
        let fail = |what: String| Error::value(format!("[import_function] {what}"));
        let given = constants.iter().map(|a| Aval::new(a.shape(), a.dtype()));
        if !given.eq(listing.constants.iter().cloned()) {
            return Err(fail("the constants have other shapes or dtypes than the listing says".into()));
        }
        let mut function = Function { metadata: listing.metadata, constants, traces: Vec::new() };
        for (t, listed) in listing.traces.into_iter().enumerate() {
            if function.find(&listed.inputs).is_some() {
                return Err(fail(format!("trace {t} takes the arguments of an earlier one")));
            }
            let program = function.checked(&listed).map_err(|e| fail(format!("trace {t}, {}", e.message())))?;
            function.traces.push(Trace { inputs: listed.inputs, program });
        }
        Ok(function)
    }

    fn checked(&self, listed: &ListedTrace) -> Result<Program> {
        let (constants, arguments) = (self.constants.len(), listed.inputs.len());
        let mut values: Vec<(From, Array)> = Vec::new();
        for (i, a) in self.constants.iter().enumerate() {
            values.push((From::Input((arguments + i) as u32), a.clone()));
        }
        for (i, input) in listed.inputs.iter().enumerate() {
            shape::elements(&format!("input {i}"), &input.shape)?;
            let a = Placeholder::array("import_function", &input.shape, input.dtype)?;
            values.push((From::Input(i as u32), a));
        }
        let get = |values: &[(From, Array)], number: usize| {
            let known = values.get(number).cloned();
            known.ok_or_else(|| Error::value(format!("value {number} of {} before it", values.len())))
        };
        let mut program = Program::default();
        for (s, ListedStep { op, inputs }) in listed.steps.iter().enumerate() {
            let at = |e: Error| Error::value(format!("step {s} ({}): {}", op.name(), e.message()));
            let taken = inputs.iter().map(|&n| get(&values, n)).collect::<Result<Vec<_>>>().map_err(at)?;
            let (from, arrays): (SmallVec<[From; 3]>, _) = taken.into_iter().unzip();
            let made = Array::apply(op.clone(), arrays).map_err(at)?;
            let outs = made[0].node.outs.clone();
            for (i, a) in made.into_iter().enumerate() {
                shape::elements(op.name(), a.shape()).map_err(at)?;
                values.push((From::Step(s as u32, i as u32), a));
            }
            program.steps.push(Step { op: op.clone(), stream: None, outs, inputs: from });
        }
        debug_assert!(constants + arguments <= values.len());
        let outputs = listed.outputs.iter().map(|&n| get(&values, n).map(|(from, _)| from));
        program.outputs =
            outputs.collect::<Result<_>>().map_err(|e| Error::value(format!("outputs: {}", e.message())))?;
        Ok(program)
    }
}
