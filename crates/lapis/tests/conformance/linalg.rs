//! Decompositions, solves, norms.

use crate::call::{Call, Outcome, one};
use lapis::ops::linalg::{self, Norm};
use lapis::{Array, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    let op = c.op.strip_prefix("linalg.")?;
    let a = || c.array(0);
    let uplo = c.attrs.text("UPLO").unwrap_or("L");
    Some(match op {
        "slogdet" => linalg::slogdet(&a()).map(|(sign, log)| vec![sign, log]),
        "lu" => linalg::lu(&a()).map(|(p, l, u)| vec![p, l, u]),
        "lu_factor" => linalg::lu_factor(&a()).map(|(lu, pivots)| vec![lu, pivots]),
        "qr" => linalg::qr(&a()).map(|(q, r)| vec![q, r]),
        "svd" if c.attrs.bool("compute_uv") == Some(false) => linalg::singular_values(&a()).map(|s| vec![s]),
        "svd" => linalg::svd(&a()).map(|(u, s, v)| vec![u, s, v]),
        "eig" => linalg::eig(&a()).map(|(w, v)| vec![w, v]),
        "eigh" => linalg::eigh(&a(), uplo).map(|(w, v)| vec![w, v]),
        "eigvalsh" => linalg::eigvalsh(&a(), uplo).map(|w| vec![w]),
        _ => return one(single(c, op)?),
    })
}

fn single(c: &Call, op: &str) -> Option<Result<Array>> {
    let a = || c.array(0);
    let upper = c.attrs.flag("upper");
    Some(match op {
        "cholesky" => linalg::cholesky(&a(), upper),
        "cholesky_inv" => linalg::cholesky_inv(&a(), upper),
        "cross" => linalg::cross(&a(), &c.array(1), c.axis("axis", -1)),
        "det" => linalg::det(&a()),
        "eigvals" => linalg::eigvals(&a()),
        "inv" => linalg::inv(&a()),
        "tri_inv" => linalg::tri_inv(&a(), upper),
        "pinv" => linalg::pinv(&a()),
        "solve" => linalg::solve(&a(), &c.array(1)),
        "solve_triangular" => linalg::solve_triangular(&a(), &c.array(1), upper),
        "norm" => norm(c).and_then(|ord| linalg::norm(&a(), ord, c.axes("axis"), c.attrs.flag("keepdims"))),
        _ => return None,
    })
}

/// "inf" and "-inf" are numbers.
fn norm(c: &Call) -> Result<Norm> {
    match c.attrs.get("ord") {
        None => Ok(Norm::Default),
        Some(v) if v.is_string() && !v.as_str().unwrap().ends_with("inf") => Norm::from_name(v.as_str().unwrap()),
        Some(_) => Ok(Norm::P(c.attrs.float("ord").unwrap())),
    }
}
