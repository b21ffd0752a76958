//! Convolutions, products of picked matrices, Fourier and Hadamard transforms, decompositions.

use crate::check::{check, mapping, normal, positive};
use lapis::ops::ConvSettings;
use lapis::ops::fft::{self, FftNorm};
use lapis::ops::linalg::{self, Norm};
use lapis::prelude::*;
use lapis::transforms::{grad, jvp, vjp};

type F<'a> = &'a dyn Fn(&[Array]) -> Result<Vec<Array>>;

/// Derivatives of functions that compute in float32 inside, of float64 inputs.
fn coarse(name: &str, f: F<'_>, inputs: &[Array]) {
    let run = || -> Result<()> {
        let x = inputs.to_vec();
        let g = |x: &Vec<Array>| -> Result<Array> {
            let mut total = ops::full(&[], 0.0, Some(Dtype::Float64))?;
            for (k, y) in f(x)?.iter().enumerate() {
                let weight = normal(y.shape(), 60 + k as u64);
                total = ops::add(&total, ops::sum(&ops::multiply(y, &weight)?, (), false)?)?;
            }
            Ok(total)
        };
        let along: Vec<Array> = x.iter().enumerate().map(|(i, a)| normal(a.shape(), 5 + i as u64)).collect();
        let (_, pulled) = vjp(g, &x, &array(1.0f64))?;
        let (_, pushed) = jvp(g, &x, &along)?;
        let mut reverse = 0.0;
        for (g, t) in pulled.iter().zip(&along) {
            reverse += ops::sum(&ops::multiply(g, t)?, (), false)?.item::<f64>()?;
        }
        let at = |h: f64| -> Result<f64> {
            let moved = x.iter().zip(&along).map(|(x, t)| ops::add(x, ops::multiply(t, h)?));
            g(&moved.collect::<Result<Vec<_>>>()?)?.item::<f64>()
        };
        const H: f64 = 1e-2;
        // Of fourth order: the step must be large.
        let difference = (8.0 * (at(H)? - at(-H)?) - (at(2.0 * H)? - at(-2.0 * H)?)) / (12.0 * H);
        let forward = pushed.item::<f64>()?;
        let size = difference.abs().max(1.0);
        assert!((reverse - difference).abs() < 2e-3 * size, "{name}: vjp {reverse}, difference {difference}");
        assert!((forward - reverse).abs() < 1e-4 * size, "{name}: jvp {forward}, vjp {reverse}");
        Ok(())
    };
    run().unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn close(a: &Array, expected: &[f64]) {
    let a = ops::astype(&ops::flatten(a, 0, -1).unwrap(), Dtype::Float64).unwrap().to_vec::<f64>().unwrap();
    assert_eq!(a.len(), expected.len());
    for (i, (a, e)) in a.iter().zip(expected).enumerate() {
        assert!((a - e).abs() < 3e-5 * e.abs().max(1.0), "element {i}: {a}, not {e}");
    }
}

fn indices(values: &[i32]) -> Array {
    Array::from_vec(values.to_vec(), &[values.len()])
}

// ------------------------------------------------------------------ products

#[test]
fn products_of_stretches() {
    let stretches = |x: &[Array]| Ok(vec![ops::segmented_mm(&x[0], &x[1], &x[2])?]);
    // One after the other; with a gap, an overlap and nothing in one of them.
    for bounds in [[0, 2, 2, 5, 5, 6], [0, 3, 1, 5, 2, 2]] {
        let segments = Array::from_vec(bounds.to_vec(), &[3, 2]);
        let x = [normal(&[2, 6], 5), normal(&[6, 3], 6)];
        let f = |x: &[Array]| stretches(&[x[0].clone(), x[1].clone(), segments.clone()]);
        check("segmented_mm", &f, &x);
    }
    // Rolled by whole turns, bounds stay bounds.
    let lanes = ops::full(&[2, 2], 0, Some(Dtype::Int32)).unwrap();
    let lanes = ops::add(&lanes, &Array::from_vec(vec![1, 4, 1, 4], &[2, 2])).unwrap();
    mapping("segmented_mm", &stretches, &[normal(&[2, 6], 5), normal(&[6, 3], 6), lanes]);
}

#[test]
fn a_lane_does_not_reach_into_the_next() {
    let picks = |x: &Vec<Array>| ops::gather_mm(&x[0], &x[1], Some(&x[2]), Some(&x[3]), false);
    let one = indices(&[0]);
    let x = vec![normal(&[2, 2, 2, 2], 1), normal(&[2, 2, 2, 2], 2), ops::stack(&[one.clone(), one], 0).unwrap()];
    for bad in [-1, 2] {
        let rhs = Array::from_vec(vec![bad, 0], &[2, 1]);
        let x: Vec<Array> = x.iter().cloned().chain([rhs]).collect();
        let mapped = lapis::transforms::vmap(picks)(&x).unwrap();
        assert!(mapped.eval().unwrap_err().to_string().contains("out of range"));
    }
}

// ------------------------------------------------------------------ convolutions

/// sin(0), sin(1), ...
fn sines(shape: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    Array::from_vec((0..n).map(|i| (i as f32).sin()).collect::<Vec<_>>(), shape)
}

/// cos(0), cos(1), ...
fn cosines(shape: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    Array::from_vec((0..n).map(|i| (i as f32).cos()).collect::<Vec<_>>(), shape)
}

#[test]
fn convolution_gradients_are_those_of_mlx() {
    let settings = ConvSettings {
        stride: [2, 1].into(),
        padding_lo: [1, 0].into(),
        padding_hi: [2, 1].into(),
        kernel_dilation: [1, 2].into(),
        ..ConvSettings::default()
    };
    let f = |x: &Vec<Array>| -> Result<Array> {
        let y = ops::conv_general(&x[0], &x[1], &settings)?;
        let weight = ops::sin(&ops::multiply(ops::arange(0, y.size(), 1, Some(Dtype::Float32))?, 0.5)?)?;
        ops::sum(&ops::multiply(&y, ops::reshape(&weight, y.shape())?)?, (), false)
    };
    let g = grad(f)(&vec![sines(&[1, 5, 4, 2]), cosines(&[2, 3, 2, 2])]).unwrap();
    close(
        &g[0],
        &[
            -0.45913, -0.13192, -1.50528, -0.03578, -0.85092, 0.56727, 1.46662, 1.62061, 0.04076, -0.50467, -1.29707,
            -2.60901, -2.02847, -2.44331, -1.52223, 0.96407, 0.24369, 0.13655, 1.43082, 0.0543, 1.20633, -0.3183,
            -1.37214, -1.53704, -0.26157, 0.1078, 1.15972, 2.43112, 1.89282, 2.82002, 1.46736, -0.84549, -0.02337,
            -0.13845, -1.32772, -0.07174, -1.53761, 0.06297, 1.2502, 1.42271,
        ],
    );
    close(
        &g[1],
        &[
            2.08791, 0.42078, -1.55023, -0.51286, -1.05844, -3.00198, 0.37224, 2.12434, -1.91036, -0.5655, 1.61954,
            0.75932, 1.30011, 0.87522, -1.64862, -1.30481, 0.46806, -1.12965, -0.8885, 1.49493, -1.00836, -0.96869,
            1.60168, 1.47785,
        ],
    );
}

// ------------------------------------------------------------------ Fourier, Hadamard

fn complex(re: &Array, im: &Array) -> Result<Array> {
    let im = ops::multiply(ops::astype(im, Dtype::Complex64)?, lapis::dtype::c64::new(0.0, 1.0))?;
    ops::add(ops::astype(re, Dtype::Complex64)?, im)
}

/// Real and imaginary part.
fn parts(z: &Array) -> Result<Vec<Array>> {
    Ok(vec![ops::real(z)?, ops::imag(z)?])
}

#[test]
fn fourier_gradients_are_those_of_mlx() {
    let waves = |count: usize| {
        let two = ops::cos(&ops::arange(0, 12, 2, Some(Dtype::Float32)).unwrap()).unwrap();
        let z = complex(&sines(&[6]), &two).unwrap();
        ops::slice(&z, &[(None, Some(count as i64), 1)]).unwrap()
    };
    let weights = |n: usize| Array::from_vec([1.0f32, -2.0, 0.5, 3.0, 1.5, -1.0][..n].to_vec(), &[n]);
    let weighted = |y: Array| ops::sum(&ops::multiply(&y, weights(y.size()))?, (), false);
    let pairs = |g: &Array| ops::stack(&parts(g).unwrap(), 1).unwrap();
    let g = grad(|z: &Array| weighted(ops::abs(&fft::fft(z, 5, 0, FftNorm::Backward)?)?))(&waves(6)).unwrap();
    let expected =
        [1.4822, 6.01159, 4.04072, 1.58404, -2.95456, -1.74884, 0.84154, 0.37457, 0.77037, -3.47813, 0.0, 0.0];
    close(&pairs(&g), &expected);
    let g = grad(|z: &Array| weighted(ops::abs(&fft::ifft(z, 6, 0, FftNorm::Backward)?)?))(&waves(6)).unwrap();
    let expected =
        [0.3739, 0.55777, -0.55417, -0.72828, -0.07383, 0.24196, 0.03832, -0.0765, 0.51801, 0.41632, 0.57962, -0.88279];
    close(&pairs(&g), &expected);
    let g = grad(|x: &Array| weighted(ops::abs(&fft::rfft(x, None, 0, FftNorm::Backward)?)?))(&sines(&[6])).unwrap();
    close(&g, &[4.5473, -3.51852, 1.70484, -1.81903, 5.74786, -0.66245]);
    let g = grad(|z: &Array| weighted(fft::irfft(z, None, 0, FftNorm::Backward)?))(&waves(4)).unwrap();
    close(&pairs(&g), &[0.5, 0.0, -1.5, 0.57735, 1.5, 0.0, 0.5, 0.0]);
}

#[test]
fn hadamard_transforms() {
    for n in [8, 12, 20, 28, 24] {
        let f = |x: &[Array]| Ok(vec![ops::hadamard_transform(&x[0], None)?.square()]);
        check("hadamard_transform", &f, &[normal(&[2, n], 33)]);
    }
}

// ------------------------------------------------------------------ linear algebra

/// Positive definite, of any square matrices.
fn definite(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    ops::add(ops::matmul(a, &ops::matrix_transpose(a)?)?, ops::multiply(ops::eye(n, None, 0, Some(a.dtype()))?, 2.0)?)
}

/// Matrices that are far from singular, of any.
fn regular(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    ops::add(a, ops::multiply(ops::eye(n, None, 0, Some(a.dtype()))?, 4.0)?)
}

#[test]
fn inverses_and_systems() {
    let a = || normal(&[2, 3, 3], 40);
    check("inv", &|x| Ok(vec![linalg::inv(&regular(&x[0])?)?]), &[a()]);
    for upper in [false, true] {
        check("tri_inv", &|x| Ok(vec![linalg::tri_inv(&regular(&x[0])?, upper)?]), &[a()]);
        let inverse = |x: &[Array]| Ok(vec![linalg::cholesky_inv(&regular(&x[0])?, upper)?]);
        check("cholesky_inv", &inverse, &[a()]);
        let system = |x: &[Array]| Ok(vec![linalg::solve_triangular(&regular(&x[0])?, &x[1], upper)?]);
        check("solve_triangular", &system, &[a(), normal(&[2, 3, 2], 41)]);
    }
    let system = |x: &[Array]| Ok(vec![linalg::solve(&regular(&x[0])?, &x[1])?]);
    check("solve", &system, &[a(), normal(&[2, 3, 2], 42)]);
    check("solve, vectors", &system, &[a(), normal(&[3], 43)]);
    check("solve, one matrix", &system, &[normal(&[3, 3], 44), normal(&[2, 3, 2], 45)]);
}

/// `v diag(f) vᵀ`, which does not depend on the choice of vectors.
fn conjugated(v: &Array, f: &Array, vt: &Array) -> Result<Array> {
    ops::matmul(&ops::multiply(v, ops::expand_dims(f, -2)?)?, vt)
}

#[test]
fn spectra_of_hermitian_matrices() {
    let x = [normal(&[2, 4, 4], 70)];
    for uplo in ["L", "U"] {
        check("eigvalsh", &|x| Ok(vec![linalg::eigvalsh(&definite(&x[0])?, uplo)?]), &x);
        let both = |x: &[Array]| {
            let (w, v) = linalg::eigh(&definite(&x[0])?, uplo)?;
            Ok(vec![conjugated(&v, &ops::log(&w)?, &ops::matrix_transpose(&v)?)?, w])
        };
        check("eigh", &both, &x);
    }
}

#[test]
fn singular_values_and_vectors() {
    for shape in [[3, 3], [4, 2], [2, 4]] {
        let x = [normal(&[2, shape[0], shape[1]], 71)];
        let k = shape[0].min(shape[1]) as i64;
        check("singular values", &|x| Ok(vec![linalg::singular_values(&x[0])?]), &x);
        let whole = (None, None, 1);
        let vectors = |x: &[Array]| {
            let (u, s, vt) = linalg::svd(&x[0])?;
            let (un, vn) = (
                ops::slice(&u, &[whole, whole, (None, Some(k), 1)])?,
                ops::slice(&vt, &[whole, (None, Some(k), 1), whole])?,
            );
            let mixed = conjugated(&un, &ops::sin(&s)?, &vn)?;
            let left = conjugated(&un, &ops::exp(&s)?, &ops::matrix_transpose(&un)?)?;
            let right = conjugated(&ops::matrix_transpose(&vn)?, &ops::cos(&s)?, &vn)?;
            // What is left of the space.
            let rest = ops::slice(&u, &[whole, whole, (Some(k), None, 1)])?;
            let null = ops::slice(&vt, &[whole, (Some(k), None, 1), whole])?;
            let rest = ops::matmul(&rest, &ops::matrix_transpose(&rest)?)?;
            let null = ops::matmul(&ops::matrix_transpose(&null)?, &null)?;
            Ok(vec![mixed, left, right, rest, null, s])
        };
        check("svd", &vectors, &x);
        check("pinv", &|x| Ok(vec![linalg::pinv(&x[0])?]), &x);
        for ord in [Norm::Nuclear, Norm::P(2.0), Norm::P(-2.0), Norm::Frobenius, Norm::P(1.0), Norm::P(f64::INFINITY)] {
            check("norm", &|x| Ok(vec![linalg::norm(&x[0], ord, [-2, -1], false)?]), &x);
        }
    }
    for p in [1.0, 2.0, 3.0, f64::INFINITY] {
        check("norm of vectors", &|x| Ok(vec![linalg::norm(&x[0], p, -1, false)?]), &[normal(&[2, 3], 72)]);
    }
    // Equal singular values: the pseudoinverse is the inverse.
    let near = |f: fn(&Array) -> Result<Array>| {
        let of = |a: &Array| ops::sum(&ops::multiply(f(a)?, normal(&[3, 3], 73))?, (), false);
        grad(of)(&ops::eye(3, None, 0, Some(Dtype::Float64)).unwrap()).unwrap()
    };
    close(&near(linalg::pinv), &near(linalg::inv).to_vec::<f64>().unwrap());
}

#[test]
fn eigenvalues_of_general_matrices() {
    let x = [positive(&[2, 3, 3], 74)];
    // Sums over the spectrum do not depend on its order.
    let values = |x: &[Array]| parts(&ops::sum(&ops::exp(&linalg::eigvals(&x[0])?)?, -1, false)?);
    coarse("eigvals", &values, &x);
    let turning = |x: &[Array]| parts(&ops::sum(&ops::sin(&linalg::eigvals(&normal_part(&x[0])?)?)?, -1, false)?);
    coarse("eigvals, complex", &turning, &x);
    let vectors = |x: &[Array]| {
        let (w, v) = linalg::eig(&normal_part(&x[0])?)?;
        let back = conjugated(&v, &ops::sin(&w)?, &linalg::inv(&v)?)?;
        // Lengths of 1, whatever the phase.
        let sizes = ops::sum(&ops::square(&ops::square(&ops::abs(&v)?)?)?, (), false)?;
        Ok([parts(&back)?, vec![sizes]].concat())
    };
    coarse("eig", &vectors, &x);
    let by_vectors = |x: &[Array]| Ok(vec![ops::sum(&linalg::eig(&x[0])?.0.square(), -1, false)?.real()]);
    coarse("eigenvalues of eig", &by_vectors, &x);
    mapping("eigvals", &|x| parts(&linalg::eigvals(&x[0])?), &x);
}

/// A matrix with complex eigenvalues.
fn normal_part(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    let turn = ops::subtract(ops::eye(n, None, 1, Some(a.dtype()))?, ops::eye(n, None, -1, Some(a.dtype()))?)?;
    ops::add(ops::multiply(a, 0.3)?, ops::multiply(turn, 2.0)?)
}
