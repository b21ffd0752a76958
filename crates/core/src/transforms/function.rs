//! Functions as data: traced, kept with the arrays they captured, called by what their arguments look like. Files are
//! made of [`Listing`]s by those who know files.

use super::program::{From, Program, Step};
use super::sizes::{filled, has_sizes};
use super::trace::Placeholder;
use super::traces::{Input, Trace, Traced, describe};
use super::{Outcome, Tree};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::node::Aval;
use crate::ops::Op;
use crate::shape;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smallvec::SmallVec;
use std::sync::Arc;

/// What errors of tracing begin with.
const NAME: &str = "export_function";

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
    pub fn trace<P: Tree, F: Outcome>(&mut self, f: impl Fn(&P) -> F, example: &P) -> Result<()> {
        self.add(Trace::exact(NAME, &f, example)?)
    }

    /// Adds what `f` does for arguments like `example` in whatever sizes it can vary; see
    /// [`compile_shapeless`](super::compile_shapeless()).
    ///
    /// # Errors
    /// As [`Function::trace`]; a function that does with other sizes what no expression of them says.
    pub fn trace_shapeless<P: Tree, F: Outcome>(&mut self, f: impl Fn(&P) -> F, example: &P) -> Result<()> {
        self.add(Trace::of_any_size(NAME, &f, example)?)
    }

    /// The outputs of the trace for arguments like these, as a list in the order of the tree that was returned.
    ///
    /// # Errors
    /// A value error that lists the traces when none fits. Of a trace for any size: shapes that do not fit together.
    pub fn call<P: Tree>(&self, primals: &P) -> Result<Vec<Array>> {
        let (inputs, mut values) = Input::of(primals);
        let found = self.traces.iter().find_map(|t| Some((t, t.takes(&inputs)?)));
        let Some((trace, sizes)) = found else {
            let known: Vec<String> = self.traces.iter().map(|t| describe(&t.inputs)).collect();
            let (given, known) = (describe(&inputs), known.join("\n  "));
            return Err(Error::value(format!("[call] no trace takes {given}; the function has\n  {known}")));
        };
        values.extend(self.constants.iter().cloned());
        trace.run(&values, &sizes)
    }

    /// The arrays that the traces captured, evaluated.
    pub fn constants(&self) -> &[Array] {
        &self.constants
    }

    fn add<T>(&mut self, traced: Traced<T>) -> Result<()> {
        let Traced { trace: Trace { inputs, sizes, program }, captured, .. } = traced;
        if self.traces.iter().any(|t| t.inputs == inputs) {
            let given = describe(&inputs);
            return Err(Error::value(format!("[{NAME}] the arguments {given} were traced already")));
        }
        crate::eval(&captured)?;
        let mut constants = self.constants.clone();
        let place = |a: &Array| (a.node.id, a.index);
        let mut places: FxHashMap<_, usize> = constants.iter().enumerate().map(|(i, a)| (place(a), i)).collect();
        let at = captured.into_iter().map(|a| {
            let at = *places.entry(place(&a)).or_insert(constants.len());
            if at == constants.len() {
                constants.push(a);
            }
            at
        });
        let program = portable(&program.simplified(), inputs.len(), &at.collect::<Vec<_>>())?;
        self.constants = constants;
        self.traces.push(Trace { inputs, sizes, program });
        Ok(())
    }
}

/// The program with its captured arrays at these places among the constants, and nothing in it that is code.
fn portable(program: &Program, arguments: usize, constants: &[usize]) -> Result<Program> {
    let mut out = Program::default();
    let mut became: Vec<SmallVec<[From; 1]>> = Vec::with_capacity(program.steps.len());
    let now = |became: &[SmallVec<[From; 1]>], from: From| match from {
        From::Step(s, i) => became[s as usize][i as usize],
        From::Input(i) if (i as usize) < arguments => from,
        From::Input(i) => From::Input((arguments + constants[i as usize - arguments]) as u32),
    };
    for step in &program.steps {
        let inputs: SmallVec<[From; 3]> = step.inputs.iter().map(|&f| now(&became, f)).collect();
        let count = step.outs.len();
        became.push(match &step.op {
            Op::Custom(_) if !step.op.is_checkpoint() => {
                let text = "a custom_function has rules that are code; a file cannot hold them";
                return Err(Error::unsupported(format!("[{NAME}] {text}")));
            }
            // Its outputs again: what is computed anew for a gradient is a matter of memory, not of values.
            Op::Custom(_) => inputs[inputs.len() - count..].into(),
            _ => {
                let at = out.steps.len() as u32;
                out.steps.push(Step { stream: None, inputs, ..step.clone() });
                (0..count as u32).map(|i| From::Step(at, i)).collect()
            }
        });
    }
    out.outputs = program.outputs.iter().map(|&f| now(&became, f)).collect();
    Ok(out)
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
    /// The sizes that may vary, as they were in the example.
    sizes: Vec<usize>,
    steps: Vec<ListedStep>,
    /// Numbers of values.
    outputs: Vec<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedStep {
    /// An [`Op`], in which expressions of the sizes may stand.
    op: Value,
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
            let op = |s: &Step| match &s.form {
                Some(form) => serde_json::from_str(form),
                None => serde_json::to_value(&s.op),
            };
            // Ops that are no data were refused when they were traced.
            let step =
                |s: &Step| ListedStep { op: op(s).unwrap_or_default(), inputs: s.inputs.iter().map(number).collect() };
            ListedTrace {
                inputs: trace.inputs.clone(),
                sizes: trace.sizes.clone(),
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
            if function.traces.iter().any(|t| t.inputs == listed.inputs) {
                return Err(fail(format!("trace {t} takes the arguments of an earlier one")));
            }
            let program = function.checked(&listed).map_err(|e| fail(format!("trace {t}, {}", e.message())))?;
            function.traces.push(Trace { inputs: listed.inputs, sizes: listed.sizes, program });
        }
        Ok(function)
    }

    fn checked(&self, listed: &ListedTrace) -> Result<Program> {
        let arguments = listed.inputs.len();
        let mut values: Vec<(From, Array)> = Vec::new();
        for (i, a) in self.constants.iter().enumerate() {
            values.push((From::Input((arguments + i) as u32), a.clone()));
        }
        for (i, input) in listed.inputs.iter().enumerate() {
            let shape = input.at(&listed.sizes);
            let shape = shape.ok_or_else(|| Error::value(format!("input {i}: a size that is not there")))?;
            shape::elements(&format!("input {i}"), &shape)?;
            let a = Placeholder::array("import_function", &shape, input.dtype)?;
            values.push((From::Input(i as u32), a));
        }
        let get = |values: &[(From, Array)], number: usize| {
            let known = values.get(number).cloned();
            known.ok_or_else(|| Error::value(format!("value {number} of {} before it", values.len())))
        };
        let mut program = Program::default();
        for (s, ListedStep { op: listed_op, inputs }) in listed.steps.iter().enumerate() {
            let form: Option<Arc<str>> = has_sizes(listed_op).then(|| listed_op.to_string().into());
            let op = match &form {
                Some(form) => filled(form, &listed.sizes),
                None => Op::deserialize(listed_op).map_err(|e| Error::value(e.to_string())),
            };
            let op = op.map_err(|e| Error::value(format!("step {s}: {}", e.message())))?;
            let at = |e: Error| Error::value(format!("step {s} ({}): {}", op.name(), e.message()));
            let taken = inputs.iter().map(|&n| get(&values, n)).collect::<Result<Vec<_>>>().map_err(at)?;
            let (from, arrays): (SmallVec<[From; 3]>, _) = taken.into_iter().unzip();
            let made = Array::apply(op.clone(), arrays).map_err(at)?;
            let outs = made[0].node.outs.clone();
            for (i, a) in made.into_iter().enumerate() {
                shape::elements(op.name(), a.shape()).map_err(at)?;
                values.push((From::Step(s as u32, i as u32), a));
            }
            program.steps.push(Step { op: op.clone(), stream: None, outs, inputs: from, form });
        }
        let outputs = listed.outputs.iter().map(|&n| get(&values, n).map(|(from, _)| from));
        program.outputs =
            outputs.collect::<Result<_>>().map_err(|e| Error::value(format!("outputs: {}", e.message())))?;
        Ok(program)
    }
}
