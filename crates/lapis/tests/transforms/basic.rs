//! Elementwise work, views, reductions, products.

use crate::check::{check, normal, positive};
use lapis::prelude::*;

type Unary = fn(&Array) -> Result<Array>;

#[test]
fn functions_of_one_argument() {
    let free: &[(&str, Unary)] = &[
        ("abs", ops::abs),
        ("negative", ops::negative),
        ("sign", ops::sign),
        ("square", ops::square),
        ("conjugate", ops::conjugate),
        ("real", ops::real),
        ("exp", ops::exp),
        ("expm1", ops::expm1),
        ("sin", ops::sin),
        ("cos", ops::cos),
        ("sinh", ops::sinh),
        ("cosh", ops::cosh),
        ("tanh", ops::tanh),
        ("arctan", ops::arctan),
        ("arcsinh", ops::arcsinh),
        ("erf", ops::erf),
        ("sigmoid", ops::sigmoid),
        ("floor", ops::floor),
    ];
    for (name, f) in free {
        check(name, &|x| Ok(vec![f(&x[0])?]), &[normal(&[2, 3], 1)]);
    }
    let above: &[(&str, Unary)] = &[
        ("log", ops::log),
        ("log2", ops::log2),
        ("log10", ops::log10),
        ("log1p", ops::log1p),
        ("sqrt", ops::sqrt),
        ("rsqrt", ops::rsqrt),
        ("reciprocal", ops::reciprocal),
    ];
    for (name, f) in above {
        check(name, &|x| Ok(vec![f(&x[0])?]), &[positive(&[2, 3], 2)]);
    }
    let inside = || ops::multiply(&ops::tanh(&normal(&[2, 3], 3)).unwrap(), 0.8).unwrap();
    let bounded: &[(&str, Unary)] = &[
        ("tan", ops::tan),
        ("arcsin", ops::arcsin),
        ("arccos", ops::arccos),
        ("arctanh", ops::arctanh),
        ("erfinv", ops::erfinv),
    ];
    for (name, f) in bounded {
        check(name, &|x| Ok(vec![f(&x[0])?]), &[inside()]);
    }
    check("arccosh", &|x| Ok(vec![ops::arccosh(&(&x[0] + 1.0))?]), &[positive(&[3], 4)]);
}

#[test]
fn functions_of_two_arguments() {
    type Binary = fn(&Array, &Array) -> Result<Array>;
    let pairs: &[(&str, Binary)] = &[
        ("add", |a, b| ops::add(a, b)),
        ("subtract", |a, b| ops::subtract(a, b)),
        ("multiply", |a, b| ops::multiply(a, b)),
        ("divide", |a, b| ops::divide(a, b)),
        ("remainder", |a, b| ops::remainder(a, b)),
        ("power", |a, b| ops::power(a, b)),
        ("maximum", |a, b| ops::maximum(a, b)),
        ("minimum", |a, b| ops::minimum(a, b)),
        ("logaddexp", |a, b| ops::logaddexp(a, b)),
        ("arctan2", |a, b| ops::arctan2(a, b)),
        ("select", |a, b| ops::select(&ops::greater(a, 1.0)?, a, b)),
    ];
    for (name, f) in pairs {
        check(name, &|x| Ok(vec![f(&x[0], &x[1])?]), &[positive(&[2, 3], 5), positive(&[3], 6)]);
    }
}

#[test]
fn views() {
    let one = |name: &str, f: &dyn Fn(&Array) -> Result<Array>| {
        // Squared, so that second derivatives are there.
        check(name, &|x| Ok(vec![ops::square(&f(&x[0])?)?]), &[normal(&[2, 3, 4], 7)]);
    };
    one("reshape", &|a| ops::reshape(a, &[4, 6]));
    one("transpose", &|a| ops::transpose(a, Some(&[2, 0, 1])));
    one("broadcast", &|a| ops::broadcast_to(a, &[5, 2, 3, 4]));
    one("slice", &|a| ops::slice(a, &[(Some(1), None, 1), (None, None, 1), (Some(1), Some(3), 1)]));
    one("strided slice", &|a| ops::slice(a, &[(None, None, -1), (None, None, 2), (Some(3), Some(0), -2)]));
    one("as_strided", &|a| ops::as_strided(a, &[3, 5], &[2, 3], 4));
    one("contiguous", &|a| ops::contiguous(&a.t(), false));
    one("depends", &|a| Ok(ops::depends(&[a.square()], &[a.exp()])?.remove(0)));
    check("axes of one", &|x| ops::broadcast_to(&x[0].square(), &[2, 3, 4]).map(|y| vec![y]), &[normal(&[3, 1], 8)]);
}

#[test]
fn reductions() {
    for axes in [vec![], vec![0], vec![1], vec![0, 2], vec![-1]] {
        let axes = || if axes.is_empty() { lapis::shape::Axes::from(()) } else { axes.clone().into() };
        let x = [normal(&[2, 3, 4], 9)];
        check("sum", &|x| Ok(vec![ops::sum(&x[0].square(), axes(), false)?]), &x);
        check("mean", &|x| Ok(vec![ops::mean(&x[0].square(), axes(), true)?]), &x);
        check("max", &|x| Ok(vec![ops::max(&x[0].square(), axes(), false)?]), &x);
        check("min", &|x| Ok(vec![ops::min(&x[0].square(), axes(), false)?]), &x);
        check("var", &|x| Ok(vec![ops::var(&x[0], axes(), false, 1)?]), &x);
    }
}

#[test]
fn products() {
    let product = |x: &[Array]| Ok(vec![ops::matmul(&x[0], &x[1])?]);
    check("matmul", &product, &[normal(&[2, 3], 10), normal(&[3, 4], 11)]);
    check("batches", &product, &[normal(&[2, 1, 2, 3], 12), normal(&[5, 3, 2], 13)]);
    check("vectors", &product, &[normal(&[3], 14), normal(&[3], 15)]);
    check("tall", &product, &[normal(&[2, 3, 3], 16), normal(&[3, 2], 17)]);
    let scaled = |x: &[Array]| Ok(vec![ops::addmm(&x[0], &x[1], &x[2], 0.5, -2.0)?]);
    check("addmm", &scaled, &[normal(&[4], 18), normal(&[2, 3], 19), normal(&[3, 4], 20)]);
}
