//! One case as a call: operands as arrays in the layout the case asks for, attributes by type, the check of the answer.

use lapis::buffer::{Buffer, Tensor};
use lapis::ops::Operand;
use lapis::ops::operand::Arg;
use lapis::scalar::Scalar;
use lapis::shape::Axes;
use lapis::{Array, Dtype, Error, ErrorKind, Result};
use lapis_testdata::{Attrs, Case, Expect, Input, Values, View, compare};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What an operation answers.
pub(crate) type Outcome = Result<Vec<Array>>;

/// An operand.
#[derive(Clone)]
pub(crate) enum In {
    Absent,
    Scalar(Scalar),
    Array(Array),
}

impl Operand for In {
    fn arg(&self) -> Arg<'_> {
        match self {
            In::Array(a) => Arg::Array(a),
            In::Scalar(s) => Arg::Scalar(*s),
            In::Absent => panic!("the case lacks an operand"),
        }
    }
}

/// An operation with its operands and attributes.
pub(crate) struct Call<'a> {
    pub(crate) op: &'a str,
    pub(crate) inputs: Vec<In>,
    pub(crate) attrs: &'a Attrs,
}

/// The variable that says how many bytes operands lie behind a whole word.
pub(crate) const SHIFT: &str = "LAPIS_TEST_SHIFT";

fn shift() -> usize {
    std::env::var(SHIFT).map_or(0, |n| n.parse().unwrap())
}

/// Memory of whole words, so that every dtype is aligned, unless all is shifted.
fn buffer(bytes: &[u8]) -> Buffer {
    let bytes = &[&vec![0; shift()], bytes].concat()[..];
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(eight);
    }
    let array = Array::from_vec(words, &[bytes.len().div_ceil(8)]);
    array.tensor().unwrap().buffer.clone()
}

/// The view of a case as an array on its own strides.
pub(crate) fn array(dtype: Dtype, view: &View) -> Array {
    Array::from_tensor(Tensor {
        buffer: buffer(&view.bytes),
        offset: shift() + view.offset * dtype.size(),
        shape: view.shape.as_slice().into(),
        strides: view.strides.as_slice().into(),
        dtype,
    })
    .unwrap()
}

fn input(input: &Input) -> In {
    match input {
        Input::Absent => In::Absent,
        Input::Scalar(s) => In::Scalar(*s),
        Input::Array(values, _) => In::Array(array(values.dtype, &input.view().unwrap())),
    }
}

impl Call<'_> {
    /// The array operand `i`; a host number becomes an array of its own dtype.
    pub(crate) fn array(&self, i: usize) -> Array {
        self.maybe(i).unwrap_or_else(|| panic!("operand {i} is absent"))
    }

    /// The array operand `i`, if it is given.
    pub(crate) fn maybe(&self, i: usize) -> Option<Array> {
        match self.inputs.get(i)? {
            In::Absent => None,
            In::Array(a) => Some(a.clone()),
            In::Scalar(s) => Some(lapis::ops::full(&[], *s, None).unwrap()),
        }
    }

    /// Operand `i`: array or host number.
    pub(crate) fn operand(&self, i: usize) -> In {
        self.inputs.get(i).cloned().unwrap_or(In::Absent)
    }

    /// Whether operand `i` is given.
    pub(crate) fn has(&self, i: usize) -> bool {
        !matches!(self.inputs.get(i), None | Some(In::Absent))
    }

    /// All operands as arrays.
    pub(crate) fn arrays(&self) -> Vec<Array> {
        (0..self.inputs.len()).map(|i| self.array(i)).collect()
    }

    /// An integer attribute that the API takes as `i32`.
    pub(crate) fn axis(&self, name: &str, default: i32) -> i32 {
        self.attrs.int(name).map_or(default, narrow)
    }

    /// An optional axis: `absent` when the attribute is not given at all, none when it is null.
    pub(crate) fn axis_or_none(&self, absent: Option<i32>) -> Option<i32> {
        if self.attrs.get("axis").is_none() { absent } else { self.attrs.int("axis").map(narrow) }
    }

    /// One axis, a list, or all.
    pub(crate) fn axes(&self, name: &str) -> Axes {
        self.axis_list(name).map_or(Axes::All, Axes::from)
    }

    /// A list of axes.
    pub(crate) fn axis_list(&self, name: &str) -> Option<Vec<i32>> {
        Some(self.attrs.ints(name)?.into_iter().map(narrow).collect())
    }

    /// Sizes; negative ones cannot be said in Rust, the binding of a language that can refuses them so.
    pub(crate) fn sizes(&self, name: &str) -> Result<Vec<usize>> {
        self.attrs.ints(name).unwrap_or_default().into_iter().map(|d| size(name, d, Error::shape)).collect()
    }

    /// A count.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>> {
        self.attrs.int(name).map(|n| size(name, n, Error::value)).transpose()
    }

    /// A number as a host number: integers stay integers.
    pub(crate) fn scalar(&self, name: &str) -> Option<Scalar> {
        if self.attrs.is_int(name) {
            self.attrs.int(name).map(Scalar::from)
        } else {
            self.attrs.float(name).map(Scalar::from)
        }
    }
}

pub(crate) fn narrow(v: i64) -> i32 {
    i32::try_from(v).unwrap()
}

fn size(name: &str, v: i64, error: impl Fn(String) -> Error) -> Result<usize> {
    usize::try_from(v).map_err(|_| error(format!("{name} {v} is negative")))
}

/// Sizes or positions of the host as an array: int64, one axis.
pub(crate) fn positions(numbers: &[usize]) -> Array {
    Array::from_vec(numbers.iter().map(|&n| n as i64).collect::<Vec<_>>(), &[numbers.len()])
}

/// An outcome of one array.
pub(crate) fn one(a: Result<Array>) -> Option<Outcome> {
    Some(a.map(|a| vec![a]))
}

/// Shapes, dtypes and layouts of the operands, and the attributes.
pub(crate) fn describe(case: &Case) -> String {
    let operand = |i: &Input| match i {
        Input::Absent => "none".to_string(),
        Input::Scalar(s) => format!("{s:?}"),
        Input::Array(v, layout) => {
            format!("{}{:?}{}", v.dtype, v.shape, layout.map(|l| format!(" {l:?}")).unwrap_or_default())
        }
    };
    let attrs: Vec<_> = case.attrs.names().map(|n| format!("{n}={}", case.attrs.get(n).unwrap())).collect();
    format!("({}; {})", case.inputs.iter().map(operand).collect::<Vec<_>>().join(", "), attrs.join(", "))
}

fn answer(arrays: &[Array]) -> Result<Vec<Values>> {
    let read = |a: &Array| Ok(Values { dtype: a.dtype(), shape: a.shape().to_vec(), bytes: a.to_bytes()? });
    arrays.iter().map(read).collect()
}

/// Panics of the library are reported with their case; only those of the tests themselves are printed.
fn silence() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|l| l.file().contains("tests/conformance/")) {
                print(info);
            }
        }));
    });
}

/// Runs a case. None: no runner names the operation, or no backend has it. Errors say what is wrong with the answer.
pub(crate) fn check(case: &Case, run: impl Fn(&Call) -> Option<Outcome>) -> Option<std::result::Result<(), String>> {
    silence();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let call = Call { op: &case.op, inputs: case.inputs.iter().map(input).collect(), attrs: &case.attrs };
        run(&call).map(|out| out.and_then(|arrays| answer(&arrays)))
    }));
    let outcome = match outcome {
        Ok(outcome) => outcome?,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            return Some(Err(format!("panicked: {}", text.unwrap_or_default())));
        }
    };
    if matches!(&outcome, Err(e) if e.kind() == ErrorKind::Unsupported) {
        return None;
    }
    Some(judge(case, outcome))
}

fn judge(case: &Case, outcome: Result<Vec<Values>>) -> std::result::Result<(), String> {
    match (&case.expect, outcome) {
        (Expect::Error(kind), Err(e)) if e.kind() == *kind => Ok(()),
        (Expect::Error(kind), Err(e)) => Err(format!("a {kind:?} error expected, got {:?}: {e}", e.kind())),
        (Expect::Error(kind), Ok(_)) => Err(format!("a {kind:?} error expected, but it is accepted")),
        (Expect::Outputs(_), Err(e)) => Err(format!("refused: {:?}: {e}", e.kind())),
        (Expect::Outputs(want), Ok(got)) => {
            if want.len() != got.len() {
                return Err(format!("{} outputs expected, got {}", want.len(), got.len()));
            }
            let tolerance = &case.tolerance;
            for (i, (w, g)) in want.iter().zip(&got).enumerate() {
                compare(w, g, tolerance).map_err(|why| format!("output {i}: {why}"))?;
            }
            Ok(())
        }
    }
}
