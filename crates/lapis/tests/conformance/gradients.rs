//! The derivatives of the cases in float32 against those that MLX has.

use crate::call::{self, Call, Outcome};
use crate::transformed::{arrays, run, with};
use lapis::transforms::{jvp, vjp};
use lapis::{Array, Dtype, Error, ErrorKind, Result};
use lapis_testdata::{Case, Derivatives, load, load_derivatives};
use std::collections::{BTreeMap, BTreeSet};

/// Cases in which lapis means to differ, and why.
const OTHERWISE: &[(&str, &[usize], &str)] = &[
    ("binary", &[186, 187, 305], "what is not a number is passed on; of x^0 the derivative is 0"),
    ("binary", &[236], "the remainder's derivative is that of remainder, MLX has 0"),
    ("creation", &[110], "the sum over what was repeated"),
    ("linalg", &[84], "at a singular matrix the logarithm has no derivative"),
    ("products", &[161], "alpha and beta count forward too"),
    ("products", &[237, 238, 240], "of a matrix that is not symmetric the transpose, MLX has the matrix"),
    ("quantize", &[58, 59, 60, 61, 70, 73], "of equal extremes each has its share, forward too"),
    ("quantize", &[62, 63], "all weights are zero: 0, MLX has 0 / 0"),
    ("reduce", &[261, 263, 329, 353], "of equal extremes each has its share, forward too"),
    ("reduce", &[539, 540], "among numbers that are not there is no extreme"),
    ("scan", &[255], "zero weights are 0, MLX has NaN"),
    ("unary", &[12], "the sign of what is not a number is none"),
    ("unary", &[358, 360], "near the largest numbers MLX's exp overflows"),
];

/// Weights that are the same in every language.
fn counted(shape: &[usize], first: usize) -> Array {
    let n: usize = shape.iter().product();
    let weights = (0..n).map(|i| (((i + first) * 5 % 13) as f32 - 6.0) / 7.0);
    Array::from_vec(weights.collect::<Vec<f32>>(), shape)
}

fn is_real(a: &Array) -> bool {
    a.dtype() == Dtype::Float32
}

/// Complex numbers as their real and imaginary parts; of other dtypes none.
fn parts(a: &Array) -> Vec<Array> {
    match a.dtype() {
        Dtype::Float32 => vec![a.clone()],
        Dtype::Complex64 => vec![a.real(), a.imag()],
        _ => Vec::new(),
    }
}

/// Up to f32 roundings of the size of the largest number; what is not finite is the same.
fn compare(what: &str, got: &[Array], want: &[Vec<f64>]) -> Result<()> {
    if got.len() != want.len() {
        return Err(Error::eval(format!("{what}: {} arrays, MLX has {}", got.len(), want.len())));
    }
    for (k, (got, want)) in got.iter().zip(want).enumerate() {
        let values = got.astype(Dtype::Float64).to_vec::<f64>()?;
        let size = want.iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, x| m.max(x.abs()));
        let near = |g: f64, w: f64| match w.is_finite() {
            true => (g - w).abs() <= 1e-5 + 3e-5 * w.abs() + 3e-6 * size,
            false => g == w || g.is_nan() && w.is_nan(),
        };
        if !is_real(got) || values.len() != want.len() || !values.iter().zip(want).all(|(&g, &w)| near(g, w)) {
            return Err(Error::eval(format!("{what} {k}:\n{values:?}, MLX has\n{want:?}")));
        }
    }
    Ok(())
}

fn check(c: &Call, want: &Derivatives) -> Outcome {
    let direct = run(c).unwrap_or_else(|| Err(Error::eval("no family file names it")))?;
    let mut leaves = arrays(c);
    // Of operations whose cases have no floats the first operand is one here.
    if !leaves.iter().any(is_real) {
        leaves[0] = leaves[0].astype(Dtype::Float32);
    }
    let reals: Vec<usize> = (0..leaves.len()).filter(|&i| is_real(&leaves[i])).collect();
    let f = |x: &Vec<Array>| -> Result<Vec<Array>> {
        let mut all = leaves.clone();
        reals.iter().zip(x).for_each(|(&i, a)| all[i] = a.clone());
        Ok(with(c, &all)?.into_iter().flat_map(|a| parts(&a)).collect())
    };
    let x: Vec<Array> = reals.iter().map(|&i| leaves[i].clone()).collect();
    let weights = |like: &[Array]| like.iter().enumerate().map(|(i, a)| counted(a.shape(), i)).collect::<Vec<_>>();
    if let Some(want) = &want.vjp {
        compare("gradient", &vjp(f, &x, &weights(&f(&x)?))?.1, want)?;
    }
    if let Some(want) = &want.jvp {
        compare("change", &jvp(f, &x, &weights(&x))?.1, want)?;
    }
    Ok(direct)
}

#[test]
fn derivatives_in_float32_are_those_of_mlx() {
    let mut cases = BTreeMap::<String, Vec<Case>>::new();
    let (mut failed, mut ops, mut others) = (Vec::new(), BTreeSet::new(), 0);
    for want in load_derivatives().unwrap() {
        let all = cases.entry(want.family.clone()).or_insert_with(|| load(&want.family).unwrap());
        let case = all.iter().find(|c| c.line == want.line).unwrap();
        assert_eq!(case.op, want.op, "gradients.json is older than {}.json", want.family);
        let checked = |c: &Call| {
            Some(
                check(c, &want)
                    .map_err(|e| if e.kind() == ErrorKind::Unsupported { Error::eval(e.to_string()) } else { e }),
            )
        };
        match call::check(case, checked) {
            Some(Err(_)) if OTHERWISE.iter().any(|(f, lines, _)| *f == case.family && lines.contains(&case.line)) => {
                others += 1;
            }
            Some(Ok(())) => {
                ops.insert(want.op);
            }
            why => {
                failed.push(format!("{}.json:{} {} {}: {why:?}", case.family, case.line, case.op, call::describe(case)))
            }
        }
    }
    let count = failed.len();
    failed.truncate(40);
    assert!(failed.is_empty(), "{count} cases:\n{}", failed.join("\n"));
    assert_eq!(others, OTHERWISE.iter().map(|(_, lines, _)| lines.len()).sum::<usize>(), "some differ no more");
    assert!(ops.len() > 160, "only {} operations were compared", ops.len());
}
