//! Random numbers from counters: the same key gives the same numbers as MLX, bit for bit in float32.
//!
//! A key is `uint32[2]`. Draws without a key split this thread's state. The elementary functions inside are private
//! ones of the generator (`random_*` rows of the table); the public exp, log and erf are more accurate.

use crate::array::Array;
use crate::dtype::{Dtype, bf16, f16};
use crate::error::{Error, Result};
use crate::node::{self, Aval, Avals};
use crate::ops::elementwise::unary;
use crate::ops::{self, Ew, Operand, Rule, astype, expect};
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform, trace};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

// ------------------------------------------------------------------ keys and bits

thread_local! {
    static STATE: RefCell<Option<Array>> = const { RefCell::new(None) };
}

/// The key of a seed: its high and its low half (`mx.random.key`).
pub fn key(seed: u64) -> Array {
    Array::from_vec(vec![(seed >> 32) as u32, seed as u32], &[2])
}

/// Starts this thread's state from a seed (`mx.random.seed`).
pub fn seed(seed: u64) {
    set_state(key(seed));
}

/// This thread's state: the key that the next draw without a key will split.
pub fn state() -> Array {
    STATE.with_borrow_mut(|s| {
        s.get_or_insert_with(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
            key(now)
        })
        .clone()
    })
}

/// Replaces this thread's state by a key.
pub fn set_state(key: Array) {
    STATE.with_borrow_mut(|s| *s = Some(key));
}

/// While it lives a function is traced. When placeholders made since have got into this thread's state, which then has no
/// value outside of the function, it is afterwards as it was before.
pub(crate) struct Traced {
    first: u64,
    before: Option<Array>,
}

impl Traced {
    pub(crate) fn start() -> Traced {
        Traced { first: node::next_id(), before: STATE.with_borrow(Clone::clone) }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let inside = |key: &Array| trace::has_placeholder(key, self.first);
        if STATE.with_borrow(|state| state.as_ref().is_some_and(inside)) {
            STATE.replace(self.before.take());
        }
    }
}

fn check_key(op: &str, key: &Array) -> Result<()> {
    if key.dtype() == Dtype::Uint32 && key.shape() == [2] {
        return Ok(());
    }
    let (d, s) = (key.dtype(), show(key.shape()));
    Err(Error::value(format!("[{op}] a key is uint32 of shape (2,), not {d} of shape {s}")))
}

fn next(op: &str, given: Option<&Array>) -> Result<Array> {
    if let Some(key) = given {
        check_key(op, key)?;
        return Ok(key.clone());
    }
    let [state, sub] = halves(&split(&state(), 2)?)?;
    set_state(state);
    Ok(sub)
}

fn halves(keys: &Array) -> Result<[Array; 2]> {
    let row = |i: i64| ops::reshape(&ops::slice(keys, &[(Some(i), Some(i + 1), 1)])?, &[2]);
    Ok([row(0)?, row(1)?])
}

/// `n` keys of one key, shape (n, 2) (`mx.random.split`).
///
/// # Errors
/// A key of another dtype or shape.
pub fn split(key: &Array, n: usize) -> Result<Array> {
    check_key("split", key)?;
    raw(&[n, 2], Dtype::Uint32, key)
}

/// Words of the generator, `shape` for each key: keys stand along the last axis of the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomBits {
    /// Sizes.
    pub shape: Shape,
    /// uint32 or uint64.
    pub dtype: Dtype,
}

impl Rule for RandomBits {
    fn name(&self) -> &'static str {
        "random_bits"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 1)?;
        let (keys, one) = inputs[0].shape().split_at(inputs[0].ndim().saturating_sub(1));
        expect::fit(self.name(), one == [2], inputs)?;
        expect::dtype(self.name(), &inputs[0], inputs[0].dtype() == Dtype::Uint32)?;
        let counts = shape::elements("random", &self.shape)? <= u32::MAX as usize;
        if !(counts && matches!(self.dtype, Dtype::Uint32 | Dtype::Uint64)) {
            let (n, dtype) = (shape::show(&self.shape), self.dtype);
            return Err(Error::value(format!("[random] words of shape {n} and type {dtype} cannot be drawn")));
        }
        let shape: Shape = keys.iter().chain(&self.shape).copied().collect();
        shape::elements("random", &shape)?;
        Ok(smallvec![Aval::new(shape, self.dtype)])
    }
}

impl Transform for RandomBits {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.none())
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        Ok(vec![Array::apply1(self.clone(), smallvec![lanes[0].array.clone()])?])
    }
}

fn raw(shape: &[usize], dtype: Dtype, key: &Array) -> Result<Array> {
    let n = shape::elements("random", shape)?;
    if n > u32::MAX as usize {
        return Err(Error::overflow(format!("[random] {n} values are more than a key has counters for (2^32)")));
    }
    Array::apply1(RandomBits { shape: shape.into(), dtype }, smallvec![key.clone()])
}

/// Uniform uint32 words (`mx.random.bits` of width 4).
///
/// # Errors
/// A key of another dtype or shape; overflow of the shape.
pub fn bits(shape: &[usize], key: Option<&Array>) -> Result<Array> {
    raw(shape, Dtype::Uint32, &next("bits", key)?)
}

// ------------------------------------------------------------------ distributions

fn check_floating(op: &str, dtype: Dtype) -> Result<()> {
    if dtype.is_floating() {
        return Ok(());
    }
    Err(Error::dtype(format!("[{op}] {dtype} is not a real floating type")))
}

/// Uniform in [0, 1) in `dtype`.
fn unit(shape: &[usize], dtype: Dtype, key: &Array) -> Result<Array> {
    if dtype == Dtype::Float64 {
        let words = ops::right_shift(raw(shape, Dtype::Uint64, key)?, 11)?;
        return ops::multiply(astype(&words, dtype)?, 1.0 / (1u64 << 53) as f64);
    }
    let below_one = match dtype {
        Dtype::Float16 => f16::from_bits(f16::ONE.to_bits() - 1).to_f64(),
        Dtype::Bfloat16 => bf16::from_bits(bf16::ONE.to_bits() - 1).to_f64(),
        _ => 1.0 - (-24f64).exp2(),
    };
    let u = ops::multiply(astype(&raw(shape, Dtype::Uint32, key)?, Dtype::Float32)?, (-32f64).exp2())?;
    astype(&ops::minimum(u, below_one)?, dtype)
}

/// Uniform in [low, high) (`mx.random.uniform`); the bounds broadcast to `shape`.
///
/// # Errors
/// A dtype that is not real floating; bounds that do not broadcast; a malformed key.
pub fn uniform(
    low: impl Operand,
    high: impl Operand,
    shape: &[usize],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    check_floating("uniform", dtype)?;
    let key = next("uniform", key)?;
    let (low, high) = (bound(low, dtype, shape)?, bound(high, dtype, shape)?);
    let u = unit(shape, dtype, &key)?;
    ops::add(ops::multiply(ops::subtract(&high, &low)?, &u)?, &low)
}

/// A parameter of a distribution as an array of `dtype` that must fit `shape`.
fn bound(value: impl Operand, dtype: Dtype, shape: &[usize]) -> Result<Array> {
    let a = ops::full(&[], 0, Some(dtype))?;
    let a = match value.arg() {
        ops::operand::Arg::Array(v) => astype(v, dtype)?,
        scalar @ ops::operand::Arg::Scalar(_) => scalar.materialize(dtype, a.shape())?,
    };
    ops::broadcast_to(&a, shape)
}

/// The largest f32 above -1 and its mirror: draws of [`normal`] and [`laplace`] start here.
const ABOVE_MINUS_ONE: f64 = -0.999_999_940_395_355_2;

fn symmetric(shape: &[usize], key: &Array) -> Result<Array> {
    let u = unit(shape, Dtype::Float32, key)?;
    // In f32 the width of the range rounds to 2.
    ops::add(ops::multiply(&u, 2.0)?, ABOVE_MINUS_ONE)
}

/// Normal with mean `loc` and standard deviation `scale` (`mx.random.normal`), real floating or complex64 (whose parts
/// have half the variance each).
///
/// # Errors
/// A dtype that is not floating; parameters that do not broadcast; a malformed key.
pub fn normal(
    shape: &[usize],
    dtype: Dtype,
    loc: Option<&Array>,
    scale: Option<&Array>,
    key: Option<&Array>,
) -> Result<Array> {
    if !dtype.is_inexact() {
        return Err(Error::dtype(format!("[normal] {dtype} is not a floating type")));
    }
    let key = next("normal", key)?;
    let mut factor = ops::full(&[], std::f64::consts::SQRT_2, Some(dtype))?;
    let e = if dtype.is_complex() {
        let mut pairs: Shape = shape.into();
        pairs.push(2);
        let e = unary(Ew::RandomErfInv, &symmetric(&pairs, &key)?)?;
        factor = ops::full(&[], 1.0, Some(dtype))?;
        ops::reshape_to(&ops::view(&e, Dtype::Complex64)?, shape.into())?
    } else {
        astype(&unary(Ew::RandomErfInv, &symmetric(shape, &key)?)?, dtype)?
    };
    if let Some(scale) = scale {
        factor = ops::multiply(&factor, astype(scale, dtype)?)?;
    }
    let mut out = ops::multiply(&factor, &e)?;
    if let Some(loc) = loc {
        out = ops::add(astype(loc, dtype)?, &out)?;
    }
    if out.shape() != shape {
        let (p, s) = (show(out.shape()), show(shape));
        return Err(Error::shape(format!("[normal] loc and scale broadcast to {p}, not to the shape {s}")));
    }
    Ok(out)
}

/// Integers in [low, high) (`mx.random.randint`), drawn as `floor` of a float32 uniform: ranges wider than 2^24 have the
/// resolution of float32.
///
/// # Errors
/// A dtype that is neither integer nor bool; bounds that do not broadcast; a malformed key.
pub fn randint(
    low: impl Operand,
    high: impl Operand,
    shape: &[usize],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    if dtype.is_inexact() {
        return Err(Error::dtype(format!("[randint] {dtype} is not an integer type")));
    }
    let f = Dtype::Float32;
    let (low, high) = (bound(low, f, shape)?, bound(high, f, shape)?);
    let u = uniform(&low, &high, shape, f, Some(&next("randint", key)?))?;
    let held = ops::maximum(ops::minimum(ops::floor(&u)?, ops::subtract(&high, 1)?)?, &low)?;
    astype(&held, dtype)
}

/// True with probability `p` (`mx.random.bernoulli`); the shape defaults to that of `p`.
///
/// # Errors
/// A `p` that does not broadcast; a malformed key.
pub fn bernoulli(p: impl Operand, shape: Option<&[usize]>, key: Option<&Array>) -> Result<Array> {
    let natural: Shape = p.arg().shape().into();
    let shape = shape.unwrap_or(&natural);
    let p = bound(p, Dtype::Float32, shape)?;
    let words = astype(&raw(shape, Dtype::Uint32, &next("bernoulli", key)?)?, Dtype::Float32)?;
    ops::less(words, ops::multiply(p, 4_294_967_808.0)?)
}

/// Standard normal cut to [lower, upper] (`mx.random.truncated_normal`).
///
/// # Errors
/// A dtype that is not real floating; bounds that do not broadcast; a malformed key.
pub fn truncated_normal(
    lower: &Array,
    upper: &Array,
    shape: Option<&[usize]>,
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    check_floating("truncated_normal", dtype)?;
    let natural = shape::broadcast("truncated_normal", lower.shape(), upper.shape())?;
    let shape = shape.unwrap_or(&natural);
    let root = std::f64::consts::SQRT_2;
    let (lower, upper) = (bound(lower, dtype, shape)?, bound(upper, dtype, shape)?);
    let edge = |x: &Array| unary(Ew::RandomErf, &ops::divide(x, root)?);
    let (a, b) = (edge(&lower)?, edge(&upper)?);
    let u = uniform(&a, &b, shape, dtype, Some(&next("truncated_normal", key)?))?;
    let x = ops::multiply(unary(Ew::RandomErfInv, &u)?, root)?;
    ops::minimum(ops::maximum(x, &lower)?, &upper)
}

/// Standard Gumbel: `-ln(-ln(u))` (`mx.random.gumbel`).
///
/// # Errors
/// A dtype that is not real floating; a malformed key.
pub fn gumbel(shape: &[usize], dtype: Dtype, key: Option<&Array>) -> Result<Array> {
    check_floating("gumbel", dtype)?;
    let u = uniform(0.0, 1.0, shape, dtype, Some(&next("gumbel", key)?))?;
    let inner = ops::negative(&unary(Ew::RandomLog, &u)?)?;
    ops::negative(&unary(Ew::RandomLog, &inner)?)
}

/// Laplace with mean `loc` and scale `scale` (`mx.random.laplace`).
///
/// # Errors
/// A dtype that is not real floating; a malformed key.
pub fn laplace(shape: &[usize], dtype: Dtype, loc: f64, scale: f64, key: Option<&Array>) -> Result<Array> {
    check_floating("laplace", dtype)?;
    let v = symmetric(shape, &next("laplace", key)?)?;
    let v = astype(&v, dtype)?;
    let magnitude = ops::log1p(&ops::negative(&ops::abs(&v)?)?)?;
    let mut out = ops::multiply(ops::sign(&v)?, magnitude)?;
    if scale != 1.0 {
        out = ops::multiply(out, scale)?;
    }
    if loc != 0.0 { ops::add(out, loc) } else { Ok(out) }
}

/// Normal with mean `mean` (..., n) and covariance `cov` (..., n, n), `shape` such vectors, in float32
/// (`mx.random.multivariate_normal`). Equal to MLX's up to the accuracy of the decomposition of `cov`.
///
/// # Errors
/// Shapes that do not fit; a dtype other than float32; a malformed key.
pub fn multivariate_normal(
    mean: &Array,
    cov: &Array,
    shape: &[usize],
    dtype: Dtype,
    key: Option<&Array>,
) -> Result<Array> {
    let op = "multivariate_normal";
    if dtype != Dtype::Float32 {
        return Err(Error::dtype(format!("[{op}] {dtype} is not float32")));
    }
    let fits = match (mean.shape(), cov.shape()) {
        ([.., n], [.., a, b]) => n == a && a == b,
        _ => false,
    };
    if !fits {
        let (m, c) = (show(mean.shape()), show(cov.shape()));
        return Err(Error::shape(format!("[{op}] mean {m} and covariance {c} are not (..., n) and (..., n, n)")));
    }
    let n = mean.shape()[mean.ndim() - 1];
    let natural = shape::broadcast(op, &mean.shape()[..mean.ndim() - 1], &cov.shape()[..cov.ndim() - 2])?;
    let lead = if shape.is_empty() { natural } else { shape::broadcast(op, &natural, shape)? };
    if !shape.is_empty() && lead.as_slice() != shape {
        let (l, s) = (show(&lead), show(shape));
        return Err(Error::shape(format!("[{op}] mean and covariance broadcast to {l}, not to the shape {s}")));
    }
    let (u, s, vt) = ops::linalg::svd(&astype(cov, dtype)?)?;
    let spread = ops::matmul(&ops::multiply(&u, ops::expand_dims(&ops::sqrt(&s)?, [-2])?)?, &vt)?;
    let mut full = lead;
    full.push(n);
    let z = normal(&full, dtype, None, None, key)?;
    let turned = ops::squeeze(&ops::matmul(&ops::expand_dims(&z, [-2])?, &spread)?, [-2])?;
    ops::add(astype(mean, dtype)?, turned)
}

/// What [`permutation`] permutes.
#[derive(Clone, Copy, Debug)]
pub enum Permuted<'a> {
    /// The numbers 0..n, as uint32.
    Range(usize),
    /// The entries of an array along an axis.
    Array(&'a Array, i32),
}

/// A random order (`mx.random.permutation`).
///
/// # Errors
/// An axis out of range; a malformed key.
pub fn permutation(x: Permuted<'_>, key: Option<&Array>) -> Result<Array> {
    let key = next("permutation", key)?;
    let order = |n: usize| ops::argsort(&raw(&[n], Dtype::Uint32, &key)?, Some(0));
    match x {
        Permuted::Range(n) => order(n),
        Permuted::Array(a, axis) => {
            let at = shape::axis("permutation", axis, a.ndim())?;
            ops::take(a, &order(a.shape()[at])?, Some(axis))
        }
    }
}

// ------------------------------------------------------------------ categories

/// Draws from distributions by their inverse distribution functions. Inputs, both float32: logits (..., V), and uniforms
/// whose shape begins with that of the distributions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InverseCdf;

impl Rule for InverseCdf {
    fn name(&self) -> &'static str {
        "categorical"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 2)?;
        for a in inputs {
            expect::dtype(self.name(), a, a.dtype() == Dtype::Float32)?;
        }
        let of = inputs[0].shape().split_last();
        let fits = of.is_some_and(|(&classes, lead)| classes > 0 && inputs[1].shape().starts_with(lead));
        expect::fit(self.name(), fits, inputs)?;
        Ok(smallvec![Aval::new(inputs[1].shape(), Dtype::Uint32)])
    }
}

impl Transform for InverseCdf {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.none())
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let shared = !lanes[0].mapped && lanes[0].array.ndim() == 1;
        let logits = if shared { lanes[0].array.clone() } else { lanes[0].spread(size)? };
        Ok(vec![Array::apply1(InverseCdf, smallvec![logits, lanes[1].spread(size)?])?])
    }
}

/// How many categories to draw from each distribution.
#[derive(Clone, Copy, Debug, Default)]
pub enum Draws<'a> {
    /// One.
    #[default]
    One,
    /// This many, along a new last axis.
    Samples(usize),
    /// This shape, to which the shape of the distributions broadcasts.
    Shape(&'a [usize]),
}

/// Indices (uint32) drawn with probabilities `softmax(logits)` along `axis` (`mx.random.categorical`).
///
/// # Errors
/// An axis out of range or empty; a shape that does not fit; a malformed key.
pub fn categorical(logits: &Array, axis: i32, draws: Draws<'_>, key: Option<&Array>) -> Result<Array> {
    let op = "categorical";
    let at = shape::axis(op, axis, logits.ndim())?;
    let classes = logits.shape()[at];
    if classes == 0 {
        return Err(Error::value(format!("[{op}] axis {at} of shape {} is empty", show(logits.shape()))));
    }
    let logits = astype(logits, logits.dtype().to_inexact())?;
    let mut lead: Shape = logits.shape().into();
    lead.remove(at);
    let out: Shape = match draws {
        Draws::One => lead.clone(),
        Draws::Samples(n) => lead.iter().copied().chain([n]).collect(),
        Draws::Shape(shape) => {
            if shape::broadcast(op, &lead, shape)?.as_slice() != shape {
                let (l, s) = (show(&lead), show(shape));
                return Err(Error::shape(format!("[{op}] distributions of shape {l} do not broadcast to {s}")));
            }
            shape.into()
        }
    };
    let key = next(op, key)?;
    if shape::elements(op, &lead)? == 1 && !out.is_empty() {
        let row = ops::reshape(&astype(&logits, Dtype::Float32)?, &[-1])?;
        let u = unit(&out, Dtype::Float32, &key)?;
        return Array::apply1(InverseCdf, smallvec![row, u]);
    }
    // The largest of logits plus Gumbel noise, with the categories at their place among the axes of the result.
    let (logits, place) = match draws {
        Draws::Samples(_) => (ops::expand_dims(&logits, [-1])?, at),
        _ => (logits, at + out.len() - lead.len()),
    };
    let mut noisy = out.clone();
    noisy.insert(place, classes);
    let noise = gumbel(&noisy, Dtype::Float32, Some(&key))?;
    ops::argmax(&ops::add(noise, &logits)?, Some(place as i32), false)
}
