//! The case files.

use crate::attrs::{Attrs, number};
use crate::compare::Tolerance;
use crate::values::{Values, bytes_of, generate};
use crate::view::{Layout, View};
use lapis_core::dtype::{Dtype, c64};
use lapis_core::error::ErrorKind;
use lapis_core::scalar::Scalar;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One operand of a case.
#[derive(Clone, Debug)]
pub enum Input {
    /// An optional array that is not given.
    Absent,
    /// A host number.
    Scalar(Scalar),
    /// An array, and how it lies in memory.
    Array(Values, Option<Layout>),
}

impl Input {
    /// The view to build, for an array.
    pub fn view(&self) -> Option<View> {
        if let Input::Array(values, layout) = self { Some(View::new(values, *layout)) } else { None }
    }
}

/// The expected value of an output; large ones hold every `step`-th element only.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The stored elements.
    pub bytes: Vec<u8>,
    /// Flat row-major distance between stored elements.
    pub step: usize,
    /// What the definition leaves open.
    pub free: Option<Freedom>,
}

/// What a definition leaves open: such outputs are compared after the best choice is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freedom {
    /// The sign (phase) of every column of each matrix.
    Columns,
    /// The sign (phase) of every row of each matrix.
    Rows,
    /// The order of the elements along the last axis.
    Order,
    /// The order of the columns of each matrix, and the sign (phase) of every one.
    Vectors,
}

/// What a call must do.
#[derive(Clone, Debug)]
pub enum Expect {
    /// Answer with these arrays.
    Outputs(Vec<Expected>),
    /// Be refused with this kind of error, at the call or when evaluated.
    Error(ErrorKind),
}

/// A call and what it must do.
#[derive(Clone, Debug)]
pub struct Case {
    /// The family (file) the case is from.
    pub family: String,
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// The operation by its MLX name, with its module: `add`, `fast.rope`.
    pub op: String,
    /// Operands in order.
    pub inputs: Vec<Input>,
    /// Keyword arguments.
    pub attrs: Attrs,
    /// The answer.
    pub expect: Expect,
    /// How close it must be.
    pub tolerance: Tolerance,
    /// Where the answer comes from: `mlx`, `numpy` or `spec`.
    pub source: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    op: String,
    inputs: Vec<Value>,
    #[serde(default)]
    attrs: serde_json::Map<String, Value>,
    outputs: Option<Vec<RawArray>>,
    error: Option<String>,
    #[serde(default)]
    tol: Tolerance,
    from: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArray {
    dtype: String,
    shape: Vec<usize>,
    data: Option<Vec<Value>>,
    #[serde(rename = "gen")]
    generator: Option<RawGenerator>,
    layout: Option<Layout>,
    step: Option<usize>,
    free: Option<Freedom>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGenerator {
    kind: String,
    seed: u64,
    lo: f64,
    hi: f64,
}

fn values(raw: &RawArray) -> Result<Values, String> {
    let dtype = Dtype::from_name(&raw.dtype).map_err(|e| e.to_string())?;
    let n: usize = raw.shape.iter().product();
    let bytes = match (&raw.data, &raw.generator) {
        (Some(data), None) => bytes_of(dtype, data)?,
        (None, Some(g)) if g.kind == "lcg" => generate(dtype, n, g.seed, g.lo, g.hi),
        _ => return Err("an array has either data or a generator of kind lcg".into()),
    };
    let stored = n.div_ceil(raw.step.unwrap_or(1));
    if bytes.len() != stored * dtype.size() {
        return Err(format!("{} bytes for {stored} elements of {dtype}", bytes.len()));
    }
    Ok(Values { dtype, shape: raw.shape.clone(), bytes })
}

fn scalar(v: &Value) -> Option<Scalar> {
    Some(match v {
        Value::Bool(b) => Scalar::Bool(*b),
        Value::Object(parts) => {
            Scalar::Complex(c64::new(number(parts.get("re")?)? as f32, number(parts.get("im")?)? as f32))
        }
        Value::Number(n) if n.is_i64() => Scalar::Int(n.as_i64()?.into()),
        Value::Number(n) if n.is_u64() => Scalar::Int(n.as_u64()?.into()),
        _ => Scalar::Float(number(v)?),
    })
}

fn input(v: &Value) -> Result<Input, String> {
    if v.is_null() {
        return Ok(Input::Absent);
    }
    if let Some(s) = v.get("scalar") {
        return Ok(Input::Scalar(scalar(s).ok_or_else(|| format!("{s} is no scalar"))?));
    }
    let raw: RawArray = serde_json::from_value(v.clone()).map_err(|e| e.to_string())?;
    Ok(Input::Array(values(&raw)?, raw.layout))
}

fn kind(name: &str) -> Result<ErrorKind, String> {
    Ok(match name {
        "Shape" => ErrorKind::Shape,
        "Dtype" => ErrorKind::Dtype,
        "Axis" => ErrorKind::Axis,
        "Index" => ErrorKind::Index,
        "Value" => ErrorKind::Value,
        "Overflow" => ErrorKind::Overflow,
        "Eval" => ErrorKind::Eval,
        _ => return Err(format!("unknown kind of error {name}")),
    })
}

fn case(family: &str, line: usize, text: &str) -> Result<Case, String> {
    let raw: RawCase = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let expect = match (&raw.outputs, &raw.error) {
        (Some(outputs), None) => {
            let read = |o: &RawArray| {
                let v = values(o)?;
                let step = o.step.unwrap_or(1);
                Ok(Expected { dtype: v.dtype, shape: v.shape, bytes: v.bytes, step, free: o.free })
            };
            Expect::Outputs(outputs.iter().map(read).collect::<Result<_, String>>()?)
        }
        (None, Some(name)) => Expect::Error(kind(name)?),
        _ => return Err("a case has either outputs or an error".into()),
    };
    Ok(Case {
        family: family.into(),
        line,
        op: raw.op,
        inputs: raw.inputs.iter().map(input).collect::<Result<_, _>>()?,
        attrs: Attrs(raw.attrs),
        expect,
        tolerance: raw.tol,
        source: raw.from,
    })
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"))
}

fn read(name: &str) -> Result<String, String> {
    let path = folder().join(format!("{name}.json"));
    std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
}

/// The names of the families of cases (not of the tables `dtypes` and `printing`), sorted.
///
/// # Errors
/// The folder of the cases cannot be read.
pub fn families() -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder()).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        if let (Some(stem), Some("json")) = (path.file_stem(), path.extension().and_then(|e| e.to_str())) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.retain(|n| !["dtypes", "gradients", "names", "printing"].contains(&n.as_str()));
    names.sort();
    Ok(names)
}

/// The cases of a family, in file order.
///
/// # Errors
/// The file is missing or malformed; the message names family and line.
pub fn load(family: &str) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for (i, text) in read(family)?.lines().enumerate() {
        let text = text.trim_end_matches(',');
        if text.len() > 1 {
            cases.push(case(family, i + 1, text).map_err(|e| format!("{family}.json:{}: {e}", i + 1))?);
        }
    }
    Ok(cases)
}

/// The table of result dtypes as JSON (`README.md`).
///
/// # Errors
/// The file is missing or malformed.
pub fn load_tables() -> Result<Value, String> {
    serde_json::from_str(&read("dtypes")?).map_err(|e| format!("dtypes.json: {e}"))
}

/// The functions of MLX: names by module, those of `mlx.core` under `core`.
///
/// # Errors
/// The file is missing or malformed.
pub fn load_names() -> Result<BTreeMap<String, Vec<String>>, String> {
    serde_json::from_str(&read("names")?).map_err(|e| format!("names.json: {e}"))
}

/// The derivatives of a case with float32 operands, by weights that `README.md` gives.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Derivatives {
    /// The file of the case.
    pub family: String,
    /// Its line there, counted from 1.
    pub line: usize,
    /// Its operation.
    pub op: String,
    /// The gradient by every float32 operand, if the reference has them.
    #[serde(deserialize_with = "numbers")]
    pub vjp: Option<Vec<Vec<f64>>>,
    /// The change of every float32 output, if the reference has them.
    #[serde(deserialize_with = "numbers")]
    pub jvp: Option<Vec<Vec<f64>>>,
}

/// Lists of numbers, of which those that are not finite are texts.
fn numbers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<Vec<f64>>>, D::Error> {
    use serde::{Deserialize, de::Error};
    let lists: Option<Vec<Vec<Value>>> = Option::deserialize(from)?;
    let number = |v: &Value| number(v).ok_or_else(|| D::Error::custom("a number is expected"));
    lists.map(|lists| lists.iter().map(|list| list.iter().map(number).collect()).collect()).transpose()
}

/// The derivatives of cases.
///
/// # Errors
/// The file is missing or malformed.
pub fn load_derivatives() -> Result<Vec<Derivatives>, String> {
    serde_json::from_str(&read("gradients")?).map_err(|e| format!("gradients.json: {e}"))
}

/// An array, the printing precision (`None`: the default) and the text it prints as.
pub type Printed = (Input, Option<usize>, String);

/// The arrays of `printing.json` with their texts.
///
/// # Errors
/// The file is missing or malformed.
pub fn load_printing() -> Result<Vec<Printed>, String> {
    #[derive(serde::Deserialize)]
    struct Raw {
        input: Value,
        precision: Option<usize>,
        text: String,
    }
    let raw: Vec<Raw> = serde_json::from_str(&read("printing")?).map_err(|e| format!("printing.json: {e}"))?;
    raw.into_iter().map(|r| Ok((input(&r.input)?, r.precision, r.text))).collect()
}
