//! Every operation of the cases in float64: derivatives of both modes and of second order against finite differences,
//! and the same gradient through the other transforms. An operation without such a case fails, unless it says why.

use crate::call::{self, Call, Outcome};
use crate::transformed::{arrays, needs_values, run, with};
use crate::{families, load};
use lapis::transforms::{checkpoint, compile, grad, jvp, vmap};
use lapis::{Array, Dtype, Error, Result, ops};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Operations without a derivative that differences could show, and why.
#[rustfmt::skip]
const WITHOUT: &[(&str, &[&str])] = &[
    ("truth, places and bits", &[
        "all", "allclose", "any", "argmax", "argmin", "argpartition", "argsort", "array_equal", "bitwise_and", "bitwise_invert",
        "bitwise_or", "bitwise_xor", "count_nonzero", "equal", "from_fp8", "greater", "greater_equal", "isclose", "isfinite",
        "isinf", "isnan", "isneginf", "isposinf", "left_shift", "less", "less_equal", "logical_and", "logical_not",
        "logical_or", "logical_xor", "nonzero", "not_equal", "right_shift", "searchsorted", "to_fp8", "view",
    ]),
    ("made from numbers of the host and from shapes", &[
        "arange", "bartlett", "blackman", "broadcast_shapes", "einsum_path", "eye", "fft.fftfreq", "fft.rfftfreq", "hamming",
        "hanning", "identity", "linspace", "ones", "tri", "zeros",
    ]),
    ("drawn, with keys as the only operands that are arrays, or whole numbers", &[
        "random.bernoulli", "random.categorical", "random.gumbel", "random.key", "random.laplace", "random.randint",
        "random.seed", "random.split",
    ]),
    ("operands are rounded, gradients are those of exact ones: tests/transforms/quantized.rs", &["gather_qqmm", "qqmm"]),
    ("its derivative is zero by definition", &["stop_gradient"]),
];

/// Cases of an operation that are compared.
const MANY: usize = 5;
/// Numbers of an operand.
const LARGE: usize = 4096;

// ------------------------------------------------------------------ operations as functions of float64

/// Numbers between -1 and 1 without a pattern.
fn noise(shape: &[usize], seed: u64) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let n: usize = shape.iter().product();
    let all: Vec<f64> = (0..n + 7).map(|_| next()).collect();
    Array::from_vec(all[7..].to_vec(), shape)
}

fn is_free(a: &Array) -> bool {
    matches!(a.dtype(), Dtype::Float64 | Dtype::Float32 | Dtype::Complex64)
}

/// The operation of a case as a function of the real and imaginary parts of its operands.
struct Function<'a> {
    call: &'a Call<'a>,
    leaves: Vec<Array>,
}

impl Function<'_> {
    /// Near the case's operands, away from ties and from where numbers end.
    fn point(&self) -> Result<Vec<Array>> {
        let mut x = Vec::new();
        for a in self.leaves.iter().filter(|a| is_free(a)) {
            let complex = a.dtype().is_complex();
            for part in if complex { vec![ops::real(a)?, ops::imag(a)?] } else { vec![a.clone()] } {
                let part = ops::astype(&part, Dtype::Float64)?;
                let part = ops::select(&ops::less(&ops::abs(&part)?, 1e3)?, &part, 0.5)?;
                x.push(ops::add(&part, ops::multiply(noise(part.shape(), 3 + x.len() as u64), 0.02)?)?);
            }
        }
        Ok(x)
    }

    /// Real and imaginary parts of the outputs.
    fn at(&self, x: &[Array]) -> Result<Vec<Array>> {
        let mut parts = x.iter();
        let mut leaves = self.leaves.clone();
        for leaf in leaves.iter_mut().filter(|a| is_free(a)) {
            let dtype = leaf.dtype();
            let mut next = || ops::astype(parts.next().ok_or_else(|| Error::eval("too few parts"))?, dtype);
            *leaf = next()?;
            if dtype.is_complex() {
                *leaf = ops::add(&*leaf, ops::multiply(next()?, lapis::dtype::c64::new(0.0, 1.0))?)?;
            }
            // What reads one triangle is a function of matrices that are their own adjoints.
            if matches!(self.call.op, "linalg.cholesky" | "linalg.eigh" | "linalg.eigvalsh") {
                let adjoint = ops::conjugate(&ops::matrix_transpose(leaf)?)?;
                *leaf = ops::multiply(ops::add(&*leaf, adjoint)?, 0.5)?;
            }
        }
        let mut outputs = Vec::new();
        // Eigenvectors have any phase; what does not depend on it is in tests/transforms/linear.rs.
        let many = if self.call.op == "linalg.eig" { 1 } else { usize::MAX };
        for y in with(self.call, &leaves)?.into_iter().take(many) {
            match y.dtype() {
                Dtype::Complex64 => outputs.extend([ops::real(&y)?, ops::imag(&y)?]),
                dtype if dtype.is_floating() => outputs.push(y),
                _ => {}
            }
        }
        Ok(outputs)
    }

    /// One number that depends on every output with another weight.
    fn loss(&self, x: &[Array]) -> Result<Array> {
        weighed(&self.at(x)?)
    }
}

fn weighed(arrays: &[Array]) -> Result<Array> {
    let mut total = ops::full(&[], 0.0, Some(Dtype::Float64))?;
    for (k, a) in arrays.iter().enumerate() {
        let a = ops::astype(a, Dtype::Float64)?;
        total = ops::add(&total, ops::sum(&ops::multiply(&a, noise(a.shape(), 70 + k as u64))?, (), false)?)?;
    }
    Ok(total)
}

/// The function of a call, in float64 where its kernels have that; `None` when it has no operands that move.
fn function<'a>(call: &'a Call<'a>) -> Option<Function<'a>> {
    let cast = |choose: &dyn Fn(usize, &Array) -> bool| -> Vec<Array> {
        let wide = |(i, a): (usize, Array)| if choose(i, &a) { ops::astype(&a, Dtype::Float64).unwrap() } else { a };
        arrays(call).into_iter().enumerate().map(wide).collect()
    };
    // All floats; the first operand, of whatever dtype; none, for kernels that take float32 alone.
    let tries = [cast(&|_, a| a.dtype().is_floating()), cast(&|i, _| i == 0), cast(&|_, _| false)];
    tries.into_iter().map(|leaves| Function { call, leaves }).find(|f| {
        let small = f.leaves.iter().all(|a| a.size() <= LARGE);
        // Differences see nothing in half precision or beside large numbers.
        let tame = |y: &Array| -> Result<bool> {
            let half = matches!(y.dtype(), Dtype::Float16 | Dtype::Bfloat16);
            Ok(!half
                && (y.size() == 0 || ops::max(&ops::abs(y)?, (), false)?.astype(Dtype::Float64).item::<f64>()? < 1e4))
        };
        let good = || -> Result<bool> {
            let outputs = f.at(&f.point()?)?;
            Ok(!outputs.is_empty() && outputs.iter().map(tame).collect::<Result<Vec<_>>>()?.into_iter().all(|t| t))
        };
        small && f.leaves.iter().any(|a| is_free(a) && a.size() > 0) && good().unwrap_or(false)
    })
}

// ------------------------------------------------------------------ comparisons

/// What was compared of an operation.
#[derive(Default, Clone, Copy)]
struct Done {
    first: usize,
    second: usize,
    nested: usize,
}

type Loss<'a> = &'a dyn Fn(&Vec<Array>) -> Result<Array>;

/// The derivative of `f` at `x` along `d` by differences of fourth order; `None` where the function is not smooth.
fn difference(f: Loss<'_>, x: &[Array], d: &[Array], h: f64, within: f64) -> Result<Option<f64>> {
    let at = |t: f64| -> Result<f64> {
        let moved = x.iter().zip(d).map(|(x, d)| ops::add(x, ops::multiply(d, t)?));
        f(&moved.collect::<Result<Vec<_>>>()?)?.item::<f64>()
    };
    let of = |h: f64| -> Result<f64> { Ok((8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h)) };
    let (a, b) = (of(h)?, of(h / 2.0)?);
    Ok((a.is_finite() && (a - b).abs() < within / 4.0 * a.abs().max(1.0)).then_some(a))
}

/// Whether both modes have the derivative that differences have; false where the function is not smooth.
fn derivatives(what: &str, f: Loss<'_>, x: &Vec<Array>, h: f64, within: f64) -> Result<bool> {
    let along: Vec<Array> = x.iter().enumerate().map(|(i, a)| noise(a.shape(), 30 + i as u64)).collect();
    let Some(want) = difference(f, x, &along, h, within)? else { return Ok(false) };
    let mut reverse = 0.0;
    for (g, d) in grad(f)(x)?.iter().zip(&along) {
        reverse += ops::sum(&ops::multiply(g, d)?, (), false)?.item::<f64>()?;
    }
    let forward = jvp(f, x, &along)?.1.item::<f64>()?;
    let near = |got: f64| (got - want).abs() <= within * want.abs().max(1.0);
    match near(reverse) && near(forward) {
        true => Ok(true),
        false => Err(Error::eval(format!("{what}: by differences {want}, vjp {reverse}, jvp {forward}"))),
    }
}

fn pair(a: &Array, b: &Array, axis: i32) -> Result<Array> {
    ops::stack(&[a.clone(), b.clone()], axis)
}

fn check(f: &Function<'_>, done: &mut Done) -> Result<()> {
    let x = f.point()?;
    let coarse = f.at(&x)?.iter().chain(&f.leaves).any(|a| is_free(a) && a.dtype() != Dtype::Float64);
    let (h, within) = if coarse { (2e-2, 5e-3) } else { (1e-4, 1e-6) };
    let loss = |x: &Vec<Array>| f.loss(x);
    let slope = |x: &Vec<Array>| weighed(&grad(loss)(x)?);
    done.first += usize::from(derivatives("first order", &loss, &x, h, within)?);
    done.second += usize::from(derivatives("second order", &slope, &x, h, within)?);

    // The gradient at two places, alone and through other transforms.
    let there: Vec<Array> = x.iter().map(|a| ops::multiply(a, 1.01)).collect::<Result<_>>()?;
    let (here, there_too) = (grad(loss)(&x)?, grad(loss)(&there)?);
    let both: Vec<Array> = x.iter().zip(&there).map(|(a, b)| pair(a, b, 0)).collect::<Result<_>>()?;
    let want: Vec<Array> = here.iter().zip(&there_too).map(|(a, b)| pair(a, b, 0)).collect::<Result<_>>()?;
    let is = |what: &str, got: Result<Vec<Array>>, want: &[Array], tolerance: f64| -> Result<bool> {
        let got = match got {
            Err(e) if needs_values(&e) => return Ok(false),
            Err(e) => return Err(Error::eval(format!("{what}: {e}"))),
            Ok(got) => got,
        };
        for (k, (a, b)) in got.iter().zip(want).enumerate() {
            let size = ops::max(&ops::abs(b)?, (), false)?.item::<f64>()?;
            let same = match tolerance {
                0.0 => a.to_bytes()? == b.to_bytes()?,
                _ => ops::allclose(a, b, tolerance, tolerance * size.max(1.0), true)?.item::<bool>()?,
            };
            if a.shape() != b.shape() || !same {
                return Err(Error::eval(format!("{what}, operand {k}:\n{a}\n{b}")));
            }
        }
        Ok(true)
    };
    let mapped = |x: &Vec<Array>| vmap(|x: &Vec<Array>| grad(loss)(x))(x);
    let close = if coarse { 1e-4 } else { 1e-8 };
    let mut all = is("compile(grad)", compile(grad(loss)).call(&x), &here, 0.0)?;
    all &= is("grad(compile)", grad(|x: &Vec<Array>| compile(loss).call(x))(&x), &here, close)?;
    all &= is("grad(checkpoint)", grad(checkpoint(loss))(&x), &here, 0.0)?;
    all &= is("compile(grad(checkpoint²))", compile(grad(checkpoint(checkpoint(loss)))).call(&x), &here, 0.0)?;
    all &= is("vmap(grad)", mapped(&both), &want, close)?;
    let summed = grad(|x: &Vec<Array>| ops::sum(&vmap(loss)(x)?, (), false))(&both);
    all &= is("grad(vmap)", summed, &want, close)?;
    all &= is("compile(vmap(grad(checkpoint)))", compile(vmap(grad(checkpoint(loss)))).call(&both), &want, close)?;
    let square = |a: &[Array]| a.iter().map(|a| pair(a, a, 1)).collect::<Result<Vec<_>>>();
    all &= is("vmap(vmap(grad))", vmap(mapped)(&square(&both)?), &square(&want)?, close)?;
    let pushed = jvp(|x: &Vec<Array>| vmap(loss)(x), &both, &both).map(|(_, t)| vec![t]);
    let mut along = ops::full(&[2], 0.0, Some(Dtype::Float64))?;
    for (g, x) in want.iter().zip(&both) {
        let products = ops::reshape(&ops::multiply(g, x)?, &[2, -1])?;
        along = ops::add(&along, ops::sum(&products, 1, false)?)?;
    }
    all &= is("jvp(vmap)", pushed, &[along], close)?;
    done.nested += usize::from(all);
    Ok(())
}

#[test]
fn every_operation_has_the_derivatives_of_finite_differences() {
    let (mut failed, mut seen) = (Vec::new(), BTreeMap::<String, Done>::new());
    let without: BTreeSet<&str> = WITHOUT.iter().flat_map(|(_, ops)| ops.iter().copied()).collect();
    for case in families().unwrap().iter().flat_map(|family| load(family).unwrap()) {
        let before = *seen.entry(case.op.clone()).or_default();
        if before.nested.min(before.second) >= MANY {
            continue;
        }
        let (done, why) = (RefCell::new(before), RefCell::new(None));
        // Whether the answer is right is for others to say.
        call::check(&case, |c| -> Option<Outcome> {
            let direct = run(c)?;
            if direct.as_ref().is_ok_and(|y| lapis::eval(y).is_ok())
                && let Some(f) = function(c)
                && let Err(e) = check(&f, &mut done.borrow_mut())
            {
                why.replace(Some(e));
            }
            Some(direct)
        });
        seen.insert(case.op.clone(), done.into_inner());
        if let Some(why) = why.into_inner()
            && !without.contains(case.op.as_str())
        {
            let call = call::describe(&case);
            failed.push(format!("{}.json:{} {} {call}: {}", case.family, case.line, case.op, why.message()));
        }
    }
    let count = failed.len();
    failed.truncate(40);
    assert!(failed.is_empty(), "{count} cases:\n{}", failed.join("\n"));
    let lacks = |d: &Done| d.first == 0 || d.second == 0 || d.nested == 0;
    let lacking: BTreeSet<&str> = seen.iter().filter(|(_, d)| lacks(d)).map(|(op, _)| op.as_str()).collect();
    let (more, less) = (&lacking - &without, &without - &lacking);
    assert!(more.is_empty() && less.is_empty(), "no case shows a derivative of {more:?}; there are cases of {less:?}");
}
